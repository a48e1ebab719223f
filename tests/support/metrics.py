"""How far drawn samples are from a law, without a trained network (methods/beyond.md 15)."""

from __future__ import annotations

import torch
from torch import Tensor


def directions(dimension: int, count: int, seed: int = 0) -> Tensor:
    """Unit vectors drawn from the sphere, (count, dimension) float64."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn((count, dimension), generator=generator, dtype=torch.float64)
    return drawn / drawn.norm(dim=1, keepdim=True)


def pair_sums(lines: Tensor) -> Tensor:
    """sum over i < j of |a_i - a_j| of every row of (P, N), by sorting: the i-th smallest has weight 2 i - N + 1."""
    n = lines.shape[1]
    weights = 2 * torch.arange(n, dtype=lines.dtype, device=lines.device) - n + 1
    return lines.sort(1).values @ weights


def sliced_energy_distances(x: Tensor, y: Tensor, along: Tensor) -> Tensor:
    """2 E|X-Y| - E|X-X'| - E|Y-Y'| of the projections on each row of `along`, (P,).

    x (N, ...), y (M, ...): samples of the two laws; along (P, D): unit vectors. In the samples' unit, 0 for equal
    laws, and unbiased (U-statistics), so it may come out below 0.
    """
    a, b = (along @ samples.flatten(1).to(along).T for samples in (x, y))
    n, m = len(x), len(y)
    within_a, within_b = pair_sums(a), pair_sums(b)
    between = pair_sums(torch.cat([a, b], 1)) - within_a - within_b
    return 2 * between / (n * m) - 2 * within_a / (n * (n - 1)) - 2 * within_b / (m * (m - 1))


def sliced_energy_distance(x: Tensor, y: Tensor, count: int = 128, seed: int = 0) -> float:
    """The mean of sliced_energy_distances over `count` directions, fixed by `seed`."""
    return float(sliced_energy_distances(x, y, directions(x[0].numel(), count, seed)).mean())
