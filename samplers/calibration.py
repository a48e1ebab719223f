"""What was measured on a model, as a file: tensors by name, and facts in JSON, in the safetensors format.

The facts say on what and how it was measured, so that a calibration on the wrong model can be told. Nothing is ever
unpickled. Kinds: "statistics" (DPM-Solver-v3), "schedule" (Optimal Stepsize).
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

FORMAT = 1
KEY = "fewstep"


@dataclass(frozen=True, eq=False)
class Calibration:
    """tensors: what was added up, float64. facts: plain JSON values."""

    kind: str
    tensors: dict[str, Tensor]
    facts: dict[str, Any]

    def save(self, path: Path) -> None:
        """Write the file whole or not at all."""
        text = json.dumps({"format": FORMAT, "kind": self.kind, "facts": self.facts}, sort_keys=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            safetensors.torch.save_file(
                {name: tensor.contiguous() for name, tensor in self.tensors.items()}, partial, metadata={KEY: text}
            )
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: Path, kind: str) -> Calibration:
        """Raises ValueError, in words, for files that are broken, of another kind or of a newer format."""
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                text = (file.metadata() or {}).get(KEY)
                tensors = {name: file.get_tensor(name) for name in file.keys()}
            head = json.loads(text) if text else None
        except (OSError, ValueError, safetensors.SafetensorError) as error:
            raise ValueError(
                f"{path.name} cannot be read ({error}). It is broken or incomplete; measure again."
            ) from error
        if not isinstance(head, dict) or not isinstance(head.get("facts"), dict):
            raise ValueError(f"{path.name} was not written by FewStep. Choose a file that a FewStep node saved.")
        if head.get("format") != FORMAT:
            raise ValueError(
                f"{path.name} has format {head.get('format')!r}; this FewStep reads format {FORMAT}. Update FewStep."
            )
        if head.get("kind") != kind:
            raise ValueError(f"{path.name} holds {head.get('kind')!r}, not {kind!r}. Choose another file.")
        return cls(kind, tensors, head["facts"])


def kind_of(path: Path) -> str | None:
    """The kind of a calibration, from its head alone; None for any other file."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return json.loads((file.metadata() or {}).get(KEY, "{}")).get("kind")
    except (OSError, ValueError, AttributeError, safetensors.SafetensorError):
        return None
