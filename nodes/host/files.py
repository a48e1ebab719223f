"""The folder of calibrations, models/fewstep, and what lies in it."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Protocol, TypeVar

import folder_paths

from ...samplers.calibration import Calibration, kind_of

FOLDER = "fewstep"
SUFFIX = ".safetensors"
# No part of what was asked for.
RESULTS = (
    *("check", "batches", "images", "derivative", "compared", "chosen", "errors"),
    *("calls", "places", "parts"),
)
LONGEST = 255  # bytes of a file's name on most systems
NOT_ON_WINDOWS = '<>:"|?*'
NUMBERED = 1000
SHORT, FULL = 6, 32  # digits of a key: in the name of a file, and where nobody may take one for another
REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "your share of the disk is full",
    errno.EFBIG: "the file would be larger than is allowed",
    errno.EACCES: "the folder may not be written to",
    errno.EPERM: "the folder may not be written to",
    errno.EROFS: "the folder may not be written to",
}
log = logging.getLogger(__name__)


class HasFacts(Protocol):
    """What a file holds."""

    @property
    def facts(self) -> dict[str, Any]: ...

    def calibration(self) -> Calibration: ...


Result = TypeVar("Result", bound=HasFacts)


def folder() -> Path:
    """Where calibrations are kept, registered with the host, so that extra_model_paths.yaml can add others."""
    folder_paths.add_model_folder_path(FOLDER, os.path.join(folder_paths.models_dir, FOLDER))
    return Path(folder_paths.get_folder_paths(FOLDER)[0])


def roots() -> list[Path]:
    folder()
    return [Path(root) for root in folder_paths.get_folder_paths(FOLDER)]


def key_of(asked: dict[str, Any], digits: int = SHORT) -> str:
    """Hexadecimal digits of what was asked for, on what."""
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:digits]


# ---------------------------------------------------------------------------------------------------------
# What there is


def names_of(kind: str) -> list[str]:
    """The files of a kind of calibration, by their paths below the folder."""
    found = {name for name, path in files_below() if path.suffix == SUFFIX and kind_of(path) == kind}
    return sorted(found)


def statistics_names() -> list[str]:
    """What FewStepLoadStatistics offers: our files, and folders with the authors' l.npz and sb.npz."""
    authors = {
        str(PurePosixPath(name).parent)
        for name, path in files_below()
        if path.name == "l.npz" and (path.parent / "sb.npz").exists() and path.parent not in roots()
    }
    return sorted({*names_of("statistics"), *authors})


def files_below() -> Iterator[tuple[str, Path]]:
    """Names, with / on every system, and paths; through links too, each folder once. What is hidden is left out."""
    for root in roots():
        seen: set[str] = set()
        for here, folders, files in os.walk(root, followlinks=True):
            real = os.path.realpath(here)
            folders[:] = [] if real in seen else [name for name in folders if not name.startswith(".")]
            paths = [] if real in seen else [Path(here, name) for name in files if not name.startswith(".")]
            seen.add(real)
            for path in paths:
                yield path.relative_to(root).as_posix(), path


def find(name: str) -> Path:
    """The file or folder of a name, given with / or \\. Raises ValueError, in words, where there is none."""
    normal = checked(name)
    for root in roots():
        for path in (root / normal, root / name):  # elsewhere than on Windows \ may be part of a name
            if os.path.exists(path):  # and not Path.exists, which raises for too long ones
                return path
    raise ValueError(f"There is no {shown(name)} in {folder()}. Make it with the node that saves it, or copy it there.")


def checked(name: str) -> str:
    """A name below the folder, with / between its parts. Raises ValueError, in words, for what cannot be one."""
    if not isinstance(name, str) or not name.strip() or any(ord(letter) < 32 for letter in name) or not is_text(name):
        raise ValueError(f"{shown(name)} is no name of a file. Give letters, digits, spaces, - and _.")
    path = PurePosixPath(name.replace("\\", "/"))
    if not path.parts or path.is_absolute() or ".." in path.parts or PureWindowsPath(name).drive:
        raise ValueError(f"The name {shown(name)} leads out of {folder()}. Give a name without .. and without a drive.")
    if any(len(part.encode()) > LONGEST for part in path.parts):
        raise ValueError(f"The name {shown(name)} is longer than {LONGEST} bytes. Give a shorter one.")
    return str(path)


def is_text(name: str) -> bool:
    """Whether a file system can hold it: half a character pair cannot be written."""
    try:
        return bool(name.encode())
    except UnicodeEncodeError:
        return False


def shown(name: Any) -> str:
    text = repr(name)
    return text if len(text) <= 60 else f"{text[:57]}...{text[-1]}"


# ---------------------------------------------------------------------------------------------------------
# Where results go


def path_for(
    name: str, default: str, facts: dict[str, Any], load: Callable[[Path], Result]
) -> tuple[Path, Result | None]:
    """Where a result is kept: the person's name, or the default one; and the result itself, where it is there already.

    A file of that name which holds another result, or cannot be read by `load`, is left alone: the name is numbered.
    Raises ValueError for a name that leads out of the folder, or that no node would offer.
    """
    stem = name.strip().removesuffix(SUFFIX) or default
    for path in numbered(folder() / offered(stem)):
        if not is_there(path):
            return path, None
        if found := held(path, facts, load):
            return path, found
    raise ValueError(f"There are a thousand files named {shown(stem)} in {folder()}. Give another name.")


def offered(stem: str) -> str:
    """The path of a new file below the folder. Raises ValueError for one that could not be saved, or not be found."""
    normal = checked(stem)
    parts = PurePosixPath(normal).parts
    if stem.endswith(("/", "\\")) or any(part.startswith(".") for part in parts):
        raise ValueError(f"The name {shown(stem)} ends in a slash or begins with a dot; give one that does not.")
    if os.name == "nt" and any(letter in normal for letter in NOT_ON_WINDOWS):
        raise ValueError(f"The name {shown(stem)} holds one of {NOT_ON_WINDOWS}, which Windows does not allow.")
    checked(f"{normal}-{NUMBERED - 1}{SUFFIX}")
    return f"{normal}{SUFFIX}"


def numbered(path: Path) -> Iterator[Path]:
    """The path, and the same with -2, -3 and so on."""
    yield path
    for number in range(2, NUMBERED):
        yield path.with_name(f"{path.name.removesuffix(SUFFIX)}-{number}{SUFFIX}")


def is_there(path: Path) -> bool:
    """Raises ValueError where the whole path is too long for the system."""
    try:
        path.lstat()  # of a link that leads nowhere too
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise ValueError(
            f"{shown(path.name)} cannot be in {path.parent}: {error.strerror}. Give another name."
        ) from error
    return True


def held(path: Path, facts: dict[str, Any], load: Callable[[Path], Result]) -> Result | None:
    """What the file holds, if that is the result of what the facts ask for."""
    try:
        found = load(path)
    except ValueError as error:
        log.warning("%s It is left as it is.", error)
        return None
    return found if is_answer(found.facts, facts) else None


def is_answer(facts: dict[str, Any], asked: dict[str, Any]) -> bool:
    """Whether all that was asked for is among the facts of a result, and these ask for nothing else."""
    asked = json.loads(json.dumps(asked))
    further = set(facts) - set(asked) - set(RESULTS)
    return not further and all(name in facts and facts[name] == value for name, value in asked.items())


def keep(result: HasFacts, path: Path, fresh: bool) -> str:
    """Save a result, and a line that says where, for the person.

    fresh: it replaces no file; where one came to be meanwhile, the name is numbered. Where nothing can be written the
    result is used all the same.
    """
    for place in numbered(path):
        try:
            result.calibration().save(place, fresh=fresh)
        except FileExistsError:
            continue
        except OSError as error:
            reason = REASONS.get(error.errno or 0, error.strerror or str(error))
            said = f"Not saved in {place.parent}: {reason}. The result is used, and lost when ComfyUI ends."
            log.warning("%s", said)
            return said
        return saved_at(place)
    return f"Not saved: there are a thousand files named {shown(path.name)}."


def saved_at(path: Path) -> str:
    return f"models/{FOLDER}/{path.relative_to(folder()).as_posix()}"
