"""Where a schedule errs on a model, and how curved the model's path is: its steps against a finer run through them.

The finer run goes through every sigma of the schedule, so it gives the state and the model's answer at the beginning of
each step, and the state at its end. What a sampler makes of the former is known without a call.

| symbol | meaning                                                                                     |
|--------|---------------------------------------------------------------------------------------------|
| u      | c sigma / (alpha + c sigma): 0 is the picture, 1 noise; a flow model's own time             |
| z      | x / (alpha + c sigma) = (1 - u) x0 + u e                                                    |
| v      | dz/du = (z - D) / u, D the model's answer                                                   |
| C      | integral over u of |(z_first - z_last) / (u_first - u_last) - v|^2, over its length         |

C is the curvature of arXiv 2301.12003 (the straightness of 2209.03003). Where it is 0 the answer never changes, and one
step of Euler, which is the same step in sigma and in u, is exact.
Differs: the paper knows flows from 0 to 1 alone; here every noise law is seen in u, and a schedule that covers a part
of the way is measured over that part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ..samplers.clock import LogisticClock
from ..samplers.contract import Denoiser
from ..samplers.deis import DEIS
from ..samplers.noise_law import NoiseLaw
from ..samplers.restart import falling_runs
from ..samplers.streams import ALONE, Streams
from .optimal_steps.students import Euler, Multistep2M, State, Student
from .placed import placed
from .recipe import CENTRE

STUDENTS: dict[str, Student] = {"euler": Euler(), "dpmpp_2m": Multistep2M()}
FINER = 4  # parts of a step, at least
CALLS = 48  # of a finer run, at least
# Of ten ways tried on exact mixtures, flow and eps, at cfg 1 and 5, the one whose errors of a step were nearest to the
# exact ones: at the worst step within 3 % at 4 and 8 steps, within 9 % at 16.
PLACES, ANSWERS, ORDER = LogisticClock(CENTRE, 1.75), LogisticClock(7.4, 1.2), 3
Stands = Callable[[Sequence[float]], list[float]]  # where the model itself stands for some sigmas


@dataclass(frozen=True)
class Fine:
    """sigmas: falling, of a finer run. at: numbers of those that are the schedule's."""

    sigmas: tuple[float, ...]
    at: tuple[int, ...]

    @property
    def schedule(self) -> tuple[float, ...]:
        return tuple(self.sigmas[number] for number in self.at)

    @property
    def calls(self) -> int:
        """The answer at an end above 0 is asked for too: how far the last step turned."""
        return len(self.sigmas) - (self.sigmas[-1] == 0)


@dataclass(frozen=True, eq=False)
class Run:
    """A finer run's states and answers, (B, ...) each, one a sigma; at sigma 0 both are the picture."""

    sigmas: tuple[float, ...]
    states: list[Tensor]
    answers: list[Tensor]


@dataclass(frozen=True)
class Step:
    """From a sigma to the next. errors: by sampler, what it adds. turn: how far the answer turns, root mean square."""

    begin: float
    end: float
    errors: dict[str, float]
    turn: float


@dataclass(frozen=True, eq=False)
class Metered:
    """steps: of all falling runs. curvature: of the first. whole: by sampler, the error of the schedule run through.
    end: of the finer runs, at the last sigma.

    Errors are mean squares over the latents, as shares of the square of a latent of variance 1 with its noise,
    alpha^2 + (c sigma)^2: so a step's error is what remains of it in the picture where that is Gaussian.
    """

    steps: list[Step]
    curvature: float
    whole: dict[str, float]
    end: Tensor

    def added(self, name: str) -> float:
        """The errors of all steps together."""
        return sum(step.errors[name] for step in self.steps)

    def worst(self, name: str) -> tuple[int, float]:
        """The number of the step that errs most, from 1, and its share of what all add."""
        errors = [step.errors[name] for step in self.steps]
        most = max(range(len(errors)), key=errors.__getitem__)
        return most + 1, errors[most] / max(sum(errors), torch.finfo(torch.float64).tiny)


# ---------------------------------------------------------------------------------------------------------
# All of it


@dataclass(frozen=True, eq=False)
class Meter:
    """fine: a finer run for each falling run. noise: that a jump between them puts on, by its number, of x's shape.

    announce: told which sigmas the next calls are of.
    """

    denoise: Denoiser
    law: NoiseLaw
    fine: Sequence[Fine]
    noise: Callable[[int], Tensor]
    streams: Streams = ALONE
    store: torch.device = torch.device("cpu")
    announce: Callable[[Sequence[float]], None] = lambda sigmas: None

    def __call__(self, x: Tensor) -> Metered:
        """Of the latents x (B, ...) at the schedule's first sigma."""
        steps: list[Step] = []
        curved = 0.0

        def finely(x: Tensor, fine: Fine) -> Tensor:
            nonlocal curved
            self.announce(fine.sigmas)
            run = followed(self.denoise, x, self.law, fine, self.store)
            curved = curved if steps else curvature(run, self.law, self.streams)
            steps.extend(steps_of(run, fine, self.law, self.streams))
            return run.states[-1].to(x)

        end = self.through(x, finely).to(self.store)
        whole = {name: self.through(x, self.by(student)).to(self.store) for name, student in STUDENTS.items()}
        last = self.fine[-1].sigmas[-1]
        errors = {name: error(reached, end, self.law, last, self.streams) for name, reached in whole.items()}
        return Metered(steps, curved, errors, end)

    def by(self, student: Student) -> Callable[[Tensor, Fine], Tensor]:
        def solve(x: Tensor, fine: Fine) -> Tensor:
            self.announce(fine.schedule)
            return run_through(student, self.denoise, x, fine.schedule)

        return solve

    def through(self, x: Tensor, solve: Callable[[Tensor, Fine], Tensor]) -> Tensor:
        """The end of all falling runs, with the same noise between them whatever solves them."""
        for number, fine in enumerate(self.fine):
            if number:
                here, top = self.fine[number - 1].sigmas[-1], fine.sigmas[0]
                x = self.law.renoise(x, here, top, self.noise(number).to(x))
            x = solve(x, fine)
        return x


def calls_of(fine: Sequence[Fine]) -> int:
    """Of one latent: the finer runs, and the samplers' own."""
    return sum(one.calls + len(STUDENTS) * (len(one.at) - 1) for one in fine)


# ---------------------------------------------------------------------------------------------------------
# The finer run


def finer(schedule: Sequence[float], law: NoiseLaw, least: float, stands: Stands = list) -> list[Fine]:
    """A finer run for each falling run of a schedule. least: the model's lowest sigma, below which it is not asked."""
    runs = [run.tolist() for run in falling_runs(torch.tensor(schedule, dtype=torch.float64)) if len(run) > 1]
    steps = sum(len(run) - 1 for run in runs)
    parts = max(FINER, -(-CALLS // max(steps, 1)))
    return [refined(run, law, least, parts, stands) for run in runs]


def refined(run: Sequence[float], law: NoiseLaw, least: float, parts: int, stands: Stands) -> Fine:
    """Every step in so many parts, even on a clock; fewer where the model tells no more levels of noise apart."""
    sigmas, at = [run[0]], [0]
    for begin, end in pairwise(run):
        inner = stands(placed(PLACES, law, begin, end, parts)[1:-1])
        sigmas += [s for s in sorted({*inner}, reverse=True) if max(end, least) < s < begin]
        sigmas.append(end)
        at.append(len(sigmas) - 1)
    return Fine(tuple(sigmas), tuple(at))


def followed(denoise: Denoiser, x: Tensor, law: NoiseLaw, fine: Fine, store: torch.device) -> Run:
    """The finer run from x, kept on the device `store`."""
    states: list[Tensor] = []
    answers: list[Tensor] = []

    def kept(step: int, sigma: float, x: Tensor, denoised: Tensor) -> None:
        states.append(x.to(store))
        answers.append(denoised.to(store))

    end = DEIS(law, ANSWERS, ORDER, ends_denoised=True)(denoise, x, fine.sigmas, on_step=kept)
    states.append(end.to(store))
    answers.append(states[-1] if fine.sigmas[-1] == 0 else denoise(end, fine.sigmas[-1]).to(store))
    return Run(fine.sigmas, states, answers)


# ---------------------------------------------------------------------------------------------------------
# What is read from it


def steps_of(run: Run, fine: Fine, law: NoiseLaw, streams: Streams = ALONE) -> list[Step]:
    """Each step of the schedule, made by every sampler from the finer run's states and answers."""
    errors = {name: list(own_errors(student, run, fine, law, streams)) for name, student in STUDENTS.items()}
    steps = []
    for number, (here, there) in enumerate(pairwise(fine.at)):
        turn = mean_square(run.answers[there], run.answers[here], streams) ** 0.5
        own = {name: found[number] for name, found in errors.items()}
        steps.append(Step(run.sigmas[here], run.sigmas[there], own, turn))
    return steps


def own_errors(student: Student, run: Run, fine: Fine, law: NoiseLaw, streams: Streams) -> Iterator[float]:
    """Of each step, from the finer run's state with the finer run's answers as its past."""
    state = State((run.sigmas[0],), run.states[0])
    for here, there in pairwise(fine.at):
        state = student.know(state, run.answers[here])
        end = run.sigmas[there]
        yield error(student.reach(state, end), run.states[there], law, end, streams)
        state = State((*state.sigmas, end), run.states[there], state.memory)


def run_through(student: Student, denoise: Denoiser, x: Tensor, schedule: Sequence[float]) -> Tensor:
    """The end of a falling schedule by the sampler alone, a call a step."""
    state = State((schedule[0],), x)
    for end in schedule[1:]:
        state = student.move(student.know(state, denoise(state.x, state.sigmas[-1])), end)
    return state.x


def curvature(run: Run, law: NoiseLaw, streams: Streams = ALONE) -> float:
    """C, a mean square over the latents, by the trapezoid rule over the finer run."""
    times = [share_of_noise(sigma, law) for sigma in run.sigmas]
    first, last = (in_flow(run.states[n], run.sigmas[n], law) for n in (0, -1))
    chord = (first - last) / (times[0] - times[-1])
    away = [mean_square(slope, chord, streams) for slope in slopes(run, law)]
    parts = [(a + b) / 2 * (s - t) for (a, b), (s, t) in zip(pairwise(away), pairwise(times), strict=True)]
    return sum(parts) / (times[0] - times[-1])


def slopes(run: Run, law: NoiseLaw) -> Iterator[Tensor]:
    """v at every sigma. The part to sigma 0 is straight, so v there is that of its beginning."""
    slope = torch.zeros(())
    for sigma, state, answer in zip(run.sigmas, run.states, run.answers, strict=True):
        if sigma > 0:
            slope = (in_flow(state, sigma, law) - answer) / share_of_noise(sigma, law)
        yield slope


def in_flow(x: Tensor, sigma: float, law: NoiseLaw) -> Tensor:
    """z."""
    return x / (law.alpha(sigma) + law.deviation(sigma))


def share_of_noise(sigma: float, law: NoiseLaw) -> float:
    """u."""
    return law.deviation(sigma) / (law.alpha(sigma) + law.deviation(sigma))


def error(x: Tensor, target: Tensor, law: NoiseLaw, sigma: float, streams: Streams) -> float:
    """See `Metered`."""
    return mean_square(x, target, streams) / (law.alpha(sigma) ** 2 + law.deviation(sigma) ** 2)


def mean_square(x: Tensor, target: Tensor, streams: Streams) -> float:
    return float(streams.square_errors(x, target).mean())
