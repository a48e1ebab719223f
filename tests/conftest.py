"""Fixtures of the whole suite. Run it by `python3 run.py test`: the environment has a real ComfyUI."""

from __future__ import annotations

import os

import pytest
import torch
from support.server import serving

# One thread each where several processes share the tests; FEWSTEP_THREADS says how many otherwise.
ALONE = "PYTEST_XDIST_WORKER" not in os.environ
torch.set_num_threads(int(os.environ.get("FEWSTEP_THREADS") or (ALONE and os.cpu_count()) or 1))


@pytest.fixture(scope="session")
def server():
    """A real ComfyUI with the pack, shared by all tests."""
    with serving() as running:
        yield running


@pytest.fixture(scope="session")
def host():
    """comfy importable in this process."""
    from support.host import start_host

    start_host()
