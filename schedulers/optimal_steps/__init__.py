"""Optimal Stepsize, arXiv 2503.21774: schedules searched on a model, for a solver and a number of steps."""

from __future__ import annotations

from .objective import Objective
from .polish import Replay, most_calls, polish
from .search import Found, Task, in_turn, search
from .students import V3, Euler, Multistep2M, State, Student
from .teacher import Teacher, follow

__all__ = [
    "V3",
    "Euler",
    "Found",
    "Multistep2M",
    "Objective",
    "Replay",
    "State",
    "Student",
    "Task",
    "Teacher",
    "follow",
    "in_turn",
    "most_calls",
    "polish",
    "search",
]
