"""Restart lists as people write them in one line -> intervals, and the plan of what fits a schedule.

"[3, 2, 0.06, 0.30], default": entries (N_R, K, t_min, t_max) as in arXiv 2306.14878 and names of presets, with commas
between. A noise level is a sigma of the model (0.30), a timestep of 1000 with a minus before it (-250), or how much of
the run is over ("75%"). A preset's levels are noise-to-signal, so it means the same on every model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from ...samplers.choices import check_choice
from ...samplers.noise_law import NoiseLaw
from ...samplers.sigmas import checked_sigmas
from .plan import (
    Interval,
    RestartPlan,
    check_interval,
    check_schedule,
    clip,
    in_ratios,
    plural,
    ratio_of,
    restart_plan,
    rho_grid,
    snap,
    unchanged,
)
from .presets import PRESETS, listed
from .request import no_restart

# What "default" is in the KSamplers with restarts of other packs: two rows of the paper's CIFAR-10 lists.
LISTS = {"default": listed((3, 2, 0.06, 0.30), (3, 1, 0.30, 0.59)), **PRESETS}
TIMESTEPS = 1000
MOST = 1000  # points, and repeats
SHOWN = 40  # characters of what cannot be read
ITEM = re.compile(r"""\s*(?:\[(?P<entry>[^\[\]]*)\]|(?P<quote>["']?)(?P<name>[A-Za-z]\w*)(?P=quote))\s*(?:,|\Z)""")
NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
FORM = (
    "Write each restart as [points, repeats, from, up to], with commas between them: [3, 2, 0.06, 0.30], [3, 1, 0.30, "
    "0.59]. Or the name of a preset, such as default or a1111; or nothing, for no restart."
)


@dataclass(frozen=True)
class Place:
    """A noise level as it was written. kind: sigma, timestep (0 to 1000) or percent (of the run, 0 to 100)."""

    value: float
    kind: str = "sigma"


@dataclass(frozen=True)
class Written:
    """One entry: `points` of the way down (N_R), how often (K), from where up to where."""

    points: int
    repeats: int
    low: Place
    high: Place
    text: str


# ---------------------------------------------------------------------------------------------------------
# Reading


def read(text: str) -> tuple[Written | str, ...]:
    """Entries and names of presets, as they stand in `text`. Raises ValueError, in words, for what is neither."""
    if not isinstance(text, str):
        raise ValueError(f"segments is a {type(text).__name__}; it must be a text. {FORM}")
    text = text.strip()
    return tuple(items(text))


def items(text: str) -> Iterator[Written | str]:
    at = 0
    while at < len(text):
        item = ITEM.match(text, at)
        if item is None:
            raise ValueError(f"segments cannot be read from {text[at : at + SHOWN]!r} on. {FORM}")
        if item["name"]:
            check_choice("A preset in segments", item["name"], LISTS)
        yield item["name"] or entry(item["entry"])
        at = item.end()


def entry(text: str) -> Written:
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 4:
        raise ValueError(f"The restart [{text}] has {plural(len(parts), 'part')}, and four are needed. {FORM}")
    points, repeats, low, high = parts
    return Written(
        count(points, 2, f"points, the first part of [{text}],"),
        count(repeats, 1, f"repeats, the second part of [{text}],"),
        place(low, text),
        place(high, text),
        f"[{text}]",
    )


def count(text: str, least: int, name: str) -> int:
    """Raises ValueError for what is no whole number from `least` to MOST."""
    if not re.fullmatch(r"\+?[0-9]{1,9}", text) or not least <= int(text) <= MOST:
        raise ValueError(f"segments: {name} is {text!r}; it must be a whole number from {least} to {MOST}.")
    return int(text)


def place(text: str, within: str) -> Place:
    """Raises ValueError for what is no noise level."""
    bare = text.strip("\"' ")
    number, percent = bare.removesuffix("%").rstrip(), bare.endswith("%")
    if NUMBER.fullmatch(number):
        value = float(number)
        if percent and 0 <= value <= 100:
            return Place(value, "percent")
        if not percent and number.startswith("-") and -TIMESTEPS <= value:
            return Place(float(int(-value)), "timestep")
        if not percent and not number.startswith("-"):
            return Place(value)
    raise ValueError(
        f"segments: {text!r} in [{within}] is no noise level. It can be a sigma of the model, 0 or more; a timestep "
        f'with a minus before it, -0 to -{TIMESTEPS}; or how much of the run is over, "0%" to "100%".'
    )


# ---------------------------------------------------------------------------------------------------------
# Planning


def written_plan(
    sigmas: Sequence[float],
    law: NoiseLaw,
    written: Sequence[Written | str],
    sigma_at: Callable[[Place], float],
    grid: Callable[[float, float, int], list[float]] = rho_grid,
) -> RestartPlan:
    """The restarts that fit the schedule, on top of its steps; a remark for each that does not.

    sigma_at: the model's sigma at a Place. Raises ValueError for a restart that this model cannot have.
    Differs: where several fall on one step all are run (see restart_plan); those of other packs keep one of them.
    """
    sigmas = checked_sigmas(sigmas, law)
    check_schedule(sigmas)
    if len(sigmas) < 2:
        return unchanged(sigmas)
    main = [ratio_of(sigma, law) for sigma in sigmas]
    intervals, remarks = asked(written, len(sigmas) - 1, sigma_at, law)
    fitting, clipped = clip(intervals, main[0])
    landing, dropped = landed(fitting, main)
    return restart_plan(sigmas, landing, law, grid=grid, remarks=[*remarks, *clipped, *dropped])


def asked(
    written: Iterable[Written | str], steps: int, sigma_at: Callable[[Place], float], law: NoiseLaw
) -> tuple[list[Interval], list[str]]:
    """All intervals, in noise-to-signal, and a remark for each preset without one for so many steps."""
    intervals: list[Interval] = []
    remarks = []
    for item in written:
        if isinstance(item, Written):
            interval = Interval(item.points, item.repeats, sigma_at(item.low), sigma_at(item.high), "sigma")
            check_interval(interval)
            intervals.append(in_ratios(interval, law, item.text))
            continue
        preset = LISTS[item](steps)
        intervals += preset
        remarks += [] if preset else [no_restart(item, steps)]
    return intervals, remarks


def landed(intervals: Iterable[Interval], main: list[float]) -> tuple[list[Interval], list[str]]:
    """Those whose nearest main node lies below their upper end, and remarks on the others."""
    kept, remarks = [], []
    for interval in intervals:
        nearest = main[snap(interval, main)]
        if nearest < interval.sigma_max:
            kept.append(interval)
        else:
            remarks.append(f"{interval} (noise-to-signal) dropped: the nearest step ends above it, at {nearest:.4g}.")
    return kept, remarks
