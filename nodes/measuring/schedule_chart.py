"""The picture of schedules: sigma and log-SNR over model calls."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from ...schedulers.inspection import Looked, log_snr
from .chart import BLUE, GREY, ORANGE, WITHOUT, figure_and_axes, name_curves, pixels_of

COLORS = (BLUE, ORANGE, "#5fb37a", "#c678b8")


def schedule_chart(looked: Mapping[str, Looked]) -> tuple[Tensor | None, str]:
    """An IMAGE (1, H, W, 3), and nothing to say; without matplotlib, or nothing to draw, none, and a sentence."""
    sound = {name: one for name, one in looked.items() if one.is_sound and len(one.sigmas) > 1}
    made = figure_and_axes((8, 3.6), (1, 1)) if sound else None
    if made is None:
        return None, WITHOUT if sound else ""
    figure, (left, right) = made
    for (name, one), color in zip(sound.items(), COLORS, strict=False):
        snr = [log_snr(one.ratio(sigma)) for sigma in one.sigmas]
        draw(left, one, [sigma if sigma > 0 else math.nan for sigma in one.sigmas], color, name)
        draw(right, one, [value if math.isfinite(value) else math.nan for value in snr], color, name)
    (first, *_) = sound.values()
    dress(left, right, first, several=len(sound) > 1)
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
