"""The layered search of arXiv 2503.21774 section 3: after k steps, at each node, the path nearest to the teacher.

    S[k][j] = the path with k steps to node j of least error, made of some S[k - 1][i] and one step from i to j

Every S keeps its own path and the student's memory of it, and the ends of layer k are the schedules of k steps: one
search gives all budgets.
Differs: the authors hold one table for all layers, in which a node's state may be replaced after a path went through
it; what is read from it is then no path that was ever run (1.6e-4 claimed, 2.7e-4 real, in one recorded case).
A state per node is a choice: the best way to the end need not pass through the best state at each node. `contenders`
keeps more of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from ...samplers.contract import Denoiser
from ...samplers.noise_law import NoiseLaw
from .objective import Objective
from .students import State, Student
from .teacher import Teacher

Works = Mapping[str, tuple[int, Callable[[], Any]]]  # by name: model calls of one latent, at most, and how it is made


def in_turn(works: Works) -> list[Any]:
    """The results of works that do not need each other, in this order."""
    return [make() for _, make in works.values()]


@dataclass(frozen=True, eq=False)
class Task:
    """What is sought for whom.

    start: x at a sigma where a schedule may begin. starts: numbers of the teacher's nodes where it may.
    ends: sigmas where it may end, 0 or small; what noise is left there counts as error.
    lowest: the model is asked at no sigma below it.
    announce: told, before the model is asked, of which schedule that is.
    together: makes works that do not need each other; name: of the latents, where several tasks are told apart in it.
    """

    denoise: Denoiser
    student: Student
    law: NoiseLaw
    teacher: Teacher
    start: Callable[[float], Tensor]
    starts: Sequence[int] = (0,)
    ends: Sequence[float] = (0.0,)
    objective: Objective = Objective()
    lowest: float = 0.0
    announce: Callable[[Sequence[float]], None] = lambda sigmas: None
    together: Callable[[Works], list[Any]] = in_turn
    name: str = ""

    def end_errors(self, x: Tensor, sigma: float) -> Tensor:
        """(B,), of x at `sigma` taken as the picture."""
        return self.end_errors_by_stream(x, sigma).mean(1)

    def end_errors_by_stream(self, x: Tensor, sigma: float) -> Tensor:
        """(B, streams), the same of each."""
        return self.objective.by_stream(x / self.law.alpha(sigma), self.teacher.end.to(x.device))


@dataclass(frozen=True)
class Found:
    """A schedule: falling sigmas, one more than its steps, and the error it has."""

    sigmas: tuple[float, ...]
    cost: float


@dataclass(frozen=True, eq=False)
class Path:
    """A way to a node of the teacher."""

    node: int
    cost: float
    state: State


Layer = Mapping[int, Sequence[Path]]  # a node's paths, the best first


def search(task: Task, steps: int, *, width: int | None = None, contenders: int = 1) -> dict[int, Found]:
    """The best schedule of every number of steps from 1 to `steps`.

    width: of each layer only so many nodes are gone on from, those that promise most; None: all.
    Ties: the predecessor with the most noise. Raises ValueError for more steps than the teacher has nodes.
    """
    if not 1 <= steps <= len(task.teacher.sigmas):
        raise ValueError(f"{steps} steps were asked for; the grid allows 1 to {len(task.teacher.sigmas)}.")
    promise = Promise(task, steps)
    layer: Layer = {node: [start_path(task, node)] for node in task.starts}
    found = {}
    for k in range(1, steps + 1):
        nodes = promise.best(layer, k, width) if width else sorted(layer)
        paths = called(task, [layer[node] for node in nodes])
        found[k] = best_end(task, paths)
        layer = next_layer(task, paths, contenders)
    return found


def start_path(task: Task, node: int) -> Path:
    sigma = task.teacher.sigmas[node]
    x = task.start(sigma)
    errors = task.objective.errors(x, task.teacher.states[node].to(x.device))
    return Path(node, float(task.objective.reduce(errors)), State((sigma,), x))


def called(task: Task, groups: Sequence[Sequence[Path]]) -> list[Path]:
    """The paths of some nodes with the model's answers. Compared in x0, only the best of each node is left."""
    paths = [path for group in groups for path in group]
    works = {f"answer {told([path.state.sigmas])}": (len(path.state.x), partial(answer, task, path)) for path in paths}
    answers = iter(task.together(works))
    chosen = []
    for group in groups:
        answered = [(path, next(answers)) for path in group]
        in_x0 = task.objective.space == "x0"
        chosen += [min(answered, key=lambda pair: error_in_x0(task, *pair))] if in_x0 else answered
    return [Path(path.node, path.cost, task.student.know(path.state, denoised)) for path, denoised in chosen]


def answer(task: Task, path: Path) -> Tensor:
    # Which node comes next is not known yet: of all that it may be, the nearest stands for it.
    task.announce((*path.state.sigmas, *task.teacher.sigmas[path.node + 1 :], 0.0))
    return task.denoise(path.state.x, path.state.sigmas[-1])


def error_in_x0(task: Task, path: Path, denoised: Tensor) -> float:
    errors = task.objective.errors(denoised, task.teacher.denoised[path.node].to(denoised.device))
    return float(task.objective.reduce(errors))


def told(schedules: Sequence[Sequence[float]]) -> str:
    """Schedules in a few letters; no two are told alike."""
    return hashlib.sha256(repr([tuple(map(float, sigmas)) for sigmas in schedules]).encode()).hexdigest()[:12]


def best_end(task: Task, paths: Sequence[Path]) -> Found:
    """The best of all steps from the paths to an end."""
    best = Found((), float("inf"))
    for path in paths:
        for sigma in task.ends:
            if sigma < path.state.sigmas[-1]:
                errors = task.end_errors(task.student.reach(path.state, sigma), sigma)
                cost = float(task.objective.reduce(errors))
                if cost < best.cost:
                    best = Found((*path.state.sigmas, sigma), cost)
    return best


def next_layer(task: Task, paths: Sequence[Path], contenders: int) -> Layer:
    """The best ways on to each node. Only those that are kept are moved, so memory holds one layer."""
    sigmas, layer = task.teacher.sigmas, {}
    costs = torch.full((len(sigmas), len(paths)), torch.inf, dtype=torch.float64)
    for number, path in enumerate(paths):
        later = range(path.node + 1, len(sigmas))
        if later:
            costs[path.node + 1 :, number] = task.objective.reduce(
                torch.stack([step_errors(task, path, j) for j in later])
            )
    for node, sigma in enumerate(sigmas):
        order = costs[node].sort(stable=True).indices[:contenders].tolist()
        reached = [number for number in order if costs[node, number] < torch.inf]
        if reached:
            moved = [task.student.move(paths[number].state, sigma) for number in reached]
            layer[node] = [Path(node, float(costs[node, n]), m) for n, m in zip(reached, moved, strict=True)]
    return layer


def step_errors(task: Task, path: Path, node: int) -> Tensor:
    """(B,), of a step to the node."""
    x = task.student.reach(path.state, task.teacher.sigmas[node])
    return task.objective.errors(x, task.teacher.states[node].to(x.device))


# ---------------------------------------------------------------------------------------------------------
# Which nodes promise most


@dataclass(frozen=True, eq=False)
class Promise:
    """How good a schedule through a node can become, from the teacher's own states: it costs no model call.

    From each node the student makes one step on the teacher's trajectory; roots of the errors of such steps are added
    up, in the scale of a latent of variance 1 at that noise, x / sqrt(alpha^2 + c^2 sigma^2).
    """

    task: Task
    steps: int

    @cached_property
    def scales(self) -> list[float]:
        law = self.task.law
        return [(law.alpha(sigma) ** 2 + law.deviation(sigma) ** 2) ** -0.5 for sigma in self.task.teacher.sigmas]

    @cached_property
    def to_go(self) -> Tensor:
        """(steps + 1, N): the least sum from a node to an end in so many steps; row 0 is inf."""
        hops, last = self.hops()
        rows = [torch.full_like(last, torch.inf), last]
        for _ in range(2, self.steps + 1):
            rows.append((hops + rows[-1]).min(1).values)
        return torch.stack(rows)

    def hops(self) -> tuple[Tensor, Tensor]:
        """Roots of the errors of one step, (N, N) from row to column, and (N,) to the best end."""
        task, count = self.task, len(self.task.teacher.sigmas)
        hops = torch.full((count, count), torch.inf, dtype=torch.float64)
        last = torch.full((count,), torch.inf, dtype=torch.float64)
        for i in range(count):
            later = range(i + 1, count)
            paths = [self.on_teacher(i, max(2 * i - j, 0)) for j in later]
            if later:
                hops[i, i + 1 :] = task.objective.reduce(
                    torch.stack([step_errors(task, path, j) for path, j in zip(paths, later, strict=True)])
                )
            last[i] = best_end(task, [self.on_teacher(i, max(i - 1, 0))]).cost
        return self.root(hops) * torch.tensor(self.scales), self.root(last)

    def on_teacher(self, node: int, before: int) -> Path:
        """At a node of the teacher, with the memory of one earlier node where there is one."""
        teacher, student = self.task.teacher, self.task.student
        state = State((teacher.sigmas[before],), teacher.states[before])
        if before < node:
            state = student.move(student.know(state, teacher.denoised[before]), teacher.sigmas[node])
            state = state._replace(x=teacher.states[node])
        return Path(node, 0.0, student.know(state, teacher.denoised[node]))

    def root(self, costs: Tensor) -> Tensor:
        return costs ** (1 / self.task.objective.p)

    def best(self, layer: Layer, k: int, width: int) -> list[int]:
        """The `width` nodes of a layer that come nearest to the best for some budget of k steps or more, in order."""
        nodes = sorted(layer)
        so_far = self.root(torch.tensor([layer[node][0].cost for node in nodes], dtype=torch.float64))
        so_far = so_far * torch.tensor([self.scales[node] for node in nodes])
        totals = so_far + self.to_go[1 : self.steps - k + 2][:, nodes]
        behind = (totals / totals.min(1, keepdim=True).values.clamp(min=1e-30)).nan_to_num(torch.inf).min(0).values
        return sorted(nodes[i] for i in behind.sort(stable=True).indices[:width].tolist())
