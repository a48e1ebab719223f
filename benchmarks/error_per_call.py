"""`python3 run.py bench`: error to the converged solution at equal model calls, over the host's samplers x schedules.

For each problem and budget N a combination runs with as many steps as N guided model calls pay for; the error
is the squared distance to the converged latent, mean and median over the seeds. A guided pair counts as one
call. What the host itself does with a schedule (dpm_2 and uni_pc drop the last but one sigma) is done here too.
"""

from __future__ import annotations

import argparse
import logging
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import torch
from support.host import start_host
from torch import Tensor
from tqdm import tqdm

logging.basicConfig(level=logging.ERROR)
start_host()
import comfy.samplers  # noqa: E402
from problems import Problem, demo_problem, mixture_problem, run  # noqa: E402
from record import record  # noqa: E402

# The _cfg_pp samplers follow another equation and end at another picture; dpm_adaptive chooses its own calls.
NO_RIVAL = ("cfg_pp", "dpm_adaptive")

PROBLEMS: dict[str, Callable[[int], Problem]] = {
    "mixture-eps-cfg7.5": lambda seeds: mixture_problem("eps", 7.5, seeds),
    "mixture-eps": lambda seeds: mixture_problem("eps", 1.0, seeds),
    "mixture-v-cfg4": lambda seeds: mixture_problem("v", 4.0, seeds),
    "mixture-edm-cfg4": lambda seeds: mixture_problem("edm", 4.0, seeds),
    "mixture-flow-cfg4": lambda seeds: mixture_problem("flow", 4.0, seeds),
    "demo-eps-cfg3": lambda seeds: demo_problem("eps", 3.0, min(seeds, 8)),
    "demo-flow-cfg3": lambda seeds: demo_problem("flow", 3.0, min(seeds, 8)),
}


@dataclass(frozen=True)
class Entry:
    """Something to measure: a name, and its SAMPLER and SIGMAS for a number of steps on a problem."""

    sampler: str
    scheduler: str
    make: Callable[[Problem, int], tuple[object, Tensor]]


@dataclass(frozen=True)
class Row:
    """One line of the result. Errors are mean squared, of latents with variance about 1."""

    problem: str
    budget: int
    sampler: str
    scheduler: str
    steps: int
    calls: int
    mean: float
    median: float


def host_entry(sampler: str, scheduler: str) -> Entry:
    def make(problem: Problem, steps: int) -> tuple[object, Tensor]:
        ks = comfy.samplers.KSampler(problem.model, steps, problem.model.load_device, sampler, scheduler)
        return comfy.samplers.sampler_object(sampler), ks.sigmas

    return Entry(sampler, scheduler, make)


@cache
def probe() -> Problem:
    """The smallest problem, for what does not depend on the model: calls per step, and determinism."""
    return mixture_problem("eps", 1.0, seeds=1)


@cache
def deterministic_samplers() -> tuple[str, ...]:
    """The host's samplers whose end does not depend on the sampling seed, found by running them twice."""
    names = [n for n in comfy.samplers.SAMPLER_NAMES if not any(word in n for word in NO_RIVAL)]

    def end(name: str, seed: int) -> Tensor:
        return run(probe(), *host_entry(name, "normal").make(probe(), 6), seed=seed)[0]

    return tuple(n for n in names if torch.equal(end(n, 1), end(n, 2)))


def rivals() -> Iterator[Entry]:
    for sampler in deterministic_samplers():
        for scheduler in comfy.samplers.SCHEDULER_NAMES:
            yield host_entry(sampler, scheduler)


def affordable_steps(entry: Entry, budget: int) -> int | None:
    """The most steps that `budget` calls pay for; None when even the fewest cost more."""
    best = None
    for steps in range(1, budget + 2):
        try:
            calls = run(probe(), *entry.make(probe(), steps))[1]
        except (IndexError, ValueError, ZeroDivisionError, RuntimeError):
            continue  # some of the host's schedules and samplers cannot do so few steps
        if calls <= budget:
            best = steps
    return best


def measure(problem: Problem, entry: Entry, budget: int) -> Row | None:
    steps = affordable_steps(entry, budget)
    if steps is None:
        return None
    drawn, calls = run(problem, *entry.make(problem, steps))
    errors = (drawn - problem.end).double().square().flatten(1).mean(1)
    mean, median = (float(e) if math.isfinite(e) else math.inf for e in (errors.mean(), errors.median()))
    return Row(problem.name, budget, entry.sampler, entry.scheduler, steps, calls, mean, median)


def table(rows: list[Row], shown: int) -> str:
    """The best combinations of every problem and budget."""
    lines = [f"{'problem':<22} {'calls':>5}  {'mean':>9} {'median':>9}  sampler, schedule (steps)"]
    for problem, budget in dict.fromkeys((r.problem, r.budget) for r in rows):
        chosen = sorted((r for r in rows if (r.problem, r.budget) == (problem, budget)), key=lambda r: r.mean)
        for row in chosen[:shown]:
            name = f"{row.sampler}, {row.scheduler} ({row.steps})"
            lines.append(f"{problem:<22} {row.calls:>5}  {row.mean:>9.2e} {row.median:>9.2e}  {name}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="run.py bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--problems", nargs="+", choices=list(PROBLEMS), default=list(PROBLEMS))
    parser.add_argument("--calls", nargs="+", type=int, default=[5, 8, 10, 20])
    parser.add_argument("--seeds", type=int, default=64, help="starts per problem (at most 8 on the demo model)")
    parser.add_argument("--best", type=int, default=3, help="lines printed per problem and budget")
    parser.add_argument("--out", type=Path, default=Path("error_per_call.json"), help="all figures, as JSON")
    args = parser.parse_args()
    warnings.simplefilter("ignore")  # the host's own, once for every sampler
    rows: list[Row] = []
    accuracy = {}
    for name in args.problems:
        problem = PROBLEMS[name](args.seeds)
        accuracy[problem.name] = problem.end_error
        plan = [(entry, budget) for budget in args.calls for entry in rivals()]
        found = (measure(problem, entry, budget) for entry, budget in tqdm(plan, desc=name, mininterval=2))
        rows += [row for row in found if row]
        record(args.out, seeds=args.seeds, end_error=accuracy, rows=[asdict(r) for r in rows])
    print(table(rows, args.best))
    print(f"All {len(rows)} figures: {args.out}")


if __name__ == "__main__":
    main()
