"""The trajectories that a student follows: many small steps, far more accurate than any of its schedules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...samplers.contract import Denoiser
from ...samplers.dpm_solver_v3 import DPMSolverV3, Options
from ...samplers.noise_law import NoiseLaw


@dataclass(frozen=True, eq=False)
class Teacher:
    """sigmas: the nodes (N,), falling, all above 0. states and denoised: x and the model's answer there, (B, ...) each.

    end: the converged latents (B, ...), without noise.
    """

    sigmas: tuple[float, ...]
    states: tuple[Tensor, ...]
    denoised: tuple[Tensor, ...]
    end: Tensor


def follow(
    denoise: Denoiser,
    x: Tensor,
    law: NoiseLaw,
    sigmas: Sequence[float],
    every: int = 1,
    keep: Callable[[Tensor], Tensor] = lambda x: x,
) -> Teacher:
    """Solve from x at sigmas[0] over all `sigmas` (falling, above 0), a call each, and keep every so many nodes.

    keep: what is held of a state, and where.
    Third-order multistep with data prediction and a corrector; the last answer is the end.
    Differs: arXiv 2503.21774 has Euler on the nodes alone, whose error then limits the student.
    """
    states: list[Tensor] = []
    denoised: list[Tensor] = []
    kept = set(sigmas[::every])

    def watched(x: Tensor, sigma: float) -> Tensor:
        answer = denoise(x, sigma)
        if sigma in kept:
            states.append(keep(x))
            denoised.append(keep(answer))
        return answer

    solver = DPMSolverV3(law, options=Options(order=3, last_step="denoised"))
    end = solver(watched, x, torch.tensor([*sigmas, 0.0], dtype=torch.float64))
    return Teacher(tuple(sigmas[::every]), tuple(states), tuple(denoised), end)
