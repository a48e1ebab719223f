"""Restart, arXiv 2306.14878 algorithm 1, run: an expanded schedule is solved in falling runs, noise between them."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from .contract import Denoiser, Noise, OnStep, Solver
from .heun import heun
from .noise_law import VARIANCE_EXPLODING, NoiseLaw
from .sigmas import kept_places


def restart(
    denoise: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: Noise,
    on_step: OnStep | None = None,
    inner: Solver = heun,
    law: NoiseLaw = VARIANCE_EXPLODING,
    s_noise: float = 1.0,
) -> Tensor:
    """Solve `sigmas` (N + 1,), whose upward jumps mean "noise up to here"; see schedulers.restart.plan.

    Every falling run is a call of `inner` of its own, so no history crosses a jump. A schedule that was cut
    anywhere still runs: no sigmas and a run of one have no step, and a jump at the end leaves x noised.
    """
    if len(sigmas) == 0:
        return x
    steps, sigma = 0, float(sigmas[0])
    for run in falling_runs(sigmas):
        top = float(run[0])
        if top > sigma:
            x = law.renoise(x, sigma, top, noise(sigma, top), s_noise)
        if len(run) > 1:
            x = inner(denoise, x, run, noise=noise, on_step=counted_from(steps, on_step))
        steps, sigma = steps + len(run) - 1, float(run[-1])
    return x


def falling_runs(sigmas: Tensor) -> list[Tensor]:
    """`sigmas` cut before every value that is above the one before it; of equal neighbours the first is left.

    A step that goes nowhere would cost a call, and multistep samplers divide by its length.
    """
    kept = sigmas[kept_places(sigmas.tolist())]
    tops = [i + 1 for i, (a, b) in enumerate(pairwise(kept.tolist())) if b > a]
    return list(torch.tensor_split(kept, tops))


def solver_steps(sigmas: Tensor) -> int:
    """Steps that a solver makes on an expanded schedule: a jump is none."""
    return sum(max(len(run) - 1, 0) for run in falling_runs(sigmas))


def counted_from(first: int, on_step: OnStep | None) -> OnStep | None:
    """on_step of one run, its number counted over all runs."""
    if on_step is None:
        return None
    return lambda step, sigma, x, denoised: on_step(first + step, sigma, x, denoised)
