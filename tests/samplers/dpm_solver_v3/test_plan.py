"""The plan: orders, where the corrector works, how a schedule ends, and what it refuses. No model is run."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from fewstep.samplers.dpm_solver_v3 import DPMSolverV3, Options, Statistics, make_plan, step_coefficients
from fewstep.samplers.dpm_solver_v3.plan import CORRECTOR_SPLIT, CORRECTORS
from fewstep.samplers.noise_law import FLOW, VARIANCE_EXPLODING, NoiseLaw
from torch import Tensor

DATA = Statistics.data_prediction()
DOWN = torch.logspace(1, -1, 7, dtype=torch.float64)
DOWN_TO_0 = torch.cat([DOWN, torch.zeros(1, dtype=torch.float64)])


def table() -> Statistics:
    """Two channels, lambda from -3 to 3."""
    generator = torch.Generator().manual_seed(0)
    l, s, b = torch.rand((3, 9, 2, 1, 1), generator=generator, dtype=torch.float64)  # noqa: E741
    return Statistics(torch.linspace(-3, 3, 9), l, s - 1, b / 5)


def plan(sigmas: Tensor = DOWN, statistics: Statistics = DATA, law=VARIANCE_EXPLODING, **options):
    return make_plan(sigmas, law, statistics, Options(**options))


def orders(*arguments, **options) -> list[int]:
    return [step.order for step in plan(*arguments, **options).steps]


def corrections(*arguments, **options) -> list[int]:
    return [step.corrected for step in plan(*arguments, **options).steps]


# ---------------------------------------------------------------------------------------------------------
# Orders


def test_the_order_rises_with_the_nodes_and_falls_at_the_end_if_asked():
    assert orders(order=1) == [1, 1, 1, 1, 1, 1]
    assert orders(order=3) == [1, 2, 3, 3, 3, 3]
    assert orders(order=3, lower_order_final=True) == [1, 2, 3, 3, 2, 1]
    assert orders(DOWN[:3], order=3, lower_order_final=True) == [1, 1]


def test_the_corrector_has_the_order_of_the_predictor_before_it_or_one_more():
    assert corrections(order=1) == [0, 0, 0, 0, 0, 0]
    assert corrections(order=3) == [0, 0, 2, 3, 3, 3]
    assert corrections(order=3, pseudo_corrector=True) == [0, 2, 3, 4, 4, 4]
    assert corrections(order=1, pseudo_corrector=True) == [0, 2, 2, 2, 2, 2]
    assert corrections(order=3, corrector="off") == [0, 0, 0, 0, 0, 0]


def test_high_and_low_noise_share_the_corrections_between_them():
    """lambda -0.478, sigma~ 1.613: the nodes at 10, 4.6 and 2.2 lie above it."""
    assert math.exp(-CORRECTOR_SPLIT) == pytest.approx(1.613, abs=1e-3)
    assert corrections(corrector="high_noise") == [0, 0, 2, 0, 0, 0]
    assert corrections(corrector="low_noise") == [0, 0, 0, 2, 2, 2]
    assert corrections(corrector="low_noise", corrector_split=math.log(4)) == [0, 0, 0, 0, 0, 2]


def test_a_plan_is_a_combination_of_at_most_five_tensors_and_six_for_a_pseudo_corrector_of_order_four():
    flags = itertools.product((1, 2, 3), CORRECTORS, (False, True), (False, True), (False, True))
    for order, corrector, pp, cp, lof in flags:
        options = {"order": order, "corrector": corrector, "pseudo_predictor": pp, "pseudo_corrector": cp}
        made = plan(DOWN_TO_0, table(), lower_order_final=lof, **options)
        for step, following in zip(made.steps, [*made.steps[1:], None], strict=True):
            assert 2 + len(step.predictor.weights) == 2 + step.order <= 5
            assert (step.corrector is not None) == (following is not None and following.corrected > 0)
            if step.corrector:
                assert 3 + len(step.corrector.weights) == 2 + following.corrected <= (6 if cp else 5)
        assert made.kept <= order - (0 if cp else 1)


def test_a_plan_prints_a_line_for_every_call():
    lines = str(plan(DOWN_TO_0[4:], order=2)).splitlines()
    assert lines == [
        "3 model calls",
        "sigma 0.4642 to 0.2154: order 1",
        "sigma 0.2154 to 0.1: order 2",
        "sigma 0.1 to 0: order 2, after a correction of order 2",
    ]


# ---------------------------------------------------------------------------------------------------------
# Coefficients


def test_the_rows_of_a_step_are_its_coefficients_in_the_scale_of_the_latents():
    statistics, sigmas = table(), torch.tensor([0.9, 0.7, 0.4, 0.2], dtype=torch.float64)
    lams = FLOW.lam(sigmas).tolist()
    step = plan(sigmas, statistics, FLOW, order=2).steps[1]
    expected = step_coefficients(statistics, [lams[1], lams[0]], lams[2])
    torch.testing.assert_close(step.predictor.a, expected.a * 0.6 / 0.3)
    torch.testing.assert_close(step.predictor.bias, expected.bias * 0.6)
    torch.testing.assert_close(step.predictor.weights, expected.weights * 0.6)
    torch.testing.assert_close(step.x_in_r, -(1 - statistics.l_at(lams[1])) / 0.3)
    corrected = step_coefficients(statistics, [lams[1], lams[2], lams[0]][:2], lams[2])
    torch.testing.assert_close(step.corrector.weights, corrected.weights[:1] * 0.6)
    torch.testing.assert_close(plan(sigmas, statistics, FLOW, order=2).steps[2].r_in_x, corrected.weights[1] * 0.6)


@pytest.mark.parametrize("scale", [1.0, 2.0])
@pytest.mark.parametrize("top", [0.9, 1.0])
@pytest.mark.parametrize("end", ["tiny", "denoised", "above_zero", "backwards"])
def test_the_average_of_a_step_carries_d_and_the_noise_of_a_straight_way(end, top, scale):
    """x = alpha D + sigma eps with the same D and eps: kept x + gain D is the next x, and at sigma 0 that is y."""
    for law in (NoiseLaw(True, scale), NoiseLaw(False, scale)):
        sigmas = [top, 0.7, 0.4, 0.1] + ([] if end in ("above_zero", "backwards") else [0.0])
        sigmas = sigmas[::-1] if end == "backwards" else sigmas
        last_step = "denoised" if end == "denoised" else "full_order"
        steps = plan(torch.tensor(sigmas, dtype=torch.float64), table(), law, last_step=last_step).steps
        for step, (sigma, sigma_next) in zip(steps, itertools.pairwise(sigmas), strict=True):
            d, eps, average = 3.0, 5.0, step.average
            noise_left = 0.02 if end == "tiny" and sigma_next == 0 else law.deviation(sigma_next)
            there = average.kept * (law.alpha(sigma) * d + law.deviation(sigma) * eps) + average.gain * d
            assert there == pytest.approx(law.alpha(sigma_next) * d + noise_left * eps, rel=1e-12)


@pytest.mark.parametrize("pseudo_corrector", [False, True])
def test_the_average_knows_the_highest_noise_that_the_step_looks_at(pseudo_corrector):
    """The nodes of its predictor, and of the corrector that comes before it."""
    for sigmas, order in itertools.product((DOWN, DOWN.flip(0), DOWN_TO_0), (1, 2, 3)):
        steps = plan(sigmas, order=order, pseudo_corrector=pseudo_corrector).steps
        for k, step in enumerate(steps):
            back = order - 1 + pseudo_corrector
            assert step.average.ratio == max(sigmas[max(k - back, 0) : k + 2].tolist())


def test_a_plan_does_not_depend_on_the_dtype_of_the_sigmas():
    """The host's are float32; one table begins at their first lambda, rounded otherwise."""
    sigmas = torch.tensor([14.6146, 5.0, 1.0, 0.03])
    lam = torch.linspace(-math.log(14.6146), 4, 20, dtype=torch.float64)
    statistics = Statistics(lam + 1e-6, *torch.full((3, 20, 1, 1, 1), 0.5))
    assert orders(sigmas, statistics, order=3) == orders(sigmas.double(), statistics, order=3) == [1, 2, 3]


# ---------------------------------------------------------------------------------------------------------
# The start


def test_a_flow_model_starts_at_one_and_uses_that_node_once_more():
    sigmas = torch.tensor([1.0, 0.9, 0.7, 0.5, 0.3, 0.1])
    assert orders(sigmas, DATA, FLOW, order=3) == [1, 2, 2, 3, 3]
    first, second, third, *_ = plan(sigmas, DATA, FLOW, order=3).steps
    assert first.x_in_r == 0 and first.predictor.a.item() == pytest.approx(0.9)
    assert first.predictor.weights.item() == pytest.approx(0.1)
    assert (second.predictor.weights[1] < 0).all()
    assert all(step.table.isfinite().all() for step in (first, second, third))


def test_no_history_crosses_the_start_of_the_table():
    sigmas = torch.exp(torch.tensor([4.5, 3.8, 2.5, 1.5, 0.5, -0.5, -1.5], dtype=torch.float64))  # it starts at e^3
    assert orders(sigmas, table(), order=3) == [1, 1, 1, 2, 3, 3]
    assert corrections(sigmas, table(), order=3) == [0, 0, 0, 0, 2, 3]
    assert corrections(sigmas, table(), order=3, pseudo_corrector=True) == [0, 2, 2, 2, 3, 4]


# ---------------------------------------------------------------------------------------------------------
# The end


def test_a_schedule_that_ends_at_zero_ends_with_d_if_asked():
    made = plan(DOWN_TO_0, table(), order=3, last_step="denoised")
    assert [step.order for step in made.steps] == [1, 2, 3, 3, 3, 3, 1]
    assert [step.corrected for step in made.steps] == [0, 0, 2, 3, 3, 3, 3]
    last = made.steps[-1]
    assert (
        last.x_in_r + last.predictor.a == 0
    ).all() and last.x_in_r.any()  # D of the predicted x, plus what was mended
    assert not last.predictor.bias.any() and (last.predictor.weights == 1).all()


def test_without_a_corrector_or_with_data_prediction_that_is_the_models_own_d():
    for statistics, corrector in ((table(), "off"), (DATA, "everywhere")):
        seen: list[Tensor] = []

        def denoise(x: Tensor, sigma: float, seen: list[Tensor] = seen) -> Tensor:
            seen.append(torch.tanh(x / (1 + sigma)))
            return seen[-1]

        x = torch.randn(1, 2, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        options = Options(order=2, corrector=corrector, last_step="denoised")
        end = DPMSolverV3(VARIANCE_EXPLODING, statistics, options)(denoise, x, DOWN_TO_0)
        torch.testing.assert_close(end, seen[-1])


@pytest.mark.parametrize("law", [VARIANCE_EXPLODING, FLOW], ids=["ve", "flow"])
def test_or_it_goes_on_to_a_tiny_ratio_at_full_order_without_another_call(law):
    """The plan of 7 calls is the one for sigmas that end at that ratio, but that x is then y."""
    ratio = 0.03
    to_0, to_tiny = law.sigma(DOWN_TO_0), law.sigma(torch.cat([DOWN, torch.tensor([ratio], dtype=torch.float64)]))
    ours, expected = (plan(sigmas, table(), law, order=3, final_ratio=ratio).steps for sigmas in (to_0, to_tiny))
    assert [step.order for step in ours] == [1, 2, 3, 3, 3, 3, 3]
    for a, b in zip(ours[:-1], expected[:-1], strict=True):
        torch.testing.assert_close(a.table, b.table)
    assert ours[-1].sigma_next == 0
    alpha = law.alpha(law.sigma(ratio))
    torch.testing.assert_close(ours[-1].table[2:], expected[-1].table[2:] / alpha)


def test_where_the_last_node_is_tiny_already_it_ends_with_d():
    assert orders(DOWN_TO_0, order=3, final_ratio=0.1001)[-1] == 1
    assert orders(DOWN_TO_0, order=3, final_ratio=0.0999)[-1] == 3


# ---------------------------------------------------------------------------------------------------------
# Refusals


@pytest.mark.parametrize(
    "sigmas, words",
    [
        ([], "hold no step"),
        ([1.0], "hold no step. Give the scheduler at least 1 step and a denoise above 0"),
        ([2.0, 1.0, 1.0, 0.0], "step 2 goes from 1 to 1"),
        ([2.0, 1.0, 1.5, 0.0], "step 2 goes from 1 to 1.5. .* the Restart Sampler"),
        ([2.0, 0.0, 0.0], "step 2 goes from 0 to 0"),
        ([2.0, -1.0], "Number 2 of the 2 sigmas is -1; each must be a number from 0 to 1e.06"),
        ([math.inf, 1.0], "Number 1 of the 2 sigmas is inf"),
        ([2.0, math.nan, 0.0], "Number 2 of the 3 sigmas is nan"),
        ([0.0, 1.0, 2.0], "rise from 0.*Flip Sigmas"),
        ([0.5, 1.0, 0.7], "step 2 goes from 1 to 0.7"),
        ([1.0, 0.5, 1.0], "step 2 goes from 0.5 to 1"),
        ([0.0, 1.0, 0.0], "step 1 goes from 0 to 1"),
    ],
)
def test_a_schedule_that_does_not_fall_is_refused_in_words(sigmas, words):
    with pytest.raises(ValueError, match=words):
        plan(torch.tensor(sigmas))


def test_a_flow_schedule_above_one_is_refused():
    with pytest.raises(ValueError, match="Number 1 of the 2 sigmas is 1.5; on a flow model 1 is the highest"):
        plan(torch.tensor([1.5, 0.5]), law=FLOW)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"order": 4}, "The order is 4; DPM-Solver-v3 has orders 1, 2 and 3"),
        ({"corrector": "on"}, "corrector is 'on'; choose one of everywhere, high_noise, low_noise, off"),
        ({"quadrature": "simpson"}, "choose one of exact, trapezoid"),
        ({"last_step": "euler"}, "choose one of full_order, denoised"),
        ({"final_ratio": 0.0}, "final_ratio is 0; it must be above 0, and small, such as 0.02"),
        ({"final_ratio": math.inf}, "final_ratio is inf; it must be above 0, and small"),
    ],
)
def test_options_that_do_not_exist_are_refused_in_words(options, words):
    with pytest.raises(ValueError, match=words):
        Options(**options)
