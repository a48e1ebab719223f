"""DEIS as the host's SAMPLER: on a clock of noise, as Boost runs it, and by the paper's methods."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import comfy.samplers
import numpy as np
import torch
from torch import Tensor

from ...samplers.choices import check_choice
from ...samplers.clock import Clock, Time, hosts_sigma, log_noise
from ...samplers.contract import Solver
from ...samplers.deis import CAP, DEIS, IPNDM, SLOPE, check_order
from ...samplers.noise_law import NoiseLaw
from ...samplers.runge_kutta import RungeKutta, calls_of
from ...samplers.sigmas import checked_sigmas, without_repeats
from .noise_law import noise_law
from .progress import Report
from .sampler import Reporter, denoiser, model_sampling_of

METHODS = ("tab", "rhoab", "rhork", "ipndm")
CLOCKS = ("model", "log_snr", "sigma")


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
    sampled = partial(run, model, x, sigmas, extra_args, callback, disable, who="Boost", report=report)
    return sampled(lambda law, sampling: DEIS(law, clock, order, corrector, ends_denoised))


@torch.no_grad()
def sample_deis_method(
    model,
    x: Tensor,
    sigmas: Tensor,
    extra_args=None,
    callback=None,
    disable=None,
    *,
    method: str,
    order: int,
    clock: str,
    report: Report | None = None,
) -> Tensor:
    """The host's sampler function of the node DEIS. Raises ValueError for sigmas that do not fall."""
    sampled = partial(run, model, x, sigmas, extra_args, callback, disable, who="DEIS", report=report)
    return sampled(partial(solver_of, method, order, clock))


def run(
    model,
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict[str, Any] | None,
    callback: Callable | None,
    disable: bool | None,
    solver: Callable[[NoiseLaw, Any], Solver],
    who: str,
    report: Report | None,
) -> Tensor:
    """By the solver that the model's noise law and sampling give."""
    sampling = model_sampling_of(model)
    law = noise_law(sampling)
    nodes = torch.tensor(without_repeats(checked_sigmas(sigmas, law)), dtype=torch.float64)
    watch = Reporter(callback, nodes, disable)
    end = solver(law, sampling)(denoiser(model, extra_args or {}), x, nodes, on_step=watch)
    watch.complain(end, report, who)
    return end


def solver_of(method: str, order: int, clock: str, law: NoiseLaw, sampling: Any) -> Solver:
    if method == "rhork":
        return RungeKutta(order)
    if method == "ipndm":
        return IPNDM(order)
    time = time_of("sigma" if method == "rhoab" else clock, law, sampling)
    return DEIS(law, time, order, corrector=False, ends_denoised=True, answers=SLOPE, cap=CAP)


# ---------------------------------------------------------------------------------------------------------
# Clocks


def time_of(clock: str, law: NoiseLaw, sampling: Any) -> Time:
    """The clock by its name; `model` is what the network itself is told of the time."""
    if clock == "log_snr":
        return log_noise
    return ModelTime(sampling, law) if clock == "model" else hosts_sigma(law)


@dataclass(frozen=True, eq=False)
class ModelTime:
    """A model's own time at noise-to-signal ratios, between the whole numbers of eps and v models too."""

    sampling: Any
    law: NoiseLaw

    def __call__(self, ratio: Tensor) -> Tensor:
        sigma = hosts_sigma(self.law)(ratio)
        if self.sampling.timestep(torch.ones(1)).is_floating_point():
            return self.sampling.timestep(sigma)
        return torch.from_numpy(between_steps(self.sampling.log_sigmas, sigma))


def between_steps(log_sigmas: Tensor, sigma: Tensor) -> np.ndarray:
    """The number of the step that has ln sigma, straight between two and beyond the ends."""
    table, at = log_sigmas.detach().cpu().double().numpy(), sigma.log().numpy()
    steps = np.interp(at, table, np.arange(len(table)))
    below = np.minimum(at - table[0], 0) / (table[1] - table[0])
    above = np.maximum(at - table[-1], 0) / (table[-1] - table[-2])
    return steps + below + above


# ---------------------------------------------------------------------------------------------------------
# SAMPLERs


def deis_sampler(
    clock: Clock, order: int, corrector: bool, ends_denoised: bool, report: Report | None = None
) -> comfy.samplers.KSAMPLER:
    options = {"clock": clock, "order": order, "corrector": corrector, "ends_denoised": ends_denoised, "report": report}
    return comfy.samplers.KSAMPLER(sample_deis_clock, options)


class StagedSampler(comfy.samplers.KSAMPLER):
    """KSAMPLER of several model calls a step, which says how many."""

    def calls(self, steps: int, to_zero: bool) -> int:
        return calls_of(self.extra_options["order"], steps, to_zero)


def deis_method_sampler(method: str, order: int, clock: str, report: Report | None = None) -> comfy.samplers.KSAMPLER:
    """The SAMPLER of the node. Raises ValueError for what is no method, order or clock."""
    check_choice("method", method, METHODS)
    check_order(order)
    check_choice("clock", clock, CLOCKS)
    made = StagedSampler if method == "rhork" else comfy.samplers.KSAMPLER
    return made(sample_deis_method, {"method": method, "order": order, "clock": clock, "report": report})
