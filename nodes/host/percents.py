"""Parts of a model's own time, from 0 (noise) to 1 (the picture), as the host's nodes count it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import overload

from torch import Tensor


@overload
def within(to_sigma: Callable[[float], float], sigma: float, start: float, end: float) -> bool: ...
@overload
def within(to_sigma: Callable[[float], float], sigma: Tensor, start: float, end: float) -> Tensor: ...


def within(to_sigma: Callable[[float], float], sigma, start: float, end: float):
    """Where the host's sigma lies between two percents; 0 is the very start, however a sigma is rounded.

    to_sigma: the model sampling's `percent_to_sigma`.
    """
    inside = sigma >= to_sigma(end)
    return inside if start <= 0 else inside & (sigma <= to_sigma(start))


def check_numbers(sigmas: Iterable[float]) -> None:
    """Raises ValueError for a sigma that is no number."""
    if any(map(math.isnan, sigmas)):
        raise ValueError("A sigma of this run is no number (NaN). Look at the SIGMAS that go into the sampler.")
