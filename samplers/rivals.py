"""Other kinds of guidance that cost no call, for comparing: each weighs D_c - D_u in its own way.

v = (x - D) / sigma is the slope of every model; only ratios of slopes count here, so x - D stands for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .choices import check_choice
from .gmflow.guidance import mean_of_item, mean_square

LEAST = 1e-12
ALPHA = 10.0  # of magnitude-aware guidance at strength 1
COARSE = 0.125  # cycles a number: half of the difference is left where frequencies are as high
BEGINNING = 0.04  # of the model's time, in which zero-init stands still


@dataclass(frozen=True)
class Rival:
    """One of `RIVALS`, at a strength. Raises ValueError for one that is not allowed."""

    mode: str
    strength: float

    def __post_init__(self) -> None:
        check_choice("mode", self.mode, RIVALS)
        if not 0 <= self.strength < math.inf:
            raise ValueError(f"The strength is {self.strength:g}; it must be 0 or more.")

    def __call__(self, x: Tensor, conditional: Tensor, unconditional: Tensor, cfg: float, beginning: Tensor) -> Tensor:
        """The guided prediction, (B, C, ...). beginning: whether this call is in the first part of the model's time."""
        return RIVALS[self.mode](x, conditional, unconditional, cfg, self.strength, beginning)


def magnitude_aware(
    x: Tensor, conditional: Tensor, unconditional: Tensor, cfg: float, strength: float, beginning: Tensor
) -> Tensor:
    """v_u + w (v_c - v_u), w = 1 + (cfg - 1) exp(-alpha r), r = |v_c - v_u| / |v_u|, (B, C, ...): arXiv 2508.03442.

    alpha = 10 strength. Items do not mix.
    """
    difference = conditional - unconditional
    r = (mean_square(difference) / mean_square(x - unconditional).clamp(min=LEAST)).sqrt()
    return unconditional + (1 + (cfg - 1) * torch.exp(-ALPHA * strength * r)) * difference


def frequency_decoupled(
    x: Tensor, conditional: Tensor, unconditional: Tensor, cfg: float, strength: float, beginning: Tensor
) -> Tensor:
    """D_u + (1 + strength (cfg - 1)) L d + cfg (d - L d), d = D_c - D_u, L a low-pass, (B, C, ...): arXiv 2506.19713.

    Differs: a Gaussian of the frequency parts d, where the paper has a Laplacian pyramid.
    """
    difference = conditional - unconditional
    low = coarse(difference)
    return unconditional + (1 + strength * (cfg - 1)) * low + cfg * (difference - low)


def coarse(x: Tensor) -> Tensor:
    """What frequencies below `COARSE` there are along the last two axes, or along the one of (B, C, N)."""
    axes = (-2, -1) if x.ndim > 3 else (-1,)
    f = [torch.fft.fftfreq(x.shape[a], device=x.device, dtype=x.dtype).square() for a in axes]
    radius = f[0][:, None] + f[1] if len(axes) == 2 else f[0]
    return torch.fft.ifftn(torch.fft.fftn(x, dim=axes) * torch.exp2(-radius / COARSE**2), dim=axes).real


def zero_star(
    x: Tensor, conditional: Tensor, unconditional: Tensor, cfg: float, strength: float, beginning: Tensor
) -> Tensor:
    """s v_u + cfg (v_c - s v_u), s = <v_c, v_u> / |v_u|^2, (B, C, ...), and v = 0 at the beginning: arXiv 2503.18886.

    Differs: where the paper counts steps, the beginning is of the model's time; the strength has no part in it.
    """
    c, u = x - conditional, x - unconditional
    scaled = u * (mean_of_item(c * u) / mean_square(u).clamp(min=LEAST))
    return torch.where(beginning, x, x - (scaled + cfg * (c - scaled)))


RIVALS: dict[str, Callable[..., Tensor]] = {
    "magnitude": magnitude_aware,
    "frequency": frequency_decoupled,
    "zero_star": zero_star,
}
