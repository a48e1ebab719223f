"""The plan of Restart: what is run, in which order and how many steps, before any model is there."""

from __future__ import annotations

import random
from itertools import pairwise

import numpy as np
import pytest
import torch
from fewstep.samplers.noise_law import FLOW, VARIANCE_EXPLODING, NoiseLaw
from fewstep.samplers.restart import solver_steps
from fewstep.schedulers.restart.plan import (
    Interval,
    RestartPlan,
    fewer_steps,
    resolve,
    restart_plan,
    rho_grid,
    within_budget,
)

LAWS = pytest.mark.parametrize("law", [VARIANCE_EXPLODING, FLOW], ids=["ve", "flow"])
CASES = pytest.mark.parametrize("case", range(50))


def karras(steps: int, top: float = 14.6, bottom: float = 0.03) -> list[float]:
    return [*rho_grid(top, bottom, steps), 0.0]


def random_request(case: int) -> tuple[list[float], list[Interval]]:
    """Main ratios that fall to 0, and disjoint intervals below the first, each around a main node."""
    draw = random.Random(case)
    ratios = sorted((draw.uniform(0.01, 20.0) for _ in range(draw.randint(6, 30))), reverse=True)
    nodes = sorted(draw.sample(range(1, len(ratios)), draw.randint(1, 3)))
    intervals = [
        Interval(draw.randint(2, 9), draw.randint(1, 4), ratios[node], ratios[node - 1] * draw.uniform(0.99, 1.0))
        for node in nodes
        if ratios[node] < 0.98 * ratios[node - 1]
    ]
    return [*ratios, 0.0], intervals


def host_scale(ratios: list[float], law: NoiseLaw) -> list[float]:
    return [law.sigma(ratio) for ratio in ratios]


def restarts(plan: RestartPlan) -> list[tuple[float, ...]]:
    return [segment.sigmas for segment in plan.segments if segment.interval]


# ---------------------------------------------------------------------------------------------------------
# What holds for every plan


@LAWS
@CASES
def test_main_steps_are_untouched_and_every_restart_is_there(case, law):
    ratios, intervals = random_request(case)
    main = host_scale(ratios, law)
    plan = restart_plan(main, intervals, law)
    kept = [plan.segments[0].sigmas[0], *(s for seg in plan.segments if not seg.interval for s in seg.sigmas[1:])]
    assert kept == main
    assert plan.main_steps == len(main) - 1
    assert plan.steps == plan.main_steps + sum(i.repeats * (i.steps - 1) for i in intervals)
    assert len(restarts(plan)) == sum(i.repeats for i in intervals)


@LAWS
@CASES
def test_the_expanded_sigmas_say_the_same_as_the_segments(case, law):
    """One value for every step, one for the start, and one more for every jump."""
    ratios, intervals = random_request(case)
    plan = restart_plan(host_scale(ratios, law), intervals, law)
    jumps = [(a, b) for a, b in pairwise(plan.sigmas) if b > a]
    assert [b for _, b in jumps] == [sigmas[0] for sigmas in restarts(plan)]
    assert [a for a, _ in jumps] == [sigmas[-1] for sigmas in restarts(plan)]
    assert len(plan.sigmas) == plan.steps + 1 + len(jumps)
    assert solver_steps(torch.tensor(plan.sigmas, dtype=torch.float64)) == plan.steps


@CASES
def test_flow_and_variance_exploding_plans_are_the_same_in_noise_to_signal(case):
    ratios, intervals = random_request(case)
    ve, flow = (restart_plan(host_scale(ratios, law), intervals, law) for law in (VARIANCE_EXPLODING, FLOW))
    np.testing.assert_allclose([FLOW.ratio(sigma) for sigma in flow.sigmas], ve.sigmas, rtol=1e-12)
    assert [s.interval for s in flow.segments] == [s.interval for s in ve.segments]


@LAWS
def test_a_restart_begins_at_the_nearest_main_node_and_ends_there_too(law):
    plan = restart_plan(host_scale([10.0, 4.0, 1.0, 0.3, 0.0], law), [Interval(4, 2, 0.6, 2.0)], law)
    grid = [2.0 ** (1 / 7) + i / 3 * (0.3 ** (1 / 7) - 2.0 ** (1 / 7)) for i in range(4)]
    down = host_scale([value**7 for value in grid], law)
    np.testing.assert_allclose(plan.sigmas, [*host_scale([10, 4, 1, 0.3], law), *down, *down, 0.0], rtol=1e-12)
    assert plan.sigmas[3] == plan.sigmas[7] == plan.sigmas[11]  # to the last bit, or a solver would make a tiny step


def test_a_flow_schedule_may_begin_at_pure_noise():
    plan = restart_plan([1.0, 0.8, 0.5, 0.2, 0.0], [Interval(3, 1, 1.0, 3.0)], FLOW)
    assert restarts(plan)[0][0] == pytest.approx(0.75)
    assert restarts(plan)[0][-1] == 0.5


def test_a_restart_may_begin_at_the_finished_picture():
    plan = restart_plan([5.0, 1.0, 0.0], [Interval(3, 2, 0.0, 0.5)], VARIANCE_EXPLODING)
    assert plan.sigmas[:3] == [5.0, 1.0, 0.0]
    assert [sigmas[0] for sigmas in restarts(plan)] == [0.5, 0.5]
    assert plan.sigmas[-1] == 0


def test_intervals_run_from_the_noisiest_down_whatever_their_order():
    intervals = [Interval(3, 1, 0.1, 0.3), Interval(3, 1, 5.0, 9.0), Interval(3, 1, 1.0, 2.0)]
    plan = restart_plan(karras(30), intervals, VARIANCE_EXPLODING)
    assert [sigmas[0] for sigmas in restarts(plan)] == [9.0, 2.0, 0.3]
    assert plan == restart_plan(karras(30), intervals[::-1], VARIANCE_EXPLODING)


def test_another_grid_takes_the_place_of_rho_seven():
    def halves(top: float, bottom: float, points: int) -> list[float]:
        return [top / 2**i for i in range(points)]

    plan = restart_plan([8.0, 1.0, 0.0], [Interval(4, 1, 1.0, 8.0)], VARIANCE_EXPLODING, grid=halves)
    assert plan.sigmas == [8.0, 1.0, 8.0, 4.0, 2.0, 1.0, 0.0]


def test_no_interval_is_the_schedule_itself():
    plan = restart_plan(karras(12), [], VARIANCE_EXPLODING)
    assert plan.sigmas == karras(12)
    assert str(plan) == "12 steps: 12 main, 0 in 0 restarts"


# ---------------------------------------------------------------------------------------------------------
# What a person reads


def test_the_text_counts_what_is_run():
    intervals = [Interval(4, 2, 1.0, 2.0), Interval(2, 1, 0.1, 0.3)]
    plan = restart_plan([10.0, 4.0, 1.1, 0.12, 0.0], intervals, VARIANCE_EXPLODING, remarks=["A remark."])
    total, first, second, remark = str(plan).split("\n")
    assert total == "11 steps: 4 main, 7 in 3 restarts"
    assert "1.1" in first and "up to 2" in first and "3 steps" in first and "2 times" in first
    assert "0.12" in second and "up to 0.3" in second and "1 step down" in second and "once" in second
    assert remark == "A remark."


# ---------------------------------------------------------------------------------------------------------
# Grids and the budget


def test_the_rho_grid_is_edms():
    """arXiv 2206.00364 table 1, 18 steps from 80 to 0.002; the values are those of the authors' recorded runs."""
    first = [80.0, 57.585984721248, 40.785573796508, 28.374584604157, 19.352452980325]
    last = [0.059947311235, 0.022934518372, 0.007528019963, 0.002]
    grid = rho_grid(80.0, 0.002, 18)
    assert len(grid) == 18
    np.testing.assert_allclose([*grid[:5], *grid[-4:]], [*first, *last], rtol=1e-9)


@pytest.mark.parametrize("steps", range(1, 29))
def test_fewer_steps_of_a_karras_schedule_are_the_karras_schedule_of_fewer_steps(steps):
    expected = karras(steps) if steps > 1 else [14.6, 0.0]
    np.testing.assert_allclose(fewer_steps(karras(29), steps), expected, rtol=1e-10)


@CASES
def test_fewer_steps_of_any_schedule_fall_and_keep_their_ends(case):
    ratios, _ = random_request(case)
    for schedule in (ratios, ratios[:-1]):  # one that ends at 0 and one that was cut before
        for steps in range(2, len(schedule)):
            fewer = fewer_steps(schedule, steps)
            assert len(fewer) == steps + 1
            assert (fewer[0], fewer[-1]) == (schedule[0], schedule[-1])
            assert fewer[-2 if schedule[-1] == 0 else -1] == schedule[-2 if schedule[-1] == 0 else -1]
            assert all(a > b for a, b in pairwise(fewer))
    np.testing.assert_allclose(fewer_steps(ratios, len(ratios) - 1), ratios, rtol=1e-12)


@pytest.mark.parametrize("total", range(12, 40))
def test_within_the_budget_main_and_restart_steps_are_what_came_in(total):
    intervals = [Interval(4, 2, 0.1, 0.5), Interval(3, 2, 1.0, 2.0)]
    main = within_budget(karras(total), intervals)
    assert restart_plan(main, intervals, VARIANCE_EXPLODING).steps == total


# ---------------------------------------------------------------------------------------------------------
# What cannot be run says so


@pytest.mark.parametrize(
    "sigmas, words",
    [
        ([1.0, 2.0, 0.0], ["rise", "applied twice", "Chain"]),
        ([1.0, 0.5, 0.6, 0.0], ["rise"]),
    ],
)
def test_a_schedule_that_cannot_be_expanded(sigmas, words):
    with pytest.raises(ValueError) as raised:
        restart_plan(sigmas, [Interval(3, 1, 0.1, 0.5)], VARIANCE_EXPLODING)
    assert all(word in str(raised.value) for word in words)


@pytest.mark.parametrize(
    "interval, words",
    [
        (Interval(3, 1, 0.5, 0.5), ["0.5 to 0.5", "larger"]),
        (Interval(3, 1, 0.5, 0.1), ["0.5 to 0.1", "larger"]),
        (Interval(3, 1, -0.1, 0.5), ["-0.1 to 0.5", "0 or more"]),
        (Interval(3, 1, 0.1, float("inf")), ["0.1 to inf"]),
        (Interval(3, 1, float("nan"), 0.5), ["nan to 0.5"]),
        (Interval(1, 1, 0.1, 0.5), ["steps = 1", "2 points"]),
        (Interval(0, 1, 0.1, 0.5), ["steps = 0", "2 points"]),
        (Interval(3, 0, 0.1, 0.5), ["repeats = 0", "1 or more"]),
        (Interval(3, 1, 0.1, 0.5, "snr"), ["'snr'", "noise_to_signal, sigma, step"]),
        (Interval(3, 1, 12, 13, "step"), ["after 12 back 13", "whole numbers", "sigma_max <= sigma_min"]),
        (Interval(3, 1, 12, 2.5, "step"), ["after 12 back 2.5", "whole numbers"]),
        (Interval(3, 1, 12, 2.7, "step"), ["after 12 back 2.7", "whole numbers"]),
        (Interval(3, 1, 12.3, 2, "step"), ["after 12.3 back 2", "whole numbers"]),
        (Interval(3, 1, 11.7, 2, "step"), ["after 11.7 back 2", "whole numbers"]),
        (Interval(3, 1, 0.1, 0.1), ["0.1 to 0.1", "larger"]),
        (Interval(3, 1, 12, 0, "step"), ["after 12 back 0"]),
    ],
)
def test_an_interval_that_no_schedule_can_hold(interval, words):
    with pytest.raises(ValueError) as raised:
        restart_plan(karras(20), [interval], VARIANCE_EXPLODING)
    assert all(word in str(raised.value) for word in words)


@pytest.mark.parametrize("law", [VARIANCE_EXPLODING, FLOW])
def test_an_interval_reaches_up_to_the_first_sigma_and_a_rounding_above(law):
    sigmas = [law.sigma(10.0), law.sigma(1.0), 0.0]
    for high in (9.0, 10 * (1 - 1e-9), 10.0, 10 * (1 + 0.9e-6)):
        assert resolve(Interval(3, 1, 1.0, high), sigmas, law).sigma_max == pytest.approx(min(high, 10.0), rel=1e-12)
    with pytest.raises(ValueError, match="above the first sigma of the schedule .10.. Lower sigma_max, or raise"):
        resolve(Interval(3, 1, 1.0, 10 * (1 + 1.1e-6)), sigmas, law)


def test_an_interval_between_two_main_nodes_says_which_node_is_nearest():
    with pytest.raises(ValueError) as raised:
        restart_plan([10.0, 2.0, 0.0], [Interval(3, 1, 1.2, 1.5)], VARIANCE_EXPLODING)
    assert all(word in str(raised.value) for word in ["1.2 to 1.5", "noise-to-signal 2", "Raise sigma_max", "steps"])


def test_a_budget_that_the_restarts_spend_whole_says_how_many_steps_it_takes():
    with pytest.raises(ValueError) as raised:
        within_budget(karras(19), [Interval(10, 2, 0.1, 2.0)])
    assert all(word in str(raised.value) for word in ["take 18 steps", "leaves 1 of 19", "20 steps", "add_steps"])
