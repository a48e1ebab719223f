"""Boost with nothing connected, against what people run, cell by cell: the source of schedulers/recipe.py.

    python3 run.py python benchmarks/boost.py [--seeds 32] [--orders] [--out FILE.json]

A cell is a network, a cfg and a number of guided model calls. Errors are geometric means over the seeds of the mean
squared distance to the converged latent. `rival` is the best of the three in that very cell.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path

import torch
from support.host import start_host
from tqdm import tqdm

logging.basicConfig(level=logging.ERROR)
start_host()
import comfy.samplers  # noqa: E402
from fewstep.nodes.host.boost import Boost, boosted  # noqa: E402
from fewstep.nodes.host.deis import deis_sampler  # noqa: E402
from fewstep.nodes.host.noise_law import noise_law  # noqa: E402
from fewstep.nodes.measuring.estimate import geometric_mean  # noqa: E402
from fewstep.schedulers.recipe import recipe  # noqa: E402
from problems import Problem, demo_problem, mixture_problem, run, second_problem  # noqa: E402
from record import record  # noqa: E402

RIVALS = (("euler", "simple"), ("uni_pc", "simple"), ("dpmpp_2m", "karras"))
CALLS = (4, 5, 6, 8, 10, 12, 16, 20)
CFGS = (1.0, 2.0, 5.0, 7.5)
FEW_CALLS = (4, 6, 8, 10)
WAYS = {"held": (1, False), "extrapolated": (2, False), "and mended": (2, True)}  # order, corrector
NETWORKS: dict[str, Callable[[float, int], Problem]] = {
    **{f"mixture {kind}": partial(mixture_problem, kind) for kind in ("eps", "flow")},
    **{f"demo {variant}": partial(demo_problem, variant, steps=80) for variant in ("eps", "flow")},
    **{f"second {variant}": partial(second_problem, variant, steps=80) for variant in ("eps", "flow")},
}


def distance(problem: Problem, drawn: torch.Tensor) -> float:
    return geometric_mean((drawn - problem.end).double().square().flatten(1).mean(1))


def error(problem: Problem, name: str, scheduler: str, calls: int) -> float:
    """Of so many steps, as KSampler makes them."""
    sampling = comfy.samplers.KSampler(problem.model, calls, problem.model.load_device, name, scheduler)
    drawn, made = run(problem, comfy.samplers.sampler_object(name), sampling.sigmas)
    assert made == calls, f"{name} made {made} calls of {calls}"
    return distance(problem, drawn)


def rows(seeds: int, network: str, cfg: float) -> Iterator[dict]:
    problem = NETWORKS[network](cfg, seeds)
    ours = replace(problem, model=boosted(problem.model, Boost()))
    for calls in CALLS:
        errors = {f"{sampler} {schedule}": error(problem, sampler, schedule, calls) for sampler, schedule in RIVALS}
        boost = error(ours, "euler", "simple", calls)
        yield {"network": network, "cfg": cfg, "calls": calls, "boost": boost} | errors


def by_order(seeds: int, network: str, cfg: float = 5.0) -> Iterator[dict]:
    """The recipe's own places, and its answers held, extrapolated, and mended by the next one as well."""
    problem = NETWORKS[network](cfg, seeds)
    law, first = noise_law(problem.sampling), float(problem.sampling.sigma_max)
    for calls in FEW_CALLS:
        own = recipe(calls, law.is_flow)
        sigmas = torch.tensor(own.sigmas(law, first, 0.0, calls), dtype=torch.float64).float()
        row = {"network": network, "cfg": cfg, "calls": calls, "euler simple": error(problem, "euler", "simple", calls)}
        for name, (order, mended) in WAYS.items():
            drawn, _ = run(problem, deis_sampler(own.answers, order, mended, own.ends_denoised, None), sigmas)
            row[name] = distance(problem, drawn)
        yield row


def order_table(found: list[dict]) -> str:
    names = ["euler simple", *WAYS]
    lines = [f"| network, cfg | calls | {' | '.join(names)} |", "|---|---|" + "---|" * len(names)]
    for row in found:
        cells = " | ".join(f"{row[name]:.1e}" for name in names)
        lines.append(f"| {row['network']}, {row['cfg']:g} | {row['calls']} | {cells} |")
    return "\n".join(lines)


def table(found: list[dict]) -> str:
    """A line a network and cfg, a column a number of calls: boost's error, its share of euler's and of the rival's."""
    lines = [
        "| network, cfg | " + " | ".join(f"{calls} calls" for calls in CALLS) + " |",
        "|---" * (len(CALLS) + 1) + "|",
    ]
    for network, cfg in dict.fromkeys((row["network"], row["cfg"]) for row in found):
        cells = []
        for row in (r for r in found if (r["network"], r["cfg"]) == (network, cfg)):
            shares = f"{row['boost'] / row['euler simple']:.0%}, {of_rival(row):.0%}"
            cells.append(f"{row['boost']:.1e} ({shares})")
        lines.append(f"| {network}, {cfg:g} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def of_rival(row: dict) -> float:
    return row["boost"] / min(row[f"{sampler} {schedule}"] for sampler, schedule in RIVALS)


def of_euler(found: list[dict]) -> float:
    """In the geometric mean over the cells."""
    return geometric_mean(torch.tensor([row["boost"] / row["euler simple"] for row in found]))


def behind(found: list[dict]) -> list[dict]:
    return [row for row in found if of_rival(row) > 1]


def summary(found: list[dict]) -> str:
    places = ((f"{row['network']}, cfg {row['cfg']:g}, {row['calls']} calls", of_rival(row)) for row in behind(found))
    cells = [f"{place} ({share:.0%})" for place, share in places]
    where = f"{len(cells)} of {len(found)} cells{': ' if cells else ''}{'; '.join(cells)}"
    share = f"{of_euler(found):.0%} of the error of euler *simple* in the geometric mean"
    return f"Here it has {share}, and is behind the best of the three in {where}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=32)
    parser.add_argument("--networks", default=",".join(NETWORKS), help="with commas between them")
    parser.add_argument("--orders", action="store_true", help="what its second order gains and costs, at cfg 5")
    parser.add_argument("--out", type=Path, default=Path("boost.json"), help="all figures, as JSON")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    if args.orders:
        ordered = [row for network in args.networks.split(",") for row in by_order(args.seeds, network)]
        record(args.out, seeds=args.seeds, rows=ordered)
        print(order_table(ordered))
        return
    found: list[dict] = []
    for network, cfg in tqdm(list(product(args.networks.split(","), CFGS)), mininterval=5):
        with torch.no_grad():
            found += rows(args.seeds, network, cfg)
        record(args.out, seeds=args.seeds, rows=found)
    print(table(found), summary(found), sep="\n\n")


if __name__ == "__main__":
    main()
