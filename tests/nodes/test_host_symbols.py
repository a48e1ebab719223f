"""What the pack takes from ComfyUI, and whether this ComfyUI has it."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fewstep.nodes.host.symbols import METHODS, SYMBOLS, missing

pytestmark = pytest.mark.usefixtures("host")
ROOT = Path(os.environ["FEWSTEP_ROOT"])
IDENTITY = ["-c", "user.name=fewstep", "-c", "user.email=fewstep@localhost"]
GUARD = [sys.executable, "-m", "comfy_import_guard.cli"]
HOST = (
    "comfy",
    "comfy_api",
    "comfy_execution",
    "comfy_extras",
    "folder_paths",
    "server",
    "node_helpers",
    "latent_preview",
)


def dotted(node: ast.AST) -> str:
    """a.b.c of an attribute chain that begins at a name; empty for any other expression."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (before := dotted(node.value)):
        return f"{before}.{node.attr}"
    return ""


def used(path: Path) -> Iterator[str]:
    """The host's names in one of our files, as far as its own text shows them."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").split(".")[0] in HOST:
            yield from (f"{node.module}.{name.name}" for name in node.names)
        elif isinstance(node, ast.Attribute) and id(node) not in inner:
            name = dotted(node)
            if name.split(".")[0] in HOST:
                yield name


def test_the_list_is_what_our_files_use():
    files = [ROOT / "__init__.py", *(ROOT / "nodes").rglob("*.py")]
    found = {name for path in files for name in used(path)}
    assert {name for name in found if not any(name.startswith(f"{listed}.") for listed in found)} == set(SYMBOLS)


@pytest.mark.parametrize("name", [*SYMBOLS, *METHODS])
def test_this_comfyui_has(name):
    assert missing([name]) == []


def test_what_is_missing_is_named():
    names = ["comfy.samplers.CFGGuider", "comfy.samplers.Absent", "comfy.absent.thing", "folder_paths.absent"]
    assert missing(names) == names[1:]


@pytest.mark.skipif(shutil.which("git") is None, reason="comfy-import-guard reads the host out of a git repository")
def test_another_guard_finds_what_we_use_too(tmp_path):
    """comfy-import-guard, on the host that runs here: also whether every call can be bound."""
    import comfy.samplers

    host, known = Path(comfy.samplers.__file__).parents[1], tmp_path / "cache" / "ComfyUI"
    copied = shutil.ignore_patterns("*.json", "*.txt", "*.model", "*.pt", "*.png", "__pycache__")
    for folder in ("comfy", "comfy_extras", "comfy_api", "comfy_execution"):
        shutil.copytree(host / folder, known / folder, ignore=copied)
    for command in (["init", "-q"], ["add", "."], [*IDENTITY, "commit", "-q", "-m", "the host"]):
        subprocess.run(["git", *command], cwd=known, check=True)
    pack = tmp_path / "install" / "custom_nodes" / "fewstep"
    for folder in ("nodes", "samplers", "schedulers"):
        shutil.copytree(ROOT / folder, pack / folder, ignore=copied)
    shutil.copy(ROOT / "__init__.py", pack)
    asked = [*GUARD, "--cache-dir", known.parent, "--offline", "--json", "check", "--comfy-dir", pack.parents[1]]
    told = subprocess.run([*asked, "--target", "HEAD"], capture_output=True, text=True)
    (found,) = json.loads(told.stdout)["packs"]
    assert told.returncode == 0 and found["verdict"].upper() == "SAFE", told.stdout
