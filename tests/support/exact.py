"""An exact mixture under guidance, in the parts that a table has weights for, and runs on it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from fewstep.samplers.deis import DEIS
from fewstep.samplers.noise_law import NoiseLaw
from fewstep.samplers.table import Table, step_by_table
from fewstep.schedulers.recipe import recipe
from fewstep.schedulers.tuning.fit import fit_table
from fewstep.schedulers.tuning.path import Path, followed
from fewstep.schedulers.tuning.propose import Places
from torch import Tensor

from .mixture import GuidedMixture, Mixture, picture_like

MIXTURE = picture_like(size=8, components=8)
FIRST = {False: 14.6, True: 1.0}


@dataclass(frozen=True, eq=False)
class Case:
    """Of one class, at a cfg; two parts above cfg 1."""

    law: NoiseLaw
    cfg: float
    mixture: Mixture = MIXTURE

    @property
    def first(self) -> float:
        return FIRST[self.law.is_flow]

    def start(self, count: int, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        shape = (count, *self.mixture.spectrum.shape)
        return self.first * torch.randn(shape, generator=generator, dtype=torch.float64)

    def denoise(self, x: Tensor, sigma: float) -> Tensor:
        return self.ask(x, sigma)[0]

    def ask(self, x: Tensor, sigma: float) -> tuple[Tensor, ...]:
        guided = GuidedMixture(self.mixture, self.law, torch.zeros(len(x), dtype=torch.long), self.cfg)(x, sigma)
        return (guided,) if self.cfg == 1 else (guided, guided - GuidedMixture(self.mixture, self.law)(x, sigma))

    def path(self, x: Tensor) -> Path:
        return followed(self.denoise, x, self.law, 40, self.first, 1.0, torch.device("cpu"))

    def fitted(self, path: Path, places: Places, calls: int, kept: int = 3) -> Table:
        """A table of the first few runs of a path."""
        seen = Path(path.law, path.sigmas, path.states[:kept], path.answers[:kept])
        sigmas = places.sigmas(self.law, self.first, calls)
        clock = recipe(calls, self.law.is_flow).answers
        return fit_table(self.ask, seen.states[:, 0], sigmas, seen, clock)[0]

    def by_table(self, table: Table, x: Tensor) -> Tensor:
        return step_by_table(self.ask, x, table)

    def by_recipe(self, calls: int, x: Tensor) -> Tensor:
        own = recipe(calls, self.law.is_flow)
        solver = DEIS(self.law, own.answers, own.order, own.corrector, own.ends_denoised)
        return solver(self.denoise, x, own.sigmas(self.law, self.first, 0.0, calls))


def error(end: Tensor, target: Tensor) -> float:
    """The geometric mean of mean squares."""
    return float((end - target).square().flatten(1).mean(1).log().mean().exp())
