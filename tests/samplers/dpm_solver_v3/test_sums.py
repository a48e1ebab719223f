"""Sums and what follows from them: the estimator golden, merging, smoothing, and the end of the table."""

from __future__ import annotations

import math

import pytest
import torch
from fewstep.samplers.dpm_solver_v3.observe import Measurement
from fewstep.samplers.dpm_solver_v3.pooling import Pooling
from fewstep.samplers.dpm_solver_v3.sums import Sums, continued, interpolate, moving_average, smooth_line
from fewstep.samplers.noise_law import VARIANCE_EXPLODING
from support.goldens import Arrays

ALL = slice(None)


@pytest.fixture(scope="module")
def golden() -> Arrays:
    return Arrays.load("dpm_solver_v3/ems_estimator_edm_small")


def measured(golden: Arrays, images: slice = ALL) -> Sums:
    """Exact derivatives at the golden's own draws, in float64."""
    lam, x0 = golden.tensor("lambda_grid"), golden.tensor("x0")[images]
    pooling = Pooling("pixel", (2, 2, 2))
    sums = Sums.empty(lam, pooling.features)
    measurement = Measurement(VARIANCE_EXPLODING, pooling, sums, signs=lambda level, shape: torch.ones(shape))
    for level, sigma in enumerate(torch.exp(-lam)):
        z1, v, z2 = (golden.tensor(name)[level][images] for name in ("z1", "v", "z2"))
        response = torch.func.jvp(lambda y, sigma=sigma: golden.denoise(y, sigma), (x0 + sigma * z1,), (v,))[1]
        sums.probe_count[level] += len(x0) * pooling.numbers
        sums.probe[level] += pooling.total(v * response)
        y = x0 + sigma * z2
        d = golden.denoise(y, sigma)
        slope = torch.func.jvp(
            lambda y, lam: golden.denoise(y, torch.exp(-lam)), (y, lam[level]), (d - y, torch.ones_like(lam[level]))
        )[1]
        measurement.add(level, [y - d, d, slope])
    return sums


def test_the_estimator_golden(golden):
    """l, s and b to 1e-8, with the authors' script's window of five levels for l' and no ridge."""
    step = (golden.tensor("lambda_grid")[1] - golden.tensor("lambda_grid")[0]).item()
    found = measured(golden).statistics(window=0, slope_window=5.5 * step, ridge=0)
    for name in ("l", "s", "b"):
        torch.testing.assert_close(getattr(found, name), golden.tensor(name), rtol=1e-8, atol=1e-8)


def test_the_slope_of_the_golden(golden):
    lam = golden.tensor("lambda_grid")
    raw = torch.gradient(golden.tensor("l"), spacing=(lam,), dim=0)[0]
    torch.testing.assert_close(raw, golden.tensor("l_d_raw"), rtol=1e-10, atol=1e-10)
    smooth = moving_average(lam, raw, 5.5 * (lam[1] - lam[0]).item())
    torch.testing.assert_close(smooth, golden.tensor("l_d"), rtol=1e-10, atol=1e-10)


def test_two_halves_make_the_whole_and_can_be_taken_apart(golden):
    whole, first, second = (measured(golden, part) for part in (slice(None), slice(0, 20), slice(20, 64)))
    for name in ("count", "first", "second", "probe_count", "probe"):
        torch.testing.assert_close(getattr(first + second, name), getattr(whole, name), rtol=1e-12, atol=1e-9)
        torch.testing.assert_close(getattr(whole - second, name), getattr(first, name), rtol=1e-9, atol=1e-9)


def test_measurements_of_other_levels_or_pooling_do_not_add_up():
    lam = torch.linspace(-2, 3, 6)
    with pytest.raises(ValueError, match="do not fit together.*same model, levels and pooling"):
        Sums.empty(lam, (1, 1, 1)) + Sums.empty(lam + 0.1, (1, 1, 1))
    with pytest.raises(ValueError, match="do not fit together"):
        Sums.empty(lam, (1, 1, 1)) + Sums.empty(lam, (4, 1, 1))


def test_an_unfinished_measurement_has_no_statistics():
    with pytest.raises(ValueError, match="not finished"):
        Sums.empty(torch.linspace(-2, 3, 6), (1, 1, 1)).statistics()


def test_a_vanishing_variance_leaves_the_statistics_bounded(golden):
    """One image only: Var f is 0 and Cov / Var is 0 / 0 without the ridge."""
    one = measured(golden, slice(0, 1))
    found = one.statistics(ridge=1e-6)
    assert found.s.abs().max() < 100 and found.b.isfinite().all()


def test_smoothing_keeps_lines_up_to_the_ends():
    lam = torch.linspace(-3, 4, 15, dtype=torch.float64)
    line = (2 - 0.3 * lam)[:, None]
    torch.testing.assert_close(smooth_line(lam, line, 1.2), line)
    torch.testing.assert_close(smooth_line(lam, lam[:, None] ** 2, 0.0), lam[:, None] ** 2)
    noise = torch.randn(15, 1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert smooth_line(lam, noise, 1.2)[3:-3].std() < 0.6


def test_levels_without_a_probe_lie_between_their_neighbours():
    lam = torch.tensor([0.0, 1.0, 2.0, 4.0]).double()
    values = torch.tensor([[1.0], [0.5], [0.0]]).double()
    found = interpolate(lam[[0, 1, 3]], values, lam)
    torch.testing.assert_close(found.flatten(), torch.tensor([1.0, 0.5, 0.5 * (1 - 1 / 3), 0.0]).double())


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_lines_are_held_beyond_the_ends(count):
    lam = torch.arange(count).double()
    found = interpolate(lam, 1 + lam[:, None] ** 2, torch.tensor([-3.0, -0.1, 0.0, count - 1, count + 4]).double())
    last = 1.0 + (count - 1) ** 2
    assert found.flatten().tolist() == [1.0, 1.0, 1.0, last, last]


def test_the_largest_answer_is_a_mean_square(golden):
    """Of D, at the level and in the coordinate where it is largest; a level that was not reached counts as 0."""
    sums, level = measured(golden), 3
    y = golden.tensor("x0") + torch.exp(-golden.tensor("lambda_grid")[level]) * golden.tensor("z2")[level]
    one = golden.denoise(y, torch.exp(-golden.tensor("lambda_grid")[level])).square().mean(0).max()
    for tensor in (sums.count, sums.second):
        tensor[torch.arange(len(tensor)) != level] = 0
    assert sums.largest_answer() == pytest.approx(one.item(), rel=1e-12)


def test_behind_the_table_l_fades_and_s_becomes_that_of_an_exact_score(golden):
    table = measured(golden).statistics(ridge=1e-6)
    longer = continued(table)
    levels = len(table.lam)
    torch.testing.assert_close(longer.l[:levels], table.l)
    assert longer.lam[-1] - table.lam[-1] == pytest.approx(3.0)
    torch.testing.assert_close(longer.l[-1], table.l[-1] * math.exp(-6))
    assert (longer.s[-1] + 2).abs().max() < 0.05 and longer.b[-1].abs().max() < 0.01
