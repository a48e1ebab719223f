"""Whatever is asked for within the widgets' limits, on every kind of model: numbers, or a sentence.

40 examples; FEWSTEP_LONG=1 takes 5,000.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.examples import LONG

from .test_requests import NODES, TYPES, mixture, model, numbers_of, run

pytestmark = pytest.mark.usefixtures("host")


@cache
def model_of(kind: str, size: int):
    return model(kind, size)


def kinds() -> list[str]:
    from comfy.model_base import ModelType

    return [kind for kind in TYPES if hasattr(ModelType, kind)]


@cache
def statistics():
    return run("estimate", model_of("FLOW", 8), images=2, levels=8)


def latents(size: int) -> st.SearchStrategy:
    empty = st.integers(1, 3).map(lambda count: torch.zeros(count, 4, size, size))
    return st.one_of(empty, st.integers(1, 3).map(lambda count: mixture(size).sample(count, count).float()))


OWN: dict[str, dict[str, st.SearchStrategy]] = {
    "estimate": {
        "images": st.integers(2, 4),
        "levels": st.integers(6, 9),
        "pooling": st.sampled_from(["global", "channel", "spectral", "pixel"]),
        "derivative": st.sampled_from(["auto", "forward_mode", "differences"]),
    },
    "spread": {
        "images": st.integers(2, 4),
        "levels": st.integers(6, 9),
        "estimator": st.sampled_from(["residual", "derivative"]),
    },
    "search": {
        "steps": st.integers(1, 10),
        "solver": st.sampled_from(["euler", "dpmpp_2m", "dpm_solver_v3"]),
        "teacher_steps": st.sampled_from([20, 21, 30]),
        "start": st.sampled_from(["auto", "sigma_max"]),
        "polish": st.integers(0, 1),
        "denoise": st.one_of(st.just(1.0), st.floats(0.01, 1.0)),
    },
}


@st.composite
def questions(draw) -> tuple[str, str, int, dict[str, Any]]:
    node, kind = draw(st.sampled_from(NODES)), draw(st.sampled_from(kinds()))
    size = draw(st.sampled_from([1, 4, 8]))
    asked = {name: draw(values) for name, values in OWN[node].items()}
    asked |= {"latent": draw(latents(size)), "cfg": draw(st.sampled_from([0.0, 1.0, 3.0, 7.5, 100.0]))}
    asked["seed"] = draw(st.integers(0, 2**64 - 1))
    if asked.get("solver") == "dpm_solver_v3":
        asked["statistics"] = draw(st.sampled_from([None, statistics()]))
    return node, kind, size, asked


def test_any_request_gives_numbers_or_a_sentence():
    @settings(
        max_examples=5000 if LONG else 40,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(questions())
    def holds(question):
        node, kind, size, asked = question
        try:
            result = run(node, model_of(kind, size), **asked)
        except ValueError as error:
            assert len(str(error).split()) > 8 and str(error).endswith(".")
            return
        numbers = sum(result.sigmas.values(), ()) if node == "search" else numbers_of(result)
        assert numbers and all(map(math.isfinite, numbers))
        assert node != "search" or asked["steps"] in result.sigmas

    holds()
    model_of.cache_clear()
