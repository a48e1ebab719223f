"""A schedule with a node where the model changes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..samplers.noise_law import VARIANCE_EXPLODING, NoiseLaw
from ..samplers.sigmas import is_repeat
from .optimal_steps.curve import Curve


def with_node_at(sigmas: Sequence[float], boundary: float, law: NoiseLaw = VARIANCE_EXPLODING) -> list[float]:
    """The same number of falling sigmas, both ends among them, with the interior node nearest to `boundary` on it.

    The nodes on either side move along the schedule's curve with it, because one node that is moved alone leaves two
    uneven steps: on 6 to 12 steps that made dpmpp_2m up to 3.5 times worse. A schedule that does not pass the
    boundary, has a node there, or nothing between its ends, is left as it is. Raises ValueError for sigmas that do not
    fall.
    """
    values = [float(sigma) for sigma in sigmas]
    last = len(values) - 1
    if last < 2 or not values[-1] < boundary < values[0] or any(is_repeat(sigma, boundary) for sigma in values):
        return values
    curve = Curve(values, law)
    place = curve.number_at(boundary)
    nearest = min(max(round(place), 1), last - 1)
    above = np.linspace(0, place, nearest + 1)[1:-1]
    below = np.linspace(place, last, last - nearest + 1)[1:-1]
    return [values[0], *curve.at(above), boundary, *curve.at(below), values[-1]]
