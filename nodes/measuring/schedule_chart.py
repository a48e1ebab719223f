"""The picture of schedules: sigma and log-SNR over model calls."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from ...schedulers.inspection import Looked, log_snr
from ...schedulers.meters import Metered
from .chart import BLUE, GREY, ORANGE, WITHOUT, figure_and_axes, name_curves, pixels_of

COLORS = (BLUE, ORANGE, "#5fb37a", "#c678b8")


def schedule_chart(looked: Mapping[str, Looked], metered: Metered | None = None) -> tuple[Tensor | None, str]:
    """An IMAGE (1, H, W, 3), and nothing to say; without matplotlib, or nothing to draw, none, and a sentence.

    metered: of the first, in two further panels.
    """
    sound = {name: one for name, one in looked.items() if one.is_sound and len(one.sigmas) > 1}
    panels = 4 if metered else 2
    made = figure_and_axes((4 * panels, 3.6), (1,) * panels) if sound else None
    if made is None:
        return None, WITHOUT if sound else ""
    figure, (left, right, *further) = made
    for (name, one), color in zip(sound.items(), COLORS, strict=False):
        snr = [log_snr(one.ratio(sigma)) for sigma in one.sigmas]
        draw(left, one, [sigma if sigma > 0 else math.nan for sigma in one.sigmas], color, name)
        draw(right, one, [value if math.isfinite(value) else math.nan for value in snr], color, name)
    (first, *_) = sound.values()
    dress(left, right, first, several=len(sound) > 1)
    if metered:
        errors, turns = further
        draw_errors(errors, turns, metered)
    return pixels_of(figure), ""


def draw(axes, looked: Looked, values: list[float], color: str, name: str) -> None:
    """The way down in whole lines, jumps dotted."""
    calls, begin = looked.calls, 0
    for jump in [*looked.jumps, len(values) - 1]:
        label = name if begin == 0 else None
        axes.plot(calls[begin : jump + 1], values[begin : jump + 1], "o-", color=color, markersize=3.5, label=label)
        axes.plot(calls[jump : jump + 2], values[jump : jump + 2], ":", color=color)
        begin = jump + 1


def dress(left, right, looked: Looked, several: bool) -> None:
    """Scales, titles and the model's range, which is shaded."""
    is_flow = looked.law is not None and looked.law.is_flow
    left.set_yscale("linear" if is_flow else "log")
    left.set_title("sigma", fontsize=10)
    right.set_title("log-SNR, picture above noise" if looked.law else "-2 ln sigma", fontsize=10)
    for axes in (left, right):
        axes.set_xlabel("model calls made", fontsize=8)
        axes.grid(color=GREY, alpha=0.25)
    if looked.span:
        left.axhspan(*looked.span, color=BLUE, alpha=0.08)
        snr = [log_snr(looked.ratio(sigma)) for sigma in looked.span]
        low, high = right.get_ylim()
        right.axhspan(max(min(snr), low), min(max(snr), high), color=BLUE, alpha=0.08)
    if several:
        name_curves(left)


def draw_errors(errors, turns, metered: Metered) -> None:
    """What every step adds, by sampler, and how far the model's answer turns in it."""
    from matplotlib.ticker import MaxNLocator

    numbers = range(1, len(metered.steps) + 1)
    for name, color in zip(metered.whole, COLORS, strict=False):
        added = [step.errors[name] if step.errors[name] > 0 else math.nan for step in metered.steps]
        errors.plot(numbers, added, "o-", color=color, markersize=3.5, label=name)
    errors.set_yscale("log")
    errors.set_title("error that a step adds", fontsize=10)
    name_curves(errors)
    turns.bar(numbers, [step.turn for step in metered.steps], color=BLUE)
    turns.set_title(f"turn of the answer, curvature {metered.curvature:.2g}", fontsize=10)
    for axes in (errors, turns):
        axes.set_xlabel("step", fontsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(color=GREY, alpha=0.25)
