"""Restart, arXiv 2306.14878, planned: main sigmas and a list of intervals -> one schedule with upward jumps.

After the main step that lands on an interval's lower end, the latent is noised back up to its upper end and
solved down again on a grid of its own, as often as the interval says; then the main steps go on. All arithmetic
is in the noise-to-signal ratio sigma~, so a list means the same on every model.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from scipy.interpolate import PchipInterpolator

from ...samplers.choices import check_choice
from ...samplers.noise_law import NoiseLaw

RHO = 7.0  # of EDM's grid, arXiv 2206.00364 eq. 5
UNITS = ("noise_to_signal", "sigma", "step")
FEWEST_MAIN_STEPS = 2


@dataclass(frozen=True)
class Interval:
    """One entry (N_R, K, t_min, t_max) of a Restart list.

    steps: N_R, points of the sub-grid, so N_R - 1 solver steps. repeats: K. In the units noise_to_signal and
    sigma the interval goes from sigma_min up to sigma_max; in the unit step, after main step number sigma_min
    it goes back by sigma_max steps.
    """

    steps: int
    repeats: int
    sigma_min: float
    sigma_max: float
    unit: str = "noise_to_signal"

    @property
    def solver_steps(self) -> int:
        return self.repeats * (self.steps - 1)

    def __str__(self) -> str:
        if self.unit == "step":
            return f"after step {self.sigma_min:g} back {self.sigma_max:g}"
        return f"{self.sigma_min:.4g} to {self.sigma_max:.4g}"


@dataclass(frozen=True)
class Segment:
    """A falling piece of the plan. `interval` is None for main steps."""

    sigmas: tuple[float, ...]
    interval: Interval | None = None

    @property
    def steps(self) -> int:
        return max(len(self.sigmas) - 1, 0)


@dataclass(frozen=True)
class RestartPlan:
    """What will be run. Segments of the host's sigmas, and remarks on what did not fit."""

    segments: tuple[Segment, ...]
    remarks: tuple[str, ...] = ()

    @property
    def sigmas(self) -> list[float]:
        """The expanded schedule: a main segment begins where the last one ended, a restart jumps up."""
        expanded = list(self.segments[0].sigmas)
        for segment in self.segments[1:]:
            expanded += segment.sigmas if segment.interval else segment.sigmas[1:]
        return expanded

    @property
    def steps(self) -> int:
        """Solver steps in all."""
        return sum(segment.steps for segment in self.segments)

    @property
    def main_steps(self) -> int:
        return sum(segment.steps for segment in self.segments if segment.interval is None)

    def __str__(self) -> str:
        restarts = [(s.sigmas[0], s.sigmas[-1], s.steps) for s in self.segments if s.interval]
        spent = self.steps - self.main_steps
        total = plural(self.steps, "step")
        lines = [f"{total}: {self.main_steps} main, {spent} in {plural(len(restarts), 'restart')}"]
        for restart, times in Counter(restarts).items():
            top, low, steps = restart
            often = "once" if times == 1 else f"{times} times"
            lines.append(f"at sigma {low:.4g} back up to {top:.4g}, {plural(steps, 'step')} down, {often}")
        return "\n".join([*lines, *self.remarks])


def plural(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


# ---------------------------------------------------------------------------------------------------------
# Grids


def rho_grid(top: float, bottom: float, points: int) -> list[float]:
    """EDM's grid from `top` to `bottom`, both sigma~ and both met exactly (arXiv 2206.00364 eq. 5, rho = 7)."""
    grid = np.linspace(top ** (1 / RHO), bottom ** (1 / RHO), points) ** RHO
    return [top, *grid[1:-1].tolist(), bottom]


def fewer_steps(sigmas: list[float], steps: int) -> list[float]:
    """The same schedule with `steps` steps: its nodes' seventh roots interpolated over their number, by PCHIP.

    Exact for Karras schedules, monotone for all. The ends stay; a final 0 is not interpolated to.
    """
    nodes, end = (sigmas[:-1], [0.0]) if sigmas[-1] == 0 else (sigmas, [])
    count = steps + 1 - len(end)
    if len(nodes) == 1 or count == 1:
        return [nodes[0], *end]
    at = np.linspace(0, len(nodes) - 1, count)
    curve = PchipInterpolator(np.arange(len(nodes)), np.asarray(nodes) ** (1 / RHO))
    return [nodes[0], *(curve(at[1:-1]) ** RHO).tolist(), nodes[-1], *end]


# ---------------------------------------------------------------------------------------------------------
# Checks, in an artist's words


def check_schedule(sigmas: list[float]) -> None:
    """Raises ValueError for a schedule that cannot be expanded."""
    if any(b > a for a, b in pairwise(sigmas)):
        raise ValueError(
            "The sigmas rise somewhere; a restart needs falling ones. Was Restart Schedule applied twice? Chain "
            "Restart Interval nodes instead. To unsample with Flip Sigmas, no restart is needed."
        )


def check_interval(interval: Interval) -> None:
    """Raises ValueError for an interval that no schedule can hold."""
    low, high = interval.sigma_min, interval.sigma_max
    check_choice("The unit of a restart interval", interval.unit, UNITS)
    if interval.steps < 2:
        raise ValueError(f"A restart interval has steps = {interval.steps}; 2 points (one step down) are the fewest.")
    if interval.repeats < 1:
        raise ValueError(f"A restart interval has repeats = {interval.repeats}; give 1 or more, or remove the node.")
    if interval.unit == "step":
        if low != round(low) or high != round(high) or not 1 <= high <= low:
            raise ValueError(
                f"In the unit step, sigma_min is the step after which to go back and sigma_max by how many: whole "
                f"numbers, 1 <= sigma_max <= sigma_min. Given: after {low:g} back {high:g}."
            )
    elif not 0 <= low < high < math.inf:
        raise ValueError(
            f"A restart interval goes up from sigma_min to sigma_max; given: {low:g} to {high:g}. "
            "Make sigma_min 0 or more and sigma_max larger than it."
        )


def check_disjoint(intervals: Iterable[Interval]) -> None:
    """Raises ValueError where two resolved intervals overlap. Ends may touch, as in the paper's lists."""
    for lower, upper in pairwise(sorted(intervals, key=lambda i: (i.sigma_min, i.sigma_max))):
        if upper.sigma_min < lower.sigma_max * (1 - 1e-9):
            raise ValueError(
                f"The restart intervals {lower} and {upper} (noise-to-signal) overlap. Let the lower one end at "
                f"{upper.sigma_min:.4g} or the upper one begin at {lower.sigma_max:.4g}; to restart more often, "
                "raise repeats."
            )


# ---------------------------------------------------------------------------------------------------------
# From what was asked to what fits


def resolve(interval: Interval, sigmas: list[float], law: NoiseLaw) -> Interval:
    """The interval in noise-to-signal, of the given main sigmas. Raises ValueError where it does not exist."""
    check_interval(interval)
    low, high = interval.sigma_min, interval.sigma_max
    if interval.unit == "step":
        if low > len(sigmas) - 1:
            raise ValueError(f"The restart {interval} is beyond the schedule of {len(sigmas) - 1} steps.")
        low, high = sigmas[int(low)], sigmas[int(low - high)]
    if interval.unit != "noise_to_signal":
        placed = in_ratios(replace(interval, sigma_min=low, sigma_max=high, unit="sigma"), law, str(interval))
        low, high = placed.sigma_min, placed.sigma_max
    first = ratio_of(sigmas[0], law)
    if high > first * (1 + 1e-6):
        raise ValueError(
            f"The restart {interval} reaches noise-to-signal {high:.4g}, above the first sigma of the schedule "
            f"({first:.4g}). Lower sigma_max, or raise denoise."
        )
    return replace(interval, sigma_min=low, sigma_max=min(high, first), unit="noise_to_signal")


def in_ratios(interval: Interval, law: NoiseLaw, called: str = "") -> Interval:
    """An interval of sigmas in noise-to-signal. Raises ValueError, naming it as `called`, for one up to pure noise."""
    low, high = interval.sigma_min, interval.sigma_max
    if law.is_flow and high >= 1:
        raise ValueError(
            f"The restart {called or interval} goes up to sigma {high:g}, where a flow model has nothing left of the "
            "picture. Stay below 1: go back fewer steps, or lower sigma_max."
        )
    return replace(interval, sigma_min=law.ratio(low), sigma_max=law.ratio(high), unit="noise_to_signal")


def ratio_of(sigma: float, law: NoiseLaw) -> float:
    """sigma~, infinite at the flow's 1."""
    return math.inf if law.is_flow and sigma >= 1 else law.ratio(sigma)


def clip(intervals: Iterable[Interval], first: float) -> tuple[list[Interval], list[str]]:
    """What of a published list fits below the ratio `first`, and remarks on what does not."""
    kept, remarks = [], []
    for interval in intervals:
        if interval.sigma_min >= first:
            remarks.append(f"{interval} (noise-to-signal) dropped: the schedule begins at {first:.4g}.")
            continue
        if interval.sigma_max > first:
            remarks.append(f"{interval} (noise-to-signal) clipped: the schedule begins at {first:.4g}.")
        kept.append(replace(interval, sigma_max=min(interval.sigma_max, first)))
    return kept, remarks


def snap(interval: Interval, main: list[float]) -> int:
    """Number of the main node (ratios) nearest to the interval's lower end."""
    return min(range(1, len(main)), key=lambda i: abs(main[i] - interval.sigma_min))


# ---------------------------------------------------------------------------------------------------------
# The plan


def unchanged(sigmas: Iterable[float], *remarks: str) -> RestartPlan:
    """The schedule as it is; of no step, too."""
    return RestartPlan((Segment(tuple(sigmas)),), remarks)


def restart_plan(
    sigmas: Iterable[float],
    intervals: Iterable[Interval],
    law: NoiseLaw,
    *,
    grid: Callable[[float, float, int], list[float]] = rho_grid,
    remarks: Iterable[str] = (),
) -> RestartPlan:
    """Expand the main sigmas (host's scale, falling) by intervals in noise-to-signal.

    Differs: where several intervals fall on one node all of them run, the widest first; the authors' code keeps
    only the last one. Raises ValueError for what cannot be run.
    """
    sigmas = list(sigmas)
    check_schedule(sigmas)
    if len(sigmas) < 2:
        return unchanged(sigmas, *remarks)
    main = [ratio_of(sigma, law) for sigma in sigmas]
    at: dict[int, list[Interval]] = {}
    for interval in sorted(intervals, key=lambda i: -i.sigma_max):
        check_interval(interval)
        node = snap(interval, main)
        if main[node] >= interval.sigma_max:
            raise ValueError(
                f"The restart {interval} falls between two main steps: the nearest ends at noise-to-signal "
                f"{main[node]:.4g}, above it. Raise sigma_max, or give the schedule more steps."
            )
        at.setdefault(node, []).append(interval)
    segments, start = [], 0
    for node in sorted(at):
        segments.append(Segment(tuple(sigmas[start : node + 1])))
        for interval in at[node]:
            down = grid(interval.sigma_max, main[node], interval.steps)
            piece = Segment((*(float(law.sigma(r)) for r in down[:-1]), sigmas[node]), interval)
            segments += [piece] * interval.repeats
        start = node
    segments.append(Segment(tuple(sigmas[start:])))
    return RestartPlan(tuple(s for s in segments if s.interval or len(s.sigmas) > 1), tuple(remarks))


def within_budget(sigmas: Iterable[float], intervals: Iterable[Interval]) -> list[float]:
    """The main sigmas with so many fewer steps that main and restarts together are as many as came in."""
    sigmas = list(sigmas)
    check_schedule(sigmas)
    total, spent = len(sigmas) - 1, sum(interval.solver_steps for interval in intervals)
    if total - spent < FEWEST_MAIN_STEPS:
        raise ValueError(
            f"The restarts take {spent} steps, which leaves {max(total - spent, 0)} of {total} for the picture itself. "
            f"Give the scheduler {spent + FEWEST_MAIN_STEPS} steps or more (twice that is better), ask for fewer "
            "repeats, or set budget to add_steps."
        )
    return fewer_steps(sigmas, total - spent)
