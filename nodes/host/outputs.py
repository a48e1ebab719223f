"""Files beside the pictures that the host saves: its output folder, its counters, its names."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import folder_paths
import numpy as np
from PIL import Image
from torch import Tensor

from .files import LONGEST, NOT_ON_WINDOWS, REASONS, is_text, shown

ROOM = 40  # bytes of a name, for the number and what comes behind it
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Saved:
    """said: where, or why not. images: what the host's UI output says of pictures, empty where there are none."""

    said: str
    images: list[dict[str, str]]


def checked_prefix(prefix: Any) -> str:
    """The prefix, without blanks around it. Raises ValueError, in words, for what cannot begin the name of a file."""
    if why := why_not(prefix):
        raise ValueError(f"filename_prefix {shown(prefix)} {why}")
    return prefix.strip()


def why_not(prefix: Any) -> str:
    """Why this is no beginning of a name; empty where it is one."""
    if not isinstance(prefix, str) or any(ord(letter) < 32 for letter in prefix) or not is_text(prefix or "-"):
        return "is no name of a file. Give letters, digits, spaces, - and _."
    path = PurePosixPath(prefix.strip().replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or PureWindowsPath(prefix.strip()).drive:
        return "leads out of the output folder. Give a name without .. and without a drive."
    if any(len(part.encode()) > LONGEST - ROOM for part in path.parts):
        return f"is longer than {LONGEST - ROOM} bytes. Give a shorter one."
    if any(letter in prefix for letter in NOT_ON_WINDOWS):
        return f"holds one of {NOT_ON_WINDOWS}, which Windows does not allow. Leave it out."
    return ""


def save_beside(prefix: str, texts: Mapping[str, str], pictures: Mapping[str, Tensor]) -> Saved:
    """Under one number: texts and IMAGEs (1, H, W, 3), each by what its name ends in. A full disk is said."""
    try:
        folder, stem, counter, subfolder, _ = folder_paths.get_save_image_path(
            prefix, folder_paths.get_output_directory()
        )
        begin = f"{stem}_{counter:05}_"
        for end, text in texts.items():
            Path(folder, begin + end).write_text(text, encoding="utf-8", newline="")
        for end, picture in pictures.items():
            as_picture(picture).save(Path(folder, begin + end), compress_level=4)
    except Exception as error:  # the host raises a bare one for folders that it does not allow
        why = REASONS.get(getattr(error, "errno", None) or 0, str(error).strip().split("\n")[0])
        log.warning("Not saved: %s", error)
        return Saved(f"Not saved in the output folder: {why}.", [])
    images = [{"filename": begin + end, "subfolder": subfolder, "type": "output"} for end in pictures]
    return Saved(f"Saved in the output folder: {told(subfolder, begin, [*texts, *pictures])}", images)


def told(subfolder: str, begin: str, ends: list[str]) -> str:
    names = [begin + ends[0], *ends[1:]]
    return f"{Path(subfolder, '').as_posix()}/{', '.join(names)}" if subfolder else ", ".join(names)


def as_picture(image: Tensor) -> Image.Image:
    return Image.fromarray((image[0].clamp(0, 1).numpy() * 255).round().astype(np.uint8))
