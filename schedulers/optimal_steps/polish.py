"""Coordinate descent on the true final error: one node of a schedule at a time is moved between its neighbours."""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from .search import Found, Task, told
from .students import State

KEPT = 64  # states of beginnings that are not run again


class Beginnings:
    """Runs schedules of a task from their first node, and remembers the states of their beginnings."""

    def __init__(self, task: Task):
        self.task = task
        self.kept: OrderedDict[tuple[float, ...], State] = OrderedDict()

    def end(self, sigmas: Sequence[float]) -> Tensor:
        """x at the last sigma."""
        self.task.announce(tuple(sigmas))
        return self.task.student.reach(self.known(tuple(sigmas[:-1])), sigmas[-1])

    def errors(self, schedules: Sequence[Sequence[float]]) -> list[Tensor]:
        """The final errors of each, (B, streams)."""
        return [self.task.end_errors_by_stream(self.end(sigmas), sigmas[-1]) for sigmas in schedules]

    def known(self, beginning: tuple[float, ...]) -> State:
        """The state at the last sigma of a beginning, with the model's answer."""
        if beginning in self.kept:
            self.kept.move_to_end(beginning)
            return self.kept[beginning]
        sigma = beginning[-1]
        if len(beginning) > 1:
            state = self.task.student.move(self.known(beginning[:-1]), sigma)
        else:
            state = State((sigma,), self.task.start(sigma))
        state = self.task.student.know(state, self.task.denoise(state.x, sigma))
        self.kept[beginning] = state
        if len(self.kept) > KEPT:
            self.kept.popitem(last=False)
        return state


class Replay:
    """Runs schedules on the latents of some tasks, which differ in nothing else: each is a part that is made alone."""

    def __init__(self, *tasks: Task):
        self.task = tasks[0]
        self.runs = [Beginnings(task) for task in tasks]

    def end(self, sigmas: Sequence[float]) -> Tensor:
        """x at the last sigma."""
        return torch.cat([run.end(sigmas) for run in self.runs])

    def by_stream(self, families: Sequence[Sequence[Sequence[float]]]) -> list[list[Tensor]]:
        """The final errors (B, streams) of schedules; those of a family share their beginning, and are one part."""
        works = {part_of(family, run.task): work_of(family, run) for family in families for run in self.runs}
        made = dict(zip(works, self.task.together(works), strict=True))
        apart = [[made[part_of(family, run.task)] for run in self.runs] for family in families]
        return [[torch.cat(parts) for parts in zip(*runs, strict=True)] for runs in apart]

    def errors(self, sigmas: Sequence[float]) -> Tensor:
        """The final errors of a schedule, (B,)."""
        return self.by_stream([[sigmas]])[0][0].mean(1)

    def cost(self, sigmas: Sequence[float]) -> float:
        return self.costs([sigmas])[0]

    def costs(self, schedules: Sequence[Sequence[float]]) -> list[float]:
        found = self.by_stream([[sigmas] for sigmas in schedules]) if schedules else []
        return [float(self.task.objective.reduce(errors.mean(1))) for (errors,) in found]


def part_of(family: Sequence[Sequence[float]], task: Task) -> str:
    return f"{len(family[0]) - 1} steps {told(family)} {task.name}".rstrip()


def work_of(family: Sequence[Sequence[float]], run: Beginnings) -> tuple[int, Callable[[], list[Tensor]]]:
    return (len(family[0]) - 1) * len(run.task.teacher.end), partial(run.errors, family)


def most_calls(steps: int, sweeps: int, start_moves: bool) -> int:
    """An upper bound of the model calls of `polish`, the first run of the schedule included."""
    first = 0 if start_moves else 1
    return steps + 2 * sweeps * sum(steps - node for node in range(first, steps))


def polish(
    replay: Replay, sigmas: Sequence[float], places: Sequence[float], sweeps: int, *, start_moves: bool = False
) -> Found:
    """The schedule after so many sweeps over its nodes, each with half the stride of the one before.

    places: falling sigmas where nodes may stand; the schedule's own need not be among them. Those below `task.lowest`
    are for its end.
    """
    best = Found(tuple(sigmas), replay.cost(sigmas))
    for sweep in range(sweeps):
        stride = max(2 ** (sweeps - 1 - sweep), 1)
        for node in range(0 if start_moves else 1, len(sigmas)):
            moved = [one for one in trials(best.sigmas, node, places, stride) if one[-2] >= replay.task.lowest]
            best = min([best, *map(Found, moved, replay.costs(moved))], key=lambda found: found.cost)
    return best


def trials(sigmas: tuple[float, ...], node: int, places: Sequence[float], stride: int) -> Iterator[tuple[float, ...]]:
    """The schedule with the node moved a stride up and down, where it stays between its neighbours."""
    here = bisect_left([-place for place in places], -sigmas[node])
    for there in (here - stride, here + stride):
        if 0 <= there < len(places):
            moved = (*sigmas[:node], places[there], *sigmas[node + 1 :])
            if all(high > low for high, low in zip(moved[:-1], moved[1:], strict=True)):
                yield moved
