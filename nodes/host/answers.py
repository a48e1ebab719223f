"""The host's model call in parts: its answer, and how far guidance pushed that."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import comfy.model_patcher
import torch
from torch import Tensor

from ...samplers.contract import Denoiser
from ...samplers.table import Answers
from .sampler import denoiser


def in_parts(model, extra_args: dict[str, Any]) -> Denoiser:
    """(x, sigma) -> (B, parts, ...): x0, and x0 minus the answer without the prompt where the guider asks for that.

    Heard by a function behind all others that look at the guided answer. Under a mask both parts are held alike.
    """
    pushes: list[Tensor] = []

    def hear(args: dict[str, Any]) -> Tensor:
        if args.get("uncond") is not None and torch.is_tensor(args.get("uncond_denoised")):
            pushes.append(args["denoised"] - args["uncond_denoised"])
        return args["denoised"]

    options = comfy.model_patcher.set_model_options_post_cfg_function(dict(extra_args.get("model_options", {})), hear)
    denoise, mask = denoiser(model, extra_args | {"model_options": options}), extra_args.get("denoise_mask")

    def ask(x: Tensor, sigma: float) -> Tensor:
        pushes.clear()
        answer = denoise(x, sigma)
        if len(pushes) != 1:  # a guider of several passes has no one push
            return answer[:, None]
        return torch.stack([answer, pushes[0] if mask is None else pushes[0] * mask], 1)

    return ask


def apart(ask: Denoiser) -> Answers:
    """The same, with a latent for each part."""

    def answers(x: Tensor, sigma: float) -> Sequence[Tensor]:
        return ask(x, sigma).unbind(1)

    return answers
