"""Samplers of flow maps: networks that are told where to go as well, as Decoupled MeanFlow's (arXiv 2510.24474).

| symbol   | meaning                                                                                |
|----------|----------------------------------------------------------------------------------------|
| u(x,t,r) | the network: the average velocity on the way from sigma t to r <= t                    |
| x_r      | x + (r - t) u(x, t, r): the map, one call                                              |
| x0       | x - t u(x, t, r): what the host makes of u; x_r = x0 + (r / t) (x - x0)                |

Every sampler here maps to r = g t' on its way to t', and puts noise back from r to t' by the noise law: euler g = 1,
restart g = 0, ctm g = sqrt(1 - gamma^2).

Differs: the published ctm adds noise of deviation 1 - a, a = (1 - t') / (1 - r). What leaves the marginals as they are
is sqrt(t'^2 - a^2 r^2), here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from .choices import check_choice
from .contract import Noise, OnStep
from .deis import check_falling
from .facts import is_number
from .noise_law import NoiseLaw

METHODS = ("euler", "restart", "ctm")


class MapDenoiser(Protocol):
    """One guided model call: x (B, ...) at sigma, on its way to sigma r -> x - sigma u(x, sigma, r)."""

    def __call__(self, x: Tensor, sigma: float, r: float) -> Tensor: ...


def share_of(method: str, gamma: float) -> float:
    """g, how much of the noise at t' is left by the map. Raises ValueError for what is no method or gamma."""
    check_choice("method", method, METHODS)
    if not is_number(gamma, 0, 1):
        raise ValueError(f"gamma is {gamma!r}; it must be a number from 0 (no noise) to 1 (all of it anew).")
    return {"euler": 1.0, "restart": 0.0, "ctm": math.sqrt(1 - gamma**2)}[method]


@dataclass(frozen=True)
class FlowMap:
    """A solver of one call a step. share: g above, from 0 to 1."""

    law: NoiseLaw
    share: float = 1.0

    def __call__(
        self,
        denoise: MapDenoiser,
        x: Tensor,
        sigmas: Sequence[float] | Tensor,
        *,
        noise: Noise,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Raises ValueError for sigmas that do not fall."""
        nodes = [float(sigma) for sigma in sigmas]
        check_falling(nodes, "A flow map")
        for n, (s, t) in enumerate(zip(nodes, nodes[1:], strict=False)):
            r = self.share * t
            denoised = denoise(x, s, r)
            if on_step:
                on_step(n, s, x, denoised)
            x = denoised + (r / s) * (x - denoised)
            if r < t:
                x = self.law.renoise(x, r, t, noise(r, t))
        return x
