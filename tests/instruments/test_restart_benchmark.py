"""The benchmark of Restart runs, keeps the budget, and sees what a coarse run at few calls cannot hide."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(os.environ["FEWSTEP_ROOT"], "benchmarks", "restart.py")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    out = tmp_path_factory.mktemp("bench") / "restart.json"
    sizes = ["--count", "512", "--seeds", "2", "--tuning-count", "64"]
    arguments = ["--problems", "exact-edm", "--calls", "10", *sizes, "--out", str(out)]
    result = subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "exact-edm" in result.stdout and "below" in result.stdout
    (row,) = json.loads(out.read_text())["results"]
    return row


def test_all_four_rivals_are_there_within_the_budget(found):
    assert set(found["rivals"]) == {"heun", "euler_ancestral", "dpmpp_2m_sde", "er_sde"}
    figures = [found["restart"], found["alone"], *found["rivals"].values()]
    assert all(0 < figure["calls"] <= 10 and len(figure["distances"]) == 2 for figure in figures)
    assert found["rivals"]["heun"]["calls"] == 9  # 5 steps
    assert found["restart"]["calls"] == 10


def test_restart_is_nearer_to_the_law_than_the_coarse_rivals(found):
    """EDM's range of 120 to 0.002 in 10 calls: heun and euler_ancestral are far off, beyond any sampling error."""
    ours, heun, ancestral = (
        statistics.mean(figure["distances"])
        for figure in (found["restart"], found["rivals"]["heun"], found["rivals"]["euler_ancestral"])
    )
    assert ours < heun / 5
    assert ours < ancestral
