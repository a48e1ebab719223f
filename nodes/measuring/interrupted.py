"""Long work in parts: what is finished survives a cancel, and several hosts may share the making."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from . import crew

Result = TypeVar("Result")
Works = Mapping[str, tuple[int, Callable[[], Result]]]  # by name: the calls it takes, and how it is made


class Part(NamedTuple):
    result: Any
    calls: int  # what it took


@dataclass
class Parts:
    """What a work has finished, by name. key: of what was asked for, under which several hosts share the work.

    expected: model calls of the whole work, as far as it is known.
    """

    key: str = ""
    done: dict[str, Part] = field(default_factory=dict)
    expected: int = 0

    @property
    def calls(self) -> int:
        return sum(part.calls for part in self.done.values())

    def left(self, works: Works) -> int:
        """Model calls of those that are not finished."""
        return sum(calls for name, (calls, _) in works.items() if name not in self.done)

    def once(self, name: str, calls: int, work: Callable[[], Result]) -> Result:
        """What every host makes for itself, though perhaps of parts that are shared."""
        if name not in self.done:
            self.done[name] = Part(work(), calls)
        return self.done[name].result

    def joined(self, name: str, works: Works[Result], join: Callable[[list[Result]], Result]) -> Result:
        """What works make together; where it is finished it stands for them."""
        result = self.once(name, self.left(works), lambda: join(self.all_of(works)))
        for part in works:
            self.done.pop(part, None)
        return result

    def all_of(self, works: Works[Result]) -> list[Result]:
        """The results of works that do not need each other, in this order. Each is made once, here or in another host.

        In every host the same works are asked for in the same order: what comes next may depend on results, and on
        nothing else.
        """
        missing = {name: work for name, work in works.items() if name not in self.done}
        for name, result in self.made(missing):
            self.done[name] = Part(result, works[name][0])
        return [self.done[name].result for name in works]

    def shared(self, works: Works[Result]) -> list[Result]:
        """The same, of what is soon used up: it is not kept."""
        return [result for _, result in self.made(works)]

    def made(self, works: Works[Result]) -> Iterator[tuple[str, Result]]:
        return crew.made(self.key, self.expected, works) if works else iter(())


class Interrupted:
    """The last few works that did not come to their end, held in memory by what was asked for.

    kind: in a word, what they are.
    """

    def __init__(self, kind: str, most: int):
        self.kind, self.most = kind, most
        self.works: OrderedDict[str, Parts] = OrderedDict()

    @contextmanager
    def resumed(self, key: str) -> Iterator[Parts]:
        """The work of a key, new or as far as it came; it is forgotten when the block ends well."""
        work = self.works.setdefault(key, Parts(f"{self.kind}-{key}"))
        while len(self.works) > self.most:
            self.works.popitem(last=False)
        yield work
        del self.works[key]
