"""What the facts of a calibration may be, by name: type, range, and which kind of file needs them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

DEEPEST, LONGEST = 6, 1000  # containers in containers; characters of a text


@dataclass(frozen=True)
class Rule:
    """holds: whether a value is allowed. words: what is allowed."""

    holds: Callable[[Any], bool]
    words: str

    def check(self, name: str, value: Any) -> None:
        """Raises ValueError for an input that is not allowed."""
        if not self.holds(value):
            raise ValueError(f"{name} is {value!r}; it must be {self.words}.")


def is_number(value: Any, least: float = -math.inf, most: float = math.inf) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and least <= value <= most


def number(least: float, most: float) -> Rule:
    return Rule(lambda value: is_number(value, least, most), f"a number from {least:g} to {most:g}")


def is_whole(value: Any, least: int, most: int) -> bool:
    return isinstance(value, int) and is_number(value, least, most)


def whole(least: int, most: int) -> Rule:
    return Rule(lambda value: is_whole(value, least, most), f"a whole number from {least} to {most}")


def either(rule: Rule, holds: Callable[[Any], bool], words: str) -> Rule:
    return Rule(lambda value: holds(value) or rule.holds(value), f"{rule.words} or {words}")


def is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= LONGEST


def is_budget(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 6 and int(text) > 0


def by_budget(entry: Callable[[Any], bool], words: str) -> Rule:
    """Of a dictionary from numbers of model calls to entries."""
    return Rule(
        lambda value: isinstance(value, dict) and all(is_budget(n) and entry(e) for n, e in value.items()),
        f"{words} by numbers of model calls",
    )


def is_checked(entry: Any) -> bool:
    needed = ("1", "2", "without")
    return isinstance(entry, dict) and all(is_number(entry.get(name), 0, 1e300) for name in needed)


def is_errors(entry: Any) -> bool:
    return isinstance(entry, list) and len(entry) >= 1 and all(is_number(e) or e != e for e in entry)


def is_errors_by_stream(entry: Any) -> bool:
    return isinstance(entry, dict) and all(is_text(name) and is_errors(e) for name, e in entry.items())


def is_checked_by_stream(entry: Any) -> bool:
    return isinstance(entry, dict) and all(is_text(name) and is_checked(e) for name, e in entry.items())


def is_streams(value: Any) -> bool:
    """The shapes of several streams."""
    if not isinstance(value, list) or len(value) < 2:
        return False
    return all(isinstance(one, list) and one and all(is_whole(n, 1, 10**9) for n in one) for one in value)


def is_compared(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and all(is_text(n) and is_errors(e) for n, e in value.items())


def is_compared_by_stream(value: Any) -> bool:
    return isinstance(value, dict) and all(is_text(n) and is_errors_by_stream(e) for n, e in value.items())


def is_check_of_tuning(value: Any) -> bool:
    """Errors by numbers of model calls, by names."""
    if not isinstance(value, dict) or "tuned" not in value:
        return False
    return all(is_text(name) and is_errors_by_budget(errors) for name, errors in value.items())


def is_errors_by_budget(value: Any) -> bool:
    return isinstance(value, dict) and all(is_budget(n) and is_squares(e) for n, e in value.items())


def is_squares(entry: Any) -> bool:
    return isinstance(entry, list) and len(entry) >= 1 and all(is_number(e, 0, 1e300) or is_lost(e) for e in entry)


def is_lost(error: Any) -> bool:
    """Of a run that led nowhere."""
    return isinstance(error, float) and (error != error or error == math.inf)


def is_plain(value: Any, depth: int = 0) -> bool:
    """Whether a JSON value is not nested deeper than anything of ours."""
    if isinstance(value, (dict, list)):
        parts = value.values() if isinstance(value, dict) else value
        return depth < DEEPEST and all(is_plain(part, depth + 1) for part in parts)
    return True


TEXT = Rule(is_text, f"a text of at most {LONGEST} characters")
COUNT = whole(1, 10**9)
PLAIN = Rule(is_plain, f"at most {DEEPEST} lists in lists")

# Wherever they stand.
FACTS: dict[str, Rule] = {
    "identity": COUNT,
    "channels": whole(1, 10**6),
    "shift": either(number(-1e6, 1e6), lambda value: value is None, "nothing"),
    "sigma_max": number(0, 1e9),
    "sigma_min": number(0, 1e9),
    "batch": COUNT,
    "teacher_steps": COUNT,
    "trajectories": COUNT,
    "prompts": COUNT,
    "polish": whole(0, 10**9),
    "denoise": number(1e-6, 1),
    "streams": Rule(is_streams, "the shapes of two streams or more"),
} | {
    name: TEXT
    for name in (
        *("model", "patches", "functions", "latent_format", "prediction", "sampling", "prompt", "guider"),
        *("references", "statistics", "start", "pooling"),
    )
}

# What each kind cannot be used without.
CFG = number(-1e6, 1e6)
NEEDED: dict[str, dict[str, Rule]] = {
    "statistics": {"images": COUNT, "batches": COUNT, "levels": COUNT, "cfg": CFG, "derivative": TEXT},
    "schedule": {
        "solver": TEXT,
        "steps": whole(1, 10**5),
        "cfg": CFG,
        "shift_factor": number(1e-3, 1e4),
        "is_flow": Rule(lambda value: isinstance(value, bool), "true or false"),
        "chosen": TEXT,
        "compared": Rule(is_compared, "errors by names of schedules"),
        "errors": by_budget(is_errors, "errors"),
    },
    "spread": {
        "images": COUNT,
        "levels": COUNT,
        "cfg": CFG,
        "estimator": TEXT,
        "check": either(number(0, 1e300), lambda value: value != value, "NaN"),
    },
    "tuning": {
        "effort": TEXT,
        "cfg": CFG,
        "shift_factor": number(1e-3, 1e4),
        "is_flow": Rule(lambda value: isinstance(value, bool), "true or false"),
        "parts": whole(1, 2),
        "calls": COUNT,
        "check": Rule(is_check_of_tuning, "errors by names and numbers of model calls"),
    },
}
# Where it stands in such a file.
CHECKED = {
    "statistics": {
        "check": by_budget(is_checked, "errors"),
        "check_by_stream": by_budget(is_checked_by_stream, "errors of streams"),
    },
    "schedule": {
        "errors_by_stream": by_budget(is_errors_by_stream, "errors of streams"),
        "compared_by_stream": Rule(is_compared_by_stream, "errors of streams by names of schedules"),
    },
    "spread": {"by_stream": Rule(is_errors_by_stream, "numbers by names of streams")},
}


def check_facts(kind: str, facts: dict[str, Any], where: str) -> None:
    """Raises ValueError, in words, for facts of a file `where` that are missing, of another type or out of range."""
    needed = NEEDED.get(kind, {})
    missing = [name for name in needed if name not in facts]
    if missing:
        raise ValueError(f"{where} lacks {', '.join(missing)}; measure again.")
    rules = FACTS | needed | CHECKED.get(kind, {})
    for name, value in facts.items():
        rule = rules.get(name, PLAIN)
        if not rule.holds(value):
            raise ValueError(f"{where} has {name[:40]} {shortened(value)}; it must be {rule.words}. Measure again.")


def guidance_in(facts: dict[str, Any]) -> str:
    """For a person: the cfg that something was measured with, or the guider with its numbers."""
    return str(facts.get("guider", "")).rpartition(" ")[0] or f"cfg {facts['cfg']:g}"


def shortened(value: Any) -> str:
    if isinstance(value, (dict, list)):
        return "of another form"
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**30 else "of more than 30 digits"
    return text if len(text) <= 40 else f"{text[:37]}..."
