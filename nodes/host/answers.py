"""The host's model call in parts: its answer, and how far guidance pushed that."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import comfy.model_patcher
import torch
from torch import Tensor

from ...samplers.contract import Denoiser
from ...samplers.table import Answers
from .sampler import denoiser

MASKS = "denoise_mask_function"  # of model_options: Differential Diffusion's, another mask at every sigma


class InParts:
    """(x, sigma) -> (B, parts, ...): x0, and x0 minus the answer without the prompt where the guider asks for that.

    Heard by a function behind all others that look at the guided answer. Under a mask both parts are held alike.
    mask: that of the latest call, 1 where nothing is held; None without one.
    """

    def __init__(self, model, extra_args: dict[str, Any]):
        self.pushes: list[Tensor] = []
        self.mask = extra_args.get("denoise_mask")
        options = dict(extra_args.get("model_options", {}))
        self.masks: Callable[..., Tensor] = options.get(MASKS, lambda sigma, mask, **given: mask)
        if MASKS in options:
            options[MASKS] = self.masked
        options = comfy.model_patcher.set_model_options_post_cfg_function(options, self.hear)
        self.denoise = denoiser(model, extra_args | {"model_options": options})

    def masked(self, *args, **given) -> Tensor:
        self.mask = self.masks(*args, **given)
        return self.mask

    def hear(self, args: dict[str, Any]) -> Tensor:
        if args.get("uncond") is not None and torch.is_tensor(args.get("uncond_denoised")):
            self.pushes.append((args["denoised"] - args["uncond_denoised"]).detach())  # others may take gradients
        return args["denoised"]

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        self.pushes.clear()
        answer = self.denoise(x, sigma)
        if len(self.pushes) != 1:  # a guider of several passes has no one push
            return answer[:, None]
        push = self.pushes.pop()
        return torch.stack([answer, push if self.mask is None else push * self.mask], 1)


def apart(ask: Denoiser, parts: int) -> Answers:
    """The same, with a latent for each of so many parts. A push where the guider asks for none at a sigma is 0."""

    def answers(x: Tensor, sigma: float) -> Sequence[Tensor]:
        found = ask(x, sigma).unbind(1)[:parts]
        return (*found, *(torch.zeros_like(found[0]) for _ in range(parts - len(found))))

    return answers
