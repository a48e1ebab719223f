"""How much is tried: 300 examples of Hypothesis, or 5,000 with FEWSTEP_LONG=1, which runs the long forms too."""

from __future__ import annotations

import os
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

LONG = bool(os.environ.get("FEWSTEP_LONG"))
many = settings(
    max_examples=5000 if LONG else 300,
    deadline=None,
    database=None,
    derandomize=not LONG,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
some = settings(many, max_examples=1000 if LONG else 60)  # where an example takes a tenth of a second
long_form = pytest.mark.skipif(not LONG, reason="a longer form: FEWSTEP_LONG=1")


def mostly(*short: Any, longer: tuple = ()) -> list:
    """Values of a parameter: what the suite tries, and what is tried besides with FEWSTEP_LONG=1."""
    return [*short, *(pytest.param(*(one if isinstance(one, tuple) else (one,)), marks=long_form) for one in longer)]
