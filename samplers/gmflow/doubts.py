"""Whether all was numbers is asked once, at the end of a run: no step waits for the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

Answer = TypeVar("Answer")


class Doubts:
    """Flags on the device, each with the sentence to say if it turns out to be down."""

    def __init__(self) -> None:
        self.flags: list[Tensor] = []
        self.sentences: list[Callable[[], str]] = []

    def note(self, fine: Tensor, sentence: Callable[[], str]) -> None:
        self.flags.append(fine)
        self.sentences.append(sentence)

    def settle(self) -> None:
        """Raises ValueError with the sentence of the first flag that is down; one wait for the device."""
        flags, self.flags = self.flags, []
        sentences, self.sentences = self.sentences, []
        found = torch.stack(flags).tolist() if flags else []
        if not all(found):
            raise ValueError(sentences[found.index(False)]())


def settled(doubt: Callable[[Answer, Doubts], None], answer: Answer) -> Answer:
    """The answer itself, looked at now. Raises ValueError where its numbers cannot be used."""
    doubts = Doubts()
    doubt(answer, doubts)
    doubts.settle()
    return answer
