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
BANDS = "by_band"
SHOWN = (10.0, 1.0, 0.3, 0.1)  # noise-to-signal ratios at which a person reads s
MOST_BANDS = 8
SMALLEST, LARGEST = 1e-30, 1e30  # of what a file holds: beyond them a quotient has no meaning


class Curve:
    """s over noise-to-signal: monotone cubics of ln s over ln ratio; s ~ ratio below the levels, constant above.

    ratios (N,), falling; s (N,), which is made never to rise when the noise falls.
    """

    def __init__(self, ratios: Tensor, s: Tensor):
        from scipy.interpolate import PchipInterpolator  # a tenth of a second that no start of ComfyUI should cost

        self.values = s.flip(0).cummax(0).values.flip(0)
        levels, logs = ratios.flip(0).log().double(), self.values.flip(0).clamp(min=1e-12).log().double()
        self.levels, self.cubics = levels, torch.from_numpy(PchipInterpolator(levels.numpy(), logs.numpy()).c)

    def at(self, ratio: Tensor) -> Tensor:
        """On the ratio's device, which is not waited for."""
        levels, cubics = self.levels.to(ratio), self.cubics.to(ratio)
        place = ratio.log()
        inside = place.clamp(levels[0], levels[-1])
        piece = torch.bucketize(inside, levels[1:-1])
        step, (a, b, c, d) = inside - levels[piece], cubics[:, piece]
        return (((a * step + b) * step + c) * step + d + (place - levels[0]).clamp(max=0)).exp()


@dataclass(frozen=True, eq=False)
class Spread:
    """ratios (N,): noise-to-signal, falling. squares, counts (N,): sums of s^2 over latents. facts: where measured.

    by_band (bands, N): the parts of squares by bands of frequency, see bands.py; None where all are taken together.
    Of several streams s^2 is the mean of theirs, and facts["by_stream"] has s of each at the levels, by name.
    """

    ratios: Tensor
    squares: Tensor
    counts: Tensor
    facts: dict[str, Any] = field(default_factory=dict)
    by_band: Tensor | None = None

    @cached_property
    def curve(self) -> Curve:
        return self.curve_of(self.squares)

    @cached_property
    def bands(self) -> list[Curve]:
        return [] if self.by_band is None else [self.curve_of(squares) for squares in self.by_band]

    def curve_of(self, squares: Tensor) -> Curve:
        return Curve(self.ratios, (squares / self.counts).clamp(min=0).sqrt())

    @property
    def values(self) -> Tensor:
        """s at the levels, (N,): never rising when the noise falls."""
        return self.curve.values

    def at(self, ratio: Number) -> Number:
        """s at any noise-to-signal ratios, of all bands together."""
        if not isinstance(ratio, Tensor):
            return float(self.curve.at(torch.tensor(ratio, dtype=torch.float64)))
        return self.curve.at(ratio)

    def reach(self, ratio: Tensor) -> Tensor:
        """s at a ratio (B, 1, ...), or s of every band, (bands, B, 1, ...), where they were measured."""
        return torch.stack([band.at(ratio) for band in self.bands]) if self.bands else self.curve.at(ratio)

    def calibration(self) -> Calibration:
        bands = {} if self.by_band is None else {BANDS: self.by_band}
        return Calibration(KIND, {name: getattr(self, name) for name in TENSORS} | bands, self.facts)

    def parts_at(self, ratio: float) -> str:
        """s by bands, coarse to fine, in words."""
        parts = [float(band.at(torch.tensor(ratio, dtype=torch.float64))) for band in self.bands]
        return f" (coarse to fine {', '.join(f'{part:.3g}' for part in parts)})" if parts else ""

    def describe(self) -> str:
        """For the node: where from, and s at a few levels."""
        facts = self.facts
        lines = [f"{facts['images']} images, {facts['levels']} levels, {guidance_in(facts)}, by {facts['estimator']}"]
        lines += [f"at noise-to-signal {r:g}: {self.at(r):.3g}{self.parts_at(r)}" for r in SHOWN]
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
    by_band = calibration.tensors.get(BANDS)
    if by_band is not None and not sound_bands(by_band, len(ratios)):
        raise ValueError(f"{path.name} holds a spread by bands that is none; measure again.")
    return Spread(ratios, squares, counts, calibration.facts, by_band)


def sound_bands(by_band: Tensor, levels: int) -> bool:
    fine = by_band.ndim == 2 and by_band.shape[1] == levels and 1 < len(by_band) <= MOST_BANDS
    return fine and bool(by_band.isfinite().all() and by_band.min() >= 0 and by_band.max() < LARGEST)


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
