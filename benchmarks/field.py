"""The other samplers of the field, cell by cell: DEIS and DualFast against dpmpp_2m, the host's best, and Boost.

    python3 run.py python benchmarks/field.py [--networks "mixture eps,mixture flow"] [--seeds 16] [--out FILE.json]

A cell is a network, a cfg and a number of guided model calls. Errors are geometric means over the seeds of the mean
squared distance to the converged latent. Every sampler but Boost runs on two schedules (karras and beta, on flow
models simple and beta), and the better of the two is shown, so that none loses by its schedule. The host's best is the
one that results/host_best.json names for the cell, run on the same seeds. TrigFlow, flow maps and the noise of PFGM++
need networks of their own; on others there is nothing to compare.
"""

from __future__ import annotations

import argparse
import json
import logging
import warnings
from functools import partial
from itertools import product
from pathlib import Path

import torch
from support.host import start_host
from tqdm import tqdm

logging.basicConfig(level=logging.ERROR)
start_host()
import comfy.samplers  # noqa: E402
from fewstep.nodes.host.boost import Boost, boosted, calls_of  # noqa: E402
from fewstep.nodes.host.deis import deis_method_sampler  # noqa: E402
from fewstep.nodes.host.dual_fast import dual_fast_sampler  # noqa: E402
from fewstep.nodes.host.noise_law import noise_law  # noqa: E402
from fewstep.nodes.measuring.estimate import geometric_mean  # noqa: E402
from problems import Problem, demo_problem, mixture_problem, run, second_problem  # noqa: E402
from record import record  # noqa: E402

RESULTS = Path(__file__).with_name("results")
CALLS = (5, 8, 12, 20)
CFGS = (1.0, 5.0)
SCHEDULES = {False: ("karras", "beta"), True: ("simple", "beta")}
HOSTS = comfy.samplers.sampler_object
ENTRIES = {
    "euler": lambda: HOSTS("euler"),
    "dpmpp_2m": lambda: HOSTS("dpmpp_2m"),
    "DEIS tab 2 log_snr": lambda: deis_method_sampler("tab", 2, "log_snr"),
    "DEIS tab 3 log_snr": lambda: deis_method_sampler("tab", 3, "log_snr"),
    "DEIS tab 2 model": lambda: deis_method_sampler("tab", 2, "model"),
    "DEIS tab 3 model": lambda: deis_method_sampler("tab", 3, "model"),
    "DEIS rhoab 4": lambda: deis_method_sampler("rhoab", 4, "model"),
    "DEIS ipndm 4": lambda: deis_method_sampler("ipndm", 4, "model"),
    "DEIS rhork 3": lambda: deis_method_sampler("rhork", 3, "model"),
    "DualFast euler 0.5": lambda: dual_fast_sampler(HOSTS("euler"), 0.5, "constant"),
    "DualFast euler 0.5 linear": lambda: dual_fast_sampler(HOSTS("euler"), 0.5, "linear"),
    "DualFast euler 0.25 linear first": lambda: dual_fast_sampler(HOSTS("euler"), 0.25, "linear", "first"),
    "heun": lambda: HOSTS("heun"),
    "DualFast heun 0.25 linear": lambda: dual_fast_sampler(HOSTS("heun"), 0.25, "linear"),
    "DualFast dpmpp_2m 0.25 linear": lambda: dual_fast_sampler(HOSTS("dpmpp_2m"), 0.25, "linear"),
}
NETWORKS = {
    **{f"mixture {kind}": partial(mixture_problem, kind) for kind in ("eps", "flow")},
    **{f"demo {kind}": partial(demo_problem, kind, steps=80) for kind in ("eps", "flow")},
    **{f"second {kind}": partial(second_problem, kind, steps=80) for kind in ("eps", "flow")},
}


def error(of: Problem, sampler, sigmas: torch.Tensor) -> float:
    drawn, _ = run(of, sampler, sigmas)
    return geometric_mean((drawn - of.end).double().square().flatten(1).mean(1))


def scheduled(of: Problem, sampler, schedule: str, calls: int) -> torch.Tensor:
    """Of as many steps as the calls pay for."""
    steps = max(n for n in range(1, calls + 1) if n == 1 or calls_of(sampler, n, to_zero=True) <= calls)
    return comfy.samplers.calculate_sigmas(of.sampling, schedule, steps)


def better_of_two(of: Problem, name: str, calls: int) -> tuple[float, str]:
    schedules = SCHEDULES[noise_law(of.sampling).is_flow]
    found = []
    for schedule in schedules:
        sampler = ENTRIES[name]()
        found.append((error(of, sampler, scheduled(of, sampler, schedule, calls)), schedule))
    return min(found)


def host_best(of: Problem, named: str, calls: int) -> float:
    """By its name, as benchmarks/tune.py writes it: sampler, scheduler, and where it ends."""
    who, _, end = named.partition(", to ")
    sampler, scheduler = who.split()
    sigmas = comfy.samplers.KSampler(of.model, calls, of.model.load_device, sampler, scheduler).sigmas
    if end:
        sigmas = torch.cat([sigmas[:-1], sigmas.new_tensor([noise_law(of.sampling).sigma(float(end))])])
    return error(of, HOSTS(sampler), sigmas)


def best_names() -> dict[tuple[str, float, int], str]:
    stored = json.loads((RESULTS / "host_best.json").read_text(encoding="utf-8"))
    return {(row["network"], row["cfg"], row["calls"]): min(row["errors"], key=row["errors"].get) for row in stored}


def boost(of: Problem, calls: int) -> float:
    """What an ordinary KSampler draws on a model with Boost."""
    model = boosted(of.model, Boost())
    sigmas = comfy.samplers.KSampler(model, calls, model.load_device, "euler", "simple").sigmas
    ours = Problem(of.name, model, of.positive, of.negative, of.cfg, of.noise, of.end, of.end_error)
    return error(ours, HOSTS("euler"), sigmas)


def rows(network: str, cfg: float, seeds: int) -> list[dict]:
    found, best, of = [], best_names(), NETWORKS[network](cfg, seeds)
    for calls in tqdm(CALLS, desc=of.name, mininterval=5):
        errors, schedules = {}, {}
        for name in ENTRIES:
            errors[name], schedules[name] = better_of_two(of, name, calls)
        if named := best.get((network, cfg, calls)):
            errors["host's best"], schedules["host's best"] = host_best(of, named, calls), named
        errors["Boost"] = boost(of, calls)
        cell = {"network": network, "cfg": cfg, "calls": calls, "seeds": seeds, "end_error": of.end_error}
        found.append(cell | {"errors": errors, "schedules": schedules})
    return found


def table(found: list[dict]) -> str:
    """A line a sampler and cfg of a network, a column a number of calls."""
    lines = []
    for network in dict.fromkeys(row["network"] for row in found):
        cells = {(row["cfg"], row["calls"]): row["errors"] for row in found if row["network"] == network}
        heads = [f"cfg {cfg:g}, {calls} calls" for cfg, calls in cells]
        lines += ["", f"| {network} | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
        for name in dict.fromkeys(name for errors in cells.values() for name in errors):
            shown = [f"{errors[name]:.1e}" if name in errors else "" for errors in cells.values()]
            lines.append(f"| {name} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def share(found: list[dict], name: str, of: str) -> str:
    """Of another's error, in the geometric mean over the cells that have both; and in how many it is nearer."""
    both = [row["errors"] for row in found if {name, of} <= row["errors"].keys()]
    ratios = [errors[name] / errors[of] for errors in both]
    if not ratios:
        return ""
    return f"{geometric_mean(torch.tensor(ratios)):.2f} ({sum(ratio < 1 for ratio in ratios)} of {len(ratios)})"


def summary(found: list[dict]) -> str:
    """A line a sampler: its error by that of Boost, of the host's best and of dpmpp_2m."""
    parts = {f"of Boost's, cfg {cfg:g}": [row for row in found if row["cfg"] == cfg] for cfg in CFGS}
    heads = [*parts, "of the host's best", "of dpmpp_2m's"]
    lines = ["| sampler | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for name in dict.fromkeys(name for row in found for name in row["errors"]):
        shares = [share(part, name, "Boost") for part in parts.values()]
        shares += [share(found, name, "host's best"), share(found, name, "dpmpp_2m")]
        lines.append(f"| {name} | " + " | ".join(shares) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default=",".join(NETWORKS), help="with commas between them")
    parser.add_argument("--seeds", type=int, default=16)
    parser.add_argument("--out", type=Path, default=RESULTS / "field.json", help="all figures, as JSON")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    found: list[dict] = []
    for network, cfg in product(args.networks.split(","), CFGS):
        with torch.no_grad():
            found += rows(network, cfg, args.seeds)
        record(args.out, seeds=args.seeds, rows=found)
    print(table(found), summary(found), sep="\n\n")


if __name__ == "__main__":
    main()
