"""Steps of equal length on a clock of noise."""

from __future__ import annotations

import math

import pytest
import torch
from fewstep.samplers.clock import LogisticClock, PowerClock
from fewstep.samplers.noise_law import FLOW, VARIANCE_EXPLODING, NoiseLaw
from fewstep.schedulers.placed import placed, share
from hypothesis import given
from hypothesis import strategies as st

CLOCKS = [LogisticClock(1.0), LogisticClock(2.0, 1.5), LogisticClock(0.3, 2.5)]
ratios = st.floats(1e-3, 100.0)


@pytest.mark.parametrize("clock", CLOCKS, ids=str)
def test_the_clock_and_its_inverse(clock):
    u = torch.linspace(0, 1, 21, dtype=torch.float64)
    assert (clock(clock.ratio(u)) - u).abs().max() < 1e-12
    assert clock(torch.tensor([0.0, clock.centre, math.inf]).double()).tolist() == pytest.approx([0, 0.5, 1])


@given(ratios, ratios, st.integers(1, 50), st.sampled_from(CLOCKS), st.sampled_from([FLOW, VARIANCE_EXPLODING]))
def test_it_falls_between_its_ends_which_stay_to_the_bit(one, other, steps, clock, law):
    first, last = law.sigma(max(one, other) * 1.1), law.sigma(min(one, other))
    sigmas = placed(clock, law, first, last, steps)
    assert len(sigmas) == steps + 1 and (sigmas[0], sigmas[-1]) == (first, last)
    assert all(high > low for high, low in zip(sigmas, sigmas[1:], strict=False))


@pytest.mark.parametrize("clock", CLOCKS, ids=str)
def test_a_part_of_a_schedule_is_the_schedule_of_the_part(clock):
    whole = placed(clock, FLOW, 1.0, 0.0, 12)
    assert placed(clock, FLOW, whole[0], whole[5], 5) == pytest.approx(whole[:6], rel=1e-12)
    assert placed(clock, FLOW, whole[5], whole[-1], 7) == pytest.approx(whole[5:], rel=1e-12)
    parts = share(clock, FLOW, 1.0, whole[5]), share(clock, FLOW, whole[5], 0.0)
    assert parts == pytest.approx((5 / 12, 7 / 12))


def test_the_same_noise_on_every_kind_of_model():
    clock, scaled = CLOCKS[1], NoiseLaw(is_flow=True, scale=8.0)
    exploding = placed(clock, VARIANCE_EXPLODING, 10.0, 0.0, 8)
    for law in (FLOW, scaled):
        sigmas = placed(clock, law, law.sigma(10.0), 0.0, 8)
        assert [law.ratio(sigma) for sigma in sigmas] == pytest.approx(exploding)


def test_at_width_one_it_is_the_host_s_shifted_flow_schedule():
    shift, u = 3.0, torch.linspace(1, 0, 9, dtype=torch.float64)
    host = shift * u / (1 + (shift - 1) * u)
    assert placed(LogisticClock(shift), FLOW, 1.0, 0.0, 8) == pytest.approx(host.tolist())


@pytest.mark.parametrize("first, last, steps", [(0.5, 0.5, 4), (0.2, 0.5, 4), (0.5, -0.1, 4), (0.5, 0.0, 0)])
def test_what_is_no_schedule_is_refused(first, last, steps):
    with pytest.raises(ValueError, match="no schedule"):
        placed(CLOCKS[0], FLOW, first, last, steps)


@pytest.mark.parametrize("centre, width", [(0.0, 1.0), (-1.0, 1.0), (1.0, 0.0), (math.inf, 1.0), (1.0, math.nan)])
def test_a_clock_that_does_not_go_is_refused(centre, width):
    with pytest.raises(ValueError, match="above 0"):
        LogisticClock(centre, width)


def test_the_power_clock_its_inverse_and_its_steps():
    clock, ratios = PowerClock(0.5), torch.tensor([0.0, 0.25, 4.0, 9.0], dtype=torch.float64)
    assert clock(ratios).tolist() == [0.0, 0.5, 2.0, 3.0] and torch.equal(clock.ratio(clock(ratios)), ratios)
    assert placed(clock, VARIANCE_EXPLODING, 9.0, 0.0, 3) == pytest.approx((9.0, 4.0, 1.0, 0.0))


@pytest.mark.parametrize("power", [0.0, -1.0, math.inf, math.nan])
def test_a_power_that_is_none_is_refused(power):
    with pytest.raises(ValueError, match="above 0"):
        PowerClock(power)
