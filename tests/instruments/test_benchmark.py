"""The benchmark measures the host's own samplers, at no more calls than it says."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(os.environ["FEWSTEP_ROOT"], "benchmarks", "error_per_call.py")


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    out = tmp_path_factory.mktemp("bench") / "rows.json"
    arguments = ["--problems", "mixture-eps-cfg7.5", "--calls", "5", "--seeds", "16", "--out", str(out)]
    result = subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "lms, beta (5)" in result.stdout
    return json.loads(out.read_text())["rows"]


def test_the_best_of_the_host_is_where_others_measured_it(rows):
    best = min(rows, key=lambda row: row["mean"])
    assert (best["sampler"], best["scheduler"]) == ("lms", "beta")
    assert 0.02 < best["mean"] < 0.04


def test_every_deterministic_sampler_and_every_schedule_is_there(rows):
    samplers = {row["sampler"] for row in rows}
    assert samplers >= {"euler", "heun", "dpm_2", "lms", "dpmpp_2m", "ipndm", "deis", "uni_pc", "ddim", "res_multistep"}
    assert not samplers & {"euler_ancestral", "dpmpp_sde", "lcm", "er_sde"}
    assert {row["scheduler"] for row in rows} >= {"simple", "normal", "karras", "exponential", "beta", "kl_optimal"}


def test_the_budget_is_kept(rows):
    assert all(row["calls"] <= 5 for row in rows)
    assert {row["steps"] for row in rows if row["sampler"] == "heun"} == {3}  # 2 + 2 + 1 calls
