"""How far drawn samples are from a law, without a trained network (methods/beyond.md 15)."""

from __future__ import annotations

import torch
from torch import Tensor


def directions(dimension: int, count: int, seed: int = 0) -> Tensor:
    """Unit vectors drawn from the sphere, (dimension, count) float64."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn((dimension, count), generator=generator, dtype=torch.float64)
    return drawn / drawn.norm(dim=0)


def pair_sums(lines: Tensor) -> Tensor:
    """sum over i < j of |a_i - a_j| of every column of (N, P), by sorting: the i-th smallest has weight 2 i - N + 1."""
    n = len(lines)
    weights = 2 * torch.arange(n, dtype=lines.dtype, device=lines.device) - n + 1
    return weights @ lines.sort(0).values


def sliced_energy_distances(x: Tensor, y: Tensor, along: Tensor) -> Tensor:
    """2 E|X-Y| - E|X-X'| - E|Y-Y'| of the projections on each column of `along`, (P,).

    x (N, ...), y (M, ...): samples of the two laws; along (D, P): unit vectors. In the samples' unit, 0 for equal
    laws, and unbiased (U-statistics), so it may come out below 0.
    """
    a, b = (samples.flatten(1).to(along) @ along for samples in (x, y))
    n, m = len(a), len(b)
    within_a, within_b = pair_sums(a), pair_sums(b)
    between = pair_sums(torch.cat([a, b])) - within_a - within_b
    return 2 * between / (n * m) - 2 * within_a / (n * (n - 1)) - 2 * within_b / (m * (m - 1))


def sliced_energy_distance(x: Tensor, y: Tensor, count: int = 128, seed: int = 0) -> float:
    """The mean of sliced_energy_distances over `count` directions, fixed by `seed`."""
    return float(sliced_energy_distances(x, y, directions(x[0].numel(), count, seed)).mean())
