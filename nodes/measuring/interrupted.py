"""Long work in parts: what is finished survives a cancel, and parts that were worked out apart come together."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

Work = TypeVar("Work")
Result = TypeVar("Result")


class Share(NamedTuple):
    """Which of a work's parts are made here: every `of`-th, from `number` on."""

    number: int = 0
    of: int = 1

    def of_all(self, parts: Iterable[Result]) -> list[Result]:
        return list(parts)[self.number :: self.of]


class Elsewhere(Exception):
    """What comes next needs parts of another share, which have not come in."""


class Part(NamedTuple):
    result: Any
    calls: int  # what it took


@dataclass
class Parts:
    """What a work has finished, by name. Other shares' parts are added as they come in."""

    share: Share = Share()
    done: dict[str, Part] = field(default_factory=dict)

    @property
    def calls(self) -> int:
        return sum(part.calls for part in self.done.values())

    def once(self, name: str, calls: int, work: Callable[[], Result]) -> Result:
        if name not in self.done:
            self.done[name] = Part(work(), calls)
        return self.done[name].result

    def all_of(self, works: Mapping[str, tuple[int, Callable[[], Result]]]) -> list[Result]:
        """The results of works, named, with the calls they take, in this order. Raises Elsewhere."""
        for name in self.share.of_all(works):
            self.once(name, *works[name])
        if missing := set(works) - set(self.done):
            raise Elsewhere(", ".join(sorted(missing)))
        return [self.done[name].result for name in works]

    def add(self, other: Parts) -> None:
        """Parts made elsewhere, of the same work."""
        self.done = other.done | self.done


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
