"""`python3 run.py python benchmarks/optimal_steps.py`: searched schedules against all of the host's, by solver.

For each problem, solver and number of calls a schedule is searched at the node's defaults on seeds of its own, on eight
prompts. Then it and every schedule of the host run with the same sampler on seeds that no search has seen, and the
error to the converged latent is printed: geometric mean, mean and median over the seeds.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from dpm_solver_v3 import errors, first, statistics_of
from error_per_call import comfy, host_entry
from problems import Problem, demo_problem, mixture_problem, second_problem
from record import record
from scipy.optimize import minimize
from torch import Tensor

PROBLEMS: dict[str, Callable[[int], Problem]] = {
    f"{kind}-{variant}-cfg{cfg:g}": partial(make, variant, cfg)
    for kind, make in (
        ("mixture", mixture_problem),
        ("demo", partial(demo_problem, steps=60)),
        ("second", partial(second_problem, steps=60)),
    )
    for variant in ("eps", "flow")
    for cfg in (1.0, 5.0)
}
TRAJECTORIES = 8  # as the node's default; the prompts of a problem repeat after eight


@dataclass(frozen=True)
class Row:
    """One schedule. Errors are squared distances of latents with variance about 1."""

    problem: str
    solver: str
    calls: int
    schedule: str
    mean: float
    median: float
    geometric: float


def sampler_of(solver: str, measured: Any):
    """The host's sampler, or ours with statistics."""
    from fewstep.nodes.host.dpm_solver_v3 import Choice, dpm_solver_v3_sampler
    from fewstep.samplers.dpm_solver_v3 import Options

    if solver != "dpm_solver_v3":
        return comfy.samplers.sampler_object(solver)
    return dpm_solver_v3_sampler(Choice(Options(), measured, "data", "when_checked", None))


def measure(problem: Problem, solvers: list[str], budgets: list[int]) -> Iterator[Row]:
    """All rows of a problem. What the searches of several numbers of steps share is done once."""
    from fewstep.nodes.measuring.interrupted import Parts
    from fewstep.nodes.measuring.search import Request, search_schedule

    measured = statistics_of(problem) if "dpm_solver_v3" in solvers else None
    conditioning = (first(problem.positive, 2 * TRAJECTORIES), first(problem.negative, 2 * TRAJECTORIES))
    latent = torch.zeros_like(problem.noise[:1])
    shared: dict[str, Any] = {}
    for solver in solvers:
        sampler = sampler_of(solver, measured)
        shared.pop("search", None)
        for calls in budgets:
            for name, sigmas in host_schedules(problem, calls).items():
                yield Row(problem.name, solver, calls, name, *errors(problem, sampler, sigmas, calls))
            request = Request(
                problem.model, *conditioning, problem.cfg, latent, 99, calls, solver,
                trajectories=TRAJECTORIES, statistics=measured if solver == "dpm_solver_v3" else None,
            )  # fmt: skip
            began, kept = time.monotonic(), Parts(done=dict(shared))
            found = search_schedule(request, kept, None)
            shared = {name: kept.done[name] for name in ("teacher", "search")}
            sigmas = torch.tensor(found.sigmas[calls])
            print(f"{problem.name}, {time.monotonic() - began:.0f} s: {found.describe()}", flush=True)
            yield Row(problem.name, solver, calls, "searched", *errors(problem, sampler, sigmas, calls))


def host_schedules(problem: Problem, calls: int) -> dict[str, Tensor]:
    """By name, those that so many calls pay for."""
    made = {name: host_entry("euler", name).make(problem, calls)[1] for name in comfy.samplers.SCHEDULER_NAMES}
    return {name: sigmas for name, sigmas in made.items() if len(sigmas) - 1 <= calls}


def fitted(problem: Problem, sampler, calls: int, tries: int = 300) -> float:
    """The geometric mean error of a schedule fitted, from the host's best, to the very seeds it is measured on.

    By Powell's method, which is local, and with the end at 0: a mark to judge a search by, and no bound.
    """

    def error(sigmas: Tensor) -> float:
        return errors(problem, sampler, sigmas, calls)[2]

    def of_logarithms(logs) -> float:
        descending = torch.tensor(sorted(logs, reverse=True), dtype=torch.float32).exp()
        return math.log(error(torch.cat([descending.clamp(max=float(problem.sampling.sigma_max)), torch.zeros(1)])))

    whole = (sigmas for sigmas in host_schedules(problem, calls).values() if len(sigmas) - 1 == calls)
    best = min(whole, key=error)
    return math.exp(minimize(of_logarithms, best[:-1].log(), method="Powell", options={"maxfev": tries}).fun)


def compared(rows: list[Row]) -> Iterator[tuple[Row, Row]]:
    """For each problem, solver and number of calls the searched schedule, and the host's best."""
    for place in dict.fromkeys((row.problem, row.solver, row.calls) for row in rows):
        here = [row for row in rows if (row.problem, row.solver, row.calls) == place]
        ours = next(row for row in here if row.schedule == "searched")
        yield ours, min((row for row in here if row is not ours), key=lambda row: row.geometric)


def wide(rows: list[Row]) -> str:
    """For a page: a row a problem and solver, a column a number of calls. In brackets the share of the means."""
    calls = sorted({row.calls for row in rows})
    lines = [f"| problem, sampler | {' | '.join(f'{n} calls' for n in calls)} |", "|---" * (len(calls) + 1) + "|"]
    cells: dict[str, dict[int, str]] = {}
    for ours, best in compared(rows):
        share, mean = ours.geometric / best.geometric, ours.mean / best.mean
        cell = f"{share:.0%} of {best.geometric:.1e} {best.schedule} ({mean:.0%})"
        cells.setdefault(f"{ours.problem}, {ours.solver}", {})[ours.calls] = cell
    lines += [f"| {name} | {' | '.join(found.get(n, '') for n in calls)} |" for name, found in cells.items()]
    return "\n".join(lines)


def table(rows: list[Row]) -> str:
    """For each problem, solver and number of calls the host's best schedule, the searched one, and their ratio."""
    lines = [
        "| problem, solver | calls | searched / host's best (geometric mean) | share | mean share | median share |"
    ]
    lines.append("|---|---|---|---|---|---|")
    for ours, best in compared(rows):
        shares = (getattr(ours, name) / getattr(best, name) for name in ("geometric", "mean", "median"))
        place = f"{ours.problem}, {ours.solver} | {ours.calls}"
        figures = [
            f"{ours.geometric:.1e} / {best.geometric:.1e} {best.schedule}",
            *(f"{share:.0%}" for share in shares),
        ]
        lines.append(f"| {place} | {' | '.join(figures)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", nargs="+", choices=list(PROBLEMS), default=list(PROBLEMS))
    parser.add_argument("--solvers", nargs="+", default=["euler", "dpmpp_2m", "dpm_solver_v3"])
    parser.add_argument("--calls", nargs="+", type=int, default=[4, 5, 6, 8, 10])
    parser.add_argument("--seeds", type=int, default=32)
    parser.add_argument("--out", type=Path, default=Path("optimal_steps.json"))
    parser.add_argument(
        "--fitted", action="store_true", help="instead: what a schedule fitted to the seeds themselves has"
    )
    args = parser.parse_args()
    if args.fitted:
        for name in args.problems:
            problem = PROBLEMS[name](args.seeds)
            measured = statistics_of(problem) if "dpm_solver_v3" in args.solvers else None
            for solver, calls in product(args.solvers, args.calls):
                error = fitted(problem, sampler_of(solver, measured), calls)
                print(f"{name}, {solver}, {calls} calls: {error:.1e} fitted to these {args.seeds} seeds", flush=True)
        return
    rows: list[Row] = []
    for name in args.problems:
        for row in measure(PROBLEMS[name](args.seeds), args.solvers, args.calls):
            rows.append(row)
            record(args.out, seeds=args.seeds, rows=[asdict(row) for row in rows])
        print(table([row for row in rows if row.problem == rows[-1].problem]), flush=True)


if __name__ == "__main__":
    main()
