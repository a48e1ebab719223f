"""The integrals against an ODE solver that knows no cells, and against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from fewstep.samplers.dpm_solver_v3.integrals import RULES, cut, integrate, moments
from fewstep.samplers.dpm_solver_v3.statistics import Statistics
from scipy.integrate import solve_ivp

ALL = slice(None)


def random_table() -> Statistics:
    """Six levels, two features, steep slopes."""
    generator = torch.Generator().manual_seed(0)
    lam = torch.tensor([-2.5, -1.8, -1.0, -0.2, 0.9, 2.0])
    return Statistics(lam, *torch.randn((3, 6, 2, 1, 1), generator=generator, dtype=torch.float64))


def by_ode(statistics: Statistics, start: float, end: float, feature: int) -> np.ndarray:
    """L, S, B, E_0, E_1, E_2, K at `end`, piece by piece, every one from its derivative."""
    grid = statistics.lam.numpy()
    l, s, b = (t.flatten(1)[:, feature].numpy() for t in (statistics.l, statistics.s, statistics.b))  # noqa: E741

    def slope(lam: float, state: np.ndarray) -> list[float]:
        big_l, big_s, big_b, *_ = state
        e, h = math.exp(big_l + big_s), lam - start
        b_here = math.exp(-big_s) * np.interp(lam, grid, b)
        return [np.interp(lam, grid, l), np.interp(lam, grid, s), b_here, e, e * h, e * h * h, e * big_b]

    state = np.zeros(7)
    edges = cut(statistics, start, end).tolist()
    for piece in zip(edges[:-1], edges[1:], strict=True):
        state = solve_ivp(slope, piece, state, "DOP853", rtol=1e-13, atol=1e-14).y[:, -1]
    return state


@pytest.mark.parametrize("start, end", [(-2.4, 0.5), (0.4, -2.3), (-1.0, -0.95)], ids=["down", "back", "inside"])
@pytest.mark.parametrize("feature", [0, 1])
def test_all_integrals_are_those_of_their_derivatives(start, end, feature):
    statistics = random_table()
    way = integrate(statistics, start, end, RULES["exact"], ALL)
    powers, k = moments(way, 3, unit=1.0)
    scale = torch.exp(way.L_end)
    ours = [way.L_end, way.S_end, way.B_end, *(powers * scale), k * scale]
    expected = by_ode(statistics, start, end, feature)
    np.testing.assert_allclose([value[feature].item() for value in ours], expected, rtol=2e-11, atol=2e-12)


def test_the_exact_rule_is_exact_where_the_trapezoid_is_not():
    """int_0^20 e^x dx over one piece of the table."""
    data = Statistics.data_prediction()
    integrals = {}
    for name, rule in RULES.items():
        powers, _ = moments(integrate(data, -10.0, 10.0, rule, ALL), 1, unit=1.0)
        integrals[name] = powers.item()  # times e^-20
    assert integrals["exact"] == pytest.approx(-math.expm1(-20), rel=1e-14)
    assert integrals["trapezoid"] == pytest.approx(10 * (1 + math.exp(-20)), rel=1e-14)


def test_a_long_way_overflows_nothing():
    statistics = Statistics.constant(30.0, -1.0, 1.0)
    powers, k = moments(integrate(statistics, -11.0, 11.0, RULES["exact"], ALL), 4, unit=22.0)
    assert powers.isfinite().all() and k.isfinite().all()
    assert powers[0].item() == pytest.approx(math.exp(-22) / 29, rel=1e-9)  # e^-660 (e^638 - 1) / 29


def test_nodes_of_the_way_are_cut_at_the_points_of_the_table():
    statistics = Statistics(torch.tensor([-1.0, 0.0, 1.0]), *torch.zeros(3, 3, 1, 1, 1))
    start = statistics.start
    assert cut(statistics, -2.0, 0.5).tolist() == [-2.0, start, -1.0, 0.0, 0.5]
    assert cut(statistics, 0.5, -2.0).tolist() == [0.5, 0.0, -1.0, start, -2.0]
    assert cut(statistics, 0.0, 1.0).tolist() == [0.0, 1.0]
