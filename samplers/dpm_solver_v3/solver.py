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
from .plan import Combination, Factor, Options, Step, make_plan
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
        dtype, kept = x.dtype, plan.kept
        state = State(basis.forward(x.to(torch.promote_types(dtype, torch.float32))))
        for number, step in enumerate(plan.steps):
            denoised = denoise(x, step.sigma)
            if on_step:
                on_step(number, step.sigma, x, denoised)
            d = basis.forward(denoised.to(state.z.dtype))
            state = advance(on_device(step, basis, d), state, d, kept)
            x = basis.inverse(state.z).to(dtype)
            del d, denoised  # a call of the model finds no latent in memory that no later step needs
        return x


class State(NamedTuple):
    """Between two calls: the predicted x in the basis, the corrected x but for its r, and r of the nodes before."""

    z: Tensor
    corrector: Tensor | None = None
    history: tuple[Tensor, ...] = ()


def on_device(step: Step, basis: Basis, z: Tensor) -> Step:
    """The step with its coefficients where z is, in one transfer; its float64 stays on the CPU.

    A coefficient that is one number for all coordinates becomes a Python number, which costs no broadcasting.
    """
    table = torch.as_tensor(step.table)
    if table[0].numel() == 1:
        return replace(step, table=table.flatten().tolist())
    return replace(step, table=basis.place(table.to(z.dtype).to(z.device)))


def advance(step: Step, state: State, denoised: Tensor, kept: int) -> State:
    """From one node to the next. `kept` nodes stay in the history. The state's corrector is used up."""
    r = r_of(denoised, step.x_in_r, state.z)
    x = state.z if state.corrector is None else add(state.corrector, step.r_in_x, r)
    history = (r, *state.history)
    corrector = combine(step.corrector, x, history) if step.corrector else None
    return State(combine(step.predictor, x, history), corrector, history[:kept])


def combine(combination: Combination, x: Tensor, history: Sequence[Tensor]) -> Tensor:
    """a x + bias + sum_j weights[j] history[j], in a new tensor."""
    result = x * combination.a
    if torch.is_tensor(combination.bias) or combination.bias != 0:
        result.add_(combination.bias)
    for weight, r in zip(combination.weights, history, strict=False):
        add(result, weight, r)
    return result


def r_of(denoised: Tensor, x_in_r: Factor, x: Tensor) -> Tensor:
    """D + x_in_r x, in a new tensor: the model's own is left as it is."""
    if isinstance(x_in_r, float):
        return torch.add(denoised, x, alpha=x_in_r)
    return torch.addcmul(denoised, x_in_r, x)


def add(base: Tensor, factor: Factor, x: Tensor) -> Tensor:
    """base += factor x."""
    return base.add_(x, alpha=factor) if isinstance(factor, float) else base.addcmul_(factor, x)
