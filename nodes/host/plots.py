"""What the browser draws on a node, as numbers: schedules, or errors over model calls. See web/js/plot.js."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

from ...samplers.noise_law import NoiseLaw
from ...schedulers.inspection import Looked
from ...schedulers.tuning.tuning import NAMES, Tuning

MOST_POINTS = 256  # of a series, which is kept in the workflow; a node is hardly wider in pixels
MOST_SERIES = 8
DIGITS = 5


def schedule_plot(
    schedules: Mapping[str, Sequence[float]], law: NoiseLaw | None = None, span: tuple[float, float] | None = None
) -> dict[str, Any] | None:
    """By label, over model calls. law: of the model that they are for. span: its lowest and highest sigma.

    None where one has less than two sigmas.
    """
    if not schedules or any(len(one) < 2 for one in schedules.values()):
        return None
    looked = {label: Looked(tuple(map(float, one)), law, span) for label, one in islice(schedules.items(), MOST_SERIES)}
    plot: dict[str, Any] = {"kind": "schedule", "series": [series_of(*one) for one in looked.items()]}
    if law:
        plot["flow"] = law.is_flow
    if span:
        plot["span"] = numbers(span)
    if law and span:
        plot["span_ratios"] = numbers(map(law.ratio, span))
    return plot


def series_of(label: str, looked: Looked) -> dict[str, Any]:
    """steps: which one, from 1, begins at each sigma. ratios: noise-to-signal, where the law is known."""
    picked = thinned(len(looked.sigmas), looked.jumps)
    calls, sigmas = looked.calls, [looked.sigmas[number] for number in picked]
    series = {
        "label": label,
        "steps": [number + 1 for number in picked],
        "calls": [calls[number] for number in picked],
        "sigmas": numbers(sigmas),
    }
    return series | ({"ratios": numbers(map(looked.ratio, sigmas))} if looked.law else {})


def thinned(count: int, jumps: Sequence[int]) -> list[int]:
    """Numbers below `count`, evenly left out where there are too many; the last one and both ends of jumps stay."""
    every = math.ceil(count / MOST_POINTS)
    ends = {end for jump in jumps[:MOST_POINTS] for end in (jump, jump + 1)}
    return sorted({*range(0, count, every), count - 1, *ends})


def tuning_plot(tuning: Tuning) -> dict[str, Any]:
    """The errors of its check over model calls."""
    return {
        "kind": "errors",
        "series": [
            {"label": NAMES.get(name, name), "calls": list(errors), "errors": numbers(errors.values())}
            for name in islice(tuning.facts["check"], MOST_SERIES)
            if (errors := tuning.checked(name))
        ],
    }


def numbers(values: Iterable[float]) -> list[float | None]:
    """As JSON has them: rounded, and null for what is no number."""
    return [float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None for value in map(float, values)]
