"""Runge-Kutta methods on dx/dsigma = (x - x0) / sigma: rhoRK of DEIS, arXiv 2204.13902 section 3.

On eps, v and EDM models x is the paper's v and sigma its rho. On flow models the same equation holds for x as it is,
and is regular at sigma 1, where rho is infinite.

Differs: the last step, to sigma 0, where the slope has no value, is Euler's and ends with the prediction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .contract import Denoiser, Noise, OnStep
from .deis import check_falling, check_order


@dataclass(frozen=True)
class Tableau:
    """Stage i is at `places[i]` of a step and reached by `stages[i]` of the slopes before it; `step` is the sum."""

    places: tuple[float, ...]
    stages: tuple[tuple[float, ...], ...]
    step: tuple[float, ...]


TABLEAUS = {
    1: Tableau((0.0,), ((),), (1.0,)),  # Euler
    2: Tableau((0.0, 1.0), ((), (1.0,)), (1 / 2, 1 / 2)),  # Heun
    3: Tableau((0.0, 1 / 2, 1.0), ((), (1 / 2,), (-1.0, 2.0)), (1 / 6, 2 / 3, 1 / 6)),  # Kutta
    4: Tableau(  # the classical one
        (0.0, 1 / 2, 1 / 2, 1.0), ((), (1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6)
    ),
}


@dataclass(frozen=True)
class RungeKutta:
    """A Solver of samplers.contract: `order` model calls a step, 1 to 4, and one in a step to 0."""

    order: int = 3

    def __call__(
        self,
        denoise: Denoiser,
        x: Tensor,
        sigmas: Sequence[float] | Tensor,
        *,
        noise: Noise | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Raises ValueError for sigmas that do not fall."""
        check_order(self.order)
        nodes = [float(sigma) for sigma in sigmas]
        check_falling(nodes, "A Runge-Kutta method")
        for n, (s, t) in enumerate(zip(nodes, nodes[1:], strict=False)):
            tableau = TABLEAUS[self.order if t > 0 else 1]
            slopes: list[Tensor] = []
            for place, weights in zip(tableau.places, tableau.stages, strict=True):
                at, sigma = moved(x, t - s, weights, slopes), s + place * (t - s)
                denoised = denoise(at, sigma)
                slopes.append((at - denoised) / sigma)
                if on_step and place == 0:
                    on_step(n, s, x, denoised)
            x = moved(x, t - s, tableau.step, slopes)
        return x


def calls_of(order: int, steps: int, to_zero: bool) -> int:
    """Model calls of so many steps."""
    return order * steps - (order - 1 if to_zero else 0)


def moved(x: Tensor, h: float, weights: Sequence[float], slopes: Sequence[Tensor]) -> Tensor:
    """x + h times the weighted slopes."""
    for weight, slope in zip(weights, slopes, strict=True):
        x = torch.add(x, slope, alpha=h * weight)
    return x
