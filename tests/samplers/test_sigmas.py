"""What may be a schedule, said in one place."""

from __future__ import annotations

import math

import pytest
import torch
from fewstep.samplers.noise_law import FLOW, VARIANCE_EXPLODING
from fewstep.samplers.sigmas import checked_sigmas, without_repeats

LAWS = pytest.mark.parametrize("law", [VARIANCE_EXPLODING, FLOW], ids=["ve", "flow"])


@LAWS
@pytest.mark.parametrize("sigmas", [[], [0.0], [0.5], [0.9, 0.3, 0.0], [0.0, 0.3, 0.9], [0.5, 0.5, 0.1, 0.4, 0.0]])
def test_any_row_of_levels_of_noise_is_one(sigmas, law):
    assert checked_sigmas(sigmas, law) == sigmas
    assert checked_sigmas(torch.tensor(sigmas), law) == pytest.approx(sigmas)


@LAWS
@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf, -1e-6, 1e30])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_what_is_no_level_of_noise_is_refused_with_its_place(wrong, place, law):
    sigmas = [0.9, 0.5, 0.0]
    sigmas[place] = wrong
    with pytest.raises(ValueError, match=f"Number {place + 1} of the 3 sigmas is .*[.]$"):
        checked_sigmas(torch.tensor(sigmas), law)


def test_a_schedule_of_another_kind_of_model_is_refused_on_a_flow_model():
    assert checked_sigmas([14.6, 0.0], VARIANCE_EXPLODING) == [14.6, 0.0]
    with pytest.raises(ValueError, match=r"14.6; on a flow model 1 is the highest. Connect a scheduler that knows"):
        checked_sigmas([14.6, 0.0], FLOW)


def test_rounding_is_no_error():
    assert checked_sigmas(torch.tensor([1.0000001, 0.5]), FLOW) == [1.0, 0.5]
    assert checked_sigmas([0.5, 1e-4, 1e-7], VARIANCE_EXPLODING) == [0.5, 1e-4, 0.0]


def test_whole_numbers_and_other_shapes():
    assert checked_sigmas(torch.tensor([14, 7, 0]), VARIANCE_EXPLODING) == [14.0, 7.0, 0.0]
    with pytest.raises(ValueError, match=r"shape \(1, 2\); a schedule is one row of numbers"):
        checked_sigmas(torch.ones(1, 2), FLOW)


def test_repeats_are_no_steps():
    assert without_repeats([1.0, 1.0, 0.5, 0.5, 1.0, 0.0, 0.0]) == [1.0, 0.5, 1.0, 0.0]
    assert without_repeats([14.6146, 1.0000001, 1.0, 0.9999999, 1e-4, 0.0]) == [14.6146, 1.0000001, 1e-4, 0.0]
