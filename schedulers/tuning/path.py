"""A model's converged runs, at every level of noise between the nodes where the model was asked.

The teacher takes some forty steps; its states and answers between its nodes are the cubic through the nearest four, in
a clock in which both change evenly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ...samplers.clock import LogisticClock, PowerClock
from ...samplers.contract import Denoiser
from ...samplers.deis import DEIS, lagrange
from ...samplers.noise_law import NoiseLaw
from ..placed import placed
from ..recipe import CENTRE

ALL = slice(None)
NEAR = 4  # nodes of an interpolation
# Of the bundled network, at cfg 1 and 7.5: of eight ways tried with 40 steps those that ended nearest to 240. The
# corrector, tried on eps at 40 steps and cfg 1 to 7.5, halves the error at cfg 1 and 5 (of orders 2 to 4, order 2 was
# first or within a tenth of it). REST: noise-to-signal at the last call.
FLOW_PLACES, FLOW_ANSWERS, FLOW_REST = LogisticClock(CENTRE, 1.75), LogisticClock(7.4, 1.2), 0.02
OTHER_PLACES, OTHER_ANSWERS, OTHER_REST = PowerClock(1 / 4), PowerClock(0.5), 0.015


def teacher(law: NoiseLaw, first: float, steps: int, shift: float = 1.0) -> tuple[tuple[float, ...], DEIS]:
    """The sigmas and the solver of a run that ends where finer ones end."""
    if not law.is_flow:
        sigmas = (*placed(OTHER_PLACES, law, first, law.sigma(OTHER_REST), steps - 1), 0.0)
        return sigmas, DEIS(law, OTHER_ANSWERS, order=2, corrector=True, ends_denoised=True)
    wider = math.sqrt(shift)
    places = LogisticClock(FLOW_PLACES.centre * wider, FLOW_PLACES.width)
    answers = LogisticClock(FLOW_ANSWERS.centre * wider, FLOW_ANSWERS.width)
    sigmas = (*placed(places, law, first, law.sigma(FLOW_REST), steps - 1), 0.0)
    return sigmas, DEIS(law, answers, order=2, corrector=True, ends_denoised=True)


@dataclass(frozen=True, eq=False)
class Path:
    """states: (B, nodes, ...), x at every sigma. answers: (B, nodes - 1, ...), x0 at all but the last, which is 0."""

    law: NoiseLaw
    sigmas: tuple[float, ...]
    states: Tensor
    answers: Tensor

    @property
    def end(self) -> Tensor:
        return self.states[:, -1]

    @cached_property
    def clock(self) -> LogisticClock:
        """Centred on the middle of the nodes."""
        middle = self.law.ratio(torch.tensor(self.sigmas[len(self.sigmas) // 2], dtype=torch.float64))
        return LogisticClock(float(middle), FLOW_PLACES.width)

    @cached_property
    def times(self) -> np.ndarray:
        return self.time(self.sigmas)

    def time(self, sigmas: Sequence[float]) -> np.ndarray:
        return self.clock(self.law.ratio(torch.tensor(sigmas, dtype=torch.float64))).numpy()

    def weights(self, sigma: float, count: int) -> tuple[slice, np.ndarray]:
        """Which of the first `count` nodes are near, and their weights."""
        (time,) = self.time([sigma])
        after = int(np.searchsorted(-self.times[:count], -time))
        first = min(max(after - NEAR // 2, 0), count - NEAR)
        near = slice(first, first + NEAR)
        return near, np.array([lagrange(self.times[near], j, time[None])[0] for j in range(NEAR)])

    def between(self, values: Tensor, sigma: float, items: slice) -> Tensor:
        near, weights = self.weights(sigma, values.shape[1])
        return torch.tensordot(values[items, near], torch.from_numpy(weights).to(values), dims=([1], [0]))

    def state(self, sigma: float, items: slice = ALL) -> Tensor:
        """x at a sigma, of some of the runs."""
        return self.between(self.states, sigma, items)

    def answer(self, sigma: float, items: slice = ALL) -> Tensor:
        """x0 there."""
        return self.between(self.answers, sigma, items)


def followed(denoise: Denoiser, x: Tensor, law: NoiseLaw, steps: int, first: float, shift: float, store) -> Path:
    """The teacher's runs from x at `first`, kept on the device `store`."""
    sigmas, solver = teacher(law, first, steps, shift)
    states, answers = [], []

    def kept(step: int, sigma: float, x: Tensor, denoised: Tensor) -> None:
        states.append(x.to(store))
        answers.append(denoised.to(store))

    states.append(solver(denoise, x, sigmas, on_step=kept).to(store))
    return Path(law, sigmas, torch.stack(states, 1), torch.stack(answers, 1))
