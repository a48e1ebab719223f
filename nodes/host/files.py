"""The folder of calibrations, models/fewstep, and what lies in it."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

import folder_paths

from ...samplers.calibration import kind_of

FOLDER = "fewstep"
RESULTS = ("check", "batches", "images", "derivative", "compared", "chosen", "errors")  # no part of what was asked for
log = logging.getLogger(__name__)


class HasFacts(Protocol):
    """What a file holds."""

    @property
    def facts(self) -> dict[str, Any]: ...


Result = TypeVar("Result", bound=HasFacts)


def folder() -> Path:
    """Where calibrations are kept, registered with the host, so that extra_model_paths.yaml can add others."""
    folder_paths.add_model_folder_path(FOLDER, os.path.join(folder_paths.models_dir, FOLDER))
    return Path(folder_paths.get_folder_paths(FOLDER)[0])


def key_of(facts: dict[str, Any]) -> str:
    """Six hexadecimal digits of what was asked for, on what."""
    asked = {name: value for name, value in facts.items() if name not in RESULTS}
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:6]


def names_of(kind: str) -> list[str]:
    """The files of a kind of calibration, by their paths below the folder."""
    folder()
    found = set()
    for root in map(Path, folder_paths.get_folder_paths(FOLDER)):
        paths = (path for path in root.rglob("*.safetensors") if not path.name.startswith("."))
        found |= {str(path.relative_to(root)) for path in paths if kind_of(path) == kind}
    return sorted(found)


def statistics_names() -> list[str]:
    """What FewStepLoadStatistics offers: our files, and folders with the authors' l.npz and sb.npz."""
    found = set(names_of("statistics"))
    for root in map(Path, folder_paths.get_folder_paths(FOLDER)):
        found |= {
            str(path.parent.relative_to(root)) for path in root.rglob("l.npz") if (path.parent / "sb.npz").exists()
        }
    return sorted(found)


def find(name: str) -> Path:
    """The file or folder of a name. Raises ValueError, in words, where there is none."""
    folder()
    for root in map(Path, folder_paths.get_folder_paths(FOLDER)):
        path = (root / name).resolve()
        if path.is_relative_to(root.resolve()) and path.exists():
            return path
    raise ValueError(f"There is no {name!r} in {folder()}. Make it with the node that saves it, or copy it there.")


def path_for(
    name: str, default: str, facts: dict[str, Any], load: Callable[[Path], Result]
) -> tuple[Path, Result | None]:
    """Where a result is kept: the person's name, or the default one; and the result itself, where it is there already.

    A file of that name which holds another result, or cannot be read by `load`, is left alone: the name is numbered.
    Raises ValueError for a name that leads out of the folder.
    """
    stem = name.strip().removesuffix(".safetensors") or default
    path = folder() / f"{stem}.safetensors"
    if not path.resolve().is_relative_to(folder().resolve()):
        raise ValueError(f"The name {name!r} leads out of {folder()}. Give a name without .. and without a drive.")
    for number in range(2, 1000):
        if not path.exists():
            return path, None
        if found := held(path, facts, load):
            return path, found
        path = folder() / f"{stem}-{number}.safetensors"
    raise ValueError(f"There are a thousand files named {stem} in {folder()}. Give another name.")


def held(path: Path, facts: dict[str, Any], load: Callable[[Path], Result]) -> Result | None:
    """What the file holds, if that is the result of what the facts ask for."""
    try:
        found = load(path)
    except ValueError as error:
        log.warning("%s It is left as it is.", error)
        return None
    return found if key_of(found.facts) == key_of(facts) else None
