"""A node where the model changes."""

from __future__ import annotations

from itertools import pairwise

import pytest
from fewstep.samplers.noise_law import FLOW, VARIANCE_EXPLODING
from fewstep.schedulers.boundary import with_node_at
from hypothesis import given, settings
from hypothesis import strategies as st

SIMPLE = [1.0, 0.9545, 0.9, 0.8333, 0.75, 0.6429, 0.5, 0.3, 0.0]  # 8 steps of a flow model at shift 3


def test_the_nearest_node_is_on_it_and_the_others_go_with_it():
    moved = with_node_at(SIMPLE, 0.875, FLOW)
    assert moved[2] == 0.875 and [moved[0], moved[-1]] == [1.0, 0.0]
    alone = [0.875 if sigma == 0.9 else sigma for sigma in SIMPLE]
    assert moved[1] < SIMPLE[1] and moved[3] < SIMPLE[3]  # both neighbours go down with it
    assert evenness(moved) < evenness(alone)


def evenness(sigmas: list[float]) -> float:
    """By how much lengths of neighbouring steps in lambda differ: 0 where they are equal."""
    lams = [-FLOW.ratio(sigma) for sigma in sigmas[1:-1]]
    steps = [low / high for high, low in pairwise(lams)]
    return max(max(a / b, b / a) for a, b in pairwise(steps)) - 1


@pytest.mark.parametrize("boundary", [0.0, 1.0, 1.5, 0.9, 0.9 + 1e-8, 0.3])
def test_what_has_a_node_there_or_does_not_pass_is_left(boundary):
    assert with_node_at(SIMPLE, boundary, FLOW) == SIMPLE


@pytest.mark.parametrize("sigmas", [[], [1.0], [1.0, 0.0]])
def test_what_has_nothing_between_its_ends_is_left(sigmas):
    assert with_node_at(sigmas, 0.5, FLOW) == sigmas


def test_sigmas_that_do_not_fall_are_refused():
    with pytest.raises(ValueError, match="do not fall from step to step"):
        with_node_at([1.0, 0.5, 0.7, 0.0], 0.6, FLOW)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 1000), min_size=3, max_size=12, unique=True), st.floats(0.001, 0.999), st.booleans())
def test_it_always_falls_with_a_node_on_the_boundary_and_its_own_ends(numbers, share, is_flow):
    law = FLOW if is_flow else VARIANCE_EXPLODING
    sigmas = [law.sigma(number / (1001 - number)) for number in sorted(numbers, reverse=True)]
    boundary = sigmas[-1] + share * (sigmas[0] - sigmas[-1])
    moved = with_node_at(sigmas, boundary, law)
    assert len(moved) == len(sigmas) and [moved[0], moved[-1]] == [sigmas[0], sigmas[-1]]
    assert all(high > low for high, low in pairwise(moved))
    assert min(abs(sigma - boundary) for sigma in moved) <= 1e-6 * max(boundary, 1)
