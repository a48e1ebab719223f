"""What the browser draws on a node, as numbers: schedules, or errors over model calls. See web/js/plot.js."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ...samplers.noise_law import NoiseLaw
from ...schedulers.tuning.tuning import NAMES, Tuning

MOST = 2000  # numbers of a plot: it is kept in the workflow
DIGITS = 5


def schedule_plot(
    schedules: Mapping[str, Sequence[float]], law: NoiseLaw | None = None, span: tuple[float, float] | None = None
) -> dict[str, Any] | None:
    """By label. law: of the model that they are for. span: its lowest and highest sigma. None for too long ones."""
    if not schedules or sum(map(len, schedules.values())) > MOST or any(len(one) < 2 for one in schedules.values()):
        return None
    series = [
        {"label": label, "sigmas": numbers(sigmas), "ratios": numbers([law.ratio(float(s)) for s in sigmas])}
        if law
        else {"label": label, "sigmas": numbers(sigmas)}
        for label, sigmas in schedules.items()
    ]
    own = {"flow": law.is_flow} if law else {}
    return {"kind": "schedule", "series": series} | own | ({"span": numbers(span)} if span else {})


def tuning_plot(tuning: Tuning) -> dict[str, Any]:
    """The errors of its check over model calls."""
    return {
        "kind": "errors",
        "series": [
            {"label": NAMES.get(name, name), "calls": list(errors), "errors": numbers(errors.values())}
            for name in tuning.facts["check"]
            if (errors := tuning.checked(name))
        ],
    }


def numbers(values: Any) -> list[float | None]:
    """As JSON has them: rounded, and null for what is no number."""
    return [float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None for value in map(float, values)]
