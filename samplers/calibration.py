"""What was measured on a model, as a file: tensors by name, and facts in JSON, in the safetensors format.

The facts say on what and how it was measured, so that a calibration on the wrong model can be told. Nothing is ever
unpickled. Kinds: "statistics" (DPM-Solver-v3), "schedule" (Optimal Stepsize), "spread" (guidance), "tuning"
(all numbers of calls).
Format 2 has the same layout as 1; its facts tell a model by more (nodes.host.identity), which 1 cannot compare.
"""

from __future__ import annotations

import json
import os
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from .facts import check_facts

FORMAT = 2
READ = (1, 2)
KEY = "fewstep"


@dataclass(frozen=True, eq=False)
class Calibration:
    """tensors: what was added up, float64. facts: plain JSON values."""

    kind: str
    tensors: dict[str, Tensor]
    facts: dict[str, Any]

    def save(self, path: Path, *, fresh: bool = False) -> None:
        """Write the file whole or not at all.

        fresh: raises FileExistsError where there is a file of that name, also one of another process that came to be
        a moment ago. Raises OSError where nothing can be written.
        """
        text = json.dumps({"format": FORMAT, "kind": self.kind, "facts": self.facts}, sort_keys=True)
        tensors = {name: tensor.contiguous() for name, tensor in self.tensors.items()}
        content = safetensors.torch.save(tensors, metadata={KEY: text})
        make_folder(path.parent)
        partial = path.with_name(f".{uuid.uuid4().hex}.partial")  # of this process and thread; short for any name
        try:
            with partial.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            appear(partial, path) if fresh else os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: Path, kind: str) -> Calibration:
        """The tensors come as float64. Raises ValueError, in words, for files that are broken, of another kind or of
        a newer format, and for facts that cannot be (see `facts`)."""
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                head = json.loads((file.metadata() or {}).get(KEY, "null"))
                facts = checked_head(head, kind, path.name)
                tensors = {name: real(file.get_tensor(name), name, path.name) for name in file.keys()}
        except Refused:
            raise
        except Exception as error:  # what is raised for broken bytes, nested JSON or too large claims is no contract
            reason = str(error)[:200] or type(error).__name__
            raise ValueError(
                f"{path.name} cannot be read ({reason}). It is broken or incomplete; measure again."
            ) from error
        return cls(kind, tensors, facts)


class Refused(ValueError):
    """Of a file that can be read, in words."""


def checked_head(head: Any, kind: str, name: str) -> dict[str, Any]:
    """The facts. Raises Refused, in words."""
    if not isinstance(head, dict) or not isinstance(head.get("facts"), dict):
        raise Refused(f"{name} was not written by FewStep. Choose a file that a FewStep node saved.")
    if head.get("format") not in READ:
        raise Refused(f"{name} has format {str(head.get('format'))[:20]}; this FewStep reads {FORMAT}. Update FewStep.")
    if head.get("kind") != kind:
        raise Refused(f"{name} holds {str(head.get('kind'))[:40]!r}, not {kind!r}. Choose another file.")
    try:
        check_facts(kind, head["facts"], name)
    except ValueError as error:
        raise Refused(str(error)) from error
    return head["facts"]


def real(tensor: Tensor, name: str, where: str) -> Tensor:
    if tensor.is_complex():
        raise Refused(f"{where} holds complex numbers in {name[:40]}; measure again.")
    return tensor.double()


def make_folder(folder: Path) -> None:
    """Raises NotADirectoryError where a file stands in its place."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise NotADirectoryError(error.errno, "a file stands in the place of the folder", str(folder)) from error


def appear(partial: Path, path: Path) -> None:
    """Give a finished file its name, and never take another's. Raises FileExistsError."""
    try:
        os.link(partial, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without links: there the look and the move are two steps
        if path.exists():
            raise FileExistsError(path) from None
        os.replace(partial, path)


def kind_of(path: Path) -> str | None:
    """The kind of a calibration, from its head alone; None for any other file."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            kind = json.loads((file.metadata() or {}).get(KEY, "{}")).get("kind")
    except Exception:  # one broken file must not hide the others
        return None
    return kind if isinstance(kind, str) else None
