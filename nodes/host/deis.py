"""DEIS on a clock of noise as the host's SAMPLER."""

from __future__ import annotations

import comfy.samplers
import torch
from torch import Tensor

from ...samplers.clock import Clock
from ...samplers.deis import DEIS
from ...samplers.sigmas import checked_sigmas, without_repeats
from .noise_law import noise_law
from .progress import Report, complain
from .sampler import Reporter, denoiser, model_sampling_of


@torch.no_grad()
def sample_deis_clock(
    model,
    x: Tensor,
    sigmas: Tensor,
    extra_args=None,
    callback=None,
    disable=None,
    *,
    clock: Clock,
    order: int = 2,
    corrector: bool = True,
    ends_denoised: bool = False,
    report: Report | None = None,
) -> Tensor:
    """The host's sampler function. Raises ValueError for sigmas that do not fall."""
    law = noise_law(model_sampling_of(model))
    nodes = torch.tensor(without_repeats(checked_sigmas(sigmas, law)), dtype=torch.float64)
    watch = Reporter(callback, nodes, disable)
    end = DEIS(law, clock, order, corrector, ends_denoised)(denoiser(model, extra_args or {}), x, nodes, on_step=watch)
    for complaint in watch.complaints(end):
        complain(report, "Boost", complaint)
    return end


def deis_sampler(
    clock: Clock, order: int, corrector: bool, ends_denoised: bool, report: Report | None = None
) -> comfy.samplers.KSAMPLER:
    options = {"clock": clock, "order": order, "corrector": corrector, "ends_denoised": ends_denoised, "report": report}
    return comfy.samplers.KSAMPLER(sample_deis_clock, options)
