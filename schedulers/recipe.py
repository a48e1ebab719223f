"""What to do on a model of which nothing was measured: where the steps go, and how the answers are followed.

The numbers were found on exact mixtures and on the bundled network, as eps and as flow models, at cfg 1 to 7.5 and 4 to
18 calls: of some 200 pairs of clocks those whose worst cell was best. `benchmarks/boost.py` makes the table of what
they give. One pair serves every cfg and either kind of model, because both clocks see noise alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..samplers.clock import LogisticClock
from ..samplers.noise_law import NoiseLaw
from .placed import placed

# Noise-to-signal: as much of the way lies above it as below. Flow models for larger pictures are shifted, and need more
# of their steps at high noise; where the shift is all that differs (the mixtures) they need none: half of it is taken.
CENTRE = 1.65
WIDTHS = {4: 1.25, 5: 1.5, 6: 1.75}  # by number of calls: few must not be spent at the ends
ANSWERS = {
    6: LogisticClock(20.0, 1.2),
    14: LogisticClock(7.4, 1.2),
    math.inf: LogisticClock(20.0, 1.43),
}  # up to so many
FEW = 6  # calls up to which the steps are so long that mending them by the next answer helps
MANY = 10  # calls from which the last one is made at REST, where the model's own answer is the picture
REST = 0.03  # noise-to-signal


@dataclass(frozen=True)
class Recipe:
    """places: the clock on which the steps are even. answers: the clock in which the answers are a straight line.

    ends_denoised: whether the last step begins at REST, and ends with the answer there.
    """

    places: LogisticClock
    answers: LogisticClock
    corrector: bool
    ends_denoised: bool
    order: int = 2

    def sigmas(self, law: NoiseLaw, first: float, last: float, steps: int) -> tuple[float, ...]:
        """steps + 1 falling sigmas, with both ends as they are given."""
        rest = law.sigma(REST)
        if self.ends_denoised and last == 0 and first > rest and steps > 1:
            return (*placed(self.places, law, first, rest, steps - 1), 0.0)
        return placed(self.places, law, first, last, steps)


def recipe(calls: float, shift: float = 1.0) -> Recipe:
    """For so many guided model calls over the whole way. shift: of a flow model, 1 for others."""
    wider, few = math.sqrt(shift), calls <= FEW
    answers = next(clock for most, clock in ANSWERS.items() if calls <= most)
    width = float(np.interp(calls, list(WIDTHS), list(WIDTHS.values())))
    return Recipe(
        LogisticClock(CENTRE * wider, width),
        LogisticClock(answers.centre * wider, answers.width),
        few,
        calls >= MANY,
    )
