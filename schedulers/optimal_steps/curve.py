"""A schedule for other numbers of steps, other shifts and less noise: a smooth curve through its nodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ...samplers.noise_law import NoiseLaw

if TYPE_CHECKING:
    from scipy.interpolate import PchipInterpolator


def unshifted(t: float, shift: float) -> float:
    """The flow time u that the shift carries to t = shift u / (1 + (shift - 1) u)."""
    return t / (shift - (shift - 1) * t)


@dataclass(frozen=True)
class Curve:
    """sigmas: falling, the end (0 or small) with them. shift: of the flow model that they are for; 1 for others.

    Between nodes it is the monotone cubic of the unshifted flow time, of variance-exploding models too: t = sigma~ /
    (1 + sigma~) reaches 0 where log sigma does not, so the end is a node like the others.
    """

    sigmas: Sequence[float]
    law: NoiseLaw
    shift: float = 1.0

    def time(self, sigma: float) -> float:
        flow_time = min(sigma, 1.0) if self.law.is_flow else sigma / (1 + sigma)  # the host rounds 1 to above it
        return unshifted(flow_time, self.shift)

    def sigma(self, time: float, shift: float) -> float:
        flow_time = unshifted(time, 1 / shift)
        return flow_time if self.law.is_flow else flow_time / (1 - flow_time)

    def times(self) -> np.ndarray:
        """The unshifted flow time of every node. Raises ValueError for sigmas that do not fall."""
        times = np.array([self.time(sigma) for sigma in self.sigmas])
        if len(times) < 2 or not (np.diff(times) < 0).all():
            raise ValueError("The schedule's sigmas do not fall from step to step. Choose another, or search it again.")
        return times

    def between(self) -> PchipInterpolator:
        """Time by the number of a node, and between nodes."""
        from scipy.interpolate import PchipInterpolator  # a tenth of a second that no start of ComfyUI should cost

        times = self.times()
        return PchipInterpolator(np.arange(len(times)), times)

    def at(self, numbers: np.ndarray) -> list[float]:
        """Sigmas at numbers of nodes, which need not be whole."""
        return [self.sigma(float(time), self.shift) for time in self.between()(numbers)]

    def number_at(self, sigma: float) -> float:
        """The inverse of `at`, for a sigma between the ends."""
        return float(self.between().solve(self.time(sigma), extrapolate=False)[0])

    def resampled(
        self, steps: int, shift: float | None = None, start: float | None = None, end: float | None = None
    ) -> tuple[float, ...]:
        """Falling sigmas of so many steps: the schedule itself where it has as many.

        shift: of the model they are for, if it is another. start, end: sigmas of that model to begin and to end at; the
        steps then cover the part of the curve between them. One beyond the schedule's own replaces that.
        Raises ValueError for sigmas that do not fall, or too little to be told apart.
        """
        from scipy.interpolate import PchipInterpolator  # a tenth of a second that no start of ComfyUI should cost

        shift = self.shift if shift is None else shift
        times, here = self.times(), Curve((), self.law, shift)
        begins = times[0] if start is None else here.time(start)
        ends = times[-1] if end is None else here.time(end)
        number = PchipInterpolator(times[::-1], np.arange(len(times))[::-1])
        first = float(number(begins)) if begins < times[0] else 0.0
        last = float(number(ends)) if ends > times[-1] else len(times) - 1.0
        inner = self.between()(np.linspace(first, last, steps + 1)[1:-1])
        inside = [self.sigma(float(time), shift) for time in inner]
        start = self.sigma(float(begins), shift) if start is None else start
        end = self.sigma(float(ends), shift) if end is None else end
        return (start, *inside, end)
