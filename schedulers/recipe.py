"""What to do on a model of which nothing was measured: where the steps go, and how the answers are followed.

The numbers were found on exact mixtures and on the bundled network, as eps and as flow models, at cfg 1 to 7.5 and 4 to
20 calls: of some 200 pairs of clocks those whose worst cell was best. `benchmarks/boost.py` makes the table of what
they give. One pair serves every cfg, and up to 7 calls either kind of model: both clocks see noise alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..samplers.clock import Clock, LogisticClock, PowerClock
from ..samplers.deis import DEIS
from ..samplers.noise_law import NoiseLaw
from .placed import placed, share

# Noise-to-signal: as much of the way lies above it as below. Flow models for larger pictures are shifted, and need more
# of their steps at high noise; where the shift is all that differs (the mixtures) they need none: half of it is taken.
CENTRE = 1.65
WIDTHS = {4: 1.25, 5: 1.5, 6: 1.5, 8: 1.75}  # by number of calls: few must not be spent at the ends
# Up to so many calls:
ANSWERS = {6: LogisticClock(20.0, 1.2), 14: LogisticClock(7.4, 1.2), math.inf: LogisticClock(20.0, 1.43)}
FEW = 6  # calls up to which the steps are so long that mending them by the next answer helps
MANY = 10  # calls from which the last one is made at REST, where the model's own answer is the picture
REST = 0.03  # noise-to-signal
# On eps, v and EDM models from so many calls on, EDM's places and a root of the noise are better than both of those.
FROM, EDM_PLACES, ROOT = 8, PowerClock(1 / 7), PowerClock(0.5)
SMALLEST_PART = 0.05  # of the way, for which a recipe is looked up


@dataclass(frozen=True)
class Recipe:
    """places: the clock on which the steps are even. answers: the clock in which the answers are a straight line.

    ends_denoised: whether the last step begins at REST, and ends with the answer there.
    """

    places: Clock
    answers: Clock
    corrector: bool
    ends_denoised: bool
    order: int = 2

    def solver(self, law: NoiseLaw) -> DEIS:
        return DEIS(law, self.answers, self.order, self.corrector, self.ends_denoised)

    def sigmas(self, law: NoiseLaw, first: float, last: float, steps: int) -> tuple[float, ...]:
        """steps + 1 falling sigmas, with both ends as they are given."""
        rest = law.sigma(REST)
        if self.ends_denoised and last == 0 and first > rest and steps > 1:
            return (*placed(self.places, law, first, rest, steps - 1), 0.0)
        return placed(self.places, law, first, last, steps)


def recipe(calls: float, is_flow: bool, shift: float = 1.0) -> Recipe:
    """For so many guided model calls over the whole way. shift: of a flow model, 1 for others."""
    if not is_flow and calls >= FROM:
        return Recipe(EDM_PLACES, ROOT, corrector=False, ends_denoised=True)
    wider = math.sqrt(shift)
    answers = next(clock for most, clock in ANSWERS.items() if calls <= most)
    return Recipe(
        LogisticClock(CENTRE * wider, width(calls)),
        LogisticClock(answers.centre * wider, answers.width),
        corrector=calls <= FEW,
        ends_denoised=calls >= MANY,
    )


def width(calls: float) -> float:
    return float(np.interp(calls, list(WIDTHS), list(WIDTHS.values())))


def recipe_between(law: NoiseLaw, first: float, last: float, calls: int, shift: float = 1.0) -> Recipe:
    """For so many calls of a part of the way: that of the whole way with steps as long."""
    part = share(LogisticClock(CENTRE * math.sqrt(shift), width(calls)), law, first, last)
    return recipe(calls / max(part, SMALLEST_PART), law.is_flow, shift)
