"""One sentence for a word that is not among the choices."""

from __future__ import annotations

from collections.abc import Collection


def check_choice(name: str, value: str, allowed: Collection[str]) -> None:
    """Raises ValueError, naming what is allowed."""
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; choose one of {', '.join(allowed)}.")
