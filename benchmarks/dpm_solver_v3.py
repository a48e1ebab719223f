"""`python3 run.py python benchmarks/dpm_solver_v3.py`: DPM-Solver-v3 with statistics that it measures on the spot.

For each problem the statistics are estimated at the node's defaults on seeds of their own. Then, at equal model calls,
the error to the converged latent: v3 with one setting (the node's defaults), on the same sigmas as the host's samplers
and on each one's best schedule. A few latents that fall into another picture carry the mean, so the median and the
geometric mean are printed too. `--speed` measures the cost of a step against the host's dpmpp_2m instead.
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
from error_per_call import Entry, host_entry
from problems import Problem, demo_problem, mixture_problem, run, second_problem
from record import record
from torch import Tensor

OURS = "v3 when_checked"
RIVALS = ("dpmpp_2m", "uni_pc_bh2", "deis", "ipndm", "res_multistep", "lms", "gradient_estimation")
SCHEDULES = {
    "eps": ("karras", "beta", "exponential"),
    "v": ("karras", "beta", "exponential"),
    "flow": ("beta", "simple"),
}
AMOUNTS = ((2, 24), (4, 24), (8, 12), (8, 16), (6, 20), (8, 24), (16, 24), (64, 60))  # images and levels
PROBLEMS: dict[str, Callable[[int], Problem]] = {
    f"{kind}-{variant}-cfg{cfg:g}": partial(make, variant, cfg)
    for kind, make, variants, cfgs in (
        ("mixture", mixture_problem, ("eps", "flow"), (1.0, 4.0, 7.5)),
        ("demo", partial(demo_problem, steps=60), ("eps", "v", "flow"), (1.0, 5.0)),
        ("second", partial(second_problem, steps=60), ("eps", "flow"), (1.0, 5.0)),
    )
    for variant in variants
    for cfg in cfgs
}


@dataclass(frozen=True)
class Row:
    """One sampler on one schedule. Errors are squared distances of latents with variance about 1."""

    problem: str
    calls: int
    sampler: str
    scheduler: str
    mean: float
    median: float
    geometric: float


def first(conditioning: list, count: int) -> list:
    """The conditioning of the first items; one that is for all stays as it is."""
    return [
        [c[:count], {name: v[:count] if torch.is_tensor(v) else v for name, v in extra.items()}]
        for c, extra in conditioning
    ]


def statistics_of(problem: Problem, images: int = 8, levels: int = 20):
    """Measured as the node does, a batch of images at a time to save minutes."""
    from fewstep.nodes.measuring.estimate import Request, estimate
    from fewstep.nodes.measuring.interrupted import Parts

    latent = torch.zeros_like(problem.noise[:4])
    given = (problem.model, first(problem.positive, 4), first(problem.negative, 4), problem.cfg, latent)
    return estimate(
        Request(*given, seed=99, images=images, levels=levels, pooling="global", derivative="auto"), None, Parts(), None
    )


def errors(problem: Problem, sampler, sigmas: Tensor, calls: int) -> tuple[float, float, float]:
    """Mean, median and geometric mean over the seeds."""
    drawn, spent = run(problem, sampler, sigmas)
    if spent > calls:
        raise AssertionError(f"{spent} model calls instead of {calls}")
    e = (drawn - problem.end).double().square().flatten(1).mean(1).nan_to_num(math.inf)
    return e.mean().item(), e.median().item(), e.clamp(1e-12, 1e6).log().mean().exp().item()


def measure(problem: Problem, variant: str, budgets: list[int], report: Callable[[Row], None]) -> str:
    """All rows of a problem; returns what the statistics say of themselves."""
    from fewstep.nodes.host.dpm_solver_v3 import Choice, dpm_solver_v3_sampler
    from fewstep.samplers.dpm_solver_v3 import Options

    measured = statistics_of(problem)
    ours = {
        use: dpm_solver_v3_sampler(Choice(Options(), measured, "data", use, None)) for use in ("when_checked", "never")
    }
    for calls in budgets:
        for scheduler in SCHEDULES[variant]:
            for name in RIVALS:
                sampler, sigmas = host_entry(name, scheduler).make(problem, calls)
                report(Row(problem.name, calls, name, scheduler, *errors(problem, sampler, sigmas, calls)))
            sigmas = host_entry("euler", scheduler).make(problem, calls)[1]
            for use, sampler in ours.items():
                report(Row(problem.name, calls, f"v3 {use}", scheduler, *errors(problem, sampler, sigmas, calls)))
    return measured.describe()


def by_amount(problem: Problem, budgets: list[int]) -> Iterator[dict[str, Any]]:
    """The mean error after so much measuring, on the best schedule; and of the host's best sampler."""
    from fewstep.nodes.host.dpm_solver_v3 import Choice, dpm_solver_v3_sampler
    from fewstep.samplers.dpm_solver_v3 import Options

    def least(entries: list[Entry], calls: int) -> float:
        made = (entry.make(problem, calls) for entry in entries)
        return min(errors(problem, sampler, sigmas, calls)[0] for sampler, sigmas in made)

    rivals = [host_entry(name, schedule) for name, schedule in product(RIVALS, SCHEDULES["eps"])]
    yield {"cfg": problem.cfg, "amount": None, "errors": {calls: least(rivals, calls) for calls in budgets}}
    for amount in AMOUNTS:
        ours = dpm_solver_v3_sampler(Choice(Options(), statistics_of(problem, *amount), "data", "when_checked", None))
        entries = [Entry("v3", schedule, partial(planned, ours, schedule)) for schedule in SCHEDULES["eps"]]
        yield {"cfg": problem.cfg, "amount": amount, "errors": {calls: least(entries, calls) for calls in budgets}}


def planned(sampler, scheduler: str, problem: Problem, calls: int) -> tuple[object, Tensor]:
    return sampler, host_entry("euler", scheduler).make(problem, calls)[1]


def amounts(rows: list[dict[str, Any]]) -> str:
    """For a page: a row an amount, a column a cfg. A cell has the errors at each number of calls."""
    cfgs = list(dict.fromkeys(row["cfg"] for row in rows))
    lines = [f"| images x levels | {' | '.join(f'cfg {cfg:g}' for cfg in cfgs)} |", "|---" * (1 + len(cfgs)) + "|"]
    for amount in [*map(list, AMOUNTS), None]:
        name = "host's best sampler" if amount is None else f"{amount[0]} x {amount[1]}"
        found = [next(row for row in rows if (row["cfg"], row["amount"]) == (cfg, amount)) for cfg in cfgs]
        cells = (" / ".join(f"{error:.1e}" for error in row["errors"].values()) for row in found)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def compared(rows: list[Row]) -> Iterator[tuple[str, int, Row, Row]]:
    """For each problem and number of calls the host's best and ours, each on its best schedule."""
    for problem, calls in dict.fromkeys((row.problem, row.calls) for row in rows):
        here = [row for row in rows if (row.problem, row.calls) == (problem, calls)]
        theirs = min((row for row in here if not row.sampler.startswith("v3")), key=lambda row: row.geometric)
        yield problem, calls, theirs, min((row for row in here if row.sampler == OURS), key=lambda row: row.geometric)


def shares(rows: list[Row]) -> str:
    """For a page: a row a problem, a column a number of calls. Shares of the geometric mean, the mean, the median."""
    calls = sorted({row.calls for row in rows})
    lines = [f"| problem | {' | '.join(f'{n} calls' for n in calls)} |", "|---" * (len(calls) + 1) + "|"]
    cells: dict[str, list[str]] = {}
    for problem, _, theirs, ours in sorted(compared(rows), key=lambda found: found[1]):
        mean, median, share = (getattr(ours, n) / getattr(theirs, n) for n in ("mean", "median", "geometric"))
        cell = f"{ours.geometric:.1e} / {theirs.geometric:.1e} {theirs.sampler} ({share:.0%}, {mean:.0%}, {median:.0%})"
        cells.setdefault(problem, []).append(cell)
    order = dict.fromkeys(row.problem for row in rows)
    return "\n".join([*lines, *(f"| {problem} | {' | '.join(cells[problem])} |" for problem in order)])


def table(rows: list[Row]) -> str:
    """For each problem and budget the host's best and ours, each on its best schedule, and the ratio of the two."""
    lines = [f"{'problem':<20} {'calls':>5}  {'mean':>8} {'median':>8} {'geom.':>8}  sampler, schedule"]
    for problem, calls, theirs, ours in compared(rows):
        for row in (theirs, ours):
            figures = f"{row.mean:>8.1e} {row.median:>8.1e} {row.geometric:>8.1e}"
            lines.append(f"{problem:<20} {calls:>5}  {figures}  {row.sampler}, {row.scheduler}")
        shares = (getattr(ours, n) / getattr(theirs, n) for n in ("mean", "median", "geometric"))
        lines.append(f"{'':<26}  {'  '.join(f'{share:>6.0%} ' for share in shares)} of the host's best")
    return "\n".join(lines)


def speed() -> str:
    """Seconds of one step, model left out: ours with statistics against the host's dpmpp_2m, in one run."""
    import comfy.k_diffusion.sampling
    from fewstep.samplers.dpm_solver_v3 import Options, Statistics, basis_for, make_plan
    from fewstep.samplers.dpm_solver_v3.solver import State, advance, on_device
    from fewstep.samplers.noise_law import VARIANCE_EXPLODING

    def quiet(x: Tensor, sigma: float, **host) -> Tensor:
        return x

    def loop(plan, basis, x: Tensor) -> None:
        """What DPMSolverV3 does between the calls."""
        state, kept = State(x), plan.kept
        for step in plan.steps:
            state = advance(on_device(step, basis, x), state, x, kept)

    sigmas, lam = torch.logspace(1, -1, 21), torch.linspace(-3, 3, 20)
    lines = []
    for shape, channels in product(((1, 4, 64, 64), (1, 16, 128, 128)), (False, True)):
        l = torch.sigmoid(-lam).view(-1, 1, 1, 1).expand(-1, shape[1] if channels else 1, 1, 1)  # noqa: E741
        table, x = Statistics(lam, l, -2 + 2 * l, 0 * l), torch.randn(shape)
        base = fastest(partial(comfy.k_diffusion.sampling.sample_dpmpp_2m, quiet, x, sigmas, disable=True))
        for corrector in ("off", "everywhere"):
            planned = partial(make_plan, sigmas, VARIANCE_EXPLODING, table, Options(corrector=corrector))
            planning, ours = fastest(planned), fastest(partial(loop, planned(), basis_for(table, shape[1:]), x))
            what = f"{'x'.join(map(str, shape[1:]))}, {'channel' if channels else 'global'}, corrector {corrector}"
            figures = (ours / 20 * 1e6, ours / base, planning * 1e3)
            lines.append(
                f"{what:<42} {figures[0]:6.0f} us a step, {figures[1]:.2f} of dpmpp_2m; plan {figures[2]:.0f} ms"
            )
    return "\n".join(lines)


def picture(path: Path, calls: int = 5) -> str:
    """Eight prompts on the bundled flow model, cfg 3: dpmpp_2m and v3 on beta, the host's best, the converged."""
    from fewstep.nodes.host.dpm_solver_v3 import Choice, dpm_solver_v3_sampler
    from fewstep.samplers.dpm_solver_v3 import Options
    from PIL import Image

    problem = demo_problem("flow", 3.0, 8, steps=60)
    ours = dpm_solver_v3_sampler(Choice(Options(), statistics_of(problem), "data", "when_checked", None))
    entries = [host_entry(name, scheduler) for name in RIVALS for scheduler in SCHEDULES["flow"]]
    rivals = {f"{e.sampler}, {e.scheduler}": run(problem, *e.make(problem, calls))[0] for e in entries}
    drawn = run(problem, ours, host_entry("euler", "beta").make(problem, calls)[1])[0]

    def error(latents: Tensor) -> float:
        return (latents - problem.end).square().flatten(1).mean(1).nan_to_num(math.inf).median().item()

    best = min(rivals, key=lambda name: error(rivals[name]))
    rows = (rivals["dpmpp_2m, beta"], drawn, rivals[best], problem.end)
    pixels = [problem.model.model.process_latent_out(latents).add(1).div(2).clamp(0, 1) for latents in rows]
    grid = torch.cat([row.permute(0, 2, 3, 1).transpose(0, 1).flatten(1, 2) for row in pixels])
    image = Image.fromarray((grid * 255).round().byte().numpy())
    image.resize((image.width * 2, image.height * 2), Image.Resampling.LANCZOS).save(path, quality=88)
    return f"{path}: median error {error(rivals[best]):.1e} ({best}) and {error(drawn):.1e} (v3) at {calls} calls"


def fastest(work: Callable[[], object], repeats: int = 30) -> float:
    """Seconds of the fastest of many runs: what the machine does when nothing else runs."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", nargs="+", choices=list(PROBLEMS), default=list(PROBLEMS))
    parser.add_argument("--calls", nargs="+", type=int, default=[5, 6, 8, 10, 12, 20])
    parser.add_argument("--seeds", type=int, default=64)
    parser.add_argument("--speed", action="store_true", help="the cost of a step instead of its error")
    parser.add_argument("--amounts", action="store_true", help="what more images and levels bring, instead")
    parser.add_argument("--picture", type=Path, help="draw a comparison into this file instead")
    parser.add_argument("--out", type=Path, default=Path("dpm_solver_v3.json"))
    args = parser.parse_args()
    if args.speed:
        print(speed())
        return
    if args.picture:
        print(picture(args.picture))
        return
    if args.amounts:
        found: list[dict[str, Any]] = []
        for name in args.problems:
            found += by_amount(PROBLEMS[name](args.seeds), args.calls)
            record(args.out, seeds=args.seeds, rows=found)
        return
    rows: list[Row] = []
    checks: dict[str, str] = {}
    for name in args.problems:
        problem = PROBLEMS[name](args.seeds)
        checks[problem.name] = measure(problem, name.split("-")[1], args.calls, rows.append)
        print(f"{problem.name}: {checks[problem.name]}", flush=True)
        record(args.out, seeds=args.seeds, checks=checks, rows=[asdict(row) for row in rows])
        print(table([row for row in rows if row.problem == problem.name]), flush=True)


if __name__ == "__main__":
    main()
