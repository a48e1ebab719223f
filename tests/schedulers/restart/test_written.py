"""Restart lists in one line of text: what is read, what is refused, and what of it fits a schedule."""

from __future__ import annotations

import re
from itertools import pairwise

import numpy as np
import pytest
from fewstep.samplers.noise_law import FLOW, VARIANCE_EXPLODING
from fewstep.schedulers.restart.plan import Interval, restart_plan, rho_grid
from fewstep.schedulers.restart.presets import PRESETS
from fewstep.schedulers.restart.written import LISTS, Place, Written, read, written_plan
from hypothesis import given, settings
from hypothesis import strategies as st

KARRAS = [*rho_grid(14.6, 0.03, 20), 0.0]
# 20 steps of "normal" on Stable Diffusion, as the README of ComfyUI_restart_sampling prints them.
NORMAL = [14.61, 10.7, 8.08, 6.2, 4.86, 3.87, 3.12, 2.56, 2.12, 1.76, 1.48, 1.25, 1.05, 0.878, 0.73, 0.596, 0.474]
NORMAL += [0.356, 0.232, 0.0292, 0.0]
PROPERTY = settings(max_examples=300, deadline=None, derandomize=True, database=None)


def sigma_at(place: Place) -> float:
    """Of a model whose sigma falls from 14.6 with the share of the run, and whose timestep 1000 is the beginning."""
    shares = {"percent": 1 - place.value / 100, "timestep": place.value / 1000}
    return place.value if place.kind == "sigma" else 14.6 * shares[place.kind] ** 2


def four(item: Written | str) -> tuple:
    assert isinstance(item, Written)
    return (item.points, item.repeats, item.low, item.high)


def planned(text: str, sigmas=KARRAS, law=VARIANCE_EXPLODING):
    return written_plan(sigmas, law, read(text), sigma_at)


# ---------------------------------------------------------------------------------------------------------
# Reading


@pytest.mark.parametrize(
    "text, expected",
    [
        ("", []),
        ("  \n ", []),
        ("[3,2,0.06,0.30]", [(3, 2, Place(0.06), Place(0.3))]),
        ("[3, 2, .06, 3e-1],", [(3, 2, Place(0.06), Place(0.3))]),
        (' [ 10 , 1,-250.9, "25%" ] ', [(10, 1, Place(250.0, "timestep"), Place(25.0, "percent"))]),
        ("[2, 1, -0.1, '12.5 %']", [(2, 1, Place(0.0, "timestep"), Place(12.5, "percent"))]),
        ("[2, 1, 100%, 0%]", [(2, 1, Place(100.0, "percent"), Place(0.0, "percent"))]),
        ("[1000, 1000, -0, -1000]", [(1000, 1000, Place(0.0, "timestep"), Place(1000.0, "timestep"))]),
        ("[2,1,0,5]\n,\n[3,1,6,7]", [(2, 1, Place(0.0), Place(5.0)), (3, 1, Place(6.0), Place(7.0))]),
    ],
)
def test_entries_are_read(text, expected):
    assert [four(item) for item in read(text)] == expected


@pytest.mark.parametrize("text", ["default", '"default"', " 'default' ,"])
def test_a_preset_is_called_by_its_name(text):
    assert read(text) == ("default",)


def test_presets_and_entries_stand_side_by_side():
    first, second, third = read('[4,2,3,4], "default", a1111')
    assert (four(first), second, third) == ((4, 2, Place(3.0), Place(4.0)), "default", "a1111")


@pytest.mark.parametrize(
    "text, words",
    [
        ("[3, 2, 0.06]", ["has 3 parts", "four", "[points, repeats, from, up to]"]),
        ("[3, 2, 0.06, 0.3, 1]", ["has 5 parts"]),
        ("[]", ["has 1 part,"]),
        ("[3, 2, 0.06, 0.3", ["cannot be read from '[3, 2, 0.06, 0.3' on"]),
        ("[3, 2, 0.06, 0.3] [3, 1, 1, 2]", ["cannot be read from '[3, 2"]),
        ("default, , a1111", ["cannot be read from ' , a1111' on"]),
        ('"default', ["cannot be read"]),
        ("\"default'", ["cannot be read"]),
        ("[[3, 2, 0.06, 0.3]]", ["cannot be read"]),
        ("default()", ["cannot be read"]),
        ("karras", ["A preset in segments is 'karras'", "default, a1111"]),
        ("[1, 2, 0.06, 0.3]", ["points", "'1'", "from 2 to 1000"]),
        ("[1001, 2, 0.06, 0.3]", ["points", "'1001'", "from 2 to 1000"]),
        ("[3.5, 2, 0.06, 0.3]", ["points", "'3.5'", "whole number"]),
        ("[3, 0, 0.06, 0.3]", ["repeats", "'0'", "from 1 to 1000"]),
        ("[3, 1001, 0.06, 0.3]", ["repeats", "'1001'", "from 1 to 1000"]),
        ("[3, 2, x, 0.3]", ["'x' in [3, 2, x, 0.3]", "sigma", "timestep", "%"]),
        ("[3, 2, nan, 0.3]", ["'nan'", "no noise level"]),
        ("[3, 2, 0.06, -1001]", ["'-1001'", "-0 to -1000"]),
        ("[3, 2, 0.06, 101%]", ["'101%'", '"0%" to "100%"']),
        ("[3, 2, 0.06, -1%]", ["'-1%'"]),
        ("[3, 2, , 0.3]", ["''", "no noise level"]),
        (5, ["segments is a int", "must be a text"]),
    ],
)
def test_what_cannot_be_read_is_said(text, words):
    with pytest.raises(ValueError) as raised:
        read(text)
    assert all(word in str(raised.value) for word in words), raised.value


def written_place(place: Place) -> str:
    if place.kind == "percent":
        return f'"{place.value!r}%"'
    return f"-{place.value:.0f}" if place.kind == "timestep" else repr(place.value)


PLACES = st.one_of(
    st.floats(0, 1e4).map(Place),
    st.integers(0, 1000).map(lambda step: Place(float(step), "timestep")),
    st.floats(0, 100).map(lambda share: Place(share, "percent")),
)
ENTRIES = st.tuples(st.integers(2, 1000), st.integers(1, 1000), PLACES, PLACES)


@PROPERTY
@given(st.lists(st.one_of(ENTRIES, st.sampled_from(sorted(LISTS))), max_size=6), st.sampled_from([",", " , ", ",\n\t"]))
def test_whatever_is_written_is_read_as_it_was_meant(wanted, comma):
    parts = [
        item if isinstance(item, str) else f"[{item[0]},{item[1]}, {written_place(item[2])},{written_place(item[3])}]"
        for item in wanted
    ]
    assert [item if isinstance(item, str) else four(item) for item in read(comma.join(parts))] == wanted


@PROPERTY
@given(st.one_of(st.text(), st.text("[],\"'%-.0123456789eE defaultx\n", max_size=60)))
def test_whatever_is_typed_is_read_or_answered_in_words(text):
    try:
        items = read(text)
    except ValueError as error:
        assert len(str(error).split()) > 6
        return
    assert all(isinstance(item, Written) or item in LISTS for item in items)


# ---------------------------------------------------------------------------------------------------------
# Planning


def test_the_plan_is_that_of_the_same_intervals():
    intervals = [Interval(4, 2, 0.1, 1.0), Interval(3, 1, 2.0, 5.0)]
    assert planned("[4,2,0.1,1.0], [3,1,2,5]").sigmas == restart_plan(KARRAS, intervals, VARIANCE_EXPLODING).sigmas


def test_the_printed_example_of_the_other_pack_is_run_the_same():
    """Its README: after 0.356 one step pair from 0.59, after 0.0292 two from 0.30; 26 steps in all."""
    plan = planned("default", NORMAL)
    assert [(s.sigmas[0], s.sigmas[-1], s.steps) for s in plan.segments if s.interval] == [
        (0.59, 0.356, 2),
        (0.30, 0.0292, 2),
        (0.30, 0.0292, 2),
    ]
    assert (plan.main_steps, plan.steps) == (20, 26)


def test_default_is_its_two_entries():
    assert planned("default").sigmas == planned("[3,2,0.06,0.30],[3,1,0.30,0.59]").sigmas


def test_a_sigma_on_a_flow_model_is_the_models_and_a_preset_is_the_same_noise():
    flow = [FLOW.sigma(ratio) for ratio in KARRAS]
    assert max(s.sigmas[0] for s in planned("[3,1,0.3,0.59]", flow, FLOW).segments if s.interval) == pytest.approx(0.59)
    again = planned("default", flow, FLOW).sigmas
    np.testing.assert_allclose([FLOW.ratio(sigma) for sigma in again], planned("default").sigmas, rtol=1e-9)


def test_timesteps_and_shares_of_the_run_are_asked_of_the_model():
    plan = planned('[3, 1, -250, "25%"]')
    (restart,) = [s for s in plan.segments if s.interval]
    assert restart.sigmas[0] == pytest.approx(14.6 * 0.75**2)
    assert restart.sigmas[-1] == min(KARRAS, key=lambda sigma: abs(sigma - 14.6 * 0.25**2))


def test_no_text_is_the_schedule_itself():
    assert planned("").sigmas == KARRAS and planned("").remarks == ()


@pytest.mark.parametrize("sigmas", [[], [14.6]])
def test_a_schedule_of_no_step_stays(sigmas):
    assert planned("default", sigmas).sigmas == sigmas


@pytest.mark.parametrize(
    "text, sigmas, words",
    [
        ("[3,1,0.06,0.3]", [14.6, 5.0, 1.0], "0.06 to 0.3 .noise-to-signal. dropped: the nearest step ends above it"),
        ("[3,1,1,0.3e1]", [0.9, 0.5, 0.0], "1 to 3 .noise-to-signal. dropped: the schedule begins at 0.9"),
        ("[3,1,0.4,3]", [0.9, 0.5, 0.0], "0.4 to 3 .noise-to-signal. clipped"),
        ("a1111", KARRAS[-13:], "preset a1111 has no restart for 12 steps"),
    ],
    ids=["below the end", "above the start", "reaches above", "too few steps"],
)
def test_what_does_not_fit_is_left_out_with_a_remark(text, sigmas, words):
    plan = planned(text, sigmas)
    assert len(plan.remarks) == 1
    assert re.search(words, plan.remarks[0])
    restarts = [s for s in plan.segments if s.interval]
    assert len(restarts) == ("clipped" in words) and (restarts or plan.sigmas == sigmas)


@pytest.mark.parametrize(
    "text, law, words",
    [
        ("[3,1,0.5,0.3]", VARIANCE_EXPLODING, "given: 0.5 to 0.3"),
        ("[3,1,-250,90%]", VARIANCE_EXPLODING, "goes up from"),
        ("[3,1,0.5,1e999]", VARIANCE_EXPLODING, "given: 0.5 to inf"),
        ("[4,1,1.09,1.92]", FLOW, "restart .4,1,1.09,1.92. goes up to sigma 1.92, where a flow model has nothing left"),
        ("[4,1,0.5,1]", FLOW, "goes up to sigma 1,"),
    ],
)
def test_what_no_schedule_can_hold_is_said(text, law, words):
    with pytest.raises(ValueError, match=words):
        planned(text, [law.sigma(ratio) for ratio in KARRAS], law)


@PROPERTY
@given(
    st.lists(st.tuples(st.integers(2, 9), st.integers(1, 4), st.floats(0, 20), st.floats(0.01, 20)), max_size=5),
    st.lists(st.sampled_from(sorted(PRESETS)), max_size=1),
    st.integers(0, 19),
    st.integers(1, 20),
    st.booleans(),
)
def test_every_plan_keeps_the_main_steps_and_counts_what_is_added(entries, presets, first, last, is_flow):
    law = FLOW if is_flow else VARIANCE_EXPLODING
    rising = [e for e in entries if e[2] < e[3]]
    written = [f"[{n},{k},{law.sigma(low)!r},{law.sigma(high)!r}]" for n, k, low, high in rising]
    sigmas = [law.sigma(ratio) for ratio in KARRAS][first : last + 1]
    plan = planned(",".join([*written, *presets]), sigmas, law)
    main = [s for segment in plan.segments if not segment.interval for s in segment.sigmas]
    assert [s for i, s in enumerate(main) if i == 0 or s != main[i - 1]] == sigmas
    restarts = [segment for segment in plan.segments if segment.interval]
    assert all(segment.sigmas[0] <= sigmas[0] * (1 + 1e-9) for segment in restarts)
    assert all(high > low for segment in plan.segments for high, low in pairwise(segment.sigmas))
    assert plan.steps == max(len(sigmas) - 1, 0) + sum(segment.steps for segment in restarts)
    if not presets and len(sigmas) > 1:
        asked = len(rising) - sum("dropped" in remark for remark in plan.remarks)
        assert len({id(segment.interval) for segment in restarts}) == asked
