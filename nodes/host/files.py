"""The folder of calibrations, models/fewstep, and what lies in it."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any

import folder_paths

from ...samplers.dpm_solver_v3.measured import Measured, load_measured

FOLDER = "fewstep"
RESULTS = ("check", "batches", "images", "derivative")  # facts that are no part of what was asked for
log = logging.getLogger(__name__)


def folder() -> Path:
    """Where calibrations are kept, registered with the host, so that extra_model_paths.yaml can add others."""
    folder_paths.add_model_folder_path(FOLDER, os.path.join(folder_paths.models_dir, FOLDER))
    return Path(folder_paths.get_folder_paths(FOLDER)[0])


def key_of(facts: dict[str, Any]) -> str:
    """Six hexadecimal digits of what was measured on what."""
    asked = {name: value for name, value in facts.items() if name not in RESULTS}
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:6]


def statistics_names() -> list[str]:
    """What FewStepLoadStatistics offers: our files, and folders with the authors' l.npz and sb.npz."""
    folder()
    found = []
    for root in map(Path, folder_paths.get_folder_paths(FOLDER)):
        found += [str(path.relative_to(root)) for path in root.rglob("*.safetensors") if not path.name.startswith(".")]
        found += [
            str(path.parent.relative_to(root)) for path in root.rglob("l.npz") if (path.parent / "sb.npz").exists()
        ]
    return sorted(set(found))


def find(name: str) -> Path:
    """The file or folder of a name. Raises ValueError, in words, where there is none."""
    folder()
    for root in map(Path, folder_paths.get_folder_paths(FOLDER)):
        path = (root / name).resolve()
        if path.is_relative_to(root.resolve()) and path.exists():
            return path
    raise ValueError(f"There is no {name!r} in {folder()}. Measure with Estimate Statistics, or copy the file there.")


def path_for(name: str, facts: dict[str, Any]) -> Path:
    """Where a measurement is kept: the person's name, or one made of its facts.

    A file of that name which holds another measurement, or cannot be read, is left alone: the name is numbered.
    Raises ValueError for a name that leads out of the folder.
    """
    stem = (
        name.strip().removesuffix(".safetensors")
        or f"{facts['prediction'].lower()}-cfg{facts['cfg']:g}-{key_of(facts)}"
    )
    path = folder() / f"{stem}.safetensors"
    if not path.resolve().is_relative_to(folder().resolve()):
        raise ValueError(f"The name {name!r} leads out of {folder()}. Give a name without .. and without a drive.")
    for number in range(2, 1000):
        if not path.exists() or measured_as(path, facts):
            return path
        path = folder() / f"{stem}-{number}.safetensors"
    raise ValueError(f"There are a thousand files named {stem} in {folder()}. Give another name.")


def measured_as(path: Path, facts: dict[str, Any]) -> Measured | None:
    """The measurement in the file, if it is one of the same facts."""
    try:
        measured = load_measured(path)
    except ValueError as error:
        log.warning("%s It is left as it is.", error)
        return None
    return measured if key_of(measured.facts) == key_of(facts) else None
