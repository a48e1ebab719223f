"""Samplers a step at a time: what a schedule search needs to try the next node of many paths.

A state is a path so far. `know` adds the model's answer at its last node, `reach` gives x at a next node, and `move`
goes there. Nothing is changed in place, so many paths go on from one state.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ...samplers.dpm_solver_v3 import DPMSolverV3
from ...samplers.dpm_solver_v3.bases import Basis, basis_for
from ...samplers.dpm_solver_v3.coefficients import Coefficients
from ...samplers.dpm_solver_v3.plan import Course, lams_of
from ...samplers.dpm_solver_v3.solver import State as SolverState
from ...samplers.dpm_solver_v3.solver import advance, on_device

LOOKS_BACK = 4  # nodes, more than any order of DPM-Solver-v3


class State(NamedTuple):
    """sigmas: all nodes of the path, x being at the last. memory: the student's own, for its further steps."""

    sigmas: tuple[float, ...]
    x: Tensor
    memory: Any = None


class Student(Protocol):
    """A sampler whose schedule is sought. x may be a batch (B, ...)."""

    def know(self, state: State, denoised: Tensor) -> State:
        """The same place, with the model's answer."""
        ...

    def reach(self, state: State, sigma: float) -> Tensor:
        """x at a lower sigma, 0 too, from a state that knows the model's answer."""
        ...

    def move(self, state: State, sigma: float) -> State:
        """The state there."""
        ...


def euler_step(x: Tensor, denoised: Tensor, sigma: float, sigma_next: float) -> Tensor:
    """D + (sigma' / sigma) (x - D): dx/dsigma = (x - D) / sigma holds for both noise laws. It is DDIM, too."""
    return torch.lerp(denoised, x, sigma_next / sigma)


class Euler:
    """The host's euler. memory: D."""

    def know(self, state: State, denoised: Tensor) -> State:
        return state._replace(memory=denoised)

    def reach(self, state: State, sigma: float) -> Tensor:
        return euler_step(state.x, state.memory, state.sigmas[-1], sigma)

    def move(self, state: State, sigma: float) -> State:
        return State((*state.sigmas, sigma), self.reach(state, sigma))


class Multistep2M:
    """The host's dpmpp_2m, arXiv 2211.01095 algorithm 2, in tau = -ln sigma. memory: the last two D, the newest first.

    The first step, and one to 0, is Euler's.
    """

    def know(self, state: State, denoised: Tensor) -> State:
        return state._replace(memory=(denoised, *(state.memory or ())[:1]))

    def reach(self, state: State, sigma: float) -> Tensor:
        denoised = self.extrapolated(state, sigma) if len(state.memory) > 1 and sigma > 0 else state.memory[0]
        return euler_step(state.x, denoised, state.sigmas[-1], sigma)

    def extrapolated(self, state: State, sigma: float) -> Tensor:
        """D + h / (2 h_last) (D - D_last), h = ln(sigma / sigma')."""
        (newest, last), (before, here) = state.memory, state.sigmas[-2:]
        return torch.lerp(last, newest, 1 + math.log(here / sigma) / (2 * math.log(before / here)))

    def move(self, state: State, sigma: float) -> State:
        return State((*state.sigmas, sigma), self.reach(state, sigma), state.memory)


class V3Memory(NamedTuple):
    """Of DPM-Solver-v3: its state between calls, the correction it made last, and the answer at this node."""

    solver: SolverState
    correction: Coefficients | None = None
    denoised: Tensor | None = None


@dataclass(frozen=True)
class V3:
    """DPM-Solver-v3. item: the shape of one latent. ends_below: from nodes up to this sigma a step to 0 gives D."""

    solver: DPMSolverV3
    item: torch.Size
    ends_below: float = 0.0

    @cached_property
    def basis(self) -> Basis:
        return basis_for(self.solver.statistics, self.item, self.solver.streams)

    def know(self, state: State, denoised: Tensor) -> State:
        z, memory = self.basis.forward(state.x), state.memory
        solver = memory.solver._replace(z=z) if memory else SolverState(z)
        correction = memory.correction if memory else None
        return state._replace(memory=V3Memory(solver, correction, self.basis.forward(denoised)))

    def course(self, state: State, sigma: float) -> Course:
        """The end of the path, as long as the highest order looks back."""
        sigmas = (*state.sigmas[-LOOKS_BACK:], sigma)
        options = self.solver.options
        if sigmas[-2] <= self.ends_below:
            options = replace(options, last_step="denoised")
        lams = lams_of(sigmas, self.solver.law, options)
        return Course(sigmas, lams, self.solver.law, self.basis.statistics, options)

    def reach(self, state: State, sigma: float) -> Tensor:
        return self.step(state, sigma, corrects=False)[0]

    def move(self, state: State, sigma: float) -> State:
        x, solver, correction = self.step(state, sigma, corrects=sigma > 0)
        return State((*state.sigmas, sigma), x, V3Memory(solver, correction))

    def step(self, state: State, sigma: float, corrects: bool) -> tuple[Tensor, SolverState, Coefficients | None]:
        """x and the solver's state there, and the correction that is due when that node's answer is known."""
        course, memory = self.course(state, sigma), state.memory
        at = len(course.sigmas) - 2
        step, correction = course.step(at, memory.correction, corrects)
        before = memory.solver
        if before.corrector is not None:  # the solver works in it, and other steps start from here too
            before = before._replace(corrector=before.corrector.clone())
        after = advance(on_device(step, self.basis, memory.denoised), before, memory.denoised, LOOKS_BACK)
        return self.basis.inverse(after.z), after, correction
