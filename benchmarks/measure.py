"""How the time of a measurement falls with workers, each of one thread (`python3 run.py measure`).

    python3 run.py python benchmarks/measure.py [--workers 1 2] [--what estimate]

On the bundled flow model: Estimate Statistics of 16 images, Search Schedule or Compare at their defaults. Seconds from
the first question of a worker to the end; starting ComfyUI comes on top, once, and is told apart.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(os.environ["FEWSTEP_ROOT"])


def node(kind: str, **inputs) -> dict:
    return {"class_type": kind, "inputs": inputs}


ESTIMATE = {"images": 16, "levels": 20, "pooling": "global", "derivative": "differences"}
SEARCH = {"steps": 8, "solver": "dpmpp_2m", "teacher_steps": 100, "trajectories": 8, "start": "auto", "polish": 4}
ASKED: dict[str, tuple[str, dict[str, Any]]] = {
    "estimate": ("FewStepEstimateStatistics", ESTIMATE),
    "search": ("FewStepSearchSchedule", SEARCH | {"denoise": 1.0}),
    "compare": ("FewStepCompare", {"reference_steps": 100}),
}


def graph(what: str) -> dict:
    linked = {"model": ["1", 0], "positive": ["2", 0], "negative": ["3", 0], "latent_image": ["4", 0], "cfg": 3.0}
    kind, asked = ASKED[what]
    return {
        "1": node("FewStepDemoModel", variant="flow"),
        "2": node("CLIPTextEncode", clip=["1", 1], text="red apple"),
        "3": node("CLIPTextEncode", clip=["1", 1], text=""),
        "4": node("EmptyLatentImage", width=512, height=512, batch_size=1),
        "5": node(kind, **linked, **asked, seed=0),
    }


def measured(workers: int, what: str, folder: Path) -> tuple[str, float, float]:
    """What was done, its seconds, and those of the whole command."""
    path = folder / "workflow.json"
    path.write_text(json.dumps(graph(what)))
    command = [sys.executable, str(ROOT / "run.py"), "measure", str(path), "--workers", str(workers)]
    command += ["--out", str(folder / str(workers)), "--kept", str(folder / "kept")]
    command += ["--output-directory", str(folder / "output")]
    began = time.monotonic()
    result = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    if result.returncode:
        raise SystemExit(result.stderr)
    (done,) = re.findall(r"(\d+ parts, .*)\. Measured in ([\d.]+) s\.", result.stderr)
    return done[0], float(done[1]), time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--what", choices=list(ASKED), default="estimate")
    args = parser.parse_args()
    print("| workers | seconds | times as fast | the command in all |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        first = 0.0
        for workers in args.workers:
            done, seconds, whole = measured(workers, args.what, Path(folder))
            first = first or seconds
            print(f"| {workers} | {seconds:.1f} | {first / seconds:.2f} | {whole:.0f} |", flush=True)
    print(f"\n{done}; {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the end")


if __name__ == "__main__":
    main()
