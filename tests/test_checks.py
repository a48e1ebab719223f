"""ruff and the type checker are part of the suite."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(os.environ["FEWSTEP_ROOT"])


@pytest.mark.parametrize(
    "command",
    [
        ["ruff", "check", "--no-cache", str(ROOT)],
        ["ruff", "format", "--check", "--no-cache", str(ROOT)],
        ["mypy", "--cache-dir", os.devnull, "--config-file", str(ROOT / "pyproject.toml"), "-p", "fewstep"],
    ],
    ids=["ruff", "format", "mypy"],
)
def test_clean(command, tmp_path):
    package = next(p for p in os.environ["PYTHONPATH"].split(os.pathsep) if Path(p, "fewstep").exists())
    result = subprocess.run(
        [sys.executable, "-m", *command],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"MYPYPATH": os.pathsep.join([package, str(ROOT / "tests")])},
    )
    assert result.returncode == 0, result.stdout + result.stderr
