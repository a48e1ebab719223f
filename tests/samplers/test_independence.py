"""The mathematics imports without ComfyUI, and the pack's import does nothing."""

import subprocess
import sys

import pytest

BLOCK = (
    "import sys; [sys.modules.__setitem__(n, None) for n in ('comfy', 'comfy_api', 'nodes', 'server', 'folder_paths')]"
)


def run(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/")


@pytest.mark.parametrize("package", ["samplers", "schedulers"])
def test_every_module_imports_without_comfyui(package):
    walk = (
        f"import importlib, pkgutil, fewstep.{package} as p;"
        f"print(len([importlib.import_module(m.name) for m in pkgutil.walk_packages(p.__path__, p.__name__ + '.')]))"
    )
    result = run(f"{BLOCK}; {walk}")
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) >= (3 if package == "samplers" else 0)


def test_the_block_is_a_real_one():
    assert run(f"{BLOCK}; import fewstep.nodes.models.demo").returncode != 0


def test_importing_the_pack_loads_nothing_heavy():
    result = run("import sys; import fewstep; print('torch' in sys.modules, 'numpy' in sys.modules)")
    assert result.stdout.split() == ["False", "False"]
