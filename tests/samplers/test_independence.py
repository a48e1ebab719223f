"""The mathematics imports without ComfyUI, and the pack's import does nothing."""

import dataclasses
import importlib
import pkgutil
import subprocess
import sys

import pytest
from fewstep import samplers, schedulers
from fewstep.samplers.dpm_solver_v3.observe import Observer

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


@pytest.mark.parametrize("package", [samplers, schedulers])
def test_what_is_planned_or_measured_cannot_be_changed_afterwards(package):
    """All our records are frozen, but for what keeps count while it measures; those that are tensors have no ==."""
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        for record in vars(importlib.import_module(module.name)).values():
            if isinstance(record, type) and dataclasses.is_dataclass(record) and record.__module__ == module.name:
                assert vars(record)["__dataclass_params__"].frozen == (record is not Observer), record
                tensors = [field.name for field in dataclasses.fields(record) if field.type == "Tensor"]
                assert not tensors or record is Observer or record.__eq__ is object.__eq__, (record, tensors)


def test_the_block_is_a_real_one():
    assert run(f"{BLOCK}; import fewstep.nodes.models.demo").returncode != 0


def test_importing_the_pack_loads_nothing_heavy():
    result = run("import sys; import fewstep; print('torch' in sys.modules, 'numpy' in sys.modules)")
    assert result.stdout.split() == ["False", "False"]
