"""What a measurement adds up, and the statistics that follow from it, arXiv 2310.13268 section 3.1 and appendix C.1.

Held are sums over latents and pooled coordinates of r = y - D, of D and of D' = dD/dlambda along the trajectory, of
their products, and of the probes v J v. f = (1 - l) r - l D and f' = -l' (r + D) - (1 - l) r - D' are linear in the
three, so l, and with it s and b, are found afterwards from the sums; in r and D no large numbers cancel at either end
of the noise range. Two measurements add up to the measurement of both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement

import torch
from torch import Tensor

from .statistics import Statistics

QUANTITIES = 3  # r, D, D'
SUMMED = ("count", "first", "second", "probe_count", "probe")
PAIRS = tuple(combinations_with_replacement(range(QUANTITIES), 2))


@dataclass(frozen=True, eq=False)
class Sums:
    """Running sums at levels lam (N,), rising. F as in Statistics; everything float64 on the CPU.

    count (N, *F): numbers summed; first (N, 3, *F): of r, D, D'; second (N, 6, *F): of their products, in the order
    of PAIRS; probe_count and probe (N, *F): of v J v with J = dD/dy, 0 where a level was not probed.
    """

    lam: Tensor
    count: Tensor
    first: Tensor
    second: Tensor
    probe_count: Tensor
    probe: Tensor

    @classmethod
    def empty(cls, lam: Tensor, features: Sequence[int]) -> Sums:
        def zeros(*inner: int) -> Tensor:
            return torch.zeros(len(lam), *inner, *features, dtype=torch.float64)

        return cls(lam.double(), zeros(), zeros(QUANTITIES), zeros(len(PAIRS)), zeros(), zeros())

    def __add__(self, other: Sums) -> Sums:
        """The measurement of both. Raises ValueError where levels or features differ."""
        if self.first.shape != other.first.shape or not torch.allclose(self.lam, other.lam, rtol=0, atol=1e-4):
            raise ValueError(
                "These measurements do not fit together: they have other noise levels or another pooling. "
                "Measure with the same model, levels and pooling to add one to the other."
            )
        return Sums(self.lam, *(getattr(self, name) + getattr(other, name) for name in SUMMED))

    def __sub__(self, other: Sums) -> Sums:
        """The measurement without a part of it."""
        return self + Sums(other.lam, *(-getattr(other, name) for name in SUMMED))

    def statistics(self, window: float = 0.0, slope_window: float = 0.0, ridge: float = 1e-6) -> Statistics:
        """The minimisers l, s, b (section 3.1).

        window: half width in lambda over which lines are fitted to l, and the moments of s and b averaged; 0 for none.
        slope_window: the same for l', as a moving average of differences (the authors' script: 5 levels); ridge:
        added to Var f, relative to the squares whose difference it is.
        Raises ValueError where a level was not measured or none was probed.
        """
        if not (self.count > 0).all() or not (self.probe_count.flatten(1) > 0).all(1).any():
            raise ValueError("The measurement is not finished: some noise levels were never reached. Run it again.")
        l = smooth_line(self.lam, self.linear_part(), window)  # noqa: E741
        slope = moving_average(self.lam, torch.gradient(l, spacing=(self.lam,), dim=0)[0], slope_window)
        count = self.count[:, None]
        mean, square = self.first / count, self.second / count
        f, f1 = self.of_f(l), self.of_f1(l, slope)
        covariance = product(f, f1, square) - combine(f, mean) * combine(f1, mean)
        variance = product(f, f, square) - combine(f, mean) ** 2
        scale = square[:, PAIRS.index((0, 0))] * f[:, 0] ** 2 + square[:, PAIRS.index((1, 1))] * f[:, 1] ** 2
        weight = 1 / scale.clamp(min=1e-30)  # levels count alike in a window, whatever the size of f there
        averages = [moving_average(self.lam, t * weight, window) for t in (covariance, variance + ridge * scale)]
        s = averages[0] / averages[1]
        return Statistics(self.lam, l, s, combine(f1, mean) - s * combine(f, mean))

    def largest_answer(self) -> Tensor:
        """The largest mean square of D over the levels, where that of a picture is about 1."""
        square = self.second[:, PAIRS.index((1, 1))] / self.count.clamp(min=1)
        return square.flatten(1).amax()

    def linear_part(self) -> Tensor:
        """l = E[1 - diag J], (N, *F), between probed levels by straight lines in lambda."""
        probed = (self.probe_count.flatten(1) > 0).all(1)
        l = 1 - self.probe[probed] / self.probe_count[probed]  # noqa: E741
        return interpolate(self.lam[probed], l, self.lam)

    def of_f(self, l: Tensor) -> Tensor:  # noqa: E741
        """f in terms of r, D, D': (N, 3, *F)."""
        return torch.stack([1 - l, -l, torch.zeros_like(l)], 1)

    def of_f1(self, l: Tensor, slope: Tensor) -> Tensor:  # noqa: E741
        """f' in terms of r, D, D', from y' = -r: (N, 3, *F)."""
        return torch.stack([-slope - (1 - l), -slope, -torch.ones_like(l)], 1)


def combine(a: Tensor, mean: Tensor) -> Tensor:
    """E of the combination a (N, 3, *F) of quantities with the means (N, 3, *F)."""
    return (a * mean).sum(1)


def product(a: Tensor, b: Tensor, square: Tensor) -> Tensor:
    """E of the product of two combinations, from the second moments (N, 6, *F)."""
    total = torch.zeros_like(square[:, 0])
    for (i, j), moment in zip(PAIRS, square.unbind(1), strict=True):
        both = a[:, i] * b[:, j] if i == j else a[:, i] * b[:, j] + a[:, j] * b[:, i]
        total = total + both * moment
    return total


# ---------------------------------------------------------------------------------------------------------
# Along lambda

TAIL_POINTS, TAIL_STEP = 24, 0.125  # what a last hop from sigma~ 0.03 can cross


def continued(statistics: Statistics) -> Statistics:
    """The table and 3 units of lambda behind it: an exact score has l ~ e^-2lambda, s -> -2 and b -> 0 there.

    l and s go together: with l held, f would come to rest, and an s below 0 would be wrong.
    """
    h = TAIL_STEP * torch.arange(1, TAIL_POINTS + 1, dtype=torch.float64)
    fading = torch.exp(-2 * h).view(-1, *[1] * (statistics.l.ndim - 1))
    l, s, b = (table[-1:] for table in (statistics.l, statistics.s, statistics.b))  # noqa: E741
    tail = (fading * l, -2 + fading * (s + 2), fading * b)
    tables = (torch.cat(both) for both in zip((statistics.l, statistics.s, statistics.b), tail, strict=True))
    return Statistics(torch.cat([statistics.lam, statistics.lam[-1] + h]), *tables)


def interpolate(lam: Tensor, values: Tensor, at: Tensor) -> Tensor:
    """`values` (n, *F) at lam (n,), by straight lines at `at` (N,), held beyond the ends."""
    if len(lam) == 1:
        return values.expand(len(at), *values.shape[1:]).clone()
    right = torch.searchsorted(lam, at).clamp(1, len(lam) - 1)
    share = ((at - lam[right - 1]) / (lam[right] - lam[right - 1])).clamp(0, 1)
    return torch.lerp(values[right - 1], values[right], share.view(-1, *[1] * (values.ndim - 1)))


def window_matrix(lam: Tensor, width: float) -> Tensor:
    """(N, N): row i averages the levels that lie within `width` of level i."""
    near = ((lam[:, None] - lam).abs() <= max(width, 0) + 1e-9).double()
    return near / near.sum(1, keepdim=True)


def moving_average(lam: Tensor, values: Tensor, width: float) -> Tensor:
    """Over a window of half width `width`, cut off at the ends. values (N, *F)."""
    return torch.tensordot(window_matrix(lam, width), values, 1)


def smooth_line(lam: Tensor, values: Tensor, width: float) -> Tensor:
    """The value at each level of the straight line fitted within the window: unlike an average, true at the ends."""
    matrix = window_matrix(lam, width)
    mean = matrix @ lam
    spread = (matrix * (lam - mean[:, None]) ** 2).sum(1)
    lean = torch.where(spread > 0, (lam - mean) / spread.clamp(min=1e-30), 0)
    return torch.tensordot(matrix * (1 + lean[:, None] * (lam - mean[:, None])), values, 1)
