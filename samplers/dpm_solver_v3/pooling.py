"""Over which coordinates of a latent one statistic is shared: all, a channel, a band of frequencies, or none."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..choices import check_choice
from .bases import band_position, to_frequencies, to_pixels

POOLINGS = ("global", "channel", "spectral", "pixel")
BANDS = 8


@dataclass(frozen=True)
class Pooling:
    """kind: one of POOLINGS, for latents of the shape (B, *item). Raises ValueError where a latent has no pixels."""

    kind: str
    item: tuple[int, ...]

    def __post_init__(self) -> None:
        check_choice("pooling", self.kind, POOLINGS)
        if self.kind in ("spectral", "pixel") and len(self.item) < 3:
            raise ValueError(
                f"This model's latents are packed, {self.item}, and have no rows and columns. "
                "Set pooling to channel or global."
            )

    @cached_property
    def features(self) -> tuple[int, ...]:
        """F of the statistics."""
        channels = self.item[0]
        shapes = {"global": (1, 1, 1), "channel": (channels, 1, 1), "pixel": (channels, *self.item[-2:])}
        return shapes.get(self.kind, (1, self.bands))

    @cached_property
    def bands(self) -> int:
        """BANDS, or as many as have a frequency each: small latents have fewer."""
        found = [n for n in range(BANDS, 1, -1) if len(band_of(self.item, n).unique()) == n]
        return found[0] if found else 1

    def forward(self, x: Tensor) -> Tensor:
        """Latents in the coordinates of the statistics."""
        return to_frequencies(x) if self.kind == "spectral" else x

    def inverse(self, z: Tensor) -> Tensor:
        return to_pixels(z) if self.kind == "spectral" else z

    def total(self, z: Tensor) -> Tensor:
        """Sums of z (B, *item) over the batch and what is pooled, F, float64 on the CPU."""
        if self.kind == "global":
            return z.sum().cpu().double().view(1, 1, 1)
        if self.kind == "channel":
            return z.transpose(0, 1).flatten(1).sum(1).cpu().double().view(-1, 1, 1)
        per_pixel = z.sum(0).flatten(1, -3).sum(1) if z.ndim > 4 else z.sum(0)
        if self.kind == "pixel":
            return per_pixel.cpu().double()
        return self._by_band(per_pixel.sum(0).cpu().double()).view(1, self.bands)

    def _by_band(self, values: Tensor) -> Tensor:
        return torch.zeros(self.bands, dtype=torch.float64).index_add(0, self._band, values.flatten())

    @cached_property
    def _band(self) -> Tensor:
        return band_of(self.item, self.bands)

    @cached_property
    def numbers(self) -> Tensor:
        """How many numbers of one latent go into each statistic, F."""
        return self.total(torch.ones(1, *self.item))


def band_of(item: tuple[int, ...], bands: int) -> Tensor:
    """The band of every frequency of a latent (..., H, W), (H W,)."""
    height, width = item[-2:]
    return band_position(height, width, bands).round().long().flatten()
