"""What to do on a model of which nothing was measured: where the steps go, and how the answers are followed.

The numbers were found on exact mixtures and on the bundled network, as eps and as flow models, at cfg 1 to 7.5 and 4 to
20 calls; `benchmarks/boost.py` makes the table of what they give, cell by cell. What held everywhere: the answers are
nearly straight in the time of a flow model, u = sigma~ / (sigma~ + CENTRE), on eps models too, and in no cell was a
logarithm of the noise a better clock below 10 calls. With more calls more of the steps belong to the ends.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..samplers.clock import LogisticClock

# Noise-to-signal: as much of the way lies above it as below. Flow models for larger pictures are shifted, and need more
# of their steps at high noise; where the shift is all that differs (the mixtures) they need none: half of it is taken.
CENTRE = 1.65
# Width of the places by number of calls, without guidance and with a strong one; at cfg between them, between them.
CALLS = (4, 6, 8, 12, 20)
WIDTHS = {1.0: (1.25, 1.5, 1.65, 1.75, 1.9), 5.0: (1.05, 1.25, 1.4, 1.5, 1.5)}
MENDED = 2.0  # cfg up to which the corrector helps: with more, what it mends by is too rough


@dataclass(frozen=True)
class Recipe:
    """places: the clock on which the steps are even. answers: in which they are a polynomial through `order` points."""

    places: LogisticClock
    answers: LogisticClock
    order: int
    corrector: bool


def recipe(cfg: float, calls: float, shift: float | None) -> Recipe:
    """For so many guided model calls over the whole way. shift: of a flow model, None for others."""
    centre = CENTRE * math.sqrt(shift or 1.0)
    corrector = cfg <= MENDED and calls >= CALLS[1]
    return Recipe(LogisticClock(centre, width(cfg, calls)), LogisticClock(centre), 2, corrector)


def width(cfg: float, calls: float) -> float:
    (low, plain), (high, strong) = WIDTHS.items()
    share = np.interp(math.log(max(cfg, low)), [math.log(low), math.log(high)], [0.0, 1.0])
    return float((1 - share) * np.interp(calls, CALLS, plain) + share * np.interp(calls, CALLS, strong))
