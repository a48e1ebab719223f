"""Who makes the parts of a long work: this host alone, or several that a driver outside deals them to.

Only `python3 run.py measure` (see cluster/) starts hosts with the variable below. In any other, all is made here.
"""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from multiprocessing.connection import Client, Connection
from typing import Any, TypeVar

from ..host.walk import without_folder

Result = TypeVar("Result")
VARIABLE = "FEWSTEP_CREW"  # "PORT SECRET": where on this machine the driver's worker listens, and what proves us to it
ASKED, MADE = "asked", "made"  # what a host says
MAKE, ALL = "make", "all"  # and is answered


class Reader(pickle.Unpickler):
    """Of what another host pickled, which calls this pack by the path of its own folder."""

    def find_class(self, module: str, name: str) -> Any:
        ours = __name__.partition(".")[0]
        folder, dot, inside = module.partition(".")
        is_ours = without_folder(folder) == without_folder(ours)
        return super().find_class(f"{ours}{dot}{inside}" if is_ours else module, name)


@cache
def worker() -> Connection | None:
    """The line to it, opened once a process."""
    if VARIABLE not in os.environ:
        return None
    port, secret = os.environ[VARIABLE].split()
    return Client(("127.0.0.1", int(port)), authkey=bytes.fromhex(secret))


def is_shared() -> bool:
    """Whether other hosts make parts, too."""
    return worker() is not None


def made(
    key: str, expected: int, works: Mapping[str, tuple[int, Callable[[], Result]]]
) -> Iterator[tuple[str, Result]]:
    """The results of works, by name, of a work that is known to all hosts by its key.

    expected: model calls of the whole work.
    """
    line = worker() if key else None
    if line is None:
        yield from ((name, work()) for name, (_, work) in works.items())
        return
    line.send((ASKED, key, expected, {name: calls for name, (calls, _) in works.items()}))
    while True:
        answer, given = line.recv()
        if answer == ALL:
            yield from ((name, Reader(io.BytesIO(given[name])).load()) for name in works)
            return
        line.send((MADE, given, pickle.dumps(works[given][1]())))
