"""What a benchmark writes: its figures, and what a person needs to make them again."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import comfyui_version
import numpy
import torch

ROOT = Path(__file__).parents[1]
FOLDERS = ("--out", "--data", "--sheet", "--curves")  # where things lie on one machine says nothing to another


def record(path: Path, **found: Any) -> None:
    """Write the figures as JSON, and with them the machine, the command and the commit."""
    document = {"machine": machine(), "command": command(sys.argv), "commit": commit()} | found
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def rows_of(document: Any) -> list[dict[str, Any]]:
    """The rows of a result; in files of earlier versions they are all there is."""
    return document if isinstance(document, list) else document["rows"]


def machine() -> dict[str, Any]:
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none",
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "ComfyUI": comfyui_version.__version__,
    }


def processor() -> str:
    """Its name where the system tells one, else its kind."""
    told = Path("/proc/cpuinfo")
    lines = told.read_text(encoding="utf-8").splitlines() if told.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def command(arguments: list[str]) -> str:
    """As it was given, from the root of the checkout, but for where files lie."""
    script, *rest = arguments
    kept = [word for i, word in enumerate(rest) if not {word.partition("=")[0], *rest[max(i - 1, 0) : i]} & {*FOLDERS}]
    return shlex.join([Path(script).resolve().relative_to(ROOT).as_posix(), *kept])


def commit() -> str:
    """Of the checkout, with a + where its code has changed since; "unknown" outside of a repository."""
    given = [git("rev-parse", "--short=12", "HEAD"), git("status", "--porcelain", "--", "*.py")]
    return "unknown" if None in given else f"{given[0]}{'+' if given[1] else ''}"


def git(*arguments: str) -> str | None:
    try:
        found = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()
