"""Tune against the best of the host's samplers and schedules in every cell, on seeds and prompts that it never saw.

    python3 run.py python benchmarks/tune.py [--networks "demo eps,demo flow"] [--cfgs 1,5] [--efforts quick,normal]

A cell is a network, a cfg and a number of guided model calls; errors are means over the seeds of the mean squared
distance to the converged latent. The rival of a cell is the best there of ten samplers on nine schedules, ends at small
sigmas included: all on 16 seeds, the best five on all. They take hours on a CPU, so those that
results/host_best.json has for as many seeds are not run again.

    python3 run.py python benchmarks/tune.py --solver-tables ns_sampling.py --networks "demo flow" --seeds 16

also runs the solver tables of arXiv 2505.21114 on flow models, from that file of MCG-NJU/NeuralSolver, which is not
part of this project.
"""

from __future__ import annotations

import argparse
import ast
import itertools
import json
import logging
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import geometric_mean

import torch
from support.host import start_host
from torch import Tensor

logging.basicConfig(level=logging.ERROR)
start_host()
import comfy.samplers  # noqa: E402
from comfy.k_diffusion.sampling import sample_dpmpp_2m  # noqa: E402
from dpm_solver_v3 import fastest  # noqa: E402
from fewstep.nodes.host.boost import Boost, boosted  # noqa: E402
from fewstep.nodes.host.guiders import guider_for  # noqa: E402
from fewstep.nodes.host.noise_law import noise_law  # noqa: E402
from fewstep.nodes.host.schedules import shift_of  # noqa: E402
from fewstep.nodes.measuring.interrupted import Parts  # noqa: E402
from fewstep.nodes.measuring.running import inside_sampling  # noqa: E402
from fewstep.nodes.measuring.search import three_means  # noqa: E402
from fewstep.nodes.measuring.tune import Request, tune  # noqa: E402
from fewstep.samplers.table import Row, Table, step_by_table  # noqa: E402
from fewstep.schedulers.tuning.path import followed  # noqa: E402
from fewstep.schedulers.tuning.tuning import Tuning  # noqa: E402
from problems import Problem, coded, demo_start, mixture_problem, run, second_coded, second_start  # noqa: E402
from record import record  # noqa: E402
from support.host_mixture import label_conditioning  # noqa: E402

RESULTS = Path(__file__).with_name("results")
FEW_CALLS, MANY_CALLS = (4, 5, 6, 8, 10), (12, 15, 20)
CALLS = FEW_CALLS + MANY_CALLS
SEEN = ["red apple", "blue heart", "cat face"]
UNSEEN = ["violin", "green leaf", "dog face", "pizza", "octopus", "crown", "umbrella", "banana", "tiger", "snowman",
          "guitar", "crying face", "mushroom", "balloon", "cherries", "fox", "whale", "strawberry", "tulip", "koala",
          "cactus", "bread", "cookie", "angry face", "full moon", "sun", "ghost", "carrot", "turtle", "drum",
          "soccer ball", "necktie"]  # fmt: skip
SEEN_ICONS = [("Foods", "apple one red"), ("Animals", "cat blue"), ("Weather", "cloudy night")]
UNSEEN_ICONS = [("Music", "acoustic brown"), ("Foods", "banana yellow"), ("Build", "castle purple"),
                ("Animals", "butterfly pink"), ("Travel", "airplane blue"), ("Sports", "basketball orange"),
                ("Clothes", "boots brown"), ("Foods", "birthday cake pink"), ("Health", "ambulance red"),
                ("Time", "alarm clock teal"), ("Energy", "cactus green"), ("Industry", "ladder night"),
                ("Makeups", "comb purple"), ("Safe", "key yellow"), ("Weather", "snowflake blue"),
                ("Animals", "bear brown")]  # fmt: skip
SAMPLERS = "euler lms dpmpp_2m ipndm ipndm_v deis res_multistep gradient_estimation uni_pc uni_pc_bh2".split()
SCHEDULERS = "simple sgm_uniform karras exponential ddim_uniform beta normal linear_quadratic kl_optimal".split()
ENDS = (0.03, 0.02, 0.01, 0.005)  # noise-to-signal
FEW, CUT, FINALISTS = 16, 4, 5  # seeds of the first round; schedules that are also tried with other ends; last round
SEED = 12345
Errors = list[float]  # geometric mean, mean, median


def problem(network: str, cfg: float, seeds: int) -> Problem:
    """Solved: the bundled network by the teacher of Tune in 200 steps; end_error: from one in 120."""
    family, kind = network.split()
    if family == "mixture":
        return mixture_problem(kind, cfg, seeds)
    if family == "second":
        start = second_start(kind, cfg, [UNSEEN_ICONS[i % len(UNSEEN_ICONS)] for i in range(seeds)], SEED)
    else:
        start = demo_start(kind, cfg, [UNSEEN[i % len(UNSEEN)] for i in range(seeds)], SEED)
    end, coarse = (converged(start, steps) for steps in (200, 120))
    return replace(start, end=end, end_error=float((end - coarse).square().mean()))


def converged(start: Problem, steps: int) -> Tensor:
    law, top = noise_law(start.sampling), float(start.sampling.sigma_max)
    guider = guider_for(start.model, start.positive, start.negative, start.cfg)
    shift = shift_of(start.sampling, law)

    def work(denoise, x: Tensor) -> Tensor:
        return followed(denoise, x, law, steps, top, shift, "cpu").end.clone()

    return inside_sampling(guider, start.noise, [top, 0.0], work, 0)


def errors(of: Problem, sampler, sigmas: Tensor) -> Errors:
    drawn, _ = run(of, sampler, sigmas)
    return three_means((drawn.cpu() - of.end.cpu()).double().square().flatten(1).mean(1))


# ---------------------------------------------------------------------------------------------------------
# The host's best


def host_best(of: Problem, calls: int) -> dict[str, Errors]:
    """The errors of the best, by name."""
    few = first_of(of, FEW)
    tried: dict[str, tuple[float, str, Tensor]] = {}

    def attempt(name: str, sampler: str, sigmas: Tensor) -> None:
        found = errors(few, comfy.samplers.sampler_object(sampler), sigmas)[0]
        tried[name] = (found, sampler, sigmas)

    for sampler, scheduler in itertools.product(SAMPLERS, SCHEDULERS):
        sigmas = comfy.samplers.KSampler(of.model, calls, of.model.load_device, sampler, scheduler).sigmas
        if len(sigmas) - 1 <= calls:
            attempt(f"{sampler} {scheduler}", sampler, sigmas)
    law = noise_law(of.sampling)
    for name in best_names(tried, CUT):
        _, sampler, sigmas = tried[name]
        for end in ENDS:
            if law.sigma(end) < float(sigmas[-2]):
                attempt(f"{name}, to {end:g}", sampler, torch.cat([sigmas[:-1], sigmas.new_tensor([law.sigma(end)])]))
    return {
        name: errors(of, comfy.samplers.sampler_object(tried[name][1]), tried[name][2])
        for name in best_names(tried, FINALISTS)
    }


def best_names(tried: dict[str, tuple[float, str, Tensor]], count: int) -> list[str]:
    return sorted(tried, key=lambda name: tried[name][0])[:count]


def first_of(of: Problem, count: int) -> Problem:
    """The same, with fewer seeds."""

    def cut(conditioning: list) -> list:
        return [
            [c[:count], {k: v[:count] if torch.is_tensor(v) else v for k, v in more.items()}]
            for c, more in conditioning
        ]

    positive, negative = cut(of.positive), cut(of.negative)
    return replace(of, positive=positive, negative=negative, noise=of.noise[:count], end=of.end[:count])


# ---------------------------------------------------------------------------------------------------------
# Ours


def tuned(network: str, of: Problem, effort: str) -> Tuning:
    """On prompts and seeds of its own."""
    if network.startswith("demo"):
        first, *further = (coded(text) for text in SEEN[: 2 if effort == "quick" else 3])
        negative = coded("")
    elif network.startswith("second"):
        first, *further = (second_coded([icon]) for icon in SEEN_ICONS[: 2 if effort == "quick" else 3])
        negative = second_coded([("", "")])
    else:
        first, *further = (label_conditioning([label]) for label in (0, 3, 5)[: 2 if effort == "quick" else 3])
        negative = label_conditioning([-1])
    prompts = tuple((prompt, negative) for prompt in further)
    latent = torch.zeros(1, *of.noise.shape[1:])
    return tune(Request(of.model, first, negative, of.cfg, latent, 0, effort, prompts=prompts), Parts(), None)


def boosted_errors(of: Problem, tuning: Tuning | None) -> dict[int, Errors]:
    """What a KSampler with euler simple draws behind Boost."""
    ours = replace(of, model=boosted(of.model, Boost(tuning=tuning)))
    euler = comfy.samplers.sampler_object("euler")
    device = of.model.load_device
    schedules = {n: comfy.samplers.KSampler(of.model, n, device, "euler", "simple").sigmas for n in CALLS}
    return {calls: errors(ours, euler, sigmas) for calls, sigmas in schedules.items()}


def rows(network: str, cfg: float, seeds: int, efforts: Sequence[str], known: dict, say: Callable[[str], None]) -> list:
    of = problem(network, cfg, seeds)
    say(f"{network} cfg {cfg:g}: converged to {of.end_error:.1e}")
    found = {"unmeasured": boosted_errors(of, None)}
    spent = {}
    for effort in efforts:
        began = time.monotonic()
        tuning = tuned(network, of, effort)
        spent[effort] = {"calls": tuning.facts["calls"], "seconds": round(time.monotonic() - began, 1)}
        found[effort] = boosted_errors(of, tuning)
        say(f"{network} cfg {cfg:g} {effort}: {spent[effort]}, used at {tuning.used}")
    made = []
    for calls in CALLS:
        best = known.get((network, cfg, calls, seeds)) or host_best(of, calls)
        ours = {name: by_calls[calls] for name, by_calls in found.items()}
        made.append(
            {
                "network": network,
                "cfg": cfg,
                "calls": calls,
                "seeds": seeds,
                "end_error": of.end_error,
                "host": best,
                "ours": ours,
                "spent": spent,
            }
        )
    return made


# ---------------------------------------------------------------------------------------------------------
# Published solver tables


def solver_tables(path: Path) -> dict[int, dict[str, list]]:
    """By number of calls: steps of flow time, and the weights of earlier velocities. The file is read, never run."""
    assigned = (node for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.Assign))
    data = next(node.value for node in assigned if ast.unparse(node.targets[0]) == "FM_DATA")
    each = {entry.arg: entry.value for entry in keywords(data)}
    return {
        int(str(name).removeprefix("step")): {str(k.arg): ast.literal_eval(k.value) for k in keywords(call)}
        for name, call in each.items()
    }


def keywords(call: ast.expr) -> list[ast.keyword]:
    """Of dict(name=value, ...)."""
    return call.keywords if isinstance(call, ast.Call) else []


def by_velocities(of: Problem, steps: list[float], weights: list[list[float]]) -> Errors:
    """x' = x + dt ((1 - sum_j c_j) v + sum_j c_j v_j), from flow time 0, all noise, to 1."""

    def work(denoise, x: Tensor) -> Tensor:
        sigma, velocities = 1.0, []
        for dt, row in zip(steps, weights, strict=True):
            velocities.append((denoise(x, sigma) - x) / sigma)
            earlier = row[: len(velocities) - 1]
            v = (1 - sum(earlier)) * velocities[-1]
            x = x + dt * sum((c * u for c, u in zip(earlier, velocities, strict=False)), v)
            sigma = max(sigma - dt, 1e-6)
        return x

    guider = guider_for(of.model, of.positive, of.negative, of.cfg)
    drawn = inside_sampling(guider, of.noise, [1.0, 0.0], work, 0)
    return three_means((drawn.cpu() - of.end.cpu()).double().square().flatten(1).mean(1))


def against_solver_tables(network: str, cfg: float, seeds: int, path: Path) -> list[str]:
    """Lines of the tables' errors and ours at effort normal."""
    of = problem(network, cfg, seeds)
    ours = boosted_errors(of, tuned(network, of, "normal"))
    lines = []
    for calls, table_of in solver_tables(path).items():
        if calls in ours:
            theirs = by_velocities(of, table_of["timedeltas"], table_of["coeffs"])
            shares = f"{ours[calls][0] / theirs[0]:.0%}"
            lines.append(f"{network} cfg {cfg:g}, {calls} calls: {theirs[0]:.1e}, ours {ours[calls][0]:.1e} ({shares})")
    return lines


# ---------------------------------------------------------------------------------------------------------
# The cost of a step


def speed() -> str:
    """Seconds of one step, model left out: by a table of order 4 in two parts, and the host's dpmpp_2m, in one run."""
    sigmas = torch.logspace(1, -1, 21)
    rows_of = (Row(0.7, ((0.5, -0.2, 0.1, -0.1)[: n + 1], (0.4, -0.2, 0.1, -0.1)[: n + 1])) for n in range(20))
    by_table = Table(tuple(sigmas.tolist()), tuple(rows_of))
    lines = []
    for shape in ((1, 4, 64, 64), (1, 16, 128, 128)):
        x = torch.randn(shape)
        host = fastest(lambda x=x: sample_dpmpp_2m(lambda x, sigma, **more: x, x, sigmas, disable=True))
        ours = fastest(lambda x=x: step_by_table(lambda x, sigma: (x, x), x, by_table))
        lines.append(f"{'x'.join(map(str, shape[1:]))}: {ours / 20 * 1e6:.0f} us a step, {ours / host:.2f} of dpmpp_2m")
    return "\n".join(lines)


# ---------------------------------------------------------------------------------------------------------
# The table


def share(row: dict, way: str) -> float:
    """Of the geometric mean of the host's best."""
    return row["ours"][way][0] / min(means[0] for means in row["host"].values())


def table(found: list[dict], way: str) -> str:
    numbers = sorted({row["calls"] for row in found})
    lines = ["| network, cfg | " + " | ".join(map(str, numbers)) + " |", "|---" * (len(numbers) + 1) + "|"]
    for network, cfg in dict.fromkeys((row["network"], row["cfg"]) for row in found):
        own = {row["calls"]: row for row in found if (row["network"], row["cfg"]) == (network, cfg)}
        cells = (f"{own[n]['ours'][way][0]:.1e} ({share(own[n], way):.0%})" if n in own else "" for n in numbers)
        lines.append(f"| {network}, {cfg:g} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def shares(found: list[dict], way: str, numbers: Sequence[int]) -> list[float]:
    return [share(row, way) for row in found if row["calls"] in numbers]


def summary(found: list[dict], way: str) -> str:
    parts = []
    for numbers in (FEW_CALLS, MANY_CALLS):
        if here := shares(found, way, numbers):
            parts.append(
                f"{numbers[0]} to {numbers[-1]} calls: {geometric_mean(here):.0%} in the mean, at worst {max(here):.0%}"
            )
    return f"{way}: " + "; ".join(parts)


def spent(found: list[dict], way: str) -> int:
    """Model calls that the measuring took: the same in every cell."""
    return max((row["spent"][way]["calls"] for row in found if way in row["spent"]), default=0)


def efforts(networks: dict[str, list[dict]]) -> str:
    """For a page: a row an effort; for each kind of network the shares at few and at many calls, mean and worst."""
    parts = list(itertools.product(networks, (FEW_CALLS, MANY_CALLS)))
    heads = [f"{numbers[0]} to {numbers[-1]} calls, {name} | at worst" for name, numbers in parts]
    lines = [f"| effort | model calls | {' | '.join(heads)} |", "|---" * (2 + 2 * len(heads)) + "|"]
    names = {"unmeasured": "none: Boost alone", "quick": "quick (no tables from 15 calls on)"}
    first = next(iter(networks.values()))
    for way in first[0]["ours"]:
        cells = [f"{spent(first, way):,}"]
        for name, numbers in parts:
            here = shares(networks[name], way, numbers) if way in networks[name][0]["ours"] else []
            cells += [f"{geometric_mean(here):.0%}", f"{max(here):.0%}"] if here else ["", ""]
        lines.append(f"| {names.get(way, way)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default="demo eps,demo flow,mixture eps,mixture flow")
    parser.add_argument("--cfgs", default="1,3,5,7.5")
    parser.add_argument("--efforts", default="quick,normal")
    parser.add_argument("--seeds", type=int, default=64)
    parser.add_argument("--out", type=Path, default=Path("tune.json"), help="all figures, as JSON")
    parser.add_argument("--speed", action="store_true", help="the cost of a step instead of its error")
    parser.add_argument("--solver-tables", type=Path, help="ns_sampling.py of MCG-NJU/NeuralSolver")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    if args.speed:
        print(speed())
        return
    if args.solver_tables:
        for network, cfg in itertools.product(args.networks.split(","), map(float, args.cfgs.split(","))):
            print(*against_solver_tables(network, cfg, args.seeds, args.solver_tables), sep="\n", flush=True)
        return
    stored = json.loads((RESULTS / "host_best.json").read_text(encoding="utf-8"))
    known = {(r["network"], r["cfg"], r["calls"], r["seeds"]): r["errors"] for r in stored}
    efforts, found = args.efforts.split(","), []
    with torch.no_grad():
        for network, cfg in itertools.product(args.networks.split(","), map(float, args.cfgs.split(","))):
            found += rows(network, cfg, args.seeds, efforts, known, lambda text: print(text, flush=True))
            record(args.out, seeds=args.seeds, rows=found)
    for way in ("unmeasured", *efforts):
        print(table(found, way), summary(found, way), sep="\n\n", end="\n\n")


if __name__ == "__main__":
    main()
