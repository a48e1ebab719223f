"""What a comparison finds, as numbers: errors and seconds of every row, curves of a label, distances of sets.

Pure torch: nothing here knows of the host.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

import torch
from torch import Tensor

ODE, SDE, OTHER = "ode", "sde", "other"  # of a row: solves the equation, draws noise, follows another equation
SMALLEST, LARGEST = 1e-12, 1e6  # errors beyond are those; NaN counts as the largest
LINES = 128  # directions of a sliced distance
NUMBERS = 2**24  # of directions that are held at a time
SAME_TIME = 0.05  # within so much of each other two times are one


@dataclass(frozen=True)
class Row:
    """Of one entry at one number of steps, over all pictures.

    errors: mean squares of the distance to the converged latents. distance: of the pictures as a set, where there are
    two or more. refused: why it has no figures, in words.
    """

    label: str
    steps: int
    kind: str = ODE
    calls: int = 0
    errors: tuple[float, ...] = ()
    seconds: tuple[float, ...] = ()
    distance: float | None = None
    own: bool = False
    ours: bool = False
    sigmas: tuple[float, ...] = ()
    refused: str = ""

    @property
    def is_drawn(self) -> bool:
        return not self.refused

    @property
    def error(self) -> float:
        """The geometric mean."""
        return geometric(self.errors)

    @property
    def time(self) -> float:
        """Seconds of a picture, the median."""
        return median(self.seconds)


@dataclass(frozen=True)
class Curve:
    """The rows of one label that have errors, by their calls."""

    label: str
    rows: tuple[Row, ...] = field(repr=False)

    def error_at(self, seconds: float) -> float | None:
        """In so much time: between its rows on a straight line of logarithms; None beyond them."""
        return between([(row.time, row.error) for row in self.rows], seconds, SAME_TIME)

    def calls_for(self, error: float) -> float | None:
        """Where it comes as near as `error` at first; None where its rows do not."""
        for before, after in zip(self.rows, self.rows[1:], strict=False):
            if before.error >= error >= after.error:
                return between([(before.error, before.calls), (after.error, after.calls)], error)
        return self.rows[0].calls if self.rows[0].error <= error else None


def geometric(values: Sequence[float]) -> float:
    """The geometric mean: one picture that became another one does not outweigh the rest."""
    logs = [math.log(min(max(value, SMALLEST), LARGEST) if value == value else LARGEST) for value in values]
    return math.exp(sum(logs) / len(logs))


def between(points: Sequence[tuple[float, float]], at: float, same: float = 0.0) -> float | None:
    """The value at `at`, on straight lines of logarithms between the points; None outside of them.

    same: within so much of it an end of them is as good.
    """
    known = sorted(points)
    for x, y in (known[0], known[-1]):
        if math.isclose(at, x, rel_tol=same):
            return y
    for (x0, y0), (x1, y1) in zip(known, known[1:], strict=False):
        if x0 <= at <= x1:
            share = math.log(at / x0) / math.log(x1 / x0) if x1 > x0 else 0.0
            return math.exp((1 - share) * math.log(max(y0, SMALLEST)) + share * math.log(max(y1, SMALLEST)))
    return None


def curves(rows: Sequence[Row]) -> list[Curve]:
    """Of every label that solves the equation, in the order of the rows."""
    drawn = [row for row in rows if row.is_drawn and row.kind == ODE]
    labels = dict.fromkeys(row.label for row in drawn)
    return [
        Curve(label, tuple(sorted((r for r in drawn if r.label == label), key=lambda r: r.calls))) for label in labels
    ]


def at_calls(rows: Sequence[Row]) -> dict[int, list[Row]]:
    """The rows with errors by their calls, the nearest first."""
    drawn = [row for row in rows if row.is_drawn and row.kind == ODE]
    numbers = sorted({row.calls for row in drawn})
    return {n: sorted((row for row in drawn if row.calls == n), key=lambda row: row.error) for n in numbers}


def shown_calls(rows: Sequence[Row]) -> int | None:
    """The number of calls to speak of: the middle one of those at which most rows are."""
    groups = at_calls(rows)
    if not groups:
        return None
    most = max(map(len, groups.values()))
    shared = [calls for calls, those in groups.items() if len(those) == most]
    return shared[len(shared) // 2]


# ---------------------------------------------------------------------------------------------------------
# Distances of sets


def sliced_energy_distance(x: Tensor, y: Tensor, seed: int = 0) -> float:
    """2 E|X-Y| - E|X-X'| - E|Y-Y'| of projections on random lines, the mean over those.

    x, y: (N, ...) each, N of two or more, draws of the two laws, of which those of one number began with one noise. In
    the draws' unit, 0 for equal laws; unbiased, so it may come out below 0.
    Differs: pairs of one number are left out, because they are not drawn apart; so it is exactly 0 for x itself.
    """
    a, b = (draws.detach().cpu().double().flatten(1) for draws in (x, y))
    generator = torch.Generator().manual_seed(seed)
    size = max(1, min(LINES, NUMBERS // a.shape[1]))
    found = []
    for first in range(0, LINES, size):
        lines = torch.randn((min(size, LINES - first), a.shape[1]), generator=generator, dtype=torch.float64)
        lines /= lines.norm(dim=1, keepdim=True)
        found.append(distances(lines @ a.T, lines @ b.T))
    return float(torch.cat(found).mean())


def distances(a: Tensor, b: Tensor) -> Tensor:
    """The energy distance of numbers (lines, N) and (lines, N), of every line."""
    n = a.shape[1]
    assert n > 1 and b.shape[1] == n, "asked for of two pairs of draws and more"
    return 2 * apart(a, b) - apart(a, a) - apart(b, b)


def apart(a: Tensor, b: Tensor) -> Tensor:
    """The mean of |a_i - b_j| over i other than j, of every line."""
    n = a.shape[1]
    gaps = (a[:, :, None] - b[:, None]).abs()
    return (gaps.sum((1, 2)) - gaps.diagonal(dim1=1, dim2=2).sum(1)) / (n * (n - 1))
