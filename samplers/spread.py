"""How far x0 can be from its mean: s(sigma)^2 = tr Cov[x0 | x, prompt] / d, measured or from a prior.

Measured: the mean squared residual of the model on re-noised references. If D is the posterior mean that is the mean
posterior variance; a model's own error comes on top, as it should for what guidance may use.
Or by Tweedie's formula, Cov = sigma~^2 dD/dy, with Hutchinson's estimate of the trace: e . J e over random signs e.
The prior: latents of variance 1 with a spectrum ~ 1 / (1 + f^2) have s^2 = mean_f P_f sigma~^2 / (P_f + sigma~^2).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .calibration import Calibration
from .facts import guidance_in
from .noise_law import Number
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
    def curve(self) -> tuple[Tensor, Tensor]:
        """ln ratio at the levels, rising, (N,), and ln s between them: coefficients of monotone cubics, (4, N - 1)."""
        from scipy.interpolate import PchipInterpolator  # a tenth of a second that no start of ComfyUI should cost

        levels, s = self.ratios.flip(0).log().double(), self.values.flip(0).clamp(min=1e-12).log().double()
        return levels, torch.from_numpy(PchipInterpolator(levels.numpy(), s.numpy()).c)

    def at(self, ratio: Number) -> Number:
        """s at any noise-to-signal ratios: monotone cubics of ln s over ln ratio; s ~ ratio below, constant above.

        Of a tensor on its device, which is not waited for.
        """
        if not isinstance(ratio, Tensor):
            return float(self.at(torch.tensor(ratio, dtype=torch.float64)))
        levels, cubics = (part.to(ratio) for part in self.curve)
        place = ratio.log()
        inside = place.clamp(levels[0], levels[-1])
        piece = torch.bucketize(inside, levels[1:-1])
        step, (a, b, c, d) = inside - levels[piece], cubics[:, piece]
        return (((a * step + b) * step + c) * step + d + (place - levels[0]).clamp(max=0)).exp()

    def calibration(self) -> Calibration:
        return Calibration(KIND, {name: getattr(self, name) for name in TENSORS}, self.facts)

    def describe(self) -> str:
        """For the node: where from, and s at a few levels."""
        facts = self.facts
        lines = [f"{facts['images']} images, {facts['levels']} levels, {guidance_in(facts)}, by {facts['estimator']}"]
        lines += [f"at noise-to-signal {r:g}: {self.at(r):.3g}" for r in SHOWN]
        for stream, s in in_order(facts, facts.get("by_stream", {})):
            shown = np.interp([-np.log(r) for r in SHOWN], (-self.ratios.log()).numpy(), s)
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


def prior(ratio: Number, shape: tuple[int, ...]) -> Number:
    """s of latents (..., H, W) that look like pictures, when nothing was measured. It is up to a third too wide.

    Of a tensor on its device, which is not waited for.
    """
    if not isinstance(ratio, Tensor):
        return float(prior(torch.tensor(ratio, dtype=torch.float64), shape))
    rows, columns = (ratio.new_ones(n).cumsum(0) - 1 for n in shape[-2:])
    power = 1 / (1 + rows[:, None] ** 2 + columns**2)
    power = power / power.mean()
    return (power / (1 + power / ratio[..., None, None] ** 2)).mean((-2, -1)).sqrt()
