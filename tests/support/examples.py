"""How many examples Hypothesis tries: 300, or 5,000 with FEWSTEP_LONG=1."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

many = settings(
    max_examples=5000 if os.environ.get("FEWSTEP_LONG") else 300,
    deadline=None,
    database=None,
    derandomize=not os.environ.get("FEWSTEP_LONG"),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
