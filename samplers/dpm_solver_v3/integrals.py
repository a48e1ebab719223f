"""The integrals of DPM-Solver-v3, arXiv 2310.13268 section 3.2, along a way in lambda.

    L = int l,   S = int s,   B = int e^-S b,   E_k = int e^(L+S) h^k,   K = int e^(L+S) B,   h = lambda - lambda_start

All are 0 where the way starts, so nothing overflows however far that is from the ends of the table. The way may run
backwards. It is cut into cells on which l, s and b are linear; on a cell a quadrature rule does all of it.

Differs: the authors' code sums trapezoids over the table's grid ("trapezoid" here). Gauss-Legendre nodes ("exact")
have L and S without error and the others to rounding, on grids of any coarseness and for nodes between points.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from dataclasses import dataclass

import torch
from torch import Tensor

from .statistics import Statistics

MOST_PARTS = 64  # of one piece; only statistics that swing by e^32 on it would want more


@dataclass(frozen=True, eq=False)
class Rule:
    """Collocation on [0, 1]: nodes c (q,); running (q, q), integrals from 0 to each c; whole (q,), to 1.

    `reach` is the largest change of an exponent, |l| + |s| times width, that one cell may hold.
    """

    nodes: Tensor
    running: Tensor
    whole: Tensor
    reach: float

    @classmethod
    def at(cls, nodes: list[float], reach: float = math.inf) -> Rule:
        """The rule that integrates the polynomial through the nodes."""
        c = torch.tensor(nodes, dtype=torch.float64)
        k = torch.arange(len(c), dtype=torch.float64)
        monomials = torch.linalg.inv(c[:, None] ** k)
        return cls(c, c[:, None] ** (k + 1) / (k + 1) @ monomials, 1 / (k + 1) @ monomials, reach)


def gauss_legendre_5() -> list[float]:
    """The roots of the fifth Legendre polynomial, on [0, 1]."""
    inner, outer = (math.sqrt(5 + sign * 2 * math.sqrt(10 / 7)) / 3 for sign in (-1, 1))
    return [(1 + root) / 2 for root in (-outer, -inner, 0.0, inner, outer)]


# Five nodes integrate e^x over a width of 1/2 to 2e-16 of it.
RULES = {"exact": Rule.at(gauss_legendre_5(), reach=0.5), "trapezoid": Rule.at([0.0, 1.0])}


@dataclass(frozen=True, eq=False)
class Way:
    """L, S, B at the rule's nodes in all cells, (cells, q, features), and at the end of the way, (features,)."""

    h: Tensor  # lambda - lambda_start at the nodes, (cells, q)
    weight: Tensor  # of the nodes in an integral over the way, (cells, q)
    L: Tensor
    S: Tensor
    B: Tensor
    L_end: Tensor
    S_end: Tensor
    B_end: Tensor


def cut(statistics: Statistics, start: float, end: float) -> Tensor:
    """`start`, the table's points between, `end`: the edges of the pieces on which l, s, b are linear."""
    low, high = sorted((start, end))
    inner = statistics.points[bisect_right(statistics.points, low) : bisect_left(statistics.points, high)]
    edges = torch.tensor([low, *inner, high], dtype=torch.float64)
    return edges if start < end else edges.flip(0)


def cells(edges: Tensor, ends: Tensor, rule: Rule) -> tuple[Tensor, Tensor, Tensor]:
    """The pieces in equal cells of no more than the rule's reach.

    ends: l, s, b at the ends of the pieces, (3, pieces, 2, features). Gives the signed widths (cells,), and lambda
    (cells, q) and l, s, b (3, cells, q, features) at the rule's nodes.
    """
    width = edges.diff()
    speed = (ends[0].abs() + ends[1].abs()).amax((1, 2))
    parts = (width.abs() * speed / rule.reach).ceil().clamp(1, MOST_PARTS).long().tolist()
    piece = torch.tensor([i for i, count in enumerate(parts) for _ in range(count)])
    share = torch.cat([(torch.arange(count)[:, None] + rule.nodes) / count for count in parts])
    values = torch.lerp(ends[:, piece, :1], ends[:, piece, 1:], share[..., None])
    return (width / torch.tensor(parts))[piece], edges[piece, None] + share * width[piece, None], values


def running(values: Tensor, width: Tensor, rule: Rule) -> tuple[Tensor, Tensor]:
    """The integral of `values` (..., cells, q, features) from the start of the way to every node, and to its end."""
    whole = width[:, None] * (rule.whole @ values)
    before = whole.cumsum(-2) - whole
    return before[..., None, :] + width[:, None, None] * (rule.running @ values), whole.sum(-2)


def integrate(statistics: Statistics, start: float, end: float, rule: Rule, part: slice) -> Way:
    """L, S and B from `start` to `end`, two different finite lambdas; part: which of the flat features."""
    edges = cut(statistics, start, end)
    width, lam, (l, s, b) = cells(edges, statistics.on_pieces(edges, part), rule)  # noqa: E741
    (L, S), (L_end, S_end) = running(torch.stack([l, s]), width, rule)
    B, B_end = running(torch.exp(-S) * b, width, rule)
    return Way(lam - start, width[:, None] * rule.whole, L, S, B, L_end, S_end, B_end)


def moments(way: Way, count: int, unit: float) -> tuple[Tensor, Tensor]:
    """e^-L_end E_k / unit^k for k below `count`, (count, features), and e^-L_end K, (features,)."""
    kernel = torch.exp(way.L + way.S - way.L_end)
    powers = way.weight * (way.h / unit) ** torch.arange(count).view(-1, 1, 1)
    return powers.flatten(1) @ kernel.flatten(0, 1), way.weight.flatten() @ (kernel * way.B).flatten(0, 1)
