"""What `python3 run.py measure` can gain at most, counted: model calls on the longest way, by number of workers.

    python3 run.py python benchmarks/dealt.py [--out FILE.json]

Every measurement runs once, alone, on an exact mixture; its parts are then dealt as cluster/board.py deals them, stage
by stage, the longest to whoever is free. Starting ComfyUI and what workers hand each other are not in it.
"""

from __future__ import annotations

import argparse
import heapq
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from support.host import start_host

logging.basicConfig(level=logging.ERROR)
start_host()
from fewstep.nodes.measuring import compare, crew, estimate, search, spread, tune  # noqa: E402
from fewstep.nodes.measuring.comparing.shelf import Shelf  # noqa: E402
from fewstep.nodes.measuring.interrupted import Parts  # noqa: E402
from fewstep.nodes.measuring.running import Counter  # noqa: E402
from record import record  # noqa: E402
from support.host_mixture import label_conditioning, mixture_model  # noqa: E402
from support.mixture import picture_like  # noqa: E402

RESULTS = Path(__file__).with_name("results") / "dealt.json"
WORKERS = (2, 4, 8, 16, 64)
Stages = list[list[int]]  # calls of the parts of each


class Recorder:
    """Stands in for the line to the driver: makes every part here, and notes what it took."""

    def __init__(self) -> None:
        self.stages: Stages = []
        self.calls = 0

    def count(self, number: int) -> None:
        self.calls += number

    def made(self, key: str, expected: int, works: dict) -> Iterator[tuple[str, Any]]:
        self.stages.append([])
        for name, (_, work) in works.items():
            before = self.calls
            result = work()
            self.stages[-1].append(self.calls - before)
            yield name, result


def recorded(measure: Callable[[], Any]) -> Stages:
    recorder = Recorder()
    with (
        patch.object(crew, "made", recorder.made),
        patch.object(crew, "is_shared", lambda: True),
        patch.object(Counter, "count", lambda counter, number: recorder.count(number)),
    ):
        measure()
    if (own := recorder.calls - sum(map(sum, recorder.stages))) > 0:
        recorder.stages.append([own])  # what every host does for itself
    return recorder.stages


def longest(stages: Stages, workers: int) -> int:
    """Model calls until the last worker is done, where all go on to a stage together."""
    total = 0
    for calls in stages:
        loads = [0] * workers
        for each in sorted(calls, reverse=True):
            heapq.heapreplace(loads, loads[0] + each)
        total += max(loads)
    return total


def measurements() -> dict[str, Callable[[], Any]]:
    model, positive, negative = mixture_model(picture_like(), "flow", 3.0), *map(label_conditioning, ([2], [-1]))
    asked = (model, positive, negative, 3.0, torch.zeros(1, 4, 16, 16), 0)

    def estimated(images: int, pooling: str = "global") -> None:
        estimate.estimate(estimate.Request(*asked, images, 20, pooling, "differences"), None, Parts("-"), None)

    def spread_of(images: int) -> None:
        spread.measure_spread(spread.Request(*asked, images, 12), None, Parts("-"))

    def searched(trajectories: int) -> None:
        search.search_schedule(search.Request(*asked, 8, "dpmpp_2m", trajectories=trajectories), Parts("-"), None)

    def compared(images: int) -> None:
        compare.compare(compare.Request(*asked, asked[4], 100, images=images), Shelf(), None)

    return {
        "Estimate Statistics, 6 images (default), 20 levels": lambda: estimated(6),
        "Estimate Statistics, 64 images": lambda: estimated(64),
        "Estimate Statistics, 256 images (pooling *pixel*)": lambda: estimated(256, "pixel"),
        "Measure Spread, 8 images (default)": lambda: spread_of(8),
        "Search Schedule, 8 steps, 8 trajectories (default)": lambda: searched(8),
        "Search Schedule, 64 trajectories": lambda: searched(64),
        "Tune, normal": lambda: tune.tune(tune.Request(*asked, "normal"), Parts("-"), None),
        "Compare, 4 images (default)": lambda: compared(4),
        "Compare, 64 images": lambda: compared(64),
    }


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["| measurement | calls | " + " | ".join(f"{n} workers" for n in WORKERS) + " |"]
    lines.append("|---|" + "---|" * (len(WORKERS) + 1))
    for row in rows:
        ways = " | ".join(f"{row['longest'][str(n)]:,}" for n in WORKERS)
        lines.append(f"| {row['measurement']} | {row['calls']:,} | {ways} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    rows = []
    for name, measure in measurements().items():
        stages = recorded(measure)
        ways = {str(n): longest(stages, n) for n in WORKERS}
        rows.append({"measurement": name, "calls": longest(stages, 1), "stages": len(stages), "longest": ways})
        print(f"{name}: {rows[-1]['calls']} calls in {len(stages)} stages, {ways}", file=sys.stderr, flush=True)
    record(args.out, rows=rows)
    print(table(rows))


if __name__ == "__main__":
    main()
