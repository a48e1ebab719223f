"""The two noise laws of the host, and everything that depends on them.

| symbol   | name         | variance exploding | flow              |
|----------|--------------|--------------------|-------------------|
| alpha    | `alpha`      | 1                  | 1 - sigma         |
| sigma~   | `ratio`      | sigma              | sigma / (1-sigma) |
| lambda   | `lam`        | -ln sigma~         | -ln sigma~        |

x = alpha x0 + sigma e, y = x / alpha. EPS, v and EDM models are variance exploding as the host presents them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

Number = TypeVar("Number", float, Tensor)


@dataclass(frozen=True)
class NoiseLaw:
    """How a latent is noised at the host's sigma. Use the two instances below."""

    is_flow: bool

    def alpha(self, sigma: Number) -> Number:
        """The share of the clean latent in x."""
        return 1 - sigma if self.is_flow else sigma * 0 + 1

    def ratio(self, sigma: Number) -> Number:
        """sigma~ = sigma / alpha, the noise-to-signal ratio: the same number means the same noise on every model."""
        return sigma / self.alpha(sigma)

    def sigma(self, ratio: Number) -> Number:
        """The inverse of `ratio`."""
        return ratio / (1 + ratio) if self.is_flow else ratio

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
        scale = self.alpha(sigma_to) / self.alpha(sigma_from)
        added = max(sigma_to**2 - (sigma_from * scale) ** 2, 0.0) ** 0.5
        return torch.add(x * scale, noise, alpha=s_noise * added)


VARIANCE_EXPLODING = NoiseLaw(is_flow=False)
FLOW = NoiseLaw(is_flow=True)
