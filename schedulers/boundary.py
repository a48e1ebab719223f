"""A schedule with a node where the model changes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..samplers.noise_law import VARIANCE_EXPLODING, NoiseLaw
from ..samplers.sigmas import is_repeat
from .optimal_steps.curve import Curve


def with_node_at(sigmas: Sequence[float], boundary: float, law: NoiseLaw = VARIANCE_EXPLODING) -> list[float]:
    """The same number of falling sigmas, both ends among them, with the interior node nearest to `boundary` on it.

    The nodes on either side move along the schedule's curve with it: one node that is moved alone leaves two uneven
    steps. Measured with two experts that part at 0.875 on exact models and the demo model, at shift 3, on simple and
    beta, in 6, 8 and 12 calls: the error with a node there was, against without, in the mean of 36 cells
        0.96 (0.56 to 1.27) with DPM-Solver-v3, 0.99 (0.81 to 1.13) with dpmpp_2m;
        with that node moved alone 0.98 (0.61 to 1.11) and 1.18 (0.74 to 3.5).

    A schedule that does not pass the boundary, has a node there, or nothing between its ends, is left as it is.
    Raises ValueError for sigmas that do not fall.
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
