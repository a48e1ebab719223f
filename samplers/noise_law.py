"""The two noise laws of the host, and everything that depends on them.

| symbol   | name         | variance exploding | flow                |
|----------|--------------|--------------------|---------------------|
| alpha    | `alpha`      | 1                  | 1 - sigma           |
| c        | `scale`      | 1                  | 1; the noise_scale  |
| c sigma  | `deviation`  | sigma              | c sigma             |
| sigma~   | `ratio`      | sigma              | c sigma / (1-sigma) |
| lambda   | `lam`        | -ln sigma~         | -ln sigma~          |

x = alpha x0 + c sigma e, y = x / alpha. EPS, v and EDM models are variance exploding as the host presents them; some
flow models (HiDream-O1) are trained on noise of another strength c. dx/dsigma = (x - x0) / sigma holds for all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

Number = TypeVar("Number", float, Tensor)
ROUNDING = 1e-5  # the host's float32 schedules of flow models begin up to this much above 1


@dataclass(frozen=True)
class NoiseLaw:
    """How a latent is noised at the host's sigma. `scale` is of the noise, above 0."""

    is_flow: bool
    scale: float = 1.0

    def alpha(self, sigma: Number) -> Number:
        """The share of the clean latent in x, never below 0: a flow model's sigma may be above 1 by rounding."""
        if not self.is_flow:
            return sigma * 0 + 1
        return (1 - sigma).clamp(min=0) if isinstance(sigma, Tensor) else max(1 - sigma, 0.0)

    def deviation(self, sigma: Number) -> Number:
        """That of the noise in x."""
        return self.scale * sigma

    def ratio(self, sigma: Number) -> Number:
        """sigma~, the noise-to-signal ratio: the same number is the same noise on every model; infinite at alpha 0."""
        alpha = self.alpha(sigma)
        if not isinstance(sigma, Tensor) and alpha == 0:
            return math.inf
        return self.deviation(sigma) / alpha

    def sigma(self, ratio: Number) -> Number:
        """The inverse of `ratio`."""
        return ratio / (self.scale + ratio) if self.is_flow else ratio / self.scale

    def noised(self, x0: Tensor, sigma: float, noise: Tensor) -> Tensor:
        """x at `sigma` of the clean latent x0 and unit Gaussian `noise`."""
        return self.alpha(sigma) * x0 + self.deviation(sigma) * noise

    def lam(self, sigma: Tensor) -> Tensor:
        """lambda = -ln sigma~, half the log signal-to-noise ratio."""
        return -torch.log(self.ratio(sigma))

    def renoise(self, x: Tensor, sigma_from: float, sigma_to: float, noise: Tensor, s_noise: float = 1.0) -> Tensor:
        """x at `sigma_from` carried up to `sigma_to`, with unit Gaussian `noise` of x's shape times `s_noise`.

        Restart, arXiv 2306.14878 eq. 2, for any law: y gains variance sigma~_to^2 - sigma~_from^2.
        Raises ValueError when sigma_to lies below sigma_from.
        """
        if sigma_to < sigma_from:
            raise ValueError(f"Noise can only be added: asked to go from sigma {sigma_from:g} down to {sigma_to:g}.")
        if self.alpha(sigma_from) == 0:
            return x  # nothing but noise already
        kept = self.alpha(sigma_to) / self.alpha(sigma_from)
        added = max(self.deviation(sigma_to) ** 2 - (self.deviation(sigma_from) * kept) ** 2, 0.0) ** 0.5
        return torch.add(x * kept, noise, alpha=s_noise * added)


VARIANCE_EXPLODING = NoiseLaw(is_flow=False)
FLOW = NoiseLaw(is_flow=True)
