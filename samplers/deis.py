"""DEIS, arXiv 2204.13902: the model's answers as a polynomial in a clock, everything else integrated exactly.

In the host's sigma either noise law reads dx/dsigma = d = (x - x0) / sigma, so that from s to t

    x(t) = t/s x(s) + t * integral from t to s of x0(sigma) / sigma^2 dsigma,               (eq. 7 in x0)
    x(t) = x(s) + integral from s to t of d(sigma) dsigma,                                  (eq. 7 in d)

and with x0 or d the Lagrange polynomial through the latest predictions the integral is a sum of them with fixed weights
(eq. 12). The paper takes d: its noise prediction, and on a flow model the velocity. Its clock is the model's own time
(tAB) or sigma (rhoAB); here it is any function of the noise-to-signal ratio. iPNDM has the weights of even steps.

Differs: what a step predicted is made again with the prediction at its end, at no call more (UniC, arXiv 2302.04867).
Differs: the last step, to sigma 0, takes x0 from the polynomial at 0, as the integral's limit does.
Differs: an extrapolation can be capped, because its weights explode where a short step precedes a long one. Where steps
grow on the clock a cap of 1 leaves the second order, and no higher one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .choices import check_choice
from .clock import Time
from .contract import Denoiser, Noise, OnStep
from .noise_law import NoiseLaw

NODES, WEIGHTS = np.polynomial.legendre.leggauss(64)  # of the integral over ln sigma
X0, SLOPE = "x0", "slope"
ANSWERS = (X0, SLOPE)  # what the polynomial goes through
CAP = 1.0  # steps before it that a step is extrapolated over; measured on exact mixtures at cfg 1 and 5, 5 to 20 calls
EVEN = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


@dataclass(frozen=True)
class Hop:
    """One step: x(t) = decay x(s) + the sum of weights times answers, the newest first.

    arrived: the weights once the answer at t is known as well; empty where it never is.
    """

    decay: float
    weights: tuple[float, ...]
    arrived: tuple[float, ...] = ()

    def __call__(self, x: Tensor, answers: Sequence[Tensor], weights: tuple[float, ...]) -> Tensor:
        result = self.decay * x
        for weight, answer in zip(weights, answers, strict=False):
            result = torch.add(result, answer, alpha=weight)
        return result


def make_plan(
    sigmas: Sequence[float],
    law: NoiseLaw,
    clock: Time,
    order: int = 2,
    corrector: bool = True,
    ends_denoised: bool = False,
    answers: str = X0,
    cap: float = math.inf,
) -> tuple[Hop, ...]:
    """The hops of falling sigmas. order: predictions in a polynomial, 1 to 4, as far as there are so many.

    ends_denoised: a step to sigma 0 ends with the last prediction, as other samplers do.
    answers, cap: see `weights_of`.

    Raises ValueError for an order that is none, and for sigmas that do not fall.
    """
    check_order(order)
    check_choice("answers", answers, ANSWERS)
    check_falling(sigmas)
    hops, mends = [], corrector and order > 1
    for n, (s, t) in enumerate(zip(sigmas, sigmas[1:], strict=False)):
        own_order = 1 if ends_denoised and t == 0 else order
        known = sigmas[max(n + 1 - own_order, 0) : n + 1]
        with_next = sigmas[max(n + 2 - order, 0) : n + 2] if mends and n + 2 < len(sigmas) else ()
        weights, arrived = (weights_of(nodes, s, t, law, clock, answers, cap) for nodes in (known, with_next))
        hops.append(Hop(t / s if answers == X0 else 1.0, weights, arrived))
    return tuple(hops)


def even_plan(sigmas: Sequence[float], order: int) -> tuple[Hop, ...]:
    """The hops of iPNDM (eq. 16), for slopes: the weights of even steps whatever the steps. The last, to 0, is Euler's.

    Raises ValueError as `make_plan` does.
    """
    check_order(order)
    check_falling(sigmas)
    hops = []
    for n, (s, t) in enumerate(zip(sigmas, sigmas[1:], strict=False)):
        even = EVEN[min(n, order - 1) if t > 0 else 0]
        hops.append(Hop(1.0, tuple((t - s) * weight for weight in even)))
    return tuple(hops)


def check_order(order: int) -> None:
    """Raises ValueError for what is no order."""
    if order not in (1, 2, 3, 4):
        raise ValueError(f"order is {order}; it must be 1, 2, 3 or 4.")


def check_falling(sigmas: Sequence[float], who: str = "DEIS") -> None:
    """Raises ValueError for sigmas that do not fall."""
    if not all(s > t >= 0 for s, t in zip(sigmas, sigmas[1:], strict=False)):
        raise ValueError(f"{who} needs sigmas that fall, none of them twice. Connect an ordinary scheduler.")


# ---------------------------------------------------------------------------------------------------------
# Weights


def weights_of(
    known: Sequence[float],
    s: float,
    t: float,
    law: NoiseLaw,
    clock: Time,
    answers: str = X0,
    cap: float = math.inf,
) -> tuple[float, ...]:
    """Of the answers at the sigmas `known`, for the step from s to t; the newest first (eq. 12).

    answers: whether they are x0 or slopes d. cap: a step longer than so many times the one before it, on the clock, is
    made as if that one had been longer.
    """
    if not known:
        return ()
    at, measure = quadrature(s, t, answers)
    u, nodes, ends = (
        clock(law.ratio(torch.as_tensor(list(sigma), dtype=torch.float64))) for sigma in (at, known, (s, t))
    )
    places = kept_apart(nodes.tolist()[::-1], abs(float(ends[1] - ends[0])) / cap)
    weights = [float(measure @ lagrange(places, j, u.numpy())) for j in range(len(places))]
    return (*weights, *[0.0] * (len(known) - len(weights)))


def quadrature(s: float, t: float, answers: str) -> tuple[np.ndarray, np.ndarray]:
    """Sigmas between t and s, and what an answer at each counts for in the integral."""
    if t == 0 and answers == X0:
        return np.zeros(1), np.ones(1)
    if t == 0 or s == 0:
        return t + (s - t) * (NODES + 1) / 2, (t - s) * WEIGHTS / 2
    at = np.exp(math.log(t) + math.log(s / t) * (NODES + 1) / 2)
    width = WEIGHTS * math.log(s / t) / 2
    return at, width * t / at if answers == X0 else -width * at


def kept_apart(nodes: Sequence[float], least: float) -> np.ndarray:
    """Places on the clock, newest first, as far as there is one polynomial through them; none nearer than `least`.

    A place at infinity says nothing of how answers change: the polynomial's limit there is that without it.
    """
    places, shift = [nodes[0]], 0.0
    for node in nodes[1:]:
        if not (math.isfinite(places[0]) and math.isfinite(node)) or node == nodes[len(places) - 1]:
            break
        gap = node - nodes[len(places) - 1]
        shift += math.copysign(max(least - abs(gap), 0.0), gap)
        places.append(node + shift)
    return np.array(places)


def lagrange(nodes: np.ndarray, j: int, at: np.ndarray) -> np.ndarray:
    """The polynomial that is 1 at nodes[j] and 0 at the others."""
    others = np.delete(nodes, j)
    return np.prod((at[:, None] - others) / (nodes[j] - others), axis=1)


# ---------------------------------------------------------------------------------------------------------
# Runs


@dataclass(frozen=True)
class DEIS:
    """A Solver of samplers.contract. One model call a step."""

    law: NoiseLaw
    clock: Time
    order: int = 2
    corrector: bool = True
    ends_denoised: bool = False
    answers: str = X0
    cap: float = math.inf

    def __call__(
        self,
        denoise: Denoiser,
        x: Tensor,
        sigmas: Sequence[float] | Tensor,
        *,
        noise: Noise | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        nodes = [float(sigma) for sigma in sigmas]
        options = (self.order, self.corrector, self.ends_denoised, self.answers, self.cap)
        return run_plan(make_plan(nodes, self.law, self.clock, *options), nodes, denoise, x, self.answers, on_step)


@dataclass(frozen=True)
class IPNDM:
    """A Solver of samplers.contract. One model call a step."""

    order: int = 4

    def __call__(
        self,
        denoise: Denoiser,
        x: Tensor,
        sigmas: Sequence[float] | Tensor,
        *,
        noise: Noise | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        nodes = [float(sigma) for sigma in sigmas]
        return run_plan(even_plan(nodes, self.order), nodes, denoise, x, SLOPE, on_step)


def run_plan(
    plan: Sequence[Hop], nodes: Sequence[float], denoise: Denoiser, x: Tensor, answers: str, on_step: OnStep | None
) -> Tensor:
    """x carried along the hops between the sigmas `nodes`."""
    most = max((max(len(hop.weights), len(hop.arrived)) for hop in plan), default=0)
    known: list[Tensor] = []
    start = x
    for n, (hop, sigma) in enumerate(zip(plan, nodes, strict=False)):
        denoised = denoise(x, sigma)
        answer = denoised if answers == X0 else (x - denoised) / sigma
        known = [answer, *known][:most]
        if n and plan[n - 1].arrived:
            x = plan[n - 1](start, known, plan[n - 1].arrived)
        if on_step:
            on_step(n, sigma, x, denoised)
        start, x = x, hop(x, known, hop.weights)
    return x
