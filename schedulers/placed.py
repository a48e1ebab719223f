"""Steps of equal length on a clock of noise, between any two sigmas."""

from __future__ import annotations

import torch

from ..samplers.clock import Clock, LogisticClock
from ..samplers.noise_law import NoiseLaw


def share(clock: LogisticClock, law: NoiseLaw, first: float, last: float) -> float:
    """How much of the clock's whole way, from noise to picture, lies between two sigmas."""
    begin, end = clock(law.ratio(torch.tensor([first, last], dtype=torch.float64))).tolist()
    return begin - end


def placed(clock: Clock, law: NoiseLaw, first: float, last: float, steps: int) -> tuple[float, ...]:
    """steps + 1 falling sigmas, of equal steps on the clock; `first` and `last` are kept as they are.

    Raises ValueError where they do not fall.
    """
    if steps < 1 or not first > last >= 0:
        raise ValueError(
            f"{steps} steps from sigma {first:g} to {last:g} are no schedule, which falls, but not below 0."
        )
    begin, end = clock(law.ratio(torch.tensor([first, last], dtype=torch.float64)))
    u = begin + (end - begin) * torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    return (first, *law.sigma(clock.ratio(u))[1:-1].tolist(), last)
