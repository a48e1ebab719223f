"""The pages say what benchmarks/results says: their tables, and the figures in their sentences."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(os.environ["FEWSTEP_ROOT"])
# Written before results said all of it.
BEFORE = {"architectures", "field", "gmflow", "guidance_pictures", "host_best", "inverse", "second", "tune"}
ASKED = r"""
import json, sys
sys.path.insert(0, sys.argv[1])
import claims, record, tables
pages = {path.relative_to(tables.ROOT).as_posix(): path.read_text(encoding="utf-8") for path in tables.PAGES}
half = "| of | share |\n|---|---|\n| euler | 50 % |\n"
marked = "<!-- table: the field's samplers -->\n| 1 |\n<!-- end of table -->"
_, one = next(claims.of_constraint())
broken, changed = one.replace(" ", "\n  ", 3), one.replace("a third", "a fifth")
print(json.dumps({
    "tables": sum(len(tables.TABLE.findall(page)) for page in pages.values()),
    "differ": [name for name, page in pages.items() if tables.remade(page) != page],
    "remade": tables.remade(marked),
    "not listed": tables.not_listed(),
    "by hand": tables.by_hand(half + "\n" + half.replace("50", "`50`")),
    "claims": sum(1 for subject in claims.CLAIMS for _ in subject()),
    "missing": claims.missing(),
    "missing from": [len(claims.missing(lambda page: text)) for text in (one, broken, changed)],
    "later": {name: (tables.RESULTS / f"{name}.json").exists() for name in claims.LATER},
    "words": [claims.word(0.31), claims.words([0.92, 0.28]), claims.short(0.00204), claims.span([0.5, 0.221])],
    "machine": record.machine(),
    "command": record.command([str(tables.ROOT / "demo" / "evaluate.py"), "--few-calls", "--out", "x", "--data=y"]),
    "results": {path.stem: list(tables.results(path.stem))[:3] for path in tables.RESULTS.glob("*.json")},
}))
"""


@pytest.fixture(scope="module")
def told() -> dict[str, Any]:
    run = [sys.executable, "-c", ASKED, str(ROOT / "benchmarks")]
    return json.loads(subprocess.run(run, capture_output=True, text=True, check=True).stdout.splitlines()[-1])


def test_tables_are_what_was_measured(told):
    """Otherwise `python3 run.py python benchmarks/tables.py` makes them anew."""
    assert told["differ"] == []
    assert told["tables"] >= 17
    assert "| Boost | 1.00" in told["remade"]


def test_no_new_table_is_by_hand(told):
    """A table with figures is made from a result, or tables.BY_HAND says why not."""
    assert told["not listed"] == []
    assert told["by hand"] == ["| of | share |"]


def test_sentences_hold_the_figures_that_were_measured(told):
    """benchmarks/claims.py has the sentence as it ought to be."""
    assert told["missing"] == []
    assert told["claims"] > 50


def test_no_sentence_waits_for_a_result_that_is_there(told):
    assert not any(told["later"].values())


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
