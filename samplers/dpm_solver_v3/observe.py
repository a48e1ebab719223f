"""The measurement: a denoiser that watches a trajectory and adds up what DPM-Solver-v3's statistics need.

While an ordinary solver draws a latent, every call gives D at its level, and the neighbouring levels give D' along the
trajectory, which is the trajectory that the statistics describe. One more call a level gives J = dD/dy by a random
probe. So a measurement of N levels costs 2 N calls a latent, the drawing of its own reference included.
Differs: the paper re-noises given pictures at each level and takes derivatives there (`observe_references`), which
costs a drawing first and two calls more a level.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from ..contract import Denoiser
from ..noise_law import NoiseLaw
from .pooling import Pooling
from .sums import PAIRS, Sums

STENCIL = 5  # levels from which D' is taken
SLOPE_STEP = 0.05  # of lambda
PROBE_SIZE = 0.1  # of sigma~: far above rounding, far below the width of a denoising distribution


class Derivative(Protocol):
    """J u = dD/dx u at x, given D there."""

    def __call__(self, denoise: Denoiser, x: Tensor, sigma: float, denoised: Tensor, u: Tensor) -> Tensor: ...


def by_differences(denoise: Denoiser, x: Tensor, sigma: float, denoised: Tensor, u: Tensor) -> Tensor:
    """From one call beside x. The error of first order is odd in u, so it averages out over the probes' signs."""
    size = PROBE_SIZE * sigma
    return (denoise(x + size * u, sigma) - denoised) / size


def by_forward_mode(denoise: Denoiser, x: Tensor, sigma: float, denoised: Tensor, u: Tensor) -> Tensor:
    """By forward-mode automatic differentiation: exact, where the model's code has it for all of its operations."""
    return torch.func.jvp(lambda x: denoise(x, sigma), (x,), (u,))[1]


@dataclass(frozen=True, eq=False)
class Measurement:
    """Where it is added up, and how: `sums` of `pooling`, and J probed every so many levels.

    signs: (level, shape) -> Rademacher signs, +1 or -1.
    """

    law: NoiseLaw
    pooling: Pooling
    sums: Sums
    signs: Callable[[int, torch.Size], Tensor]
    derivative: Derivative = by_differences
    every: int = 1

    @property
    def highest(self) -> float:
        """The host's sigma of the first level."""
        return self.law.sigma(math.exp(-self.sums.lam[0].item()))

    def probes(self, level: int) -> bool:
        """The last level is always probed, so that l is known up to both ends."""
        return level % self.every == 0 or level == len(self.sums.lam) - 1

    def add(self, level: int, quantities: Sequence[Tensor]) -> None:
        """r, D, D' of a batch, in the coordinates of the statistics."""
        self.sums.count[level] += len(quantities[0]) * self.pooling.numbers
        self.sums.first[level] += torch.stack([self.pooling.total(q) for q in quantities])
        products = [self.pooling.total(quantities[i] * quantities[j]) for i, j in PAIRS]
        self.sums.second[level] += torch.stack(products)

    def probe(self, denoise: Denoiser, x: Tensor, sigma: float, denoised: Tensor, level: int) -> None:
        """v J v with J = dD/dy = alpha dD/dx, and signs v in the coordinates of the statistics."""
        v = self.signs(level, x.shape).to(x)
        u = self.law.alpha(sigma) * self.pooling.inverse(v)
        response = self.pooling.forward(self.derivative(denoise, x, sigma, denoised, u).float())
        self.sums.probe_count[level] += len(x) * self.pooling.numbers
        self.sums.probe[level] += self.pooling.total(v.float() * response)


@dataclass
class Observer:
    """A Denoiser to be given to a solver, once for a batch of latents. The solver must call it at all levels in turn.

    Calls above the first level are passed on. `finish` must be called afterwards; then the sums have all.
    """

    denoise: Denoiser
    measurement: Measurement
    level: int = 0
    recent: deque[tuple[Tensor, Tensor]] = field(default_factory=lambda: deque(maxlen=STENCIL))

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        measurement = self.measurement
        denoised = self.denoise(x, sigma)
        if sigma > measurement.highest * (1 + 1e-6):
            return denoised
        if measurement.probes(self.level):
            measurement.probe(self.denoise, x, sigma, denoised, self.level)
        y = x / measurement.law.alpha(sigma)
        y, d = (measurement.pooling.forward(t.float()) for t in (y, denoised))
        self.recent.append((y - d, d))
        self.level += 1
        middle = STENCIL // 2
        if self.level == STENCIL:
            for place in range(middle):
                self.add(place)
        if self.level >= STENCIL:
            self.add(middle)
        return denoised

    def finish(self) -> None:
        """The last levels, whose D' comes from one side."""
        for place in range(STENCIL // 2 + 1 if self.level >= STENCIL else 0, len(self.recent)):
            self.add(place)

    def add(self, place: int) -> None:
        """Add up the level at a place of `recent`, with D' from the polynomial through all of them."""
        first = self.level - len(self.recent)
        weights = slope_weights(self.measurement.sums.lam[first : self.level], place).tolist()
        slope = sum((w * d for w, (_, d) in zip(weights, self.recent, strict=True)), torch.zeros(()))
        self.measurement.add(first + place, (*self.recent[place], slope))


def observe_references(
    denoise: Denoiser,
    x0: Tensor,
    sigmas: Tensor,
    measurement: Measurement,
    noise: Callable[[int, torch.Size], Tensor],
) -> None:
    """The same sums from given latents x0 (B, ...), re-noised at every level: four calls a level with the probe.

    D' is a central difference along the trajectory's direction y' = D - y, one-sided at the first level.
    noise: (level, shape) -> standard normal numbers.
    """
    law, highest, h = measurement.law, float(sigmas[0]), SLOPE_STEP

    def at(y: Tensor, sigma: float) -> Tensor:
        return denoise(law.alpha(sigma) * y, sigma)

    for level, sigma in enumerate(sigmas.tolist()):
        y = x0 + law.ratio(sigma) * noise(level, x0.shape).to(x0)
        denoised = at(y, sigma)
        way = denoised - y
        after, before = beside(law, sigma)
        ahead = at(y + h * way, after)
        if before <= highest:
            slope = (ahead - at(y - h * way, before)) / (2 * h)
        else:
            slope = (ahead - denoised) / h
        if measurement.probes(level):
            measurement.probe(denoise, law.alpha(sigma) * y, sigma, denoised, level)
        measurement.add(level, [measurement.pooling.forward(t.float()) for t in (y - denoised, denoised, slope)])


def beside(law: NoiseLaw, sigma: float) -> tuple[float, float]:
    """The sigmas SLOPE_STEP of lambda after and before one."""
    ratio = law.ratio(sigma)
    return law.sigma(ratio * math.exp(-SLOPE_STEP)), law.sigma(ratio * math.exp(SLOPE_STEP))


def observed_sigmas(law: NoiseLaw, sigmas: Tensor) -> list[float]:
    """Falling: every sigma at which `observe_references` asks the model."""
    highest = float(sigmas[0])
    asked = {s for sigma in sigmas.tolist() for s in (sigma, *beside(law, sigma)) if s <= highest}
    return sorted(asked, reverse=True)


def slope_weights(lam: Tensor, place: int) -> Tensor:
    """(n,): the derivative at lam[place] of the polynomial through values at lam (n,)."""
    powers = torch.arange(len(lam), dtype=torch.float64)
    offsets = lam - lam[place]
    return torch.linalg.inv(offsets[None, :] ** powers[:, None])[:, 1] if len(lam) > 1 else torch.zeros(1).double()
