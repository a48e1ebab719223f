"""DPM-Solver-v3, arXiv 2310.13268, run: the loop that executes a plan, and a bound on where a step may lead.

In the mean square x0 is no further from its posterior mean D than from y, which is sigma~, and no further than latents
are large. So the average of D that an exact step amounts to (plan.Average) is not further from the D at its start than
    R = FURTHEST min(max(1, rms D), sigma~ at the first node that the step looks at),
FURTHEST leaving room for guidance. Where a step of higher order, or with statistics, leads further, it extrapolates
what is not there, and the step is made with the D at its start: order 1 of data prediction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..contract import Denoiser, Noise, OnStep
from ..noise_law import NoiseLaw
from ..streams import ALONE, Streams
from .bases import Basis, basis_for
from .plan import Average, Combination, Factor, Options, Step, make_plan
from .statistics import Statistics

# With good tables 46,000 steps (exact models and the demo model, cfg 1 and 5, 5 to 20 calls) stayed below 1.7, and the
# authors' recorded runs below 1.02; runs that went astray had steps of 4 and more.
FURTHEST = 2.0


@dataclass(frozen=True)
class DPMSolverV3:
    """A Solver: N calls for N steps, with any falling sigmas, or rising ones to unsample. One sigma or none is no step.

    on_held is told at the end, of each item, how many steps were held back by the bound.
    Between calls it holds, besides x, the r of order - 1 nodes; with a corrector one latent more, and with spectral
    statistics x in that basis. Latents of half precision are stepped in float32.
    streams: of the latent, where the host packed several to (B, 1, N).
    Raises ValueError for sigmas that do not fall and for statistics of another latent.
    """

    law: NoiseLaw
    statistics: Statistics = field(default_factory=Statistics.data_prediction)
    options: Options = Options()
    on_held: Callable[[Tensor], None] | None = None
    streams: Streams = ALONE

    def __call__(
        self,
        denoise: Denoiser,
        x: Tensor,
        sigmas: Tensor,
        *,
        noise: Noise | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        if len(sigmas) < 2:
            return x
        basis = basis_for(self.statistics, x.shape[1:], self.streams)
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
        if self.on_held and state.held is not None:
            self.on_held(state.held)
        return x


class State(NamedTuple):
    """Between two calls: the predicted x in the basis, the corrected x but for its r, and r of the nodes before.

    reach (B,): how far the correction may lead from z. held (B,): how many steps were held back so far.
    """

    z: Tensor
    corrector: Tensor | None = None
    history: tuple[Tensor, ...] = ()
    reach: Tensor | None = None
    held: Tensor | None = None


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
    x, held = state.z, state.held
    if state.corrector is not None:
        x = add(state.corrector, step.r_in_x, r)
        if state.reach is not None:
            x, _ = held_back(x, state.z, state.reach)
    history = (r, *state.history)
    corrector = combine(step.corrector, x, history) if step.corrector else None
    z = combine(step.predictor, x, history)
    if step.average is None:
        return State(z, corrector, history[:kept])
    reach = reach_of(step.average, denoised)
    z, too_far = held_back(z, torch.add(step.average.kept * x, denoised, alpha=step.average.gain), reach)
    return State(z, corrector, history[:kept], reach, too_far.int() if held is None else held + too_far)


def reach_of(average: Average, denoised: Tensor) -> Tensor:
    """How far a step may lead from the one with the D at its start, in the root mean square, (B,)."""
    size = rms(denoised).clamp(min=1)
    return FURTHEST * abs(average.gain) * size.clamp(max=average.ratio)


def rms(x: Tensor) -> Tensor:
    """Of every item, (B,)."""
    return x.flatten(1).square().mean(1).sqrt()


def held_back(x: Tensor, base: Tensor, reach: Tensor) -> tuple[Tensor, Tensor]:
    """x, or `base` in items where x is further from it than `reach` (B,) or no number; and which items are, (B,)."""
    too_far = ~(rms(x - base) <= reach)
    return torch.where(too_far.view(-1, *[1] * (x.ndim - 1)), base, x), too_far


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
