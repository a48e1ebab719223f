"""The pack as the registry hands it out: `python3 run.py python tests/support/archive.py FOLDER`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(os.environ["FEWSTEP_ROOT"])


def tracked(*options: str) -> set[str]:
    """Files that git keeps, of those the options choose; none outside of a git checkout."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        return set()
    listed = subprocess.run(["git", "ls-files", "-z", *options], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(filter(None, listed.stdout.split("\0")))


def published() -> set[str]:
    """What `comfy node publish` packs: what git keeps, without what .comfyignore names."""
    return tracked() - tracked("--cached", "--ignored", "--exclude-from", ".comfyignore")


def unpack(folder: Path) -> Path:
    """The published files, copied into the folder, which is made. Returns it."""
    for name in published():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder


if __name__ == "__main__":
    print(unpack(Path(sys.argv[1])))  # noqa: T201
