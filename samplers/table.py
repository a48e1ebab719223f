"""A linear multistep method by table: one row of weights a step, found on the model (schedulers/tuning/fit.py).

Every multistep solver of an ODE with an exact linear part is of this form,

    x(t) = kept x(s) + sum of weights times the latest answers,

with weights from a formula (samplers/deis.py). Here they are what was best on the model's own runs, so they need not
add up to what a formula would: at a high cfg the guided direction is damped (arXiv 2509.19962 learns one such number a
step; arXiv 2505.21114 the whole row, by gradients through the model).

An answer has one or two parts: x0, and the push, by which guidance moved it (x0 minus the answer without the prompt).
Each part has weights of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from .contract import OnStep

Answers = Callable[[Tensor, float], Sequence[Tensor]]  # (x, sigma) -> x0, or x0 and push


@dataclass(frozen=True)
class Row:
    """One step. weights: of each part of the answers, the newest answer first."""

    kept: float
    weights: tuple[tuple[float, ...], ...]

    def __call__(self, x: Tensor, answers: Sequence[Sequence[Tensor]]) -> Tensor:
        result = self.kept * x  # a new one, which may be added to in place
        for number, answer in enumerate(answers):
            for weights, part in zip(self.weights, answer, strict=True):
                result.add_(part, alpha=weights[number])
        return result


@dataclass(frozen=True)
class Table:
    """sigmas: falling, one more than rows; the last may be 0.

    Raises ValueError for rows that do not fit each other or the sigmas.
    """

    sigmas: tuple[float, ...]
    rows: tuple[Row, ...]

    def __post_init__(self) -> None:
        falls = all(high > low >= 0 for high, low in pairwise(self.sigmas))
        if not falls or len(self.rows) != len(self.sigmas) - 1 or not self.rows:
            raise ValueError(f"A table has falling sigmas, one more than rows; these are {self.sigmas}.")
        if len({len(row.weights) for row in self.rows}) != 1 or not 1 <= self.parts <= 2:
            raise ValueError("Every row of a table has weights for the same one or two parts of an answer.")
        for number, row in enumerate(self.rows):
            if len(set(map(len, row.weights))) != 1:
                raise ValueError(f"Row {number + 1} of a table has not as many weights for either part of an answer.")
            if not 1 <= len(row.weights[0]) <= number + 1:
                raise ValueError(f"Row {number + 1} of a table has weights of answers that are not there yet.")

    @property
    def parts(self) -> int:
        return len(self.rows[0].weights)

    @property
    def order(self) -> int:
        """How many answers are held."""
        return max(len(row.weights[0]) for row in self.rows)


def step_by_table(ask: Answers, x: Tensor, table: Table, on_step: OnStep | None = None) -> Tensor:
    """x at the last sigma, from x at the first. One call a step."""
    answers: list[Sequence[Tensor]] = []
    for number, (row, sigma) in enumerate(zip(table.rows, table.sigmas, strict=False)):
        answer = ask(x, sigma)
        if on_step:
            on_step(number, sigma, x, answer[0])
        answers = [answer[: table.parts], *answers][: table.order]
        x = row(x, answers[: len(row.weights[0])])
    return x
