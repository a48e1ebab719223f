"""The authors' schedule search (arXiv 2503.21774), as their code does it, with its defect: to compare ours with.

One table of costs, predecessors and states serves all rounds, so a state may be replaced after a path went through it.
Nodes ascend here, 0 being the end, as in the authors' tables.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Velocity = Callable[[Tensor, float], Tensor]
Error = Callable[[Tensor, Tensor], Tensor]  # of candidates (n, ...) and targets (n, ...): (n,)


def mean_square(candidates: Tensor, targets: Tensor) -> Tensor:
    return (candidates - targets).square().flatten(1).mean(1)


@dataclass(frozen=True)
class Searched:
    """schedule: ascending nodes. costs and predecessors: (M + 1, N + 1), a row a round. end: the state they claim."""

    schedule: list[int]
    costs: Tensor
    predecessors: Tensor
    end: Tensor


def search(
    velocity: Velocity, z: Tensor, times: Tensor, teacher: Tensor, steps: int, error_of: Callable[[int], Error]
) -> Searched:
    """z: the start; times (N + 1,), ascending; teacher (N + 1, ...). error_of gives the error of a round."""
    last = len(times) - 1
    cost = torch.full((last + 1,), torch.inf, dtype=torch.float64)
    predecessor = torch.full((last + 1,), last)
    states = z.expand(last + 1, *z.shape).clone()
    tables: list[tuple[Tensor, Tensor]] = []
    for number in range(steps):
        before = states.clone()
        for i in range(last, 0, -1):
            u = velocity(before[i], float(times[i]))
            hops = (times[:i] - times[i]).view(-1, *[1] * z.ndim)
            candidates = before[i] + hops * u
            errors = error_of(number)(candidates, teacher[:i])
            better = (errors < cost[:i]).nonzero().flatten()
            cost[better], predecessor[better], states[better] = errors[better], i, candidates[better]
        tables.append((cost.clone(), predecessor.clone()))
    tables.append(tables[-1])
    costs, predecessors = (torch.stack(rows) for rows in zip(*tables, strict=True))
    return Searched(path_through(predecessors[:steps]), costs, predecessors, states[0])


def path_through(predecessors: Tensor) -> list[int]:
    """From the end back through the rounds; ascending nodes."""
    node, path = 0, []
    for row in reversed(predecessors):
        node = int(row[node])
        path.append(node)
    return path


def replay(velocity: Velocity, z: Tensor, times: Tensor, schedule: list[int]) -> Tensor:
    """The latent that the student really reaches from z, unscaled, at the first node of the schedule."""
    x = z
    for i, j in zip(schedule[::-1], [*schedule[::-1][1:], 0], strict=True):
        x = x + (times[j] - times[i]) * velocity(x, float(times[i]))
    return x


def middle_schedule(schedules: list[list[int]]) -> list[int]:
    """The authors' mean over prompts: at each position the floor of the mean of the upper and the lower middle."""
    columns = [sorted(column) for column in zip(*schedules, strict=True)]
    count = len(schedules)
    return [(column[count // 2] + column[(count - 1) // 2 - (count % 2)]) // 2 for column in columns]


def mixture_velocity(arrays: Any, label: int) -> Velocity:
    """(x - E[x0 | x]) / t of the recorded files' model: x0 ~ sum_k Wt[y, k] N(mu_k, s^2 I), x = (1 - t) x0 + t e."""
    means = torch.from_numpy(arrays["mu"]).flatten(1)
    variance = float(arrays["s"]) ** 2
    log_prior = torch.from_numpy(arrays["Wt"])[label].log()

    def velocity(x: Tensor, t: float) -> Tensor:
        total = (1 - t) ** 2 * variance + t**2
        away = x.flatten() - (1 - t) * means
        weights = (log_prior - away.square().sum(1) / (2 * total)).softmax(0)
        posterior = means + (1 - t) * variance / total * away
        return (x - (weights @ posterior).view_as(x)) / t

    return velocity
