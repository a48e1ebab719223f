"""Measuring inside the host's own sampling: its guider, its memory management, its progress bar and its cancel."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...samplers.contract import Denoiser
from ..host.progress import show_text
from ..host.sampler import denoiser

Result = TypeVar("Result")
NOTHING_TO_MEASURE = (
    "The model answered with NaN or infinite numbers, so there is nothing to measure. Draw a picture with it first; if "
    "that is black too, start ComfyUI with --force-fp32 or use another file of the model."
)


class Counter:
    """Calls done, of those known beforehand: on the node in words, and as the host's progress bar.

    A call on several latents at once counts as one a latent where `by_latent` says so.
    """

    def __init__(self, total: int, node_id: str | None, what: str, by_latent: bool = False):
        self.total, self.node_id, self.what, self.by_latent = total, node_id, what, by_latent
        self.done, self.began = 0, time.monotonic()
        self.bar = comfy.utils.ProgressBar(total, node_id=node_id)
        show_text(node_id, f"{what}: {self.calls(total)}")

    def calls(self, number: int) -> str:
        return f"{number} model calls" + (" of one latent at most" if self.by_latent else "")

    def watch(self, denoise: Denoiser) -> Denoiser:
        """The same denoiser, counted, and stopped by the host's cancel."""

        def counted(x: Tensor, sigma: float) -> Tensor:
            comfy.model_management.throw_exception_if_processing_interrupted()
            denoised = denoise(x, sigma)
            self.done += len(x) if self.by_latent else 1
            self.bar.update_absolute(self.done)
            text = f"{self.what}: {self.done} of {self.calls(self.total)}, {self.time_left()} left"
            show_text(self.node_id, text)
            return denoised

        return counted

    def time_left(self) -> str:
        seconds = round((time.monotonic() - self.began) / self.done * (self.total - self.done))
        return f"{seconds // 60}:{seconds % 60:02}"

    def finish(self) -> None:
        """Where fewer calls were needed than might have been."""
        self.bar.update_absolute(self.total)


def inside_sampling(
    guider: comfy.samplers.CFGGuider,
    noise: Tensor,
    sigmas: Tensor,
    work: Callable[[Denoiser, Tensor], Result],
    seed: int,
) -> Result:
    """work(denoise, x) as a sampler of the host is run: x is `noise` as the model wants it at sigmas[0]."""
    results: list[Result] = []

    @torch.no_grad()
    def sampler_function(model, x, sigmas, extra_args=None, callback=None, disable=None) -> Tensor:
        results.append(work(denoiser(model, extra_args or {}), x))
        return x

    sampler = comfy.samplers.KSAMPLER(sampler_function)
    guider.sample(noise, torch.zeros_like(noise), sampler, sigmas, disable_pbar=True, seed=seed)
    return results[0]


def guider_for(model: ModelPatcher, positive: list, negative: list, cfg: float) -> comfy.samplers.CFGGuider:
    """The host's ordinary guidance, with everything that hangs on the model."""
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(cfg)
    return guider
