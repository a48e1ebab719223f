"""The weights of a step: what was best on the runs themselves.

Step by step, on the student's own states and answers, so that a row also mends what the rows before it did wrong:

    min over w  sum_b v_b |x*_b(t) - A_b w|^2 / n + h |w - w0|^2

x*: the converged run; A_b: the columns x, x0 and push of the latest answers, n numbers each; w0: a formula's weights;
h: HELD times the median of r_b, what the formula's step misses. One h for all columns: answers that are nearly one
have small differences, and ridges in the size of those let weights of thousands cancel on the runs of the fit alone.
v_b = 1 / (r_b + median r), normed, with r_b the residual of w0: one run that falls into another picture must not
decide. A closed form; a few runs are enough, because each has thousands of numbers and a row few weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...samplers.clock import Clock
from ...samplers.deis import weights_of
from ...samplers.noise_law import NoiseLaw
from ...samplers.table import Answers, Row, Table
from .path import Path

ORDER = 4  # answers in a row
# Of .003 to .1, and of a fixed h from 1e-5 to 1e-2, on exact mixtures and the bundled network at 4 to 10 calls: .03 and
# .1 were best in nearly all. LEAST, of the mean square of the newest x0, keeps two columns apart that are one.
HELD, LEAST = 0.05, 1e-7


def fitted(columns: Sequence[Tensor], target: Tensor, prior: Tensor) -> Tensor:
    """w (columns,), float64 on the CPU, of columns (B, ...), x and then the newest x0 first, and target (B, ...)."""
    a = torch.stack([column.flatten(1) for column in columns], -1)
    gram, onto, size = normal_equations(a, target.flatten(1))
    prior = prior.to(gram)
    residual = (size - 2 * onto @ prior + torch.einsum("bij,i,j->b", gram, prior, prior)).clamp(min=0)
    trust = 1 / (residual + residual.median()).clamp(min=1e-30)
    trust = trust / trust.sum()
    gram, onto = torch.einsum("b,bij->ij", trust, gram), trust @ onto
    held = HELD * residual.median() + LEAST * gram[1, 1].clamp(min=1e-30)
    return prior + torch.linalg.solve(gram + held * torch.eye(len(gram), dtype=gram.dtype), onto - gram @ prior)


def normal_equations(a: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A' A, A' target and target' target of every run, by their n numbers, float64 on the CPU."""
    products = torch.stack([one.T @ one for one in map(in_double, torch.cat([a, target[..., None]], -1))])
    products = products / a.shape[1]
    return products[:, :-1, :-1], products[:, :-1, -1], products[:, -1, -1]


def in_double(values: Tensor) -> Tensor:
    """On the CPU: columns that are nearly one need it, and not every accelerator has it."""
    return values.cpu().double()


def fit_table(ask: Answers, x: Tensor, sigmas: Sequence[float], path: Path, clock: Clock) -> tuple[Table, Tensor]:
    """A table for these sigmas, and where its runs end. clock: of the formula that a row is held to."""
    rows = []
    answers: list[Sequence[Tensor]] = []
    for number, (s, t) in enumerate(zip(sigmas, sigmas[1:], strict=False)):
        answers = [ask(x, s), *answers][:ORDER]
        prior = formula(sigmas[: number + 1], s, t, path.law, clock)
        columns = [x, *(part for answer in answers for part in answer)]
        target = path.state(t, slice(0, len(x))).to(x)
        parts = len(answers[0])
        held_to = torch.zeros(len(columns), dtype=torch.float64)
        held_to[0] = t / s
        held_to[1 : 1 + parts * len(prior) : parts] = torch.tensor(prior, dtype=torch.float64)
        rows.append(row_of(fitted(columns, target, held_to), parts))
        x = rows[-1](x, answers)
    return Table(tuple(sigmas), tuple(rows)), x


def formula(known: Sequence[float], s: float, t: float, law: NoiseLaw, clock: Clock) -> tuple[float, ...]:
    """DEIS of order 2, and of order 1 where the step ends at 0; the newest first."""
    return weights_of(known[-(1 if t == 0 else 2) :], s, t, law, clock)


def row_of(weights: Tensor, parts: int) -> Row:
    kept, *others = weights.tolist()
    return Row(kept, tuple(tuple(others[part::parts]) for part in range(parts)))
