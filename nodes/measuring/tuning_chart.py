"""The picture of a tuning: error over model calls, measured, unmeasured, and a sampler of the host."""

from __future__ import annotations

from torch import Tensor

from ...schedulers.tuning.tuning import NAMES, TUNED, UNMEASURED, Tuning
from .chart import BLUE, GREY, ORANGE, WITHOUT, figure_and_axes, name_curves, pixels_of

COLORS = {TUNED: BLUE, UNMEASURED: ORANGE}


def tuning_chart(tuning: Tuning) -> tuple[Tensor | None, str]:
    """An IMAGE (1, H, W, 3), and nothing to say; without matplotlib none, and a sentence."""
    made = figure_and_axes((7, 3.6), (1,))
    if made is None:
        return None, WITHOUT
    figure, (axes,) = made
    for name, checked in tuning.facts["check"].items():
        numbers = sorted(map(int, checked))
        errors = [max(checked[str(calls)][0], 1e-30) for calls in numbers]
        axes.plot(numbers, errors, "o-", color=COLORS.get(name, GREY), label=NAMES.get(name, name), markersize=4)
    axes.set_yscale("log")
    axes.set_xlabel("model calls", fontsize=8)
    axes.set_title(f"error on seeds it did not see, {tuning.facts['effort']}", fontsize=10)
    name_curves(axes)
    return pixels_of(figure), ""
