"""DPM-Solver-v3, arXiv 2310.13268, run: the loop that executes a plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..contract import Denoiser, Noise, OnStep
from ..noise_law import NoiseLaw
from .bases import Basis, basis_for
from .plan import Combination, Options, Step, make_plan
from .statistics import Statistics


@dataclass(frozen=True)
class DPMSolverV3:
    """A Solver: N calls for N steps, with any falling sigmas.

    Between calls it holds, besides x, the r of order - 1 nodes; with a corrector one latent more, and with spectral
    statistics x in that basis. Latents of half precision are stepped in float32.
    Raises ValueError for sigmas that do not fall and for statistics of another latent.
    """

    law: NoiseLaw
    statistics: Statistics = field(default_factory=Statistics.data_prediction)
    options: Options = Options()

    def __call__(
        self,
        denoise: Denoiser,
        x: Tensor,
        sigmas: Tensor,
        *,
        noise: Noise | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        basis = basis_for(self.statistics, x.shape[1:])
        plan = make_plan(sigmas, self.law, basis.statistics, self.options)
        dtype = x.dtype
        state = State(basis.forward(x.to(torch.promote_types(dtype, torch.float32))))
        for number, step in enumerate(plan.steps):
            denoised = denoise(x, step.sigma)
            if on_step:
                on_step(number, step.sigma, x, denoised)
            d = basis.forward(denoised.to(state.z.dtype))
            state = advance(on_device(step, basis, d), state, d, plan.kept)
            x = basis.inverse(state.z).to(dtype)
            del d, denoised  # a call of the model finds no latent in memory that no later step needs
        return x


class State(NamedTuple):
    """Between two calls: the predicted x in the basis, the corrected x but for its r, and r of the nodes before."""

    z: Tensor
    corrector: Tensor | None = None
    history: tuple[Tensor, ...] = ()


def on_device(step: Step, basis: Basis, z: Tensor) -> Step:
    """The step with its coefficients where z is, in one transfer; its float64 stays on the CPU."""
    return replace(step, table=basis.place(step.table.to(z.dtype).to(z.device)))


def advance(step: Step, state: State, denoised: Tensor, kept: int) -> State:
    """From one node to the next. `kept` nodes stay in the history."""
    r = torch.addcmul(denoised, step.x_in_r, state.z)
    x = state.z if state.corrector is None else state.corrector.addcmul_(step.r_in_x, r)
    history = (r, *state.history)
    corrector = combine(step.corrector, x, history) if step.corrector else None
    return State(combine(step.predictor, x, history), corrector, history[:kept])


def combine(combination: Combination, x: Tensor, history: Sequence[Tensor]) -> Tensor:
    """a x + bias + sum_j weights[j] history[j], in a new tensor."""
    result = torch.addcmul(combination.bias, combination.a, x)
    for weight, r in zip(combination.weights, history, strict=False):
        result.addcmul_(weight, r)
    return result
