"""The empirical model statistics of DPM-Solver-v3, arXiv 2310.13268 section 3.1, as a table over lambda.

| symbol | name     | meaning                                                                             |
|--------|----------|-------------------------------------------------------------------------------------|
| lambda | `lam`    | half the log signal-to-noise ratio, -ln sigma~; rises while sampling                |
| l      | `l`      | linear part of the noise prediction: f = (1 - l) y - D is what is left of it        |
| s, b   | `s`, `b` | f' is about s f + b along a trajectory                                              |

Between its points the table is linear. All three are per coordinate, and the same for every noise law, because
y = x / alpha and D are. Any bounded values give a consistent solver; good ones give a small error.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

SLACK = 0.05  # of lambda: a schedule that begins this little above the table still begins on it
WIDEST = (-12.0, 12.0)  # lambda of the constant tables: sigma~ from 160,000 to 0.000006
STEEPEST_DECAY = -2.0  # s of an exact score at no noise, where f = sigma~ eps and eps falls like sigma~


@dataclass(frozen=True, eq=False)
class Statistics:
    """lam (N + 1,) rising, so index 0 is the highest noise; l, s, b (N + 1, *F). Kept as float64 on the CPU.

    F are the features of one latent: (1, 1, 1) for all alike, (C, 1, 1) a channel, (C, H, W) a pixel, or
    (C or 1, R) for R bands of spatial frequency (see bases).

    Before the table (more noise) l = 1, s = b = 0: D is taken as constant, which stays finite at lambda = -inf, where
    flow models start. l may jump there, so nothing is extrapolated across (see coefficients).
    Behind the table l is held: a jump of l would be a jump of f inside a step. s and b are held as far as s lies in
    [-2, 0]: an exact score has s -> -2, b -> 0 and l -> 0, and with an l held above 0 f comes to rest, s -> 0. A
    measured s outside of these limits is noise of a vanishing f, and held over a long last hop it would grow as
    e^(s h); it is clipped, and b with it, so that f keeps its resting point -b / s.

    Raises ValueError for shapes that do not fit, a grid that does not rise, NaN and infinity.
    """

    lam: Tensor
    l: Tensor  # noqa: E741
    s: Tensor
    b: Tensor

    def __post_init__(self) -> None:
        for name in ("lam", "l", "s", "b"):
            value = torch.as_tensor(getattr(self, name)).detach().to("cpu", torch.float64)
            object.__setattr__(self, name, value)
        self._check()

    def _check(self) -> None:
        if self.lam.ndim != 1 or len(self.lam) < 2:
            raise ValueError(f"Statistics need a row of 2 levels or more; given: shape {tuple(self.lam.shape)}.")
        for name, table in (("l", self.l), ("s", self.s), ("b", self.b)):
            if table.shape != self.l.shape or len(table) != len(self.lam) or table.ndim not in (3, 4):
                raise ValueError(
                    f"The statistics do not fit together: {len(self.lam)} levels, l {tuple(self.l.shape)}, but {name} "
                    f"{tuple(table.shape)}. Each must be (levels, C, H, W) or (levels, C, bands); measure them again."
                )
        for name in ("lam", "l", "s", "b"):
            if not getattr(self, name).isfinite().all():
                raise ValueError(f"The statistics hold NaN or infinite numbers in {name}; measure them again.")
        if not (self.lam.diff() > 0).all():
            raise ValueError("The levels of the statistics must rise in lambda, from most noise to least.")

    @classmethod
    def constant(cls, l: float, s: float, b: float) -> Statistics:  # noqa: E741
        """The same three numbers at every level and for every coordinate."""
        tables = (torch.full((2, 1, 1, 1), value, dtype=torch.float64) for value in (l, s, b))
        return cls(torch.tensor(WIDEST), *tables)

    @classmethod
    def data_prediction(cls) -> Statistics:
        """(1, 0, 0): the exponential integrator of DPM-Solver++, arXiv 2310.13268 section 3.1."""
        return cls.constant(1, 0, 0)

    @classmethod
    def noise_prediction(cls) -> Statistics:
        """(0, -1, 0): the exponential integrator of DPM-Solver, arXiv 2310.13268 section 3.1."""
        return cls.constant(0, -1, 0)

    @property
    def features(self) -> torch.Size:
        """F."""
        return self.l.shape[1:]

    @property
    def is_per_pixel(self) -> bool:
        """Whether it fits latents of one height and width only."""
        return len(self.features) == 3 and tuple(self.features[1:]) != (1, 1)

    def pooled_by_channel(self) -> Statistics:
        """The means over height and width, for latents of another size. F is (C, 1, 1)."""
        return Statistics(self.lam, *(table.mean((-2, -1), keepdim=True) for table in (self.l, self.s, self.b)))

    @cached_property
    def start(self) -> float:
        """The lambda from which on the table speaks."""
        return self.lam[0].item() - SLACK

    @cached_property
    def points(self) -> list[float]:
        """Every lambda where one of the three bends or jumps."""
        return [self.start, *self.lam.tolist()]

    @cached_property
    def behind(self) -> Tensor:
        """l, s and b behind the last level, (3, *F)."""
        s = self.s[-1].clamp(STEEPEST_DECAY, 0)
        return torch.stack([self.l[-1], s, self.b[-1] * torch.where(s == 0, 0, s / self.s[-1])])

    def l_at(self, lam: float) -> Tensor:
        """l at one lambda, F; -inf is allowed."""
        if lam < self.start:
            return torch.ones(self.features, dtype=torch.float64)
        at = torch.tensor([lam, lam], dtype=torch.float64)
        return self.on_pieces(at, slice(None))[0, 0, 0].view(self.features)

    def on_pieces(self, edges: Tensor, part: slice) -> Tensor:
        """l, s, b at the two ends of each piece between neighbouring `edges`, (3, pieces, 2, features).

        part: which of the features, counted as if F were flat. No piece may reach over one of `points`; then the three
        are linear on it. A piece that ends at a jump has the value of its own side.
        """
        middle = (edges[:-1] + edges[1:]) / 2
        upper = torch.searchsorted(self.lam, middle)
        before, behind = middle < self.start, upper == len(self.lam)
        lower, upper = (upper - 1).clamp_(min=0), upper.clamp(max=len(self.lam) - 1)
        width = (self.lam[upper] - self.lam[lower]).masked_fill_(lower == upper, 1)
        share = (torch.stack([edges[:-1], edges[1:]], 1) - self.lam[lower, None]) / width[:, None]
        flat = [table.flatten(1)[:, part] for table in (self.l, self.s, self.b)]
        ends = torch.stack([torch.lerp(t[lower, None], t[upper, None], share[..., None]) for t in flat])
        ends[:, before] = ends.new_tensor([1, 0, 0]).view(3, 1, 1, 1)
        ends[:, behind] = self.behind.flatten(1)[:, None, None, part]
        return ends
