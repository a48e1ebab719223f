"""What a person asks of Restart -> the plan: presets and budgets on top of plan."""

from __future__ import annotations

from collections.abc import Sequence

from ...samplers.choices import check_choice
from ...samplers.noise_law import NoiseLaw
from ...samplers.sigmas import checked_sigmas
from .plan import (
    Interval,
    RestartPlan,
    check_disjoint,
    check_schedule,
    clip,
    plural,
    ratio_of,
    resolve,
    restart_plan,
    unchanged,
    within_budget,
)
from .presets import PRESETS

# Ten restarts at 8, 12 and 16 steps in all, by benchmarks/restart.py's distance: with euler inside all were worse than
# none, on exact eps and flow models; with dpmpp_2m on karras this one came from 73 to 15 at 8 steps, even above.
SHORT_ADVICE = (
    "So few steps are better spent on the schedule itself; with dpmpp_2m inside, on karras, an interval of your "
    "own from 0.3 to 2 with 3 steps can help."
)
BUDGETS = ("keep_steps", "add_steps")


def requested_plan(
    sigmas: Sequence[float], law: NoiseLaw, preset: str, budget: str, own: Sequence[Interval] | None = None
) -> RestartPlan:
    """The plan of the person's `own` intervals, else of the preset. Raises ValueError, in words, for what cannot be.

    A schedule of no step, and one of which the preset restarts nothing, is passed on with a remark.
    """
    check_choice("preset", preset, PRESETS)
    check_choice("budget", budget, BUDGETS)
    sigmas = checked_sigmas(sigmas, law)
    check_schedule(sigmas)
    if len(sigmas) < 2:
        return unchanged(sigmas, "The sigmas hold no step, so there is nothing to restart; they are passed on.")
    remarks: list[str] = []
    if own:
        intervals = [resolve(interval, sigmas, law) for interval in own]
        check_disjoint(intervals)
    else:
        intervals, remarks = fitting(preset, sigmas, law)
    if not intervals:
        return unchanged(sigmas, *remarks)
    main = within_budget(sigmas, intervals) if budget == "keep_steps" else sigmas
    return restart_plan(main, intervals, law, remarks=remarks)


def fitting(preset: str, sigmas: Sequence[float], law: NoiseLaw) -> tuple[list[Interval], list[str]]:
    """What of a preset fits the schedule, perhaps nothing, and remarks on what does not."""
    steps = len(sigmas) - 1
    published = PRESETS[preset](steps)
    if not published:
        return [], [f"{no_restart(preset, steps)} The schedule is passed on unchanged. {SHORT_ADVICE}"]
    intervals, remarks = clip(published, ratio_of(sigmas[0], law))
    if not intervals:
        remarks = [
            f"No restart of the preset {preset} lies below the first sigma of this schedule ({sigmas[0]:.4g}); it is "
            "passed on unchanged. Raise denoise, or connect intervals of your own."
        ]
    return intervals, remarks


def no_restart(preset: str, steps: int) -> str:
    """Of a preset that goes by the number of steps."""
    return f"The preset {preset} has no restart for {plural(steps, 'step')}; its rule begins at 20."
