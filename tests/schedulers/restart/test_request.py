"""What a person asks of Restart: units, presets and budgets, and the sentence where it cannot be had."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from fewstep.samplers.noise_law import FLOW, VARIANCE_EXPLODING, NoiseLaw
from fewstep.schedulers.restart.plan import Interval, RestartPlan, rho_grid
from fewstep.schedulers.restart.presets import PRESETS
from fewstep.schedulers.restart.request import BUDGETS, SHORT_ADVICE, requested_plan

LAWS = pytest.mark.parametrize("law", [VARIANCE_EXPLODING, FLOW], ids=["ve", "flow"])


def karras(steps: int, law: NoiseLaw = VARIANCE_EXPLODING, top: float = 14.6, bottom: float = 0.03) -> list[float]:
    return [*(law.sigma(ratio) for ratio in rho_grid(top, bottom, steps)), 0.0]


def restarts(plan: RestartPlan) -> list[tuple[float, ...]]:
    return [segment.sigmas for segment in plan.segments if segment.interval]


def heun_calls(plan: RestartPlan) -> int:
    """Model calls of Heun: two a step, one for a step that ends at 0."""
    return sum(1 if b == 0 else 2 for s in plan.segments for b in s.sigmas[1:])


# ---------------------------------------------------------------------------------------------------------
# The three units


@LAWS
@pytest.mark.parametrize("case", range(30))
def test_the_three_units_agree(case, law):
    draw = random.Random(case)
    sigmas = karras(draw.randint(6, 40), law)
    after = draw.randint(2, len(sigmas) - 2)
    back = draw.randint(1, after - 1)
    low, high = sigmas[after], sigmas[after - back]
    steps, repeats = draw.randint(2, 9), draw.randint(1, 3)
    asked = [
        Interval(steps, repeats, after, back, "step"),
        Interval(steps, repeats, low, high, "sigma"),
        Interval(steps, repeats, law.ratio(low), law.ratio(high), "noise_to_signal"),
    ]
    by_step, by_sigma, by_ratio = (requested_plan(sigmas, law, "a1111", "add_steps", [i]).sigmas for i in asked)
    assert by_step == by_sigma
    np.testing.assert_allclose(by_ratio, by_step, rtol=1e-12)
    assert (by_step[after], by_step[after + 1]) == pytest.approx((low, high))
    assert by_step[: after + 1] == sigmas[: after + 1]


def test_after_step_twelve_go_back_three_twice():
    sigmas = karras(20)
    plan = requested_plan(sigmas, VARIANCE_EXPLODING, "a1111", "add_steps", [Interval(4, 2, 12, 3, "step")])
    assert plan.sigmas[:13] == sigmas[:13]
    assert plan.sigmas[13] == plan.sigmas[17] == sigmas[9]
    np.testing.assert_allclose(plan.sigmas[13:17], sigmas[9:13], rtol=1e-10)  # Karras is the sub-grid's own rule
    assert plan.sigmas[20:] == sigmas[12:]
    assert plan.steps == 20 + 2 * 3


@LAWS
def test_touching_intervals_may_be_asked_for(law):
    own = [Interval(3, 1, 0.1, 0.5), Interval(3, 1, 0.5, 2.0), Interval(3, 1, 2.0, 9.0)]
    plan = requested_plan(karras(40, law), law, "a1111", "add_steps", own)
    assert [law.ratio(sigmas[0]) for sigmas in restarts(plan)] == pytest.approx([9.0, 2.0, 0.5])


def test_own_intervals_take_the_place_of_the_preset():
    plan = requested_plan(karras(30), VARIANCE_EXPLODING, "imagenet64_99", "add_steps", [Interval(3, 1, 0.1, 0.5)])
    assert len(restarts(plan)) == 1


# ---------------------------------------------------------------------------------------------------------
# Budgets


@LAWS
@pytest.mark.parametrize("name", list(PRESETS))
@pytest.mark.parametrize("steps", [20, 36, 60, 400])
def test_keep_steps_keeps_and_add_steps_adds(name, steps, law):
    sigmas, published = karras(steps, law, top=80.0), PRESETS[name](steps)
    spent = sum(interval.solver_steps for interval in published)
    added = requested_plan(sigmas, law, name, "add_steps")
    assert (added.steps, added.main_steps) == (steps + spent, steps)
    if steps - spent >= 2:
        kept = requested_plan(sigmas, law, name, "keep_steps")
        assert (kept.steps, kept.main_steps) == (steps, steps - spent)
        assert (kept.sigmas[0], kept.sigmas[-1]) == (sigmas[0], 0.0)
    else:
        with pytest.raises(ValueError, match=f"take {spent} steps.*{spent + 2} steps or more"):
            requested_plan(sigmas, law, name, "keep_steps")


# ---------------------------------------------------------------------------------------------------------
# Presets


MAIN_STEPS = {  # arXiv 2306.14878 tables 3 and 5: model calls with Heun are in the name
    "cifar10_vp_43": 18,
    "cifar10_vp_55": 18,
    "cifar10_vp_75": 18,
    "cifar10_vp_115": 18,
    "cifar10_vp_519": 20,
    "cifar10_edm_43": 18,
    "imagenet64_39": 14,
    "imagenet64_67": 18,
    "imagenet64_99": 18,
    "imagenet64_165": 18,
    "imagenet64_203": 36,
    "imagenet64_385": 36,
    "imagenet64_535": 36,
    "imagenet64_623": 36,
}


@pytest.mark.parametrize("name, steps", MAIN_STEPS.items())
def test_a_published_list_takes_the_model_calls_of_its_name(name, steps):
    plan = requested_plan(karras(steps, top=80.0, bottom=0.002), VARIANCE_EXPLODING, name, "add_steps")
    assert heun_calls(plan) == int(name.rsplit("_", 1)[1])
    assert not plan.remarks


def test_every_preset_with_calls_in_its_name_is_checked():
    assert {name for name in PRESETS if name.split("_")[-1].isdigit() and "cfg" not in name} == set(MAIN_STEPS)


@pytest.mark.parametrize("steps", range(20, 80))
def test_a1111s_rule(steps):
    """Below 36: 9 restart steps once; from 36: a quarter of the steps, twice. The total stays (voices 32)."""
    plan = requested_plan(karras(steps), VARIANCE_EXPLODING, "a1111", "keep_steps")
    quarter = steps // 4
    assert plan.steps == steps
    assert [len(s) - 1 for s in restarts(plan)] == ([quarter] * 2 if steps >= 36 else [9])
    assert {s[0] for s in restarts(plan)} == {2.0}
    assert all(0.03 <= s[-1] < 0.3 for s in restarts(plan))


def test_the_nodes_of_the_published_lists():
    """Where t_min goes on the authors' main grids: methods/dpm_solver_v3_restart.md 2.2."""
    found = {}
    for steps in (18, 36):
        plan = requested_plan(karras(steps, top=80.0, bottom=0.002), VARIANCE_EXPLODING, "imagenet64_99", "add_steps")
        found[steps] = list(dict.fromkeys(sigmas[-1] for sigmas in restarts(plan)))
    assert found[18] == pytest.approx([19.3525, 1.0882, 0.5853, 0.2964, 0.0599], abs=5e-5)
    assert found[36] == pytest.approx([20.2393, 0.9654, 0.5233, 0.2675, 0.0555], abs=5e-5)


def test_an_interval_of_a_preset_that_lies_above_the_schedule_is_dropped_with_a_remark():
    plan = requested_plan(karras(18), VARIANCE_EXPLODING, "imagenet64_39", "add_steps")
    assert len(restarts(plan)) == 2
    (remark,) = plan.remarks
    assert "19.35 to 40.79" in remark and "dropped" in remark and "14.6" in remark
    assert remark in str(plan)


def test_an_interval_of_a_preset_that_reaches_above_the_schedule_is_clipped_with_a_remark():
    plan = requested_plan(karras(18, top=7.0), VARIANCE_EXPLODING, "sd_cfg_2", "add_steps")
    assert {sigmas[0] for sigmas in restarts(plan)} == {7.0}
    assert all("clipped" in remark and "7" in remark for remark in plan.remarks)
    assert ["1 to 9" in plan.remarks[0], "5 to 10" in plan.remarks[1]] == [True, True]


def test_a_preset_fits_a_flow_model_that_begins_at_pure_noise():
    plan = requested_plan([1.0, *karras(18, FLOW)[1:]], FLOW, "imagenet64_39", "add_steps")
    assert not plan.remarks
    assert [FLOW.ratio(sigmas[0]) for sigmas in restarts(plan)] == pytest.approx([40.79, 1.92, 0.30])


# ---------------------------------------------------------------------------------------------------------
# What cannot be had says so


def refused(words, sigmas, law=VARIANCE_EXPLODING, preset="a1111", budget="add_steps", own=None):
    with pytest.raises(ValueError) as raised:
        requested_plan(sigmas, law, preset, budget, own)
    text = str(raised.value)
    assert all(word in text for word in words), text
    assert text[0].isupper() and text.rstrip().endswith(".") or text.startswith(("preset", "budget"))


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("own", [None, [Interval(3, 1, 0.1, 0.5)]], ids=["preset", "own"])
def test_a_schedule_that_rises(own, budget):
    refused(["rise", "Flip Sigmas"], [1.0, 2.0, 0.0], preset="sd_cfg_5_to_8", budget=budget, own=own)


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("sigmas", [[], [0.5], [0.0]])
@pytest.mark.parametrize("own", [None, [Interval(3, 1, 0.1, 0.5)]], ids=["preset", "own"])
def test_a_schedule_without_a_step_is_passed_on(sigmas, own, budget):
    """Split Sigmas at the end, or a denoise of 0: every sampler of the host hands the latent on."""
    plan = requested_plan(sigmas, VARIANCE_EXPLODING, "sd_cfg_5_to_8", budget, own)
    assert (plan.sigmas, plan.steps, plan.main_steps) == (sigmas, 0, 0)
    assert "no step" in str(plan) and "passed on" in str(plan)


@LAWS
@pytest.mark.parametrize("own", [None, [Interval(3, 1, 0.1, 0.5)]], ids=["preset", "own"])
@pytest.mark.parametrize(
    "sigmas, words",
    [
        ([math.nan, 0.5, 0.0], ["Number 1 of the 3 sigmas is nan", "from 0 to 1"]),
        ([0.9, math.nan, 0.0], ["Number 2", "nan"]),
        ([math.inf, 0.5, 0.0], ["Number 1", "inf"]),
        ([0.9, 0.5, math.inf], ["Number 3", "inf"]),
        ([0.9, 0.5, -0.1], ["Number 3", "-0.1", "0 to 1"]),
        ([0.9, -math.inf], ["Number 2", "-inf"]),
        ([1e30, 0.5, 0.0], ["Number 1", "1e+30"]),
    ],
)
def test_sigmas_that_are_no_schedule_are_refused_in_words(sigmas, words, own, law):
    refused(words, sigmas, law, preset="sd_cfg_5_to_8", own=own)


def test_sigmas_above_one_on_a_flow_model():
    refused(["14.6", "on a flow model 1 is the highest"], karras(20), FLOW)


def test_an_unknown_preset_or_budget_names_the_choices():
    refused(["'A1111'", "a1111, sd_cfg_2", "imagenet64_623"], karras(20), preset="A1111")
    refused(["'free'", "keep_steps, add_steps"], karras(20), budget="free")


def test_an_interval_above_the_first_sigma_says_both():
    refused(["5 to 20", "20", "14.6", "Lower sigma_max"], karras(20), own=[Interval(3, 1, 5, 20)])
    refused(["0.4 to 0.8", "4", "2", "denoise"], [2 / 3, 0.4, 0.0], FLOW, own=[Interval(3, 1, 0.4, 0.8, "sigma")])


@pytest.mark.parametrize("interval", [Interval(3, 1, 0.5, 1.0, "sigma"), Interval(3, 1, 4, 4, "step")])
def test_a_flow_model_cannot_go_back_to_pure_noise(interval):
    refused(["sigma 1", "flow", "Stay below 1", "fewer steps"], [1.0, *karras(20, FLOW)[1:]], FLOW, own=[interval])


def test_a_step_beyond_the_schedule():
    refused(["after step 21 back 3", "20 steps"], karras(20), own=[Interval(3, 1, 21, 3, "step")])


@pytest.mark.parametrize(
    "own",
    [
        [Interval(3, 1, 0.1, 1.0), Interval(3, 1, 0.5, 2.0)],
        [Interval(3, 1, 0.5, 2.0), Interval(3, 1, 0.1, 1.0)],
        [Interval(3, 1, 0.1, 3.0), Interval(3, 1, 0.5, 2.0)],
        [Interval(3, 1, 0.1, 1.0), Interval(3, 1, 0.1, 1.0)],
        [Interval(3, 1, 0.1, 1.0), Interval(3, 1, 0.5, 2.0, "sigma")],
    ],
)
def test_intervals_that_overlap_are_both_named(own):
    refused(["overlap", "0.1 to ", "raise repeats"], karras(30), own=own)


def test_steps_that_overlap():
    own = [Interval(3, 1, 12, 3, "step"), Interval(3, 1, 14, 4, "step")]
    refused(["overlap"], karras(20), own=own)
    own = [Interval(3, 1, 12, 3, "step"), Interval(3, 1, 15, 3, "step")]
    assert len(restarts(requested_plan(karras(20), VARIANCE_EXPLODING, "a1111", "add_steps", own))) == 2


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("steps", [1, 8, 19])
def test_below_twenty_steps_a1111s_rule_passes_the_schedule_on_and_says_so(steps, budget):
    """It is the default: half of all workflows have fewer steps."""
    sigmas = karras(steps) if steps > 1 else [14.6, 0.0]
    plan = requested_plan(sigmas, VARIANCE_EXPLODING, "a1111", budget)
    assert (plan.sigmas, plan.steps) == (sigmas, steps)
    assert all(words in str(plan) for words in (f"{steps} step", "0 in 0 restarts", "begins at 20", SHORT_ADVICE))


@pytest.mark.parametrize("budget", BUDGETS)
def test_a_preset_of_which_nothing_is_left_passes_the_schedule_on_and_says_so(budget):
    plan = requested_plan([0.05, 0.03, 0.0], VARIANCE_EXPLODING, "cifar10_vp_43", budget)
    assert plan.sigmas == [0.05, 0.03, 0.0]
    assert all(words in str(plan) for words in ("cifar10_vp_43", "0.05", "unchanged", "Raise denoise"))


def test_the_order_of_own_intervals_does_not_matter():
    own = [Interval(3, 2, 0.1, 0.5), Interval(4, 1, 1.0, 2.0), Interval(2, 3, 4.0, 9.0)]
    plans = [requested_plan(karras(40), VARIANCE_EXPLODING, "a1111", "keep_steps", list(o)) for o in (own, own[::-1])]
    assert plans[0] == plans[1]
