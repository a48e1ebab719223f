"""Radial bands of frequencies: what moves the composition apart from what moves grain."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

ROW_AND_COLUMN = 4  # axes of a latent (B, C, ..., H, W) that has two to part by; of a sound only the last


@lru_cache(maxsize=8)
def radial(shape: tuple[int, ...], count: int) -> Tensor:
    """Which of `count` bands each frequency of a real Fourier transform over `shape` is in: 1 there, (count, *half).

    Octaves below the highest frequency of one axis: the last band holds what is above half of it, the one before what
    is above a quarter, and the first all that is left.
    """
    axes = [torch.fft.fftfreq(n) for n in shape[:-1]] + [torch.fft.rfftfreq(shape[-1])]
    radius = sum(axis.square().view(-1, *[1] * (len(shape) - 1 - place)) for place, axis in enumerate(axes)).sqrt() * 2
    octave = (count + radius.clamp(min=1e-9).log2().ceil()).clamp(1, count) - 1
    return torch.stack([(octave == band).float() for band in range(count)])


def parted(x: Tensor, count: int) -> Tensor:
    """x (B, C, ..., H, W) in bands, (count, B, C, ..., H, W), whose sum it is. One band is x itself."""
    if count == 1:
        return x[None]
    axes = (-2, -1) if x.ndim >= ROW_AND_COLUMN else (-1,)
    shape = tuple(x.shape[axis] for axis in axes)
    masks = radial(shape, count).to(x).view(count, *[1] * (x.ndim - len(axes)), *radial(shape, count).shape[1:])
    return torch.fft.irfftn(torch.fft.rfftn(x, dim=axes) * masks, s=shape, dim=axes)
