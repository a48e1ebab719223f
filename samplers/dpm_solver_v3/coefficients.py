"""One step of DPM-Solver-v3, arXiv 2310.13268 sections 3.1 and 3.2, as a linear combination.

    y' = -l y - f,   f = (1 - l) y - D,   g = e^-S f - B   (all integrals from the start of the step)
    y_t = e^-L_t [ y_s - sum_k g^(k) / k! E_k - K ]

and the derivatives of g are differences of g at nodes already visited, so y_t is a sum of y_s, a bias and the f of the
nodes. The code holds r = -f = D - (1 - l) y instead of f: with l = 1 it is D itself, and it takes one operation.

Not in the paper, whose models start on the table, is what happens at more noise than the table has. There D runs as
D_inf + c e^lambda: the posterior mean of any data, to first order in the signal. It is used where a step starts before
the table, and for the history that a start at lambda = -inf leaves behind (flow models, sigma = 1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .integrals import RULES, Rule, integrate, moments
from .statistics import Statistics

MOST_FEATURES = 2**14  # at a time, so that statistics per pixel do not fill the memory
LARGEST = torch.finfo(torch.float32).max ** 0.5  # of a coefficient: the latents it is multiplied with are float32
STAND_IN = 0.5  # lambda by which the node that stands for one at -inf lies before the first finite one


class NoFiniteStep(ValueError):
    """With these statistics a step has no finite result."""


@dataclass(frozen=True, eq=False)
class Coefficients:
    """y_t = a y_s + bias + sum_k weights[k] r_k, r_k = D_k - (1 - l_k) y_k at the nodes. a, bias: F; weights: (n, *F).

    Where the step starts at lambda = -inf, a multiplies x_s / sigma_s, which is pure noise, instead of y_s.
    """

    a: Tensor
    bias: Tensor
    weights: Tensor


def step_coefficients(
    statistics: Statistics,
    nodes: Sequence[float],
    lam_to: float,
    *,
    pseudo: bool = False,
    quadrature: str = "exact",
) -> Coefficients:
    """The step from nodes[0] to `lam_to`, of order len(nodes).

    nodes: lambda of the start and then of further nodes in the order in which they count: for a predictor the
    start, the node before it, ...; for a corrector the start, `lam_to`, the node before the start, ...
    The first node of all may be -inf.
    pseudo: the k-th derivative from the first k + 1 nodes only, arXiv 2310.13268 section 3.3.
    Nodes that `usable` leaves out get weight 0.
    A step may run backwards, to a lower lambda, where both ends and all nodes are finite.
    Raises ValueError for coincident nodes, and NoFiniteStep for statistics without a finite answer.
    """
    finite = bool(nodes) and nodes[0] < math.inf and math.isfinite(lam_to) and nodes[0] != lam_to
    if not finite or len(set(nodes)) < len(nodes):
        raise ValueError(f"A step needs different nodes and another, finite lambda; given: {nodes} to {lam_to}.")
    used = usable(statistics, nodes, lam_to)
    chosen = [nodes[i] for i in used]
    if starts_before(statistics, nodes[0], lam_to):
        step = into_the_table(statistics, chosen, lam_to, quadrature)
    else:
        step = along_the_table(statistics, chosen, lam_to, pseudo, quadrature)
    weights = torch.zeros(len(nodes), *statistics.features, dtype=torch.float64)
    weights[used] = step.weights
    if not all((part.abs() < LARGEST).all() for part in (step.a, step.bias, weights)):
        raise NoFiniteStep(
            f"With these statistics a step from lambda {nodes[0]:.3g} to {lam_to:.3g} has no finite result. "
            "Measure them with more images, or take more steps."
        )
    return Coefficients(step.a, step.bias, weights)


# ---------------------------------------------------------------------------------------------------------
# Which nodes


def starts_before(statistics: Statistics, lam_from: float, lam_to: float) -> bool:
    """Whether the step begins at -inf, or before the table and ends on it."""
    return lam_from == -math.inf or lam_from < statistics.start < lam_to


def usable(statistics: Statistics, nodes: Sequence[float], lam_to: float) -> list[int]:
    """Numbers of the nodes that can be used together in a step to `lam_to`, nodes[0] being its start.

    f may jump where the table starts, so all must lie on one side of that; a step over the jump uses its start
    and, as a corrector, its end.
    """
    if starts_before(statistics, nodes[0], lam_to):
        return [i for i, lam in enumerate(nodes) if i == 0 or lam == lam_to]
    inside = nodes[0] >= statistics.start
    return [i for i, lam in enumerate(with_stand_in(nodes)) if lam > -math.inf and (lam >= statistics.start) == inside]


def with_stand_in(nodes: Sequence[float]) -> list[float]:
    """The nodes, with a stand-in for one at -inf in the step after it; in later ones it is too far away to be of use.

    Third-order steps with it went astray on guided models at few calls.
    """
    return [nodes[0], nodes[0] - STAND_IN] if list(nodes[1:]) == [-math.inf] else list(nodes)


# ---------------------------------------------------------------------------------------------------------
# Steps


def along_the_table(
    statistics: Statistics, nodes: Sequence[float], lam_to: float, pseudo: bool, quadrature: str
) -> Coefficients:
    """A step whose nodes all lie on one side of the table's start."""
    shape, lams = statistics.features, with_stand_in(nodes)
    offsets = torch.tensor([(lam - lams[0]) / (lam_to - lams[0]) for lam in lams], dtype=torch.float64)
    on_g = derivatives(offsets, pseudo)
    parts = [slice(i, i + MOST_FEATURES) for i in range(0, shape.numel(), MOST_FEATURES)]
    results = [eliminate_g(statistics, lams, lam_to, on_g, RULES[quadrature], part) for part in parts]
    a, bias, weights = (torch.cat(values, -1) for values in zip(*results, strict=True))
    step = Coefficients(a.view(shape), bias.view(shape), weights.view(-1, *shape))
    return without_stand_in(step, statistics, nodes[0]) if -math.inf in nodes else step


def eliminate_g(
    statistics: Statistics, lams: Sequence[float], lam_to: float, on_g: Tensor, rule: Rule, part: slice
) -> tuple[Tensor, Tensor, Tensor]:
    """a, bias (features,) and weights (n, features), from `on_g` (n, n), which makes g^(j) h^j / j! from g."""
    way = integrate(statistics, lams[0], lam_to, rule, part)
    on_powers, k = moments(way, len(lams), lam_to - lams[0])
    weights, bias = on_g.T @ on_powers, -k
    for i, lam in enumerate(lams[1:], start=1):
        back = integrate(statistics, lams[0], lam, rule, part)
        bias = bias + weights[i] * back.B_end
        weights[i] *= torch.exp(-back.S_end)
    return torch.exp(-way.L_end), bias, weights


def derivatives(offsets: Tensor, pseudo: bool) -> Tensor:
    """(n, n): row j makes g^(j) / j! at the first node from g at all nodes, whose `offsets` (n,) begin with 0.

    True derivatives are those of the polynomial through all nodes; the pseudo one of order j is that of the
    polynomial through the first j + 1, a divided difference.
    """
    powers = offsets[:, None] ** torch.arange(len(offsets))
    if not pseudo:
        return torch.linalg.inv(powers)
    rows = torch.zeros_like(powers)
    for j in range(len(rows)):
        rows[j, : j + 1] = torch.linalg.inv(powers[: j + 1, : j + 1])[j]
    return rows


def without_stand_in(step: Coefficients, statistics: Statistics, lam: float) -> Coefficients:
    """`step` from the first finite node, `lam`, on itself and the stand-in, as one on itself and the node at -inf.

    With e = e^-d at the distance d, D there is (1 - e) D_inf + e D_1, and y is what leads from there to y_1.
    """
    e = math.exp(-STAND_IN)
    of_y = (1 - statistics.l_at(lam - STAND_IN)) / e
    of_d = e + of_y * (1 - e**2) / 2
    of_d_inf = 1 - e + of_y * (1 - e - (1 - e**2) / 2)
    here, stand_in = step.weights
    a = step.a + stand_in * (of_d * (1 - statistics.l_at(lam)) - of_y)
    return Coefficients(a, step.bias, torch.stack([here + stand_in * of_d, stand_in * of_d_inf]))


def into_the_table(statistics: Statistics, nodes: Sequence[float], lam_to: float, quadrature: str) -> Coefficients:
    """A step that starts before the table, perhaps at -inf. nodes: its start, and as a corrector its end.

    The predictor takes D as constant up to the table, where y is then known in closed form, and goes on from there with
    the f of this y and the same D. The corrector adds (1 - rho) (D_t - D_s) / 2, rho = e^(lambda_s - lambda_t), which
    is the integral of c e^lambda; D_t = r_t + (1 - l_t) y_t at the predicted y_t.
    """
    top = min(statistics.start, lam_to)
    if nodes[0] == -math.inf:
        scale, mixed_in = math.exp(-top), 1.0
    else:
        scale, mixed_in = math.exp(nodes[0] - top), -math.expm1(nodes[0] - top)
    rest = step_coefficients(statistics, [top], lam_to, quadrature=quadrature) if top < lam_to else no_step(statistics)
    of_top = rest.a - rest.weights[0] * (1 - statistics.l_at(top))
    a, bias, of_d = of_top * scale, rest.bias, of_top * mixed_in + rest.weights[0]
    if len(nodes) == 1:
        return Coefficients(a, bias, of_d[None])
    half = -math.expm1(nodes[0] - lam_to) / 2
    kept = 1 + half * (1 - statistics.l_at(lam_to))
    return Coefficients(kept * a, kept * bias, torch.stack([kept * of_d - half, torch.full_like(of_d, half)]))


def no_step(statistics: Statistics) -> Coefficients:
    """y as it is."""
    zero = torch.zeros(statistics.features, dtype=torch.float64)
    return Coefficients(zero + 1, zero, zero[None])
