"""The picture of a comparison: error over model calls and over seconds, every curve with its name at its end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from ..chart import BLUE, DARK, GREY, WITHOUT, figure_and_axes, pixels_of
from .figures import ODE, Curve, Row, curves
from .words import Told, seconds, short

ORANGE = "#f0a04b"
OTHERS = ("#7fb28a", "#c58fc9", "#d5c46a", "#e07b7b", "#6fc3c3", "#a99ae0", "#b5b5b5", "#c49a6c")
WIDTH, HEIGHT = 3.9, 4.3  # inches, of a panel
GAP = 0.047  # of the axes' height, from name to name
NAMES = 26  # letters of a name at a curve


def comparison_chart(rows: Sequence[Row], told: Told) -> tuple[Tensor | None, str]:
    """An IMAGE (1, H, W, 3), and nothing to say; without matplotlib, or with nothing to draw, none."""
    sets = sets_of(rows)
    found = curves(rows)
    panels = [*([1.0, 1.0] if found else []), *([0.8] if sets else [])]
    if not panels:
        return None, ""
    made = figure_and_axes((WIDTH * sum(panels) + 0.4, HEIGHT), panels)
    if made is None:
        return None, WITHOUT
    figure, axes = made
    colors = colors_of(rows)
    if found:
        over_calls(axes[0], found, colors, told)
        over_seconds(axes[1], found, colors)
    if sets:
        as_sets(axes[-1], sets, colors)
    return pixels_of(figure), ""


def colors_of(rows: Sequence[Row]) -> dict[str, str]:
    """By label: ours blue, the person's orange, the rest apart from each other."""
    found: dict[str, str] = {}
    others = 0
    for row in rows:
        if row.label in found or not row.is_drawn:
            continue
        found[row.label] = BLUE if row.ours else ORANGE if row.own else OTHERS[others % len(OTHERS)]
        others += not (row.ours or row.own)
    return found


def over_calls(axes: Any, found: Sequence[Curve], colors: dict[str, str], told: Told) -> None:
    draw(axes, found, colors, "calls")
    axes.set_title("error to the converged picture", fontsize=10)
    axes.set_xlabel("model calls", fontsize=8)
    low, high = axes.get_ylim()
    if told.known > low:
        axes.axhspan(low, told.known, color=GREY, alpha=0.25)
        axes.text(0.01, 0.01, f"the reference is known to {short(told.known)}", fontsize=7, color=GREY,
                  transform=axes.transAxes)  # fmt: skip
    axes.set_ylim(low, high)


def over_seconds(axes: Any, found: Sequence[Curve], colors: dict[str, str]) -> None:
    draw(axes, found, colors, "time")
    axes.set_title("the same over time", fontsize=10)
    axes.set_xlabel("seconds of a picture", fontsize=8)


def draw(axes: Any, found: Sequence[Curve], colors: dict[str, str], over: str) -> None:
    """Log over log, with room at the right for the names."""
    for curve in found:
        x = [getattr(row, over) for row in curve.rows]
        own = curve.rows[0].own
        thick = curve.rows[0].ours or own
        axes.plot(x, [row.error for row in curve.rows], "D-" if own else "o-", color=colors[curve.label],
                  markersize=5 if own else 3.5, linewidth=2.2 if thick else 1.3, zorder=3 if thick else 2)  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    values = [getattr(row, over) for curve in found for row in curve.rows]
    left, right = min(values), max(values)
    width = max(right / left, 1.6)
    axes.set_xlim(left / width**0.06, right * width**0.8)
    ticks(axes, sorted(set(values)) if over == "calls" else None, left, right)
    axes.grid(True, which="major", color=GREY, alpha=0.2)
    names(axes, [(c.label, getattr(c.rows[-1], over), c.rows[-1].error) for c in found], colors)


def ticks(axes: Any, values: list[float] | None, left: float, right: float) -> None:
    """Numbers of calls where they are; times at a few round places."""
    from matplotlib.ticker import FixedLocator, NullLocator

    places = thinned(values) if values else round_places(left, right)
    axes.xaxis.set_major_locator(FixedLocator(places))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}" if values else seconds(x))


def thinned(values: list[float]) -> list[float]:
    """Without those that would be printed over each other."""
    kept: list[float] = []
    for value in values:
        if not kept or value > kept[-1] * 1.12:
            kept.append(value)
    return kept


def round_places(left: float, right: float) -> list[float]:
    """Two or more, the rounder the better; the ends where nothing round lies between them."""
    decades = range(int(np.floor(np.log10(left))), int(np.ceil(np.log10(right))) + 1)
    for factors in ((1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7), np.arange(1, 10, 0.5), np.arange(1, 10, 0.1)):
        places = [float(factor) * 10.0**decade for decade in decades for factor in factors]
        inside = thinned([place for place in places if left * 0.95 <= place <= right * 1.05])
        if len(inside) > 1:
            return inside
    return [left, right]


def names(axes: Any, ends: Sequence[tuple[str, float, float]], colors: dict[str, str]) -> None:
    """At the right edge, as high as the curves end but for the room that each needs; a thin line leads there."""
    axes.figure.canvas.draw()  # its limits are known then
    to_share = axes.transAxes.inverted()
    shares = [to_share.transform(axes.transData.transform((x, y))) for _, x, y in ends]
    order = sorted(range(len(ends)), key=lambda i: -shares[i][1])
    heights = spread_out([shares[i][1] for i in order], min(GAP, 0.96 / max(len(ends), 1)))
    begin = max(share[0] for share in shares) + 0.05
    for i, height in zip(order, heights, strict=True):
        label, color = ends[i][0], colors[ends[i][0]]
        axes.plot([shares[i][0], begin - 0.01], [shares[i][1], height], color=color, linewidth=0.6, alpha=0.6,
                  transform=axes.transAxes, clip_on=False)  # fmt: skip
        axes.text(begin, height, shown(label), color=color, fontsize=7.5, va="center", transform=axes.transAxes)


def shown(label: str) -> str:
    """What matplotlib would read as mathematics is no more than letters."""
    cut = label if len(label) <= NAMES else f"{label[: NAMES - 1]}\N{HORIZONTAL ELLIPSIS}"
    return cut.replace("$", r"\$")


def spread_out(heights: Sequence[float], gap: float) -> list[float]:
    """Falling heights between 0 and 1, moved as little as a gap between all of them asks for."""
    placed: list[float] = []
    for height in heights:
        placed.append(min(height, placed[-1] - gap) if placed else min(height, 1 - gap / 2))
    lowest = gap / 2
    for i in reversed(range(len(placed))):
        placed[i] = max(placed[i], lowest)
        lowest = placed[i] + gap
    return placed


# ---------------------------------------------------------------------------------------------------------
# Sets


def sets_of(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """By label, where one of the entries is told as a set: all of them, because a distance says little alone."""
    known = [row for row in rows if row.is_drawn and row.distance is not None]
    if all(row.kind == ODE for row in known):
        return {}
    labels = dict.fromkeys(row.label for row in known)
    return {label: sorted((r for r in known if r.label == label), key=lambda r: r.calls) for label in labels}


def as_sets(axes: Any, sets: dict[str, list[Row]], colors: dict[str, str]) -> None:
    """Those without one picture are dashed, with hollow marks; the others stand behind them."""
    marked: list[tuple[str, float, float]] = []
    for label, those in sets.items():
        alone = those[0].kind != ODE
        style = {"linestyle": "--", "marker": "o", "markerfacecolor": DARK, "zorder": 3} if alone else {"alpha": 0.3}
        axes.plot([r.calls for r in those], [r.distance for r in those], color=colors[label], linewidth=1.3, **style)
        marked += [(label, those[-1].calls, those[-1].distance or 0.0)] if alone else []
    axes.set_xscale("log")
    values = sorted({row.calls for those in sets.values() for row in those})
    width = max(values[-1] / values[0], 1.6)
    axes.set_xlim(values[0] / width**0.06, values[-1] * width**0.8)
    ticks(axes, [float(value) for value in values], values[0], values[-1])
    axes.set_title("as a set of pictures", fontsize=10)
    axes.set_xlabel("model calls", fontsize=8)
    axes.grid(True, color=GREY, alpha=0.2)
    names(axes, marked, colors)
