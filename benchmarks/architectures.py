"""Every family of networks that the host carries, with our nodes: does all run, how long, with how much memory.

    python3 run.py python benchmarks/architectures.py [--full] [--families FLUX,SDXL] [--seconds 600] [--out FILE.json]

The networks are the host's own classes with random weights, which is enough for time, memory and read-backs, and says
nothing about pictures. Tiny ones run on two cores in minutes. --full builds the published sizes, for a GPU: 64 GB of
its memory for FLUX.2. --seconds begins no further family after so long.

A row a family: its samplers at the same number of calls (Restart's steps come on top), each with seconds a run (the
smaller of two where it is under one, after one to warm up), memory on top of the weights, how often the run waited for
the GPU, in our files and elsewhere, and whether all numbers were finite; and what measures, with seconds, memory and
how the derivative was taken. A cell that failed holds the error.
"""

from __future__ import annotations

import argparse
import gc
import logging
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from support.host import start_host

logging.basicConfig(level=logging.ERROR)
start_host()
import comfy.sample  # noqa: E402
import comfy.samplers  # noqa: E402
import folder_paths  # noqa: E402
from families import FAMILIES, Family  # noqa: E402
from record import record  # noqa: E402
from support.nodes import of_the_pack, outside_of_a_graph  # noqa: E402

CALLS = 6
RESULTS = Path(__file__).with_name("results")
PACK = Path(__file__).resolve().parents[1]
SMALL: dict[str, dict[str, Any]] = {
    "FewStepEstimateStatistics": {"images": 2, "levels": 6, "pooling": "global"},
    "FewStepMeasureSpread": {"images": 2, "levels": 6},
    "FewStepSearchSchedule": {"steps": 4, "solver": "euler", "teacher_steps": 40, "trajectories": 2, "polish": 1},
    "FewStepTune": {"effort": "quick"},
}


nodes = cache(of_the_pack)


def call(name: str, **given: Any) -> tuple:
    """One of our nodes with its widgets as they stand, but for what is given: its outputs, and what it says last."""
    node = nodes()[name]
    widgets = {
        spec.id: spec.default for spec in node.define_schema().inputs if getattr(spec, "default", None) is not None
    }
    output = outside_of_a_graph(node).execute(**(widgets | SMALL.get(name, {}) | given))
    return (*output.args, output.ui)


@dataclass(frozen=True)
class Bench:
    """A family's model with two prompts and a latent."""

    family: Family
    tiny: bool
    model: Any
    positive: list
    negative: list

    @classmethod
    def of(cls, family: Family, tiny: bool) -> Bench:
        return cls(family, tiny, family.model(tiny), *(family.conditioning(seed, tiny) for seed in (1, 2)))

    @property
    def latent(self) -> torch.Tensor:
        return torch.zeros(self.family.small if self.tiny else self.family.latent)

    @property
    def sigmas(self) -> torch.Tensor:
        return comfy.samplers.calculate_sigmas(self.model.get_model_object("model_sampling"), "beta", CALLS)

    def asked(self) -> dict[str, Any]:
        """What measuring nodes take, with two references."""
        shape = (2, *self.latent.shape[1:])
        references = torch.randn(shape, generator=torch.Generator().manual_seed(4))
        sides = {"positive": self.positive, "negative": self.negative, "latent_image": {"samples": references}}
        return {"model": self.model, "cfg": self.family.cfg, "seed": 0, "save_as": f"bench{time.time()}", **sides}

    def draw(self, sampler, sigmas: torch.Tensor | None = None, model=None, cfg: float | None = None) -> torch.Tensor:
        noise = comfy.sample.prepare_noise(self.latent, 3)
        given = (self.family.cfg if cfg is None else cfg, sampler, self.sigmas if sigmas is None else sigmas)
        sides = (self.positive, self.negative, self.latent)
        return comfy.sample.sample_custom(model or self.model, noise, *given, *sides, disable_pbar=True, seed=3)


# ---------------------------------------------------------------------------------------------------------
# A cell: seconds, memory, waits


def finished() -> float:
    """The time, when all that was asked of the device is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def timed(work: Callable[[], Any]) -> tuple[Any, float, float | None]:
    """What work gives, its seconds, and the MiB it took at most on top of what was held."""
    held = 0
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
    began = finished()
    result = work()
    seconds = finished() - began
    return result, seconds, (torch.cuda.max_memory_allocated() - held) / 2**20 if torch.cuda.is_available() else None


def waits(work: Callable[[], Any]) -> dict[str, int] | None:
    """How often work waited for the GPU, as torch sees it: in our files and elsewhere."""
    if not torch.cuda.is_available():
        return None
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    places = [Path(w.filename).resolve() for w in told if "synchron" in str(w.message)]
    found = Counter(
        "ours" if place.is_relative_to(PACK / "nodes") or place.is_relative_to(PACK / "samplers") else "elsewhere"
        for place in places
    )
    return {"ours": found["ours"], "elsewhere": found["elsewhere"]}


def drawn(work: Callable[[], torch.Tensor]) -> dict[str, Any]:
    waited = waits(work)  # the first run pays for what is made once
    picture, seconds, memory = timed(work)
    if seconds < 1:
        seconds = min(seconds, timed(work)[1])
    return {
        "seconds": round(seconds, 4),
        "MiB": memory and round(memory),
        "waits": waited,
        "finite": bool(picture.isfinite().all()),
    }


def guarded(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A cell, or why there is none."""
    try:
        return work()
    except Exception as error:  # one cell of many: the others are measured
        return {"error": f"{type(error).__name__}: {error}"[:500]}


# ---------------------------------------------------------------------------------------------------------
# A row


def works(bench: Bench) -> dict[str, Callable[[], torch.Tensor]]:
    """Draws a picture each: our samplers, and dpmpp_2m on a model that a node of ours has patched."""
    hosts = comfy.samplers.sampler_object
    cfg = max(bench.family.cfg, 4.0)
    base = {"model": bench.model, "sigmas": bench.sigmas}
    return {
        "dpmpp_2m": lambda: bench.draw(hosts("dpmpp_2m")),
        "DPM-Solver-v3": lambda: bench.draw(call("FewStepDPMSolverV3")[0]),
        "DEIS": lambda: bench.draw(call("FewStepDEIS")[0]),
        "DualFast": lambda: bench.draw(call("FewStepDualFast", sampler=hosts("euler"))[0]),
        "Flow map": lambda: bench.draw(call("FewStepFlowMapSampler")[0]),
        "Restart": lambda: bench.draw(call("FewStepRestartSampler")[0], call("FewStepRestartSchedule", **base)[0]),
        "Boost": lambda: bench.draw(hosts("dpmpp_2m"), model=call("FewStepBoost", model=bench.model)[0]),
        f"dpmpp_2m, cfg {cfg:g}": lambda: bench.draw(hosts("dpmpp_2m"), cfg=cfg),
        f"Probabilistic Guidance, cfg {cfg:g}": lambda: bench.draw(
            hosts("dpmpp_2m"), model=call("FewStepProbabilisticGuidance", model=bench.model)[0], cfg=cfg
        ),
    }


def measured(bench: Bench, name: str) -> tuple[Any, dict[str, Any]]:
    """What a measuring node gives, and the cell."""
    (result, *rest), seconds, memory = timed(lambda: call(name, **bench.asked()))
    cell = {"seconds": round(seconds, 2), "MiB": memory and round(memory)}
    facts = getattr(result, "facts", {})
    return result, cell | {key: facts[key] for key in ("calls", "derivative") if key in facts}


def with_statistics(bench: Bench) -> dict[str, Any]:
    statistics, cell = measured(bench, "FewStepEstimateStatistics")
    sampler = call("FewStepDPMSolverV3", statistics=statistics, use="always")[0]
    return cell | {"then": drawn(lambda: bench.draw(sampler))}


def with_spread(bench: Bench) -> dict[str, Any]:
    spread, cell = measured(bench, "FewStepMeasureSpread")
    model, cfg = call("FewStepProbabilisticGuidance", model=bench.model, spread=spread)[0], max(bench.family.cfg, 4.0)
    sampler = comfy.samplers.sampler_object("dpmpp_2m")
    return cell | {"then": drawn(lambda: bench.draw(sampler, None, model, cfg))}


def searched(bench: Bench) -> dict[str, Any]:
    sigmas, cell = measured(bench, "FewStepSearchSchedule")
    return cell | {"sigmas": [round(sigma, 4) for sigma in sigmas.tolist()]}


MEASURING: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "Estimate Statistics": with_statistics,
    "Measure Spread": with_spread,
    "Search Schedule": searched,
    "Tune, quick": lambda bench: measured(bench, "FewStepTune")[1],
}


def row(name: str, tiny: bool, measuring: list[str]) -> dict[str, Any]:
    family, began = FAMILIES[name], time.perf_counter()
    bench = Bench.of(family, tiny)
    network = bench.model.model.diffusion_model
    cells = {label: guarded(partial(drawn, work)) for label, work in works(bench).items()}
    return {
        "parameters": sum(weight.numel() for weight in network.parameters()),
        "dtype": str(bench.model.model_dtype()).removeprefix("torch."),
        "latent": list(bench.latent.shape),
        "cfg": family.cfg,
        "calls": CALLS,
        "samplers": cells,
        "measuring": {label: guarded(partial(MEASURING[label], bench)) for label in measuring},
        "seconds": round(time.perf_counter() - began, 1),
    }


def line(found: dict[str, Any]) -> str:
    """A row in short, for the console."""
    if "error" in found:
        return f"{found['family']}: {found['error']}"
    cells = {**found["samplers"], **found["measuring"]}
    said = ", ".join(f"{label} {cell.get('seconds', cell.get('error'))}" for label, cell in cells.items())
    return f"{found['family']}, {found['parameters'] / 1e9:.2f} B, {found['seconds']} s: {said}"


def table(found: dict[str, Any]) -> str:
    """Seconds a run beside dpmpp_2m's, memory, and how often ours waited for the GPU: a row a family."""
    lines = [
        "| network | latent | dpmpp_2m | DPM-Solver-v3 | DEIS | Boost "
        "| cfg 4 or more: dpmpp_2m / with Probabilistic Guidance | MiB, theirs / v3 | Estimate | Spread |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        cells, measuring = row["samplers"], row["measuring"]
        guided = [cell["seconds"] for label, cell in cells.items() if ", cfg" in label]
        seconds = [f"{cells[label]['seconds']:.2f}" for label in ("dpmpp_2m", "DPM-Solver-v3", "DEIS", "Boost")]
        memory = " / ".join(str(cells[label]["MiB"]) for label in ("dpmpp_2m", "DPM-Solver-v3"))
        took = [measuring.get(label, {}).get("seconds") for label in ("Estimate Statistics", "Measure Spread")]
        name = f"{row['family']}, {row['parameters'] / 1e9:.1f} B {row['dtype']}, cfg {row['cfg']:g}"
        latent = "x".join(map(str, row["latent"]))
        measured = ["-" if one is None else f"{one:.1f}" for one in took]
        lines.append(
            f"| {' | '.join([name, latent, *seconds, f'{guided[0]:.2f} / {guided[1]:.2f}', memory, *measured])} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--families", default=",".join(FAMILIES))
    parser.add_argument("--measuring", default="Estimate Statistics;Measure Spread")
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    began, rows = time.perf_counter(), []
    folder_paths.models_dir = tempfile.mkdtemp()
    for name in (part.strip() for part in asked.families.split(",")):
        if not FAMILIES[name].there or time.perf_counter() - began > asked.seconds:
            continue
        rows.append({"family": name} | guarded(partial(row, name, not asked.full, asked.measuring.split(";"))))
        print(line(rows[-1]), flush=True)
        gc.collect()
        torch.cuda.empty_cache()
        if asked.out:
            record(asked.out, full=asked.full, rows=rows)


if __name__ == "__main__":
    main()
