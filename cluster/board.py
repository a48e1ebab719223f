"""Which part of a measurement is made by which worker, and what came of it.

A work is a measuring node's, known by a key of what was asked for. Its hosts run the same graph and ask, stage by
stage, for the same parts; each part is dealt to one of them, and all are given the results of the stage when the last
is in. Results are bytes here, which only the hosts read.
"""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from fewstep.nodes.measuring.crew import ALL, MAKE

MOST_LOST = 3  # workers that one part may cost


class Stop(Exception):
    """Why the measurement cannot go on, for the person."""


class Asked(NamedTuple):
    """A stage: parts by name, with the model calls they take. expected: calls of the whole work."""

    key: str
    expected: int
    calls: dict[str, int]


class Made(NamedTuple):
    name: str
    result: bytes


class Ended(NamedTuple):
    """files: new or changed ones, by their place in the host's folder. said: what stays on the nodes."""

    files: dict[str, bytes]
    said: str


class Failed(NamedTuple):
    """died: the host is gone, for a reason that another may not meet."""

    why: str
    died: bool = False


Said = Asked | Made | Ended | Failed


@dataclass
class Work:
    """The parts of one key. ready: those whose results are there, on disk, as together they may be large.

    found: calls of those that an earlier run had made, made: of those of this run.
    """

    folder: Path
    expected: int = 0
    calls: dict[str, int] = field(default_factory=dict)
    ready: set[str] = field(default_factory=set)
    found: int = 0
    parts_found: int = 0
    made: int = 0

    def open(self, asked: Asked) -> None:
        self.expected = max(self.expected, asked.expected)
        for name, calls in asked.calls.items():
            if name not in self.calls and self.path(name).exists():
                self.ready.add(name)
                self.found += calls
                self.parts_found += 1
            self.calls[name] = calls

    def put(self, name: str, result: bytes) -> None:
        """Kept on disk before it counts, whole or not at all."""
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_bytes(result)
        partial.replace(path)
        self.ready.add(name)
        self.made += self.calls[name]

    def path(self, name: str) -> Path:
        return self.folder / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.part"

    @property
    def total(self) -> int:
        return max(self.expected, sum(self.calls.values()))


class Board:
    """folder: where finished parts are kept for a run that goes on."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.works: dict[str, Work] = {}
        self.asks: dict[int, Asked] = {}  # by worker
        self.making: dict[int, str] = {}
        self.order_of: dict[int, list[str]] = {}  # keys that a worker asked for
        self.lost_on: Counter[str] = Counter()  # workers, by part; those that had none yet since the last was made
        self.replaced = 0

    def ask(self, worker: int, asked: Asked) -> None:
        """Raises Stop where two workers run different measurements."""
        keys = self.order_of.setdefault(worker, [])
        if asked.key not in keys:
            keys.append(asked.key)
        first = list(self.works)
        if len(keys) <= len(first) and keys != first[: len(keys)]:
            raise Stop(
                f"The workers do not measure the same ({keys[-1]}, not {first[len(keys) - 1]}): one has another model, "
                "pack or ComfyUI than the first. Give all machines the same files."
            )
        self.works.setdefault(asked.key, Work(self.folder / asked.key)).open(asked)
        self.asks[worker] = asked

    def order(self, worker: int) -> tuple[str, str | tuple[str, ...]] | None:
        """(MAKE, part), (ALL, parts) or None: it waits for parts that others make. The longest come first."""
        key, _, calls = self.asks[worker]
        work = self.works[key]
        taken = {name for other, name in self.making.items() if self.asks[other].key == key}
        left = [name for name in calls if name not in work.ready]
        free = [name for name in left if name not in taken]
        if free:
            self.making[worker] = max(free, key=lambda name: calls[name])
            return MAKE, self.making[worker]
        return None if left else (ALL, tuple(calls))

    def results(self, worker: int) -> dict[str, bytes]:
        """Of the stage that the worker asked for."""
        key, _, calls = self.asks[worker]
        return {name: self.works[key].path(name).read_bytes() for name in calls}

    def made(self, worker: int, made: Made) -> None:
        if self.making.pop(worker) != made.name:
            raise AssertionError(f"{made.name} was not dealt to worker {worker}")
        self.works[self.asks[worker].key].put(*made)
        del self.lost_on[""]

    def lost(self, worker: int, why: str) -> str:
        """What it was making, which is free again. Raises Stop where that part has cost too many workers."""
        name = self.making.pop(worker, "")
        self.asks.pop(worker, None)
        self.order_of.pop(worker, None)
        self.lost_on[name] += 1
        self.replaced += 1
        if self.lost_on[name] >= MOST_LOST:
            what = f"while it made {name}" if name else "before it was given a part"
            raise Stop(f"{MOST_LOST} workers ended {what}. {why}".strip())
        return name

    def most(self, worker: int) -> int:
        """Model calls of what it is making."""
        return self.asks[worker].calls[self.making[worker]]

    @property
    def total(self) -> int:
        return sum(work.total for work in self.works.values())

    @property
    def found(self) -> int:
        return sum(work.found for work in self.works.values())

    @property
    def calls(self) -> int:
        """Made in this run."""
        return sum(work.made for work in self.works.values())

    def told(self) -> str:
        """What was done, in words."""
        parts = sum(len(work.ready) for work in self.works.values())
        found = sum(work.parts_found for work in self.works.values())
        earlier = f" ({found} by an earlier run)" if found else ""
        return f"{parts} parts{earlier}, {self.found + self.calls} model calls; {self.replaced} workers replaced."

    def forget(self) -> None:
        """What was kept for a run that goes on."""
        for work in self.works.values():
            shutil.rmtree(work.folder, ignore_errors=True)
