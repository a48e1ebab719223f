"""One step: closed forms, models on which it has no error, and the start before the table."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from fewstep.samplers.dpm_solver_v3 import Statistics, coefficients, step_coefficients
from fewstep.samplers.dpm_solver_v3.coefficients import STAND_IN, NoFiniteStep
from scipy.integrate import solve_ivp

INF = math.inf


def linear_table() -> Statistics:
    """l, s and b that run linearly from lambda -2 to 3, one feature."""
    ends = torch.tensor([[0.9, 0.2], [0.8, -1.5], [-0.3, 0.4]], dtype=torch.float64)
    return Statistics(torch.tensor([-2.0, 3.0]), *ends.view(3, 2, 1, 1, 1))


def at(table: torch.Tensor, lam: float) -> float:
    return float(np.interp(lam, [-2.0, 3.0], table.flatten().numpy()))


def solve(
    slope: Callable[[float, np.ndarray], list[float]], start: float, end: float, state: list[float]
) -> np.ndarray:
    return solve_ivp(slope, (start, end), state, "DOP853", rtol=1e-12, atol=1e-13).y[:, -1]


def model_with(statistics: Statistics, rate: Callable[[float, float], float], start: float, lams: list[float]) -> dict:
    """y and f at each lambda, on the trajectory through y = 1.3, f = 0.7, g = f at `start`.

    f = e^S (g + B), with g a given function of lambda - start: g' = rate.
    """

    def slope(lam: float, state: np.ndarray) -> list[float]:
        y, big_s, big_b, g = state
        f = math.exp(big_s) * (g + big_b)
        b_here = math.exp(-big_s) * at(statistics.b, lam)
        return [-at(statistics.l, lam) * y - f, at(statistics.s, lam), b_here, rate(lam - start, g)]

    answers = {}
    for lam in lams:
        state = solve(slope, start, lam, [1.3, 0.0, 0.0, 0.7]) if lam != start else np.array([1.3, 0, 0, 0.7])
        y, big_s, big_b, g = state
        answers[lam] = (y, math.exp(big_s) * (g + big_b))
    return answers


def rate_of_power(power: int) -> Callable[[float, float], float]:
    """g' for g = 0.7 - 0.4 h^power."""

    def rate(h: float, g: float) -> float:
        return -0.4 * power * h ** (power - 1)

    return rate


def taken(statistics: Statistics, answers: dict, nodes: list[float], lam_to: float, pseudo: bool = False) -> float:
    """y at `lam_to` by one step from the exact values at the nodes."""
    step = step_coefficients(statistics, nodes, lam_to, pseudo=pseudo)
    y = step.a.item() * answers[nodes[0]][0] + step.bias.item()
    return y - sum(w.item() * answers[lam][1] for w, lam in zip(step.weights, nodes, strict=True))  # r = -f


# ---------------------------------------------------------------------------------------------------------
# Closed forms


@pytest.mark.parametrize(
    "statistics", [Statistics.data_prediction(), Statistics.noise_prediction()], ids=["data", "noise"]
)
@pytest.mark.parametrize("h", [1e-3, 0.5, 6.0])
def test_the_first_order_is_ddim_with_either_prediction(statistics, h):
    """y_t = e^-h y + (1 - e^-h) D."""
    step = step_coefficients(statistics, [-2.0], h - 2)
    of_d = step.weights[0].item()
    of_y = (step.a - step.weights[0] * (1 - statistics.l_at(-2.0))).item()
    assert (of_y, of_d, step.bias.item()) == pytest.approx((math.exp(-h), -math.expm1(-h), 0), rel=1e-12, abs=1e-15)


def test_the_second_order_of_data_prediction_is_the_exact_exponential_integrator():
    """y_t = e^-h y + (1 - e^-h) D_0 + (h - 1 + e^-h) (D_0 - D_1) / h_1."""
    h, h_1 = 0.8, 0.5
    step = step_coefficients(Statistics.data_prediction(), [0.0, -h_1], h)
    slope = (h - 1 + math.exp(-h)) / h_1
    expected = [math.exp(-h), 0, 1 - math.exp(-h) + slope, -slope]
    assert [step.a.item(), step.bias.item(), *step.weights.flatten().tolist()] == pytest.approx(expected, rel=1e-12)


# ---------------------------------------------------------------------------------------------------------
# No error where the statistics describe the model


def test_one_first_order_step_is_exact_where_f_follows_s_and_b():
    statistics, lams = linear_table(), [-1.5, 2.5]
    answers = model_with(statistics, lambda h, g: 0.0, lams[0], lams)
    assert taken(statistics, answers, [-1.5], 2.5) == pytest.approx(answers[2.5][0], rel=1e-10)


@pytest.mark.parametrize(
    "nodes, degree",
    [
        ([0.5, -0.2], 1),
        ([0.5, -0.2, -1.1], 2),
        ([0.5, 1.4], 1),
        ([0.5, 1.4, -0.2], 2),
        ([0.5, 1.4, -0.2, -1.1], 3),
    ],
    ids=["predictor 2", "predictor 3", "corrector 2", "corrector 3", "corrector 4"],
)
def test_a_step_is_exact_where_g_is_a_polynomial_of_its_degree_and_not_one_above(nodes, degree):
    statistics = linear_table()
    for power, is_exact in ((degree, True), (degree + 1, False)):
        answers = model_with(statistics, rate_of_power(power), 0.5, [*nodes, 1.4])
        error = abs(taken(statistics, answers, nodes, 1.4) / answers[1.4][0] - 1)
        assert (error < 1e-10) if is_exact else (error > 1e-4)


def test_pseudo_derivatives_are_divided_differences_of_the_first_nodes():
    """The first derivative from two nodes: of g = h^2 it is wrong, the second one from three is right."""
    statistics, nodes = Statistics.data_prediction(), [0.0, -0.4, -1.0]
    true, pseudo = (step_coefficients(statistics, nodes, 0.6, pseudo=p).weights.flatten() for p in (False, True))
    g = torch.tensor(nodes, dtype=torch.float64) ** 2
    first, second = 0.6 - 1 + math.exp(-0.6), 0.6**2 / 2 - first_moment(0.6)
    assert (true @ g).item() == pytest.approx(2 * second, rel=1e-12)
    assert (pseudo @ g).item() == pytest.approx(2 * second + first * -0.4, rel=1e-12)
    two = [step_coefficients(statistics, nodes[:2], 0.6, pseudo=p).weights for p in (False, True)]
    torch.testing.assert_close(two[0], two[1], rtol=1e-13, atol=0)


def first_moment(h: float) -> float:
    """int_0^h e^(x - h) x dx."""
    return h - 1 + math.exp(-h)


# ---------------------------------------------------------------------------------------------------------
# Before the table


def constant_d(y: float, lam: float, lam_to: float) -> float:
    """The exact y where D = 0.4 all the way."""
    return 0.4 + math.exp(lam - lam_to) * (y - 0.4)


@pytest.mark.parametrize("statistics", [Statistics.data_prediction(), Statistics.noise_prediction(), linear_table()])
def test_far_before_the_table_a_constant_d_is_followed_exactly(statistics):
    lam, lam_to = statistics.start - 3, statistics.start - 1
    step = step_coefficients(statistics, [lam], lam_to)
    assert step.a.item() * 50 + step.weights.item() * 0.4 == pytest.approx(constant_d(50, lam, lam_to), rel=1e-12)


@pytest.mark.parametrize("lam_to", [-13.0, -11.0, 0.0])
def test_a_start_at_infinite_lambda_is_the_limit_of_finite_ones(lam_to):
    """x_t = alpha_t (sigma~_t n + D), for the noise n = x_s / sigma_s."""
    for statistics in (Statistics.data_prediction(), Statistics.noise_prediction()):
        step = step_coefficients(statistics, [-INF], lam_to)
        assert step.a.item() == pytest.approx(math.exp(-lam_to), rel=1e-9)
        assert step.weights.item() == pytest.approx(1, rel=1e-9)
    far = step_coefficients(linear_table(), [-40.0], 1.0)
    limit = step_coefficients(linear_table(), [-INF], 1.0)
    assert far.a.item() * math.exp(40) == pytest.approx(limit.a.item(), rel=1e-12)
    assert far.weights.item() == pytest.approx(limit.weights.item(), rel=1e-12)
    assert far.bias.item() == limit.bias.item() != 0


def test_the_step_into_the_table_goes_on_with_the_f_of_the_same_d():
    statistics = linear_table()
    start, lam_to = statistics.start, 0.3
    y, y_start = 9.0, constant_d(9.0, -4.0, start)
    f = (1 - 0.9) * y_start - 0.4  # l = 0.9 there
    rest = step_coefficients(statistics, [start], lam_to)
    expected = rest.a.item() * y_start + rest.bias.item() - rest.weights.item() * f
    step = step_coefficients(statistics, [-4.0], lam_to)
    assert step.a.item() * y + step.bias.item() + step.weights.item() * 0.4 == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("lam", [-INF, -14.0], ids=["infinite", "finite"])
@pytest.mark.parametrize(
    "statistics", [Statistics.data_prediction(), Statistics.noise_prediction()], ids=["data", "noise"]
)
def test_the_corrector_into_the_table_is_exact_where_d_grows_with_the_signal(statistics, lam):
    """D = 0.4 + c e^lambda with c = 0.2 e^11: y_t = y_predicted + (1 - rho) (D_t - D_s) / 2."""
    lam_to, rho = -11.0, math.exp(lam + 11.0)
    d_s, d_t = 0.4 + 0.2 * rho, 0.6
    start = 1.0 if lam == -INF else 1e6
    predictor = step_coefficients(statistics, [lam], lam_to)
    predicted = predictor.a.item() * start + predictor.weights.item() * d_s
    r_t = d_t - (1 - statistics.l_at(lam_to).item()) * predicted
    corrector = step_coefficients(statistics, [lam, lam_to], lam_to)
    corrected = (
        corrector.a.item() * start
        + (corrector.weights.flatten() @ torch.tensor([d_s, r_t], dtype=torch.float64)).item()
    )
    assert corrected - predicted == pytest.approx((1 - rho) * (d_t - d_s) / 2, rel=1e-5)


@pytest.mark.parametrize("statistics", [linear_table(), Statistics.noise_prediction()], ids=["linear", "noise"])
def test_the_stand_in_for_an_infinite_node_is_the_point_on_the_way_there(statistics):
    """On the exact trajectory of D = 0.4 + 0.3 e^(lambda + 1), with n = 2, a real node there gives the same y."""
    first, lam_to = -1.0, 0.2
    before = first - STAND_IN

    def d(lam: float) -> float:
        return 0.4 + 0.3 * math.exp(lam + 1)

    def y(lam: float) -> float:
        return 2 * math.exp(-lam) + 0.4 + 0.15 * math.exp(lam + 1)

    def r(lam: float) -> float:
        return 0.4 if lam == -INF else d(lam) - (1 - statistics.l_at(lam).item()) * y(lam)

    def end(nodes: list[float]) -> float:
        step = step_coefficients(statistics, nodes, lam_to)
        return (
            step.a.item() * y(first)
            + step.bias.item()
            + sum(w.item() * r(lam) for w, lam in zip(step.weights, nodes, strict=True))
        )

    assert end([first, -INF]) == pytest.approx(end([first, before]), rel=1e-12)
    assert abs(end([first, -INF]) - end([first])) > 0.01


def test_nodes_beyond_the_start_of_the_table_have_no_weight():
    statistics = linear_table()
    alone = step_coefficients(statistics, [-1.0], 0.0)
    for nodes in ([-1.0, -2.2], [-1.0, -2.2, -3.0], [-1.0, -1.9, -2.2], [-1.0, -1.5, -INF]):
        weights = step_coefficients(statistics, nodes, 0.0).weights.flatten()
        assert [w == 0 for w in weights.tolist()] == [lam < statistics.start for lam in nodes]
    torch.testing.assert_close(step_coefficients(statistics, [-1.0, -2.2], 0.0).weights[0], alone.weights[0])
    before = step_coefficients(statistics, [-3.0, -4.0], -2.5).weights.flatten().tolist()
    assert before == pytest.approx(
        step_coefficients(Statistics.data_prediction(), [-3.0, -4.0], -2.5).weights.flatten()
    )


# ---------------------------------------------------------------------------------------------------------
# Features and errors


def test_features_do_not_mix_and_are_worked_on_in_parts(monkeypatch):
    generator = torch.Generator().manual_seed(2)
    tables = torch.randn((3, 5, 2, 3, 4), generator=generator, dtype=torch.float64)
    lam, nodes = torch.linspace(-2, 2, 5), [0.1, 0.9, -0.7]
    whole = step_coefficients(Statistics(lam, *tables), nodes, 0.9)
    monkeypatch.setattr(coefficients, "MOST_FEATURES", 7)
    in_parts = step_coefficients(Statistics(lam, *tables), nodes, 0.9)
    one = step_coefficients(Statistics(lam, *tables[:, :, 1:, 2:, 3:]), nodes, 0.9)
    for name in ("a", "bias", "weights"):
        torch.testing.assert_close(getattr(whole, name), getattr(in_parts, name), rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(getattr(whole, name)[..., 1:, 2:, 3:], getattr(one, name), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "nodes, lam_to", [([], 0.0), ([0.0], 0.0), ([1.0], -INF), ([0.0, -1.0, -1.0], 1.0), ([0.0], INF)]
)
def test_a_step_to_nowhere_is_refused(nodes, lam_to):
    with pytest.raises(ValueError, match="different nodes and another, finite lambda"):
        step_coefficients(Statistics.data_prediction(), nodes, lam_to)


def test_coefficients_are_such_that_float32_can_square_them():
    """In noise prediction y grows by e^-h where the step runs backwards: 1.8e19 is the limit."""
    largest = math.sqrt(torch.finfo(torch.float32).max)
    for factor in (0.99, 1.01):
        step = ([math.log(largest * factor)], 0.0)
        if factor < 1:
            assert step_coefficients(Statistics.data_prediction(), *step).a == pytest.approx(largest * factor)
        else:
            with pytest.raises(NoFiniteStep):
                step_coefficients(Statistics.data_prediction(), *step)


def test_statistics_without_a_finite_answer_are_refused_in_words():
    with pytest.raises(ValueError, match="has no finite result. Measure them with more images"):
        step_coefficients(Statistics.constant(1, 500, 0), [-1.0], 5.0)
