"""The coordinates in which DPM-Solver-v3's statistics are diagonal: pixels, or spatial frequencies.

The method is per coordinate in any orthonormal basis, because white noise is white in all of them. Differs: the paper
knows pixels only. In the DCT basis, pooled over bands of equal frequency, the linear part of a model is nearer to
diagonal, and the table is free of resolution: a frequency is counted in cycles per latent pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from ..streams import ALONE, Streams
from .statistics import Statistics

POINTS_PER_BAND = 8  # of the table that is interpolated between bands


class Basis(Protocol):
    """An orthonormal change of coordinates of latents (B, ...), and where the coefficients of a table go in them."""

    @property
    def statistics(self) -> Statistics:
        """The table whose features `place` understands."""
        ...

    def forward(self, x: Tensor) -> Tensor: ...

    def inverse(self, z: Tensor) -> Tensor: ...

    def place(self, values: Tensor) -> Tensor:
        """(rows, *F) -> (rows, ...), each row to be broadcast against one item of `forward`."""
        ...


def basis_for(statistics: Statistics, item: Sequence[int], streams: Streams = ALONE) -> Basis:
    """The basis of a table for latents of the shape (B, *item): pixels for (C, H, W) features, the DCT for (C, R).

    streams: of latents that the host packed, (B, 1, N): there F is one for all, a stream, or a channel of a stream.
    Raises ValueError where the table is of another latent.
    """
    if streams.is_pack and statistics.features.numel() > 1:
        return Pack(statistics, streams)
    channels = statistics.features[0]
    if channels not in (1, item[0]):
        raise ValueError(
            f"The statistics were measured on latents of {channels} channels; this latent has {item[0]}. "
            "Measure them on this model."
        )
    return Pixels(statistics, tuple(item)) if len(statistics.features) == 3 else Frequencies(statistics, tuple(item))


# ---------------------------------------------------------------------------------------------------------
# Pixels


class Pixels:
    """The latent as it is. F is (C or 1, 1, 1) or (C or 1, H, W); of a video, every frame has the same."""

    def __init__(self, statistics: Statistics, item: tuple[int, ...]):
        size = tuple(statistics.features[1:])
        if statistics.is_per_pixel and size != item[1:][-2:]:
            raise ValueError(
                f"The statistics were measured per pixel at {size[0]} x {size[1]}; this latent is "
                f"{' x '.join(map(str, item[1:]))}. Pool them by channel or spectral to use them at other sizes."
            )
        self.statistics, self.axes = statistics, len(item) - 1

    def forward(self, x: Tensor) -> Tensor:
        return x

    def inverse(self, z: Tensor) -> Tensor:
        return z

    def place(self, values: Tensor) -> Tensor:
        rows, channels, *size = values.shape
        size = size if self.axes > 1 else [1]
        return values.reshape(rows, channels, *[1] * (self.axes - len(size)), *size)


class Pack:
    """Several streams in a row, as they are. F is (streams, 1, 1), or (channels of all streams, 1, 1)."""

    def __init__(self, statistics: Statistics, streams: Streams):
        self.statistics, self.feature = statistics, streams.feature_of(statistics.features)

    def forward(self, x: Tensor) -> Tensor:
        return x

    def inverse(self, z: Tensor) -> Tensor:
        return z

    def place(self, values: Tensor) -> Tensor:
        self.feature = self.feature.to(values.device)
        return values.flatten(1)[:, None, self.feature]


# ---------------------------------------------------------------------------------------------------------
# Frequencies


@lru_cache(maxsize=16)
def dct_matrix(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The orthonormal DCT-II (n, n): row k is frequency k. Made in float64 on the CPU."""
    with torch.inference_mode(False):  # the host samples in inference mode, and the matrix outlives it
        i = torch.arange(n, dtype=torch.float64)
        rows = torch.cos(torch.pi / n * i[:, None] * (i + 0.5)) * (2 / n) ** 0.5
        rows[0] /= 2**0.5
        return rows.to(dtype).to(device)


def to_frequencies(x: Tensor) -> Tensor:
    """The orthonormal DCT over the last two axes."""
    rows, columns = (dct_matrix(n, x.dtype, x.device) for n in x.shape[-2:])
    return rows @ x @ columns.T


def to_pixels(z: Tensor) -> Tensor:
    """The inverse of `to_frequencies`."""
    rows, columns = (dct_matrix(n, z.dtype, z.device) for n in z.shape[-2:])
    return rows.T @ z @ columns


def band_position(height: int, width: int, bands: int) -> Tensor:
    """Which of `bands` bands each coefficient of a height x width DCT belongs to, (height, width), in fractions.

    0 is the lowest frequency, bands - 1 the highest that there can be, and between them it goes by the square root of
    the radial frequency: pictures have most of their content at low ones, which get more bands so.
    """
    rows = torch.arange(height, dtype=torch.float64)[:, None] / height
    columns = torch.arange(width, dtype=torch.float64) / width
    return ((rows**2 + columns**2) / 2) ** 0.25 * (bands - 1)


def between_bands(statistics: Statistics) -> Statistics:
    """The table (N + 1, C, R) interpolated to POINTS_PER_BAND points from one band to the next.

    Coefficients are then made for these points, so that l in f and l in the integrals are one number everywhere.
    """
    bands = statistics.features[-1]
    at = torch.arange((bands - 1) * POINTS_PER_BAND + 1, dtype=torch.float64) / POINTS_PER_BAND
    lower = at.floor().long()
    upper = (lower + 1).clamp(max=bands - 1)
    tables = (t[..., lower].lerp(t[..., upper], at - lower) for t in (statistics.l, statistics.s, statistics.b))
    return Statistics(statistics.lam, *tables)


class Frequencies:
    """The latent in the DCT. F is (C or 1, R)."""

    def __init__(self, statistics: Statistics, item: tuple[int, ...]):
        if len(item) < 3:
            raise ValueError(
                f"Spectral statistics are for latents with rows and columns; this one is {' x '.join(map(str, item))}. "
                "Pool them by channel."
            )
        self.statistics = between_bands(statistics)
        self.shape = [*[1] * (len(item) - 3), *item[-2:]]
        self.point = band_position(item[-2], item[-1], self.statistics.features[-1]).round().long().flatten()

    def forward(self, x: Tensor) -> Tensor:
        return to_frequencies(x)

    def inverse(self, z: Tensor) -> Tensor:
        return to_pixels(z)

    def place(self, values: Tensor) -> Tensor:
        self.point = self.point.to(values.device)
        return values.gather(-1, self.point.expand(*values.shape[:-1], -1)).unflatten(-1, self.shape)
