"""What to do on a model of which nothing was measured: where the steps go, and the solver's order."""

from __future__ import annotations

from dataclasses import dataclass

from ..samplers.clock import LogisticClock


@dataclass(frozen=True)
class Recipe:
    """clock: on which the steps are even, and in which the answers are a polynomial of so many points."""

    clock: LogisticClock
    order: int
    corrector: bool


def recipe(is_flow: bool, cfg: float, calls: float, shift: float) -> Recipe:
    return Recipe(LogisticClock(1.6, 1.0 if calls < 6 else 1.25), 2, calls > 6)
