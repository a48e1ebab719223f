"""The picture of a search: where the steps went, and what that is worth. And how our charts look."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...schedulers.optimal_steps.schedules import Schedules

SHOWN = 8
WITHOUT = "\n(For a chart here, install matplotlib.)"
BLUE, ORANGE, GREY, DARK = "#4c9be8", "#e0a458", "#8a8a8a", "#202020"


def chart(schedules: Schedules) -> tuple[Tensor | None, str]:
    """An IMAGE (1, H, W, 3), and nothing to say; without matplotlib none, and a sentence."""
    made = figure_and_axes((7, 3.6), (1, 1.2))
    if made is None:
        return None, WITHOUT
    figure, (left, right) = made
    draw_sigmas(left, schedules)
    draw_errors(right, schedules)
    return pixels_of(figure), ""


def figure_and_axes(inches: tuple[float, float], widths: Sequence[float]) -> tuple[Any, list[Any]] | None:
    """A figure with axes side by side; None without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    figure = Figure(figsize=inches, dpi=110, facecolor=DARK, layout="constrained")
    return figure, list(figure.subplots(1, len(widths), width_ratios=widths, squeeze=False)[0])


def pixels_of(figure: Any) -> Tensor:
    """The figure as an IMAGE (1, H, W, 3), light on dark."""
    for axes in figure.axes:
        axes.set_facecolor(DARK)
        axes.tick_params(colors="white", which="both", labelsize=8)
        axes.spines[:].set_color(GREY)
        for text in (axes.title, axes.xaxis.label, axes.yaxis.label):
            text.set_color("white")
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png")
    pixels = np.asarray(Image.open(drawn).convert("RGB"), dtype=np.float32) / 255
    return torch.from_numpy(pixels)[None]


def name_curves(axes) -> None:
    """A legend of the labels."""
    axes.legend(fontsize=8, facecolor=DARK, labelcolor="white", edgecolor=GREY)


def draw_sigmas(axes, schedules: Schedules) -> None:
    """The nodes over the steps, an end at 0 left out of the logarithmic axis."""
    sigmas = schedules.sigmas[schedules.facts["steps"]]
    above = [sigma for sigma in sigmas if sigma > 0]
    axes.plot(range(len(above)), above, "o-", color=BLUE)
    axes.set_yscale("log")
    axes.set_xlabel("step" + ("" if sigmas[-1] else ", then 0"), fontsize=8)
    axes.set_title("sigma", fontsize=10)


def draw_errors(axes, schedules: Schedules) -> None:
    """Bars of the best that were compared, the chosen one coloured."""
    from matplotlib.ticker import MaxNLocator

    best = schedules.best(SHOWN)[::-1]
    names = [name for name, _ in best]
    colors = [BLUE if name == schedules.facts["chosen"] else GREY for name in names]
    axes.barh(names, [errors[0] for _, errors in best], color=colors)
    axes.xaxis.set_major_locator(MaxNLocator(4))  # a common factor would be printed over the label
    axes.xaxis.set_major_formatter(lambda error, _: f"{error:.3g}")
    facts = schedules.facts
    axes.set_title(f"error, {facts['steps']} calls of {facts['solver']}", fontsize=10)
    axes.set_xlabel("on seeds that the search did not see", fontsize=8)
