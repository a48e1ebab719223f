"""A measuring node whose parts a driver deals out: the line to it, and that what comes from another host is as good."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import threading
from dataclasses import replace
from multiprocessing.connection import Listener
from pathlib import Path

import pytest
from fewstep.cluster.board import MAKE, Asked, Board, Made
from fewstep.nodes.measuring import crew

from . import test_compare as comparing
from . import test_interrupted as small
from .test_interrupted import folder  # noqa: F401  (a fixture)

pytestmark = pytest.mark.usefixtures("host")


class Driver:
    """One worker's: hears its host, and answers by a board. made: by name, in order."""

    def __init__(self, kept: Path, monkeypatch):
        secret = secrets.token_bytes(8)
        self.board, self.made = Board(kept), list[str]()
        self.listener = Listener(("127.0.0.1", 0), authkey=secret)
        monkeypatch.setenv(crew.VARIABLE, f"{self.listener.address[1]} {secret.hex()}")
        crew.worker.cache_clear()
        threading.Thread(target=self.drive, daemon=True).start()

    def drive(self) -> None:
        line = self.listener.accept()
        while True:
            try:
                kind, *said = line.recv()
            except EOFError:
                return
            if kind == crew.ASKED:
                self.board.ask(0, Asked(*said))
            else:
                self.made.append(said[0])
                self.board.made(0, Made(*said))
            what, given = self.board.order(0) or ("", "")
            line.send((what, given if what == MAKE else self.board.results(0)))


@pytest.fixture
def driver(monkeypatch, tmp_path):
    yield lambda: Driver(tmp_path / "kept", monkeypatch)
    crew.worker.cache_clear()


@pytest.mark.parametrize("name", small.QUESTIONS)
def test_in_parts_that_are_dealt_it_finds_what_it_finds_alone(name, folder, driver):  # noqa: F811
    asked = small.Asked(name)
    alone, calls = asked.fresh(folder)
    first = driver()
    assert asked.queue(save_as="dealt") == alone and asked.calls == calls
    assert len(first.made) == len(set(first.made)) > 1
    (work,) = first.board.works.values()
    assert work.total >= work.made > 0
    (folder / "dealt.safetensors").unlink()

    another = driver()  # all parts were made by another host, and lie on the disk
    assert asked.queue(save_as="given") == alone
    assert not another.made and asked.calls == 0


def test_a_comparison_whose_pictures_are_dealt_is_that_of_one_host(driver):
    """With a sampler that draws noise, and one that fails, which every host sees for itself."""
    patcher, calls = comparing.counted(comparing.small.model("FLOW"))

    def rows() -> list:
        failing = comparing.of_function(comparing.raises, label="fails", patcher=patcher)
        noisy = comparing.entry(patcher, "euler_ancestral", "simple", 4)
        found = comparing.compared(patcher, [*comparing.pair(patcher), noisy, failing], images=3)
        assert {row.kind for row in found.rows} == {"ode", "sde"} and found.rows[-1].refused
        return [replace(row, seconds=()) for row in found.rows]

    alone = rows()
    drawn = sum(calls)
    first = driver()
    assert rows() == alone and sum(calls) == 2 * drawn
    assert len(first.made) == 2 + 4 * 3 + 3 + 1  # converged pictures, pictures, and once more by three and the failing
    calls.clear()
    another = driver()  # all pictures lie on the disk
    assert rows() == alone and not another.made and not calls


def test_in_an_ordinary_host_nothing_is_asked(monkeypatch):
    monkeypatch.delenv(crew.VARIABLE, raising=False)
    crew.worker.cache_clear()
    assert crew.worker() is None
    assert list(crew.made("key", 1, {"part": (1, lambda: 2)})) == [("part", 2)]


def test_a_graph_never_imports_ray():
    """The node classes in a process of their own."""
    code = (
        "import sys; from support.host import start_host; start_host(); "
        "from fewstep.nodes import dpm_solver_v3, guidance, optimal_steps, tune, compare; "
        "sys.exit(any(name.split('.')[0] == 'ray' or 'cluster' in name for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], env=os.environ, timeout=300).returncode == 0


@pytest.mark.parametrize(
    "module", ["/a/custom_nodes/fewstep.nodes.measuring.crew", r"C:\a\fewstep.nodes.measuring.crew"]
)
def test_classes_of_a_pack_that_lies_elsewhere_are_ours(module):
    import io

    assert crew.Reader(io.BytesIO()).find_class(module, "Reader") is crew.Reader
    with pytest.raises(ModuleNotFoundError):
        crew.Reader(io.BytesIO()).find_class("/a/custom_nodes/another.nodes.measuring.crew", "Reader")
