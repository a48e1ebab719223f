"""DPM-Solver-v3's multistep predictor-corrector, arXiv 2310.13268 section 3.2, planned before the first call.

At node k, with D_k at hand: correct x_k by a step from node k - 1 that now knows r_k, then predict x_{k+1}. r_k stays
what it was at the predicted x_k. A plan holds these steps in the scale of the host's latents, x = alpha y, so the
loop needs neither alpha nor lambda. The last prediction is not corrected: N steps are N model calls.
Sigmas that rise at every step are the same equation backwards, from a picture to the noise it is drawn from.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from ..choices import check_choice
from ..noise_law import NoiseLaw
from ..sigmas import checked_sigmas
from .coefficients import Coefficients, NoFiniteStep, step_coefficients, usable
from .integrals import RULES
from .statistics import Statistics

CORRECTORS = ("everywhere", "high_noise", "low_noise", "off")
LAST_STEPS = ("full_order", "denoised")
# The authors' code corrects, with its option `half`, where the time of Stable Diffusion is above 1/2, which is
# sigma~ = 1.613. The paper's section 3.3 says below 1/2.
CORRECTOR_SPLIT = -0.478


@dataclass(frozen=True)
class Options:
    """How to step.

    order: of the predictor, 1 to 3. corrector: where the corrector works; its order is the predictor's before it.
    pseudo_predictor, pseudo_corrector: high derivatives from fewer nodes each (section 3.3); the pseudo corrector has
    one order more. lower_order_final: the last step but k has at most order k + 1.
    quadrature: "exact", or "trapezoid" as the authors' code, which wants nodes on the table's points.
    last_step: for a schedule that ends at 0. "denoised" ends with D of the last node. "full_order" goes on, without
    another call, to the noise-to-signal ratio `final_ratio`, and the rest of the noise is left in; where the last node
    is not above `final_ratio`, it ends with D too.
    corrector_split: the lambda that parts high from low noise.

    Raises ValueError for what is not allowed.
    """

    order: int = 2
    corrector: str = "everywhere"
    pseudo_predictor: bool = False
    pseudo_corrector: bool = False
    lower_order_final: bool = False
    quadrature: str = "exact"
    last_step: str = "full_order"
    final_ratio: float = 0.02
    corrector_split: float = CORRECTOR_SPLIT

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3):
            raise ValueError(f"The order is {self.order}; DPM-Solver-v3 has orders 1, 2 and 3.")
        check_choice("corrector", self.corrector, CORRECTORS)
        check_choice("quadrature", self.quadrature, RULES)
        check_choice("last_step", self.last_step, LAST_STEPS)
        if not 0 < self.final_ratio < math.inf:
            raise ValueError(f"final_ratio is {self.final_ratio:g}; it must be above 0, and small, such as 0.02.")

    def corrects_at(self, lam: float) -> bool:
        """Whether a node is corrected."""
        if self.corrector in ("everywhere", "off"):
            return self.corrector == "everywhere"
        return (lam < self.corrector_split) == (self.corrector == "high_noise")


Factor: TypeAlias = "Tensor | float"  # of a latent: one number for all coordinates, or a tensor to be broadcast


@dataclass(frozen=True, eq=False)
class Combination:
    """a x + bias + sum_j weights[j] r_j over the newest nodes, the newest first. a, bias: F; weights: (n, *F)."""

    a: Factor
    bias: Factor
    weights: Tensor | list[float]


class Average(NamedTuple):
    """x_t = kept x_s + gain (an average of D on the way): y_t = e^-h y_s + int e^(lambda - lambda_t) D dlambda.

    kept is sigma_t / sigma_s in every noise law, and gain the sum of the weights. ratio: the highest sigma~ that the
    step looks at.
    """

    kept: float
    gain: float
    ratio: float


@dataclass(frozen=True, eq=False)
class Step:
    """From one node to the next. order: of the predictor; corrected: of the correction of x at this node, 0 for none.

    `table` (rows, *F) has all coefficients in one tensor, to be moved to a device at once; the properties say which.
    With one coordinate for all it may be a list of numbers instead.
    average: what any exact step is, see `Average`. None leaves the step unbounded.
    """

    sigma: float
    sigma_next: float
    order: int
    corrected: int
    table: Tensor | list[float]
    average: Average | None = None

    @property
    def x_in_r(self) -> Factor:
        """r = D + x_in_r x, which is D - (1 - l) y."""
        return self.table[0]

    @property
    def r_in_x(self) -> Factor:
        """The corrected x of this node is what `corrector` of the step before gave + r_in_x r."""
        return self.table[1]

    @property
    def predictor(self) -> Combination:
        """x at the next node."""
        return Combination(self.table[2], self.table[3], self.table[4 : 4 + self.order])

    @property
    def corrector(self) -> Combination | None:
        """The corrected x at the next node, up to the r of that node; None where that is not corrected."""
        rows = self.table[4 + self.order :]
        return Combination(rows[0], rows[1], rows[2:]) if len(rows) else None

    def __str__(self) -> str:
        corrected = f", after a correction of order {self.corrected}" if self.corrected else ""
        return f"sigma {self.sigma:.4g} to {self.sigma_next:.4g}: order {self.order}{corrected}"


@dataclass(frozen=True, eq=False)
class Plan:
    """All steps, a model call each."""

    steps: tuple[Step, ...]

    @property
    def kept(self) -> int:
        """How many nodes before its own a step may need: their r is kept."""
        combinations = [c for step in self.steps for c in (step.predictor, step.corrector) if c]
        return max(len(combination.weights) for combination in combinations) - 1

    def __str__(self) -> str:
        return "\n".join([f"{len(self.steps)} model calls", *map(str, self.steps)])


# ---------------------------------------------------------------------------------------------------------
# Making it


@dataclass(frozen=True, eq=False)
class Course:
    """What a plan is made from: the host's sigmas, the lambda of each, and how to step.

    A last lambda of +inf means that the last step ends with D.
    """

    sigmas: Sequence[float]
    lams: Sequence[float]
    law: NoiseLaw
    statistics: Statistics
    options: Options

    def steps(self) -> Iterator[Step]:
        """All steps of the plan, in their order."""
        correction = None
        for k in range(len(self.sigmas) - 1):
            step, correction = self.step(k, correction, corrects=k + 2 < len(self.sigmas))
            yield step

    def step(self, k: int, due: Coefficients | None, corrects: bool) -> tuple[Step, Coefficients | None]:
        """Step k, and the correction that it leaves due at the next node; `due` is the one that the step before left.

        corrects: whether another call follows, with which to correct.
        """
        x_in_r = self.x_in_r(k)
        r_in_x = due.weights[1] if due else torch.zeros_like(x_in_r)
        predictor = self.predictor(k)
        order = len(predictor.weights)
        rows = [x_in_r, r_in_x, predictor.a, predictor.bias, *predictor.weights]
        correction = self.correction(k, order) if corrects else None
        if correction:
            r_here, _, *r_before = correction.weights
            rows += [correction.a, correction.bias, r_here, *r_before]
        corrected = len(due.weights) if due else 0
        step = Step(self.sigmas[k], self.sigmas[k + 1], order, corrected, torch.stack(rows), self.average(k))
        return step, correction

    def average(self, k: int) -> Average:
        """What step k is in terms of D. A last sigma of 0 may stand for a tiny ratio, whose noise stays in x."""
        sigma, alpha = self.sigmas[k], self.law.alpha(self.sigmas[k])
        to = self.law.sigma(math.exp(-self.lams[k + 1])) if self.lams[k + 1] > -math.inf else self.sigmas[k + 1]
        kept = to / sigma / (self.law.alpha(to) if self.sigmas[k + 1] == 0 else 1.0)
        first = max(k + 1 - self.options.order - self.options.pseudo_corrector, 0)
        ratios = [self.law.ratio(sigma) for sigma in self.sigmas[first : k + 2]]
        return Average(kept, self.law.alpha(self.sigmas[k + 1]) - kept * alpha, max(ratios))

    def ends_with_d(self, k: int) -> bool:
        """Whether step k is the one to no noise at all."""
        return self.lams[k + 1] == math.inf

    def x_in_r(self, k: int) -> Tensor:
        """-(1 - l) / alpha at node k. Where alpha is 0, l is 1."""
        return (self.statistics.l_at(self.lams[k]) - 1) / (self.law.alpha(self.sigmas[k]) or 1)

    def predictor(self, k: int) -> Coefficients:
        """From node k to k + 1, on node k and those before it.

        To no noise: D of the corrected x, r + (1 - l) y. D is taken as constant too in a step to nothing but noise,
        backwards, and in one that has no finite result with the statistics.
        """
        if self.ends_with_d(k) or self.lams[k + 1] == -math.inf:
            return self.with_constant_d(k)
        order = min(self.options.order, k + 1)
        if self.options.lower_order_final:
            order = min(order, len(self.lams) - 1 - k)
        newest = self.lams[k::-1][:order]
        nodes = [newest[i] for i in usable(self.statistics, newest, self.lams[k + 1])]
        try:
            return self.in_latents(k, nodes, self.options.pseudo_predictor)
        except NoFiniteStep:
            return self.with_constant_d(k)

    def with_constant_d(self, k: int) -> Coefficients:
        """kept x + gain D, D being r + (1 - l) y."""
        back, average = -self.x_in_r(k), self.average(k)
        gain = torch.full_like(back, average.gain)
        return Coefficients(average.kept + gain * back, torch.zeros_like(back), gain[None])

    def correction(self, k: int, order: int) -> Coefficients | None:
        """From node k, left with a predictor of `order`, to k + 1: on node k, k + 1 and those before k, or None.

        There is none without another node than k, and none that has no finite result.
        """
        if not self.options.corrects_at(self.lams[k + 1]):
            return None
        nodes = [self.lams[k], self.lams[k + 1], *self.lams[:k][::-1]][: order + self.options.pseudo_corrector]
        used = usable(self.statistics, nodes, self.lams[k + 1])
        try:
            return self.in_latents(k, [nodes[i] for i in used], self.options.pseudo_corrector) if 1 in used else None
        except NoFiniteStep:
            return None

    def in_latents(self, k: int, nodes: Sequence[float], pseudo: bool) -> Coefficients:
        """The coefficients of step k for x = alpha y. At sigma 0 x is y, whatever noise is left in it."""
        step = step_coefficients(
            self.statistics, nodes, self.lams[k + 1], pseudo=pseudo, quadrature=self.options.quadrature
        )
        alpha, alpha_next = self.law.alpha(self.sigmas[k]), self.law.alpha(self.sigmas[k + 1])
        # From lambda = -inf, a multiplies the noise in x.
        from_x = 1 / alpha if alpha else 1 / self.law.deviation(self.sigmas[k])
        return Coefficients(step.a * alpha_next * from_x, step.bias * alpha_next, step.weights * alpha_next)


def check_sigmas(sigmas: Sequence[float], law: NoiseLaw) -> None:
    """Raises ValueError for a schedule that cannot be run."""
    if len(sigmas) < 2:
        raise ValueError("The sigmas hold no step. Give the scheduler at least 1 step and a denoise above 0.")
    checked_sigmas(sigmas, law)
    rises = sigmas[-1] > sigmas[0]
    if rises and sigmas[0] == 0:
        raise ValueError(
            "These sigmas rise from 0, where a picture does not say yet which noise to take. Begin a little above, at "
            "0.0001, as Flip Sigmas does."
        )
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        if sigma_next == sigma or (sigma_next > sigma) != rises:
            raise ValueError(
                f"The sigmas must fall at every step, or rise at every step to unsample; step {step + 1} goes from "
                f"{sigma:g} to {sigma_next:g}. Use fewer steps or another scheduler, and for a schedule with restarts "
                "the Restart Sampler."
            )


def lams_of(sigmas: Sequence[float], law: NoiseLaw, options: Options) -> list[float]:
    """lambda of every sigma. A last sigma of 0 stands for a tiny one, or has +inf where the step ends with D."""
    lams: list[float] = law.lam(torch.tensor(sigmas, dtype=torch.float64)).tolist()
    last = -math.log(options.final_ratio)
    if sigmas[-1] == 0 and options.last_step == "full_order" and lams[-2] < last:
        lams[-1] = last
    return lams


def make_plan(sigmas: Tensor, law: NoiseLaw, statistics: Statistics, options: Options) -> Plan:
    """The plan for the host's sigmas (N + 1,). Raises ValueError for those that cannot be run; see check_sigmas."""
    values: list[float] = sigmas.detach().to("cpu", torch.float64).tolist()
    check_sigmas(values, law)
    course = Course(values, lams_of(values, law, options), law, statistics, options)
    return Plan(tuple(course.steps()))
