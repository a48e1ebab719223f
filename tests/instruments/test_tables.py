"""The pages say what benchmarks/results says: their tables, and the figures in their sentences."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ASKED = Path(__file__).with_name("pages.py")
# Written before results said all of it.
BEFORE = {"architectures", "field", "gmflow", "guidance_pictures", "host_best", "inverse", "second", "tune"}


@pytest.fixture(scope="module")
def told() -> dict[str, Any]:
    run = subprocess.run([sys.executable, str(ASKED)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


def test_tables_are_what_was_measured(told):
    """Otherwise `python3 run.py python benchmarks/tables.py` makes them anew."""
    assert told["differ"] == []
    assert told["tables"] >= 21
    assert "| Boost | 1.00" in told["remade"]


def test_tables_are_made_of_their_rows(told):
    """Of results that take long to measure, on made-up rows."""
    assert told["made"] == {
        "few calls": "| flow, euler, cfg 3 | 99, 100, 0.400 | 99, 100, 0.800 |",
        "plans": "| mixture, euler | 25% of 4.0e-02 beta (50%) | 25% of 4.0e-02 beta (50%) |",
        "kinds": "| cfg, w 0 | 1.0 (+2.0%) | 1.0 (+2.0%) |",
        "amounts": "| 2 x 24 | 1.0e-03 / 2.0e-04 |",
    }


def test_no_new_table_is_by_hand(told):
    """A table with figures is made from a result, or tables.BY_HAND says why not."""
    assert told["not listed"] == []
    assert told["by hand"] == ["| of | share |"]


def test_sentences_hold_the_figures_that_were_measured(told):
    """benchmarks/claims.py has the sentence as it ought to be."""
    assert told["missing"] == []
    assert told["claims"] > 50


def test_a_sentence_with_another_figure_is_missed(told):
    """And one that lines break is not."""
    as_it_is, broken, changed = told["missing from"]
    assert as_it_is == broken == told["claims"] - 1 and changed == told["claims"]


def test_figures_are_written_as_the_pages_write_them(told):
    assert told["words"] == ["a third", "a quarter to nine tenths", "0.0020", "22 to 50 %"]


def test_a_result_says_where_and_how_it_was_made(told):
    assert {"processor", "cores", "gpu", "torch", "numpy", "ComfyUI"} == told["machine"].keys()
    assert told["command"] == "demo/evaluate.py --few-calls"
    assert {name for name, keys in told["results"].items() if keys != ["machine", "command", "commit"]} == BEFORE
