"""Pictures that were drawn, by what they were drawn of: what is asked for again is not drawn again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

MOST_BYTES = 2**30


@dataclass(frozen=True, eq=False)
class Picture:
    """end: a latent (...), on the CPU. For a converged one difference is what it moved when the steps were doubled."""

    end: Tensor
    calls: int = 0
    seconds: float = 0.0
    difference: float = 0.0

    @property
    def bytes(self) -> int:
        return self.end.numel() * self.end.element_size()


class Shelf:
    """The latest pictures, in memory; the oldest go where all would need more than `most` bytes."""

    def __init__(self, most: int = MOST_BYTES):
        self.most = most
        self.pictures: OrderedDict[str, Picture] = OrderedDict()
        self.draws_noise: dict[str, bool] = {}  # by the key of a first picture

    def __contains__(self, key: str) -> bool:
        return key in self.pictures

    def get(self, key: str) -> Picture | None:
        if key in self.pictures:
            self.pictures.move_to_end(key)
        return self.pictures.get(key)

    def put(self, key: str, picture: Picture) -> Picture:
        self.pictures[key] = picture
        while len(self.pictures) > 1 and sum(one.bytes for one in self.pictures.values()) > self.most:
            self.pictures.popitem(last=False)
        return picture

    def once(self, key: str, draw: Callable[[], Picture]) -> Picture:
        return self.get(key) or self.put(key, draw())
