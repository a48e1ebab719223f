"""Four of the host's families, tiny: every cell of benchmarks/architectures.py is there, and its numbers are finite."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(os.environ["FEWSTEP_ROOT"], "benchmarks", "architectures.py")
FAMILIES = ["FLUX", "SD 3", "Qwen-Image", "Wan 1.3B"]


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    out = tmp_path_factory.mktemp("bench") / "rows.json"
    arguments = ["--families", ",".join(FAMILIES), "--out", str(out)]
    result = subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return {row["family"]: row for row in json.loads(out.read_text())["rows"]}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_node_runs_on_it(rows, family):
    row = rows[family]
    assert len(row["samplers"]) == 9 and set(row["measuring"]) == {"Estimate Statistics", "Measure Spread"}
    drawn = [*row["samplers"].values(), *(cell.get("then", {}) for cell in row["measuring"].values())]
    assert all(cell.get("finite") for cell in drawn), row
