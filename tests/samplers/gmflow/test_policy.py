"""pi-Flow's policies against the authors' code, and its sampler: what it calls, where it lands, and what it refuses."""

from __future__ import annotations

import math

import pytest
import torch
from fewstep.samplers.gmflow.mixture import Mixture, tempered, x0_from_u
from fewstep.samplers.gmflow.policy import (
    DXLaw,
    DXPolicy,
    PiFlow,
    Points,
    landing,
    policy_of,
    policy_sigmas,
    usual_temperature,
    value_of,
    x0_of,
)
from fewstep.samplers.gmflow.solver import GMFlow
from support.examples import mostly
from support.gmflow import Exact, golden, item, normal, random_mixture
from torch import Tensor

RECORDED = golden("piflow_policies")
DX_CALLS, DX_PLACES = (0.9, 0.6), (0.8, 0.5)  # where the recorded DX policies were made and asked; no array says it
X, SIGMAS = RECORDED.tensor("x_src"), RECORDED.tensor("sigma_src").tolist()


def velocity(policy, x: Tensor, sigma: float) -> Tensor:
    return (x - policy.mean_at(x, sigma)) / sigma


def predicted(i: int) -> Mixture:
    return x0_from_u(item(RECORDED.mixture("u"), i), X[i : i + 1], SIGMAS[i])


# ---------------------------------------------------------------------------------------------------------
# Policies


@pytest.mark.parametrize("i", [0, 1])
def test_the_gmflow_policy_is_theirs_at_the_call(i):
    policy = policy_of(predicted(i), X[i : i + 1], SIGMAS[i])
    ours = (X[i : i + 1] - policy.mean) / SIGMAS[i]
    torch.testing.assert_close(ours, RECORDED.tensor("pi.src")[i : i + 1], rtol=0, atol=1e-9)


@pytest.mark.parametrize("place", ["pi0", "pi1", "pi2"])
@pytest.mark.parametrize("i", [0, 1])
def test_the_gmflow_policy_is_theirs_on_the_way(place, i):
    x, sigma = RECORDED.tensor(f"{place}.x")[i : i + 1], float(RECORDED.tensor(f"{place}.sigma")[i])
    ours = velocity(policy_of(predicted(i), X[i : i + 1], SIGMAS[i]), x, sigma)
    torch.testing.assert_close(ours, RECORDED.tensor(f"{place}.u")[i : i + 1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("temperature", [0.3, 0.1])
@pytest.mark.parametrize("i", [0, 1])
def test_a_temperature_is_theirs(temperature, i):
    key, ours = f"temp{temperature:g}", tempered(predicted(i), temperature)
    torch.testing.assert_close(ours.means, RECORDED.tensor(f"{key}.means")[i : i + 1], rtol=0, atol=1e-9)
    torch.testing.assert_close(ours.logweights, RECORDED.tensor(f"{key}.logweights")[i : i + 1], rtol=0, atol=1e-9)
    variance = (2 * ours.logstds).exp()
    torch.testing.assert_close(variance, RECORDED.tensor(f"{key}.gm_vars")[i : i + 1], rtol=1e-9, atol=0)
    x, sigma = RECORDED.tensor("pi0.x")[i : i + 1], float(RECORDED.tensor("pi0.sigma")[i])
    policy = policy_of(predicted(i), X[i : i + 1], SIGMAS[i], temperature)
    torch.testing.assert_close(
        velocity(policy, x, sigma), RECORDED.tensor(f"{key}.pi")[i : i + 1], rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("segment, shift", [(1.0, 1.0), (0.25, 3.2)])
@pytest.mark.parametrize("mode", ["grid", "polynomial"])
@pytest.mark.parametrize("i", [0, 1])
def test_the_dx_policy_is_theirs(mode, segment, shift, i):
    law = DXLaw(mode, segment, shift)
    points = x0_of(Points(RECORDED.tensor("dx.u")[i : i + 1], law), X[i : i + 1], DX_CALLS[i])
    x, sigma = RECORDED.tensor("pi0.x")[i : i + 1], DX_PLACES[i]
    expected = RECORDED.tensor(f"dx.{mode}.seg{segment:g}.sh{shift:g}")[i : i + 1]
    torch.testing.assert_close(velocity(policy_of(points, X[i : i + 1], DX_CALLS[i]), x, sigma), expected)


def test_a_grid_outside_of_its_segment_stays_at_its_ends():
    values = torch.arange(3.0).reshape(1, 3, 1, 1, 1)
    policy = DXPolicy(Points(values, DXLaw(segment=0.25)), 0.5)
    x = torch.zeros(1, 1, 1, 1)
    found = [float(policy.mean_at(x, sigma)) for sigma in (0.5, 0.4375, 0.375, 0.25, 0.1)]
    assert found == pytest.approx([2, 1.5, 1, 0, 0])


@pytest.mark.parametrize("mode, at_call", [("grid", 4), ("polynomial", 0)])
def test_a_dx_policy_is_moved_as_a_whole(mode, at_call):
    points = Points(normal((2, 5, 3, 4, 4), 0), DXLaw(mode, 0.5))
    torch.testing.assert_close(value_of(points), points.values[:, at_call])
    by, x = normal((2, 3, 4, 4), 1), normal((2, 3, 4, 4), 2)
    for sigma in (0.7, 0.6, 0.3):
        before, after = (DXPolicy(p, 0.7).mean_at(x, sigma) for p in (points, points.moved(by)))
        torch.testing.assert_close(after - before, by)


@pytest.mark.parametrize(
    "config, words",
    [
        ({"mode": "spline"}, "mode of a DX policy"),
        ({"segment_size": 0}, "segment_size of a DX policy must be above 0"),
        ({"shift": math.nan}, "shift of a DX policy must be above 0"),
        ({"shift": "3.2"}, "are numbers"),
    ],
)
def test_a_policy_config_that_fits_no_policy_is_told(config, words):
    with pytest.raises(ValueError, match=words):
        DXLaw.of_json(config)


# ---------------------------------------------------------------------------------------------------------
# The schedule


@pytest.mark.parametrize("steps", [4, 8])
@pytest.mark.parametrize("last", [1.0, 0.5])
@pytest.mark.parametrize("noise", [0.0, 1.0, math.inf])
def test_schedule_and_landing_are_theirs(steps, last, noise):
    key = f"flowmap.h{noise}.fs{last:g}.n{steps}"
    ours = policy_sigmas(steps, 3.2, last)
    torch.testing.assert_close(torch.tensor(ours), RECORDED.tensor(f"{key}.sigmas"), rtol=0, atol=1e-6)
    places = [landing(a, b, noise) for a, b in zip(ours[:-1], ours[1:], strict=True)]
    expected = torch.stack([RECORDED.tensor(f"{key}.tdst") / 1000, RECORDED.tensor(f"{key}.m")])
    for step, (end, kept) in enumerate(places):
        if noise and ours[step + 1] == 0:
            continue  # nothing is put back there, and the way ends at 0 with any share
        assert (end, kept) == pytest.approx(tuple(expected[:, step].tolist()), abs=1e-5)


def test_denoise_is_a_share_of_the_raw_time():
    assert policy_sigmas(2, 1.0, 1.0, 0.5) == pytest.approx([0.5, 0.25, 0.0])
    assert policy_sigmas(1) == [1.0, 0.0]


@pytest.mark.parametrize("steps, expected", [(1, 0.01), (2, 0.1), (4, 0.3), (30, 1.0)])
def test_the_usual_temperature_is_theirs_and_never_0(steps, expected):
    assert usual_temperature(steps) == pytest.approx(expected)


# ---------------------------------------------------------------------------------------------------------
# The sampler


def exact(law: Mixture):
    """The answers in x0 of an exact model of independent pixels."""
    predict = Exact(law)
    return lambda x, sigma: predict(x, sigma).conditional


def run(solver: PiFlow, predict, x: Tensor, calls: int, last: float = 0.5, **given) -> Tensor:
    return solver(predict, x, torch.tensor(policy_sigmas(calls, solver.shift, last), dtype=torch.float64), **given)


def test_with_a_mixture_it_is_the_ode_of_first_order():
    law, x = random_mixture((1, 3, 4, 4), 5), normal((2, 3, 4, 4), 3)
    nodes = torch.tensor(policy_sigmas(4, 3.2, 1.0), dtype=torch.float64)
    ode = GMFlow("ode", 1, 32, shift=3.2)(Exact(law), x, nodes)
    torch.testing.assert_close(PiFlow(128, 1.0)(exact(law), x, nodes), ode)


def test_one_call_of_an_exact_model_is_as_good_as_many():
    law, x = random_mixture((1, 3, 4, 4), 5), normal((2, 3, 4, 4), 3)
    one, many = (run(PiFlow(4000, 1.0), exact(law), x, calls) for calls in (1, 8))
    torch.testing.assert_close(one, many, rtol=0, atol=2e-3)
    few = run(PiFlow(1, 1.0), exact(law), x, 1)
    assert (few - many).abs().max() > 0.1  # it is the sub-steps that make it so


@pytest.mark.parametrize("noise", mostly(0.0, 1.0, longer=(0.5, math.inf)))
def test_any_noise_keeps_the_law_of_an_exact_model(noise):
    law = random_mixture((1, 1, 1, 1), 3)
    sources = iter(range(100))
    x = normal((20000, 1, 1, 1), 5)
    end = run(PiFlow(600, 1.0, noise), exact(law), x, 24, noise=lambda a, b: normal(x.shape, 50 + next(sources)))
    weights, means = law.weights.flatten(), law.means.flatten()
    centre = (weights * means).sum()
    spread = (weights * (means - centre) ** 2).sum() + law.var.squeeze()
    assert float(end.mean()) == pytest.approx(float(centre), abs=0.03)
    assert float(end.var()) == pytest.approx(float(spread), rel=0.04)


def test_calls_lie_at_the_sigmas_and_the_temperature_spares_the_last():
    law, seen, given = random_mixture((1, 3, 4, 4), 5), [], normal((2, 3, 4, 4), 3)
    predict = exact(law)

    def watched(x: Tensor, sigma: float):
        seen.append(sigma)
        return predict(x, sigma)

    run(PiFlow(16), watched, given, 4)
    assert seen == pytest.approx([1.0, 0.888889, 0.705882, 0.347826], abs=1e-5)
    cold, warm = (run(PiFlow(16, t), predict, given, 1) for t in (0.1, 1.0))
    torch.testing.assert_close(cold, warm)
    cold, warm, usual = (run(PiFlow(16, t), predict, given, 4) for t in (0.3, 1.0, None))
    torch.testing.assert_close(cold, usual)
    assert (cold - warm).abs().max() > 0.01


@pytest.mark.parametrize("mode", ["grid", "polynomial"])
def test_a_dx_policy_with_one_velocity_goes_straight(mode):
    u, x = normal((1, 1, 3, 4, 4), 0), normal((1, 3, 4, 4), 1)
    law = DXLaw(mode, 0.3, 3.2)

    def predict(at: Tensor, sigma: float):
        values = (
            u.expand(1, 6, 3, 4, 4) if mode == "grid" else torch.cat([u, at[:, None].expand(1, 5, 3, 4, 4) / sigma], 1)
        )
        return x0_of(Points(values, law), at, sigma)

    torch.testing.assert_close(run(PiFlow(), predict, x, 4), x - u[:, 0])


def test_equal_sigmas_cost_no_call_and_none_is_the_last():
    law, x, seen = random_mixture((1, 3, 4, 4), 5), normal((2, 3, 4, 4), 3), []
    predict = exact(law)

    def watched(at: Tensor, sigma: float):
        seen.append(sigma)
        return predict(at, sigma)

    repeated = torch.tensor([1.0, 1.0, 0.5, 0.5, 0.0, 0.0], dtype=torch.float64)
    plain = torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64)
    torch.testing.assert_close(PiFlow(16)(watched, x, repeated), PiFlow(16)(predict, x, plain))
    assert seen == [1.0, 0.5]


def test_half_precision_is_stepped_in_float32_and_reports_every_call():
    law, x, steps = random_mixture((1, 3, 4, 4), 5, dtype=torch.float32), normal((2, 3, 4, 4), 3).half(), []
    end = run(PiFlow(16), exact(law), x, 4, on_step=lambda i, sigma, x, x0: steps.append((i, x0.dtype)))
    assert end.dtype == torch.float16
    assert steps == [(i, torch.float16) for i in range(4)]


# ---------------------------------------------------------------------------------------------------------
# What is refused


@pytest.mark.parametrize(
    "given",
    [
        {"substeps": 0},
        {"substeps": 2**70},
        {"temperature": 0.0},
        {"temperature": 1.5},
        {"noise": -1.0},
        {"noise": math.nan},
        {"shift": 0.0},
    ],
)
def test_options_out_of_range_are_told(given):
    with pytest.raises(ValueError, match="of pi-Flow cannot be"):
        PiFlow(**given)


@pytest.mark.parametrize(
    "given", [(0,), (2**70,), (4, 0.0), (4, 3.2, 0.0), (4, 3.2, 0.5, 0.0), (4, 3.2, 0.5, math.nan)]
)
def test_schedules_out_of_range_are_told(given):
    with pytest.raises(ValueError, match="of pi-Flow cannot be"):
        policy_sigmas(*given)


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_answers_that_cannot_be_used_are_told_with_the_call(broken):
    x = normal((1, 3, 4, 4), 1)
    points = Points(torch.full((1, 2, 3, 4, 4), broken), DXLaw())
    with pytest.raises(ValueError, match=r"DX policy whose points are not numbers \(at sigma 1, step 1 of 4\)"):
        run(PiFlow(), lambda at, sigma: points, x, 4)
    mixture = Mixture.of_logits(
        torch.zeros(1, 2, 3, 4, 4), torch.full((1, 2, 1, 4, 4), broken), torch.zeros(1, 1, 1, 1, 1)
    )
    with pytest.raises(ValueError, match=r"weights are not numbers \(at sigma 1, step 1 of 4\)"):
        run(PiFlow(), lambda at, sigma: mixture, x, 4)


def test_noise_that_nobody_gives_is_told():
    with pytest.raises(ValueError, match="draws noise"):
        run(PiFlow(noise=1.0), exact(random_mixture((1, 3, 4, 4), 5)), normal((1, 3, 4, 4), 3), 4)
