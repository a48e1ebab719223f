"""Measuring inside the host's own sampling: its guider, its memory management, its progress bar and its cancel."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.utils
import torch
from comfy.ldm.modules.attention import attention_basic
from torch import Tensor

from ...samplers.contract import Denoiser
from ...samplers.streams import ALONE, Streams
from ..host.answers import InParts
from ..host.progress import show_text
from ..host.prompts import dealt
from ..host.sampler import denoiser
from ..host.streams import check_takes_streams, nested

Result = TypeVar("Result")
OVERRIDE = "optimized_attention_override"  # of transformer_options: what the host's attention calls instead
DIVERGED = 1e3  # mean square of a latent, whose variance is about 1


class Counter:
    """Calls done, of those known beforehand: on the node in words, and as the host's progress bar.

    A call on several latents at once counts as one a latent where `by_latent` says so.
    """

    def __init__(self, total: int, node_id: str | None, what: str, by_latent: bool = False):
        self.total, self.node_id, self.what, self.by_latent = total, node_id, what, by_latent
        self.done, self.called, self.began = 0, 0, time.monotonic()
        self.phase = ""  # what the next calls are for, where an error should say it
        self.bar = comfy.utils.ProgressBar(total, node_id=node_id)
        show_text(node_id, f"{what}: {self.calls(total)}")

    def calls(self, number: int) -> str:
        return f"{number} model calls" + (" of one latent at most" if self.by_latent else "")

    def watch(self, denoise: Denoiser) -> Denoiser:
        """The same denoiser, counted, and stopped by the host's cancel.

        Raises ValueError where the model answers with NaN or infinity.
        """

        def counted(x: Tensor, sigma: float) -> Tensor:
            comfy.model_management.throw_exception_if_processing_interrupted()
            self.called += 1
            denoised = denoise(x, sigma)
            self.check_answer(x, sigma, denoised)
            self.count(len(x) if self.by_latent else 1)
            return denoised

        return counted

    def count(self, number: int) -> None:
        """So many more are done."""
        self.done += number
        self.bar.update_absolute(self.done, self.total)
        text = f"{self.what}: {self.done} of {self.calls(self.total)}, {self.time_left()} left"
        show_text(self.node_id, text)

    def check_answer(self, x: Tensor, sigma: float, denoised: Tensor) -> None:
        """What a run that has diverged is answered is no fault of the model's: whoever made the run judges that."""
        if denoised.isfinite().all() or not x.square().mean() < DIVERGED * (1 + sigma**2):
            return
        while_doing = f" while {self.phase}" if self.phase else ""
        raise ValueError(
            f"The model answered with NaN or infinite numbers at model call {self.called}{while_doing}, at sigma "
            f"{sigma:.4g}, so there is nothing to measure. Draw a picture with it first; if that is black too, start "
            "ComfyUI with --force-fp32 or use another file of the model."
        )

    def time_left(self) -> str:
        seconds = round((time.monotonic() - self.began) / self.done * (self.total - self.done))
        return f"{seconds // 60}:{seconds % 60:02}"

    def finish(self) -> None:
        """Where fewer calls were needed than might have been."""
        if self.done < self.total:
            self.bar.update_absolute(self.total)


class HostDenoiser:
    """A Denoiser: the model inside one sampling of the host, which may hold the runs of many schedules."""

    def __init__(self, model, extra_args: dict[str, Any]):
        self.denoise, self.options = denoiser(model, extra_args), extra_args.setdefault("model_options", {})
        self.guider = model.inner_model
        self.options.setdefault("transformer_options", {})  # where `announce` tells of the schedule
        self.in_parts = InParts(model, extra_args)  # the same with what guidance did to it, (B, parts, ...)

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        return self.denoise(x, sigma)

    def dealt(self, prompts: Sequence[int]) -> HostDenoiser:
        """The same, for batches of which each item has its own of several prompts, by number."""
        made = copy.copy(self)
        made.denoise = self.deal(self.denoise, prompts)
        return made

    def deal(self, denoise: Denoiser, prompts: Sequence[int]) -> Denoiser:
        """A function of this model's, such as one in parts, for such batches."""
        return dealt(denoise, self.guider, prompts)

    @contextmanager
    def plain_attention(self) -> Iterator[None]:
        """Attention as matrix products and a softmax meanwhile, which torch can differentiate in every way."""
        options = self.options["transformer_options"]
        before = options.get(OVERRIDE)
        options[OVERRIDE] = lambda fused, *args, **given: attention_basic(*args, **given)
        try:
            yield
        finally:
            options[OVERRIDE] = before
            if before is None:
                del options[OVERRIDE]

    def announce(self, sigmas: Sequence[float]) -> None:
        """The next calls are of this schedule: context windows and other wrappers look their step up in it."""
        options = self.options.setdefault("transformer_options", {})
        there = options.get("sample_sigmas", torch.zeros(0))
        options["sample_sigmas"] = torch.tensor(sigmas, dtype=torch.float64).float().to(there.device)


def inside_sampling(
    guider: comfy.samplers.CFGGuider,
    noise: Tensor,
    sigmas: Sequence[float] | Tensor,
    work: Callable[[HostDenoiser, Tensor], Result],
    seed: int,
    streams: Streams = ALONE,
) -> Result:
    """work(denoise, x) as a sampler of the host is run: x is `noise` as the model wants it at sigmas[0].

    streams: of noise (B, 1, N), which the host is handed apart and packs itself, so that it tells the model of them.

    sigmas: falling, every one at which the model will be called, unless `work` announces others. The host's wrappers
    look there which step a call is, and which sigma follows, so a 0 is put behind the last.
    """
    results: list[Result] = []

    @torch.no_grad()
    def sampler_function(model, x, sigmas, extra_args=None, callback=None, disable=None) -> Tensor:
        check_takes_streams(model.inner_model, streams)
        results.append(work(HostDenoiser(model, extra_args or {}), x))
        return x

    sampler = comfy.samplers.KSAMPLER(sampler_function)
    schedule = torch.as_tensor(sigmas, dtype=torch.float64, device="cpu")
    schedule = schedule if schedule[-1] == 0 else torch.cat([schedule, schedule.new_zeros(1)])
    given = nested(noise, streams), nested(torch.zeros_like(noise), streams)
    guider.sample(*given, sampler, schedule.float(), disable_pbar=True, seed=seed)
    return results[0]


def check_reached(latents: Tensor, what: str, cure: str, streams: Streams = ALONE) -> None:
    """Raises ValueError where a run led nowhere, in one of its streams."""
    sizes = [float(part.cpu().double().square().mean()) for part in streams.apart(latents)]
    size = max(sizes, key=lambda size: (size != size, size))
    if not size < DIVERGED:
        raise ValueError(
            f"{what} did not reach a picture (mean square of its latents {size:.3g}; that of a picture is about 1). "
            f"{cure}"
        )
