"""DEIS, arXiv 2204.13902 (tAB): the model's answers as a polynomial in a clock, everything else integrated exactly.

In the host's sigma either noise law reads dx/dsigma = (x - x0) / sigma, so that from s to t

    x(t) = t/s x(s) + t * integral from t to s of x0(sigma) / sigma^2 dsigma,               (eq. 7 in x0)

and with x0 the Lagrange polynomial through the latest predictions the integral is a sum of them with fixed weights
(eq. 12). The paper's clock is the model's own time; here it is any function of the noise-to-signal ratio.

Differs: what a step predicted is made again with the prediction at its end, at no call more (UniC, arXiv 2302.04867).
Differs: the last step, to sigma 0, takes x0 from the polynomial at 0, as the integral's limit does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .clock import Clock
from .contract import Denoiser, Noise, OnStep
from .noise_law import NoiseLaw

NODES, WEIGHTS = np.polynomial.legendre.leggauss(64)  # of the integral over ln sigma


@dataclass(frozen=True)
class Hop:
    """One step: x(t) = decay x(s) + the sum of weights times predictions, the newest first.

    arrived: the weights once the prediction at t is known as well; empty where it never is.
    """

    decay: float
    weights: tuple[float, ...]
    arrived: tuple[float, ...]

    def __call__(self, x: Tensor, predictions: Sequence[Tensor], weights: tuple[float, ...]) -> Tensor:
        result = self.decay * x
        for weight, prediction in zip(weights, predictions, strict=False):
            result = torch.add(result, prediction, alpha=weight)
        return result


def make_plan(
    sigmas: Sequence[float],
    law: NoiseLaw,
    clock: Clock,
    order: int = 2,
    corrector: bool = True,
    ends_denoised: bool = False,
) -> tuple[Hop, ...]:
    """The hops of falling sigmas. order: predictions in a polynomial, 1 to 4, as far as there are so many.

    ends_denoised: a step to sigma 0 ends with the last prediction, as other samplers do.

    Raises ValueError for an order that is none, and for sigmas that do not fall.
    """
    if order not in (1, 2, 3, 4):
        raise ValueError(f"order is {order}; it must be 1, 2, 3 or 4.")
    if not all(s > t >= 0 for s, t in zip(sigmas, sigmas[1:], strict=False)):
        raise ValueError("DEIS needs sigmas that fall, none of them twice. Connect an ordinary scheduler.")
    hops, mends = [], corrector and order > 1
    for n, (s, t) in enumerate(zip(sigmas, sigmas[1:], strict=False)):
        own_order = 1 if ends_denoised and t == 0 else order
        known = sigmas[max(n + 1 - own_order, 0) : n + 1]
        with_next = sigmas[max(n + 2 - order, 0) : n + 2] if mends and n + 2 < len(sigmas) else ()
        hops.append(Hop(t / s, weights_of(known, s, t, law, clock), weights_of(with_next, s, t, law, clock)))
    return tuple(hops)


def weights_of(known: Sequence[float], s: float, t: float, law: NoiseLaw, clock: Clock) -> tuple[float, ...]:
    """Of the predictions at the sigmas `known`, for the step from s to t; the newest first (eq. 12)."""
    if not known:
        return ()
    if t == 0:
        at, measure = np.zeros(1), np.ones(1)
    else:
        at = np.exp(math.log(t) + math.log(s / t) * (NODES + 1) / 2)
        measure = WEIGHTS * math.log(s / t) / 2 * t / at
    u, nodes = (clock(law.ratio(torch.as_tensor(list(sigma), dtype=torch.float64))).numpy() for sigma in (at, known))
    return tuple(float(measure @ lagrange(nodes, j, u)) for j in reversed(range(len(nodes))))


def lagrange(nodes: np.ndarray, j: int, at: np.ndarray) -> np.ndarray:
    """The polynomial that is 1 at nodes[j] and 0 at the others."""
    others = np.delete(nodes, j)
    return np.prod((at[:, None] - others) / (nodes[j] - others), axis=1)


@dataclass(frozen=True)
class DEIS:
    """A Solver of samplers.contract. One model call a step."""

    law: NoiseLaw
    clock: Clock
    order: int = 2
    corrector: bool = True
    ends_denoised: bool = False

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
        plan = make_plan(nodes, self.law, self.clock, self.order, self.corrector, self.ends_denoised)
        predictions: list[Tensor] = []
        start = x
        for n, (hop, sigma) in enumerate(zip(plan, nodes, strict=False)):
            denoised = denoise(x, sigma)
            predictions = [denoised, *predictions][: self.order]
            if n and plan[n - 1].arrived:
                x = plan[n - 1](start, predictions, plan[n - 1].arrived)
            if on_step:
                on_step(n, sigma, x, denoised)
            start, x = x, hop(x, predictions, hop.weights)
        return x
