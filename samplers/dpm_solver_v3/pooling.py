"""Over which coordinates of a latent one statistic is shared: all, a channel, a band of frequencies, or none.

Of several streams each has statistics of its own, also where all of a latent shares one. l, s and b are minimisers of a
mean square over what shares them, coordinate by coordinate in the paper (section 3.1), and a stream's own minimiser is
never worse for it than one for all. A video and its sound become clear at different noise, so their l fall at different
lambda, and what shares one number counts by how many numbers it has: the sound would be stepped with the video's.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..choices import check_choice
from ..streams import ALONE, Streams
from .bases import band_position, to_frequencies, to_pixels

POOLINGS = ("global", "channel", "spectral", "pixel")
BANDS = 8


@dataclass(frozen=True)
class Pooling:
    """kind: one of POOLINGS, for latents of the shape (B, *item), which may be a pack of `streams`.

    Raises ValueError where a latent has no pixels.
    """

    kind: str
    item: tuple[int, ...]
    streams: Streams = ALONE

    def __post_init__(self) -> None:
        check_choice("pooling", self.kind, POOLINGS)
        if self.kind in ("spectral", "pixel") and self.streams.is_pack:
            raise ValueError(
                f"pooling is {self.kind}, and this latent has several streams ({', '.join(self.streams.names)}), which "
                "share no rows and columns. Set pooling to global or channel: each stream then has its own numbers."
            )
        if self.kind in ("spectral", "pixel") and len(self.item) < 3:
            raise ValueError(
                f"This model's latents are packed, {self.item}, and have no rows and columns. "
                "Set pooling to channel or global."
            )

    @cached_property
    def of_streams(self) -> list[Pooling]:
        """That of each stream of a pack; their features stand one behind the other."""
        return [Pooling(self.kind, shape) for shape in self.streams.shapes]

    @cached_property
    def features(self) -> tuple[int, ...]:
        """F of the statistics."""
        if self.streams.is_pack:
            return (sum(one.features[0] for one in self.of_streams), 1, 1)
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
        if self.streams.is_pack:
            both = zip(self.of_streams, self.streams.apart(z), strict=True)
            return torch.cat([one.total(part) for one, part in both])
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
