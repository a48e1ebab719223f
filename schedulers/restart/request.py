"""What a person asks of Restart -> the plan: presets and budgets on top of plan."""

from __future__ import annotations

from collections.abc import Sequence

from ...samplers.choices import check_choice
from ...samplers.noise_law import NoiseLaw
from .plan import Interval, RestartPlan, check_disjoint, clip, ratio_of, resolve, restart_plan, within_budget
from .presets import PRESETS

BUDGETS = ("keep_steps", "add_steps")


def requested_plan(
    sigmas: Sequence[float], law: NoiseLaw, preset: str, budget: str, own: Sequence[Interval] | None = None
) -> RestartPlan:
    """The plan of the person's `own` intervals, else of the preset. Raises ValueError, in words, for what cannot be."""
    check_choice("preset", preset, PRESETS)
    check_choice("budget", budget, BUDGETS)
    if len(sigmas) < 2:
        return restart_plan(sigmas, (), law)  # says what is wrong
    remarks: list[str] = []
    if own:
        intervals = [resolve(interval, list(sigmas), law) for interval in own]
        check_disjoint(intervals)
    else:
        intervals, remarks = fitting(preset, sigmas, law)
    main = within_budget(sigmas, intervals) if budget == "keep_steps" else list(sigmas)
    return restart_plan(main, intervals, law, remarks=remarks)


def fitting(preset: str, sigmas: Sequence[float], law: NoiseLaw) -> tuple[list[Interval], list[str]]:
    """What of a preset fits the schedule. Raises ValueError when nothing is left."""
    steps = len(sigmas) - 1
    published = PRESETS[preset](steps)
    if not published:
        raise ValueError(
            f"The preset {preset} has no restart for {steps} steps; its rule begins at 20. Give the scheduler 20 "
            "steps or more, or choose another preset."
        )
    intervals, remarks = clip(published, ratio_of(sigmas[0], law))
    if not intervals:
        raise ValueError(
            f"No restart of the preset {preset} lies below the first sigma of this schedule ({sigmas[0]:.4g}). "
            "Raise denoise, or connect intervals of your own."
        )
    return intervals, remarks
