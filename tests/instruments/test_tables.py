"""The tables of the pages are what benchmarks/results says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(os.environ["FEWSTEP_ROOT"])
ASKED = """
import sys
sys.path.insert(0, sys.argv[1])
import tables
for path in tables.PAGES:
    page = path.read_text(encoding="utf-8")
    print(path.name, len(tables.TABLE.findall(page)), tables.remade(page) == page)
print(tables.remade("<!-- table: the field's samplers -->\\n| 1 |\\n<!-- end of table -->") != "")
"""


@pytest.fixture(scope="module")
def told() -> list[str]:
    run = [sys.executable, "-c", ASKED, str(ROOT / "benchmarks")]
    return subprocess.run(run, capture_output=True, text=True, check=True).stdout.splitlines()


def test_pages_and_results_agree(told):
    """Otherwise `python3 run.py python benchmarks/tables.py` makes them anew."""
    assert all(line.endswith("True") for line in told), told


def test_tables_are_found(told):
    assert sum(int(line.split()[1]) for line in told[:-1]) >= 4
