"""How far x0 can be from its mean: s(sigma)^2 = tr Cov[x0 | x, prompt] / d, measured or from a prior.

Measured: the mean squared residual of the model on re-noised references. If D is the posterior mean that is the mean
posterior variance; a model's own error comes on top, as it should for what guidance may use.
Or by Tweedie's formula, Cov = sigma~^2 dD/dy, with Hutchinson's estimate of the trace: e . J e over random signs e.
The prior: latents of variance 1 with a spectrum ~ 1 / (1 + f^2) have s^2 = mean_f P_f sigma~^2 / (P_f + sigma~^2).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .calibration import Calibration
from .facts import guidance_in
from .streams import in_order

KIND = "spread"
TENSORS = ("ratios", "squares", "counts")
SHOWN = (10.0, 1.0, 0.3, 0.1)  # noise-to-signal ratios at which a person reads s
SMALLEST, LARGEST = 1e-30, 1e30  # of what a file holds: beyond them a quotient has no meaning


@dataclass(frozen=True, eq=False)
class Spread:
    """ratios (N,): noise-to-signal, falling. squares, counts (N,): sums of s^2 over latents. facts: where measured.

    Of several streams s^2 is the mean of theirs, and facts["by_stream"] has s of each at the levels, by name.
    """

    ratios: Tensor
    squares: Tensor
    counts: Tensor
    facts: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def values(self) -> Tensor:
        """s at the levels, (N,): never rising when the noise falls."""
        s = (self.squares / self.counts).clamp(min=0).sqrt()
        return s.flip(0).cummax(0).values.flip(0)

    @cached_property
    def curve(self) -> tuple[np.ndarray, np.ndarray, Callable[[float], Any]]:
        """ln ratio, rising, ln s there, and the monotone cubic through them."""
        from scipy.interpolate import PchipInterpolator  # a tenth of a second that no start of ComfyUI should cost

        levels, s = self.ratios.flip(0).log().numpy(), self.values.flip(0).clamp(min=1e-12).log().numpy()
        return levels, s, PchipInterpolator(levels, s)

    def at(self, ratio: float) -> float:
        """s at any noise-to-signal ratio: monotone cubic of ln s over ln ratio; s ~ ratio below, constant above."""
        levels, s, between = self.curve
        place = math.log(ratio) if 0 < ratio < math.inf else (math.inf if ratio > 0 else -math.inf)
        if place >= levels[-1]:
            return float(np.exp(s[-1]))
        if place <= levels[0]:
            return math.exp(s[0] - levels[0]) * ratio
        return float(np.exp(between(place)))

    def calibration(self) -> Calibration:
        return Calibration(KIND, {name: getattr(self, name) for name in TENSORS}, self.facts)

    def describe(self) -> str:
        """For the node: where from, and s at a few levels."""
        facts = self.facts
        lines = [f"{facts['images']} images, {facts['levels']} levels, {guidance_in(facts)}, by {facts['estimator']}"]
        lines += [f"at noise-to-signal {r:g}: {self.at(r):.3g}" for r in SHOWN]
        for stream, s in in_order(facts, facts.get("by_stream", {})):
            shown = np.interp([-math.log(r) for r in SHOWN], (-self.ratios.log()).numpy(), s)
            lines.append(f"{stream}: " + ", ".join(f"{r:g}: {one:.3g}" for r, one in zip(SHOWN, shown, strict=True)))
        return "\n".join([*lines, f"the two halves of the images differ by {facts['check']:.1%}"])


def load_spread(path: Path) -> Spread:
    """From a file of `Spread.calibration`. Raises ValueError in words for what is not one, or holds nonsense."""
    calibration = Calibration.load(path, KIND)
    missing = [name for name in TENSORS if name not in calibration.tensors]
    if missing:
        raise ValueError(f"{path.name} lacks {', '.join(missing)}; measure again.")
    ratios, squares, counts = (calibration.tensors[name].flatten() for name in TENSORS)
    fine = len(ratios) == len(squares) == len(counts) >= 2
    fine = fine and all(t.isfinite().all() and t.abs().max() < LARGEST for t in (ratios, squares, counts))
    # The levels are told apart by their logarithms.
    if not fine or not (ratios[-1] > SMALLEST and counts.min() > SMALLEST and (ratios.log().diff() < 0).all()):
        raise ValueError(f"{path.name} holds no spread over falling levels of noise; measure again.")
    if any(len(s) != len(ratios) for s in calibration.facts.get("by_stream", {}).values()):
        raise ValueError(f"{path.name} holds the spread of a stream at other levels of noise; measure again.")
    return Spread(ratios, squares, counts, calibration.facts)


def prior(ratio: float, shape: tuple[int, ...]) -> float:
    """s of latents (..., H, W) that look like pictures, when nothing was measured. It is up to a third too wide."""
    rows, columns = (torch.arange(n, dtype=torch.float64) for n in shape[-2:])
    power = 1 / (1 + rows[:, None] ** 2 + columns**2)
    power = power / power.mean()
    if ratio == math.inf:
        return 1.0
    return float((power * ratio**2 / (power + ratio**2)).mean().sqrt())
