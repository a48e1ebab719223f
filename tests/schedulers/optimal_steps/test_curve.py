"""Schedules for other steps, shifts and less noise; the published tables, and where the host's own node is wrong."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from fewstep.samplers.noise_law import FLOW, VARIANCE_EXPLODING
from fewstep.schedulers.optimal_steps.curve import Curve, unshifted
from fewstep.schedulers.optimal_steps.published import PUBLISHED
from support.goldens import Arrays

HOST = Arrays.load("optimal_steps/comfy_oss_node").arrays
NAMES = {"FLUX": "FLUX (published)", "Wan": "Wan (published)", "Chroma": "Chroma (hand-made)"}
STEPS = {"FLUX": 10, "Wan": 20, "Chroma": 40}
SD = Curve((14.6, 6.4, 3.8, 2.7, 1.9, 1.4, 0.96, 0.65, 0.4, 0.15, 0.0), VARIANCE_EXPLODING)


def curve(model: str) -> Curve:
    table = PUBLISHED[NAMES[model]]
    return Curve(table.sigmas, FLOW, table.shift)


@pytest.mark.parametrize("model", list(NAMES))
def test_the_published_tables_are_the_hosts(model):
    """Where its node is right: at the table's own number of steps and full denoise."""
    np.testing.assert_allclose(HOST[f"table.{model}"][:-1], PUBLISHED[NAMES[model]].sigmas[:-1], rtol=1e-6)
    ours = curve(model).resampled(STEPS[model])
    np.testing.assert_allclose(ours, HOST[f"{model}.s{STEPS[model]}.d1"], rtol=1e-6)


def test_which_grids_the_tables_come_from():
    shift = math.exp(1.15)
    nodes = np.array([198, 193, 189, 185, 180, 170, 155, 121, 56, 22]) / 200
    grid = shift * nodes / (1 + (shift - 1) * nodes)
    np.testing.assert_allclose(PUBLISHED[NAMES["FLUX"]].sigmas[:-1], grid, atol=5.1e-5)
    nodes = np.array([100, 99, 98, 97, 96, 95, 94, 93, 91, 89, 88, 86, 83, 78, 72, 65, 56, 41, 19, 5]) / 100
    assert PUBLISHED[NAMES["Wan"]].sigmas[:-1] == tuple(np.floor(1000 * 5 * nodes / (1 + 4 * nodes) + 1e-9) / 1000)
    eight = np.floor(1000 * 8 * nodes / (1 + 7 * nodes)) / 1000
    assert not np.allclose(PUBLISHED[NAMES["Wan"]].sigmas[:-1], eight, atol=2e-3)


def test_the_host_burns_a_step_on_its_guard_value():
    """At twice the steps the host's last call is at sigma .017, where nothing is left to do; ours is half-way."""
    assert HOST["FLUX.s20.d1"][-2] == pytest.approx(0.0168, abs=1e-4)
    assert 0.1 < curve("FLUX").resampled(20)[-2] < 0.2
    assert curve("FLUX").resampled(20)[::2] == pytest.approx(PUBLISHED[NAMES["FLUX"]].sigmas)


def test_a_part_of_the_curve_between_two_of_its_nodes_has_the_nodes_between():
    nodes = PUBLISHED[NAMES["FLUX"]].sigmas
    part = curve("FLUX").resampled(4, start=nodes[3], end=nodes[7])
    assert part == pytest.approx(nodes[3:8], rel=1e-12) and (part[0], part[-1]) == (nodes[3], nodes[7])


def test_ends_beyond_the_curve_replace_its_own():
    short = Curve((10.0, 4.0, 1.0, 0.2, 0.02), VARIANCE_EXPLODING)
    assert short.resampled(4, start=14.6, end=0.0) == pytest.approx((14.6, 4.0, 1.0, 0.2, 0.0), rel=1e-12)


def test_less_noise_is_by_noise_and_keeps_the_steps():
    """The host takes the last half of the indices, which begins at .947; and rounds few steps away to none."""
    assert HOST["FLUX.s10.d0.5"][0] == pytest.approx(0.9471, abs=1e-4) and len(HOST["FLUX.s10.d0.5"]) == 6
    assert len(HOST["FLUX.s5.d0.05"]) == 1
    ours = curve("FLUX").resampled(10, start=0.6)
    assert ours[0] == 0.6 and ours[-1] == 0 and len(ours) == 11
    assert len(curve("FLUX").resampled(5, start=0.05)) == 6


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 10, 13, 40])
@pytest.mark.parametrize(
    "given", [curve("FLUX"), curve("Wan"), curve("Chroma"), SD], ids=["FLUX", "Wan", "Chroma", "SD"]
)
@pytest.mark.parametrize("start", [None, 0.99, 0.3, 0.01])
def test_every_schedule_falls(given, steps, start):
    sigmas = given.resampled(steps, start=start)
    assert len(sigmas) == steps + 1 and sigmas[-1] == 0
    assert all(high > low for high, low in pairwise(sigmas))
    assert sigmas[0] == (start or pytest.approx(given.sigmas[0]))


@pytest.mark.parametrize("given", [curve("FLUX"), SD], ids=["FLUX", "SD"])
def test_its_own_number_of_steps_is_the_schedule_itself(given):
    assert given.resampled(10) == pytest.approx(given.sigmas, rel=1e-12)


def test_another_shift_moves_the_same_unshifted_times():
    before, after = curve("FLUX"), curve("FLUX").resampled(10, shift=3.0)
    for sigma, shifted in zip(before.sigmas, after, strict=True):
        assert unshifted(shifted, 3.0) == pytest.approx(unshifted(sigma, before.shift), abs=1e-12)


def test_a_small_end_is_kept():
    given = Curve((14.6, 3.0, 1.0, 0.02), VARIANCE_EXPLODING)
    assert given.resampled(6)[-1] == pytest.approx(0.02) and given.resampled(3) == pytest.approx(given.sigmas)
