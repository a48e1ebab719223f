"""Long work that was stopped half-way, so that the next queue goes on with it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

Work = TypeVar("Work")


class Interrupted(Generic[Work]):
    """The last few works that did not come to their end, held in memory by what was asked for."""

    def __init__(self, begin: Callable[[], Work], most: int):
        self.begin, self.most = begin, most
        self.works: OrderedDict[str, Work] = OrderedDict()

    @contextmanager
    def resumed(self, key: str) -> Iterator[Work]:
        """The work of a key, new or as far as it came; it is forgotten when the block ends well."""
        work = self.works.setdefault(key, self.begin())
        while len(self.works) > self.most:
            self.works.popitem(last=False)
        yield work
        del self.works[key]
