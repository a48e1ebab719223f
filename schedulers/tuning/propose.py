"""Where to step, found without calls: the teacher's runs stand in for the model.

All of a teacher's states and answers lie in the span of a few dozen vectors. In coordinates of that span (from their
Gram matrix) a run is a path of short vectors, whatever the latent's size, and a candidate costs milliseconds.

A candidate is judged by the residuals of rows fitted from the teacher's own states, each carried to the end by what a
small error grows or shrinks to:

    e(0) = e(t) / alpha exp(-int_0^sigma~ (1 - J) dln sigma~),   J = 1 / (1 + (sigma~ / centre)^(1 / width))

J, how much of an error in y = x / alpha the answer follows, is measured on the first runs of a student; as a logistic
function the integral has a closed form.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...samplers.clock import Clock, LogisticClock, PowerClock
from ...samplers.contract import Denoiser
from ...samplers.noise_law import NoiseLaw
from ..placed import placed
from .fit import ORDER, fitted, formula, in_double
from .path import Path

SMALLEST = 1e-13  # of a Gram matrix's eigenvalues, as a share of the largest: below it is rounding
CENTRES, WIDTHS, RESTS = (0.7, 1.0, 1.65, 2.86, 4.5, 8.0), (1.5, 1.9, 2.4), (0.0, 0.03, 0.01)
ROOTS = (4, 7)  # of EDM's places, to RESTS
SAFEST = "width 1.9"  # on the bundled network, of tables for 4 to 8 calls: never far behind the best of all rules
LEAST_RATIO, MOST_RATIO = 1e-3, 1e3
NOT_AT_ALL = 1e-6  # mean square of an error that says nothing of J


def shadow(path: Path) -> Path:
    """The same runs in coordinates of their span, scaled so that a square sum is the mean square of a latent."""
    runs = zip(path.states, path.answers, strict=True)
    kept = [coordinates(torch.cat([in_double(s).flatten(1), in_double(a).flatten(1)])) for s, a in runs]
    width = max(one.shape[1] for one in kept)
    all_of = torch.stack([torch.nn.functional.pad(one, (0, width - one.shape[1])) for one in kept])
    count = len(path.sigmas)
    return Path(path.law, path.sigmas, all_of[:, :count], all_of[:, count:])


def coordinates(vectors: Tensor) -> Tensor:
    """(m, r) of vectors (m, n), with the same inner products, by their n numbers."""
    values, directions = torch.linalg.eigh(vectors @ vectors.T / vectors.shape[1])
    large = values > SMALLEST * values[-1]
    return directions[:, large] * values[large].sqrt()


@dataclass(frozen=True)
class Response:
    """J(sigma~) = 1 - clock(sigma~): how much of a small error in y an answer follows."""

    clock: LogisticClock

    def __call__(self, law: NoiseLaw, sigma: float) -> float:
        return 1 - float(self.clock(law.ratio(torch.tensor(sigma, dtype=torch.float64))))

    def carried(self, law: NoiseLaw, sigma: float) -> float:
        """What an error of 1 in x at sigma is at the end."""
        ratio = float(law.ratio(torch.tensor(sigma, dtype=torch.float64)))
        grown = (1 + (ratio / self.clock.centre) ** (1 / self.clock.width)) ** -self.clock.width
        return grown / alpha(law, sigma)

    @classmethod
    def unknown(cls) -> Response:
        """Before anything was seen: as if latents had the variance of the noise at sigma~ = 1, white and Gaussian."""
        return cls(LogisticClock(1.0, 0.5))

    @property
    def is_unknown(self) -> bool:
        return self == Response.unknown()

    @classmethod
    def of(cls, seen: Sequence[tuple[float, float]]) -> Response:
        """The nearest to pairs of sigma~ and J."""
        ratios, js = (torch.tensor(column, dtype=torch.float64) for column in zip(*seen, strict=True))
        clocks = [LogisticClock(c, w) for c in np.geomspace(0.05, 5, 24) for w in np.linspace(0.4, 2, 9)]
        return cls(min(clocks, key=lambda clock: float((1 - clock(ratios) - js).square().sum())))


def alpha(law: NoiseLaw, sigma: float) -> float:
    return 1 - sigma if law.is_flow else 1.0


def seen_response(path: Path, sigma: float, x: Tensor, answer: Tensor) -> tuple[float, float] | None:
    """sigma~ and the median J of a student's runs that came to x, and were answered x0; None where they are too near.

    At sigma~ above or below what counts for a picture there is nothing to see either.
    """
    ratio = float(path.law.ratio(torch.tensor(sigma, dtype=torch.float64)))
    if not LEAST_RATIO < ratio < MOST_RATIO:
        return None
    some = slice(0, len(x))
    away = in_double((x - path.state(sigma, some).to(x)).flatten(1)) / alpha(path.law, sigma)
    answered = in_double((answer - path.answer(sigma, some).to(x)).flatten(1))
    size = away.square().sum(1)
    if not (size > NOT_AT_ALL * away.shape[1]).all():
        return None
    return ratio, float(((away * answered).sum(1) / size).median())


def linearised(path: Path, response: Response) -> Denoiser:
    """The model near the path: D = D_T + J (y - y_T), for runs of it in the path's order."""

    def denoise(x: Tensor, sigma: float) -> Tensor:
        at = alpha(path.law, sigma)
        there = path.answer(sigma).to(x)
        return there if not at else there + response(path.law, sigma) / at * (x - path.state(sigma).to(x))

    return denoise


# ---------------------------------------------------------------------------------------------------------
# Candidates


@dataclass(frozen=True)
class Places:
    """A rule for where steps go, for any number of them. rest: noise-to-signal at the last call; 0 for even steps.

    family: of rules of one form, whose order is told better than that of different forms.
    """

    name: str
    clock: Clock
    rest: float = 0.0
    family: str = ""

    def sigmas(self, law: NoiseLaw, first: float, steps: int) -> tuple[float, ...]:
        """steps + 1 falling sigmas from `first` to 0."""
        rest = law.sigma(self.rest)
        if self.rest and steps > 1 and rest < first:
            return (*placed(self.clock, law, first, rest, steps - 1), 0.0)
        return placed(self.clock, law, first, 0.0, steps)


def rules(law: NoiseLaw, shift: float) -> tuple[Places, ...]:
    """Logistic clocks, centred higher on shifted flow models, and EDM's places on the others."""
    wider = math.sqrt(shift)
    logistic = [
        Places(
            f"logistic {centre:g} {width:g}{told(rest)}", LogisticClock(centre * wider, width), rest, f"width {width:g}"
        )
        for centre in CENTRES
        for width in WIDTHS
        for rest in RESTS
    ]
    edm = [Places(f"edm {rho}{told(rest)}", PowerClock(1 / rho), rest, "edm") for rho in ROOTS for rest in RESTS[1:]]
    return (*logistic, *(() if law.is_flow else edm))


def told(rest: float) -> str:
    return f" to {rest:g}" if rest else ""


def ranked(
    small: Path, among: Iterable[Places], steps: int, clock: Clock, response: Response
) -> list[tuple[float, Places]]:
    """The rules by what `expected` says of so many steps, the best first."""
    first = small.sigmas[0]
    tried = [(expected(small, rule.sigmas(small.law, first, steps), clock, response), rule) for rule in among]
    return sorted(tried, key=lambda entry: entry[0])


def best_of_families(order: Iterable[tuple[float, Places]], count: int) -> list[Places]:
    """The first of each family, so many; of one alone the first of the family that was best on the networks at hand."""
    firsts: dict[str, Places] = {}
    for _, rule in order:
        firsts.setdefault(rule.family, rule)
    return list(firsts.values())[:count] if count > 1 else [firsts[SAFEST]]


def expected(small: Path, sigmas: Sequence[float], clock: Clock, response: Response) -> float:
    """The error at the end, as the geometric mean over the runs of a `shadow`: residuals of every step, carried on."""
    total = torch.zeros(len(small.states), dtype=torch.float64)
    answers: list[Tensor] = []
    for number, (s, t) in enumerate(zip(sigmas, sigmas[1:], strict=False)):
        x = small.state(s)
        answers = [small.answer(s), *answers][:ORDER]
        prior = formula(sigmas[: number + 1], s, t, small.law, clock)
        held_to = torch.zeros(1 + len(answers), dtype=torch.float64)
        held_to[0], held_to[1 : 1 + len(prior)] = t / s, torch.tensor(prior, dtype=torch.float64)
        weights = fitted([x, *answers], small.state(t), held_to)
        made = sum((w * column for w, column in zip(weights, [x, *answers], strict=True)), torch.zeros_like(x))
        total += (made - small.state(t)).square().sum(1) * response.carried(small.law, t) ** 2
    return float(total.clamp(min=1e-30).log().mean().exp())
