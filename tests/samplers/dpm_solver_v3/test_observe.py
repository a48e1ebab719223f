"""The measurement: where it calls, what it finds on exact mixtures, by every route."""

from __future__ import annotations

import math

import pytest
import torch
from fewstep.samplers.dpm_solver_v3 import DPMSolverV3, Options, Statistics
from fewstep.samplers.dpm_solver_v3.observe import (
    Measurement,
    Observer,
    by_differences,
    by_forward_mode,
    observe_references,
    slope_weights,
)
from fewstep.samplers.dpm_solver_v3.pooling import BANDS, Pooling
from fewstep.samplers.dpm_solver_v3.sums import Sums
from fewstep.samplers.noise_law import FLOW, VARIANCE_EXPLODING
from support.mixture import GuidedMixture, Mixture, picture_like
from support.recording import Recording
from torch import Tensor

LAWS = pytest.mark.parametrize("law", [VARIANCE_EXPLODING, FLOW], ids=["ve", "flow"])
LAM = torch.linspace(-2.7, 3.5, 24, dtype=torch.float64)
ITEM = (2, 8, 8)


def mixture() -> Mixture:
    return picture_like(channels=2, size=8)


def measure(
    law, kind="global", images=16, derivative=by_differences, every=1, seed=0, denoise=None, references=None, lam=LAM
):
    """The Sums of a measurement, along trajectories, or at `references` (images, ...)."""
    generator = torch.Generator().manual_seed(seed)
    pooling = Pooling(kind, ITEM)
    sums = Sums.empty(lam, pooling.features)

    def signs(level: int, shape: torch.Size) -> Tensor:
        return torch.randint(0, 2, shape, generator=generator).double() * 2 - 1

    measurement = Measurement(law, pooling, sums, signs, derivative, every)
    denoise = denoise or GuidedMixture(mixture(), law)
    sigmas = law.sigma(torch.exp(-lam))
    if references is not None:
        observe_references(
            denoise, references, sigmas, measurement, lambda level, shape: torch.randn(shape, generator=generator)
        )
        return sums
    observer = Observer(denoise, measurement)
    noise = torch.randn((images, *ITEM), generator=generator, dtype=torch.float64)
    start = law.alpha(sigmas[0]) * (mixture().moments()[0] + torch.exp(-lam[0]) * noise)
    solver = DPMSolverV3(law, Statistics.data_prediction(), Options(order=3, corrector="off", last_step="denoised"))
    solver(observer, start, torch.cat([sigmas, sigmas.new_zeros(1)]))
    observer.finish()
    return sums


def exact_statistics(count: int = 3000) -> Statistics:
    """Pooled over everything, at draws of the true law, every derivative in closed form or by exact AD.

    The mean diagonal of dD/dy is that of the posterior covariance over s^2: with g = 1 / (P + s^2) per frequency,
    (sum P g + s^2 sum g^2 Var_w m_k) / n.
    """
    model = mixture()
    x0 = model.sample(count, seed=5)
    pooling, numbers = Pooling("global", ITEM), math.prod(ITEM)
    sums = Sums.empty(LAM, pooling.features)
    measurement = Measurement(VARIANCE_EXPLODING, pooling, sums, signs=lambda level, shape: torch.ones(shape))
    generator = torch.Generator().manual_seed(6)
    for level, s in enumerate(torch.exp(-LAM)):
        y = x0 + s * torch.randn(x0.shape, generator=generator, dtype=torch.float64)
        d = model.denoise(y, s)
        way = (d - y, torch.ones_like(s))
        slope = torch.func.jvp(lambda y, lam: model.denoise(y, torch.exp(-lam)), (y, -torch.log(s)), way)[1]
        measurement.add(level, [y - d, d, slope])
        g = 1 / (model.spectrum + s**2)
        z = model.to_frequency(y)
        distance = ((z[:, None] - model.means) ** 2 * g).flatten(2).sum(2)
        w = (-0.5 * distance).softmax(1)
        mean = torch.einsum("bk,kchw->bchw", w, model.means)
        spread = torch.einsum("bk,kchw->bchw", w, model.means**2) - mean**2
        trace = (model.spectrum * g).sum() + s**2 * (g**2 * spread).flatten(1).sum(1).mean()
        sums.probe_count[level], sums.probe[level] = numbers, trace
    return sums.statistics(0.3, 0.3)


@pytest.fixture(scope="module")
def exact() -> Statistics:
    return exact_statistics()


@LAWS
@pytest.mark.parametrize("derivative", [by_differences, by_forward_mode])
def test_statistics_of_an_exact_mixture(law, derivative, exact):
    """64 images: l has a sampling error below .005 (probes) and s below .04 (latents); allowed is three times that."""
    found = measure(law, images=64, derivative=derivative).statistics(0.3, 0.3)
    assert (found.l - exact.l).abs().max() < 0.015
    inner = slice(3, None)  # at the first levels f hardly varies, and s is noise there
    assert (found.s - exact.s)[inner].abs().max() < 0.12
    assert (found.b - exact.b).abs().max() < 0.03


@LAWS
def test_statistics_from_given_latents(law, exact):
    found = measure(law, references=mixture().sample(64, seed=9)).statistics(0.3, 0.3)
    assert (found.l - exact.l).abs().max() < 0.015
    assert (found.s - exact.s)[3:].abs().max() < 0.12
    assert (found.b - exact.b).abs().max() < 0.03


def test_both_derivatives_find_the_same():
    """With the same signs, what is left is the curvature of D over a tenth of sigma~."""
    one, two = (
        measure(VARIANCE_EXPLODING, images=64, derivative=d).linear_part() for d in (by_differences, by_forward_mode)
    )
    assert (one - two).abs().max() < 0.004


@LAWS
def test_a_measurement_costs_two_calls_a_level_and_four_from_references(law):
    recorded = Recording(GuidedMixture(mixture(), law))
    measure(law, images=2, denoise=recorded)
    assert recorded.calls == 2 * len(LAM)
    assert recorded.sigmas[::2] == pytest.approx(law.sigma(torch.exp(-LAM)).tolist())
    recorded = Recording(GuidedMixture(mixture(), law))
    measure(law, images=2, denoise=recorded, every=3)
    assert recorded.calls == len(LAM) + 9  # every third of 24, and the last
    recorded = Recording(GuidedMixture(mixture(), law))
    measure(law, denoise=recorded, references=mixture().sample(2, seed=0))
    assert recorded.calls == 4 * len(LAM) - 1  # the first level has only one side


def test_levels_above_the_first_are_passed_on():
    sums = Sums.empty(LAM, (1, 1, 1))
    measurement = Measurement(FLOW, Pooling("global", ITEM), sums, signs=lambda level, shape: torch.ones(shape))
    observer = Observer(GuidedMixture(mixture(), FLOW), measurement)
    observer(torch.randn(1, *ITEM).double(), 1.0)
    assert observer.level == 0 and sums.count.sum() == 0


def test_the_slope_along_the_trajectory_is_that_of_the_trajectory():
    """sum of D' by the stencil, against exact AD at the same points."""
    model = mixture()
    points = []

    def watched(x: Tensor, sigma: float) -> Tensor:
        points.append((x, sigma))
        return model.denoise(x, sigma)

    fine = torch.linspace(-2.7, 3.5, 60, dtype=torch.float64)
    sums = measure(VARIANCE_EXPLODING, images=4, denoise=watched, every=100, lam=fine)  # probes: first and last level
    visited = [points[0], *points[2:-1]]
    for level, (y, sigma) in enumerate(visited):
        d, s = model.denoise(y, sigma), torch.tensor(sigma).double()
        way = (d - y, torch.ones_like(s))
        slope = torch.func.jvp(lambda y, lam: model.denoise(y, torch.exp(-lam)), (y, -torch.log(s)), way)[1]
        got, want = sums.second[level, 5].item(), slope.square().sum().item()
        assert got == pytest.approx(want, rel=0.03, abs=0.01), level


def test_stencil_weights_differentiate_polynomials():
    lam = torch.tensor([-1.0, -0.3, 0.2, 0.9, 1.5]).double()
    for place in range(5):
        weights = slope_weights(lam, place)
        assert (weights * (lam**4 - 2 * lam)).sum() == pytest.approx(4 * lam[place].item() ** 3 - 2, abs=1e-9)


@pytest.mark.parametrize("kind", ["global", "channel", "spectral", "pixel"])
def test_a_total_is_the_sum_over_what_is_pooled(kind):
    pooling = Pooling(kind, ITEM)
    z = torch.randn((3, *ITEM), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    total = pooling.total(z)
    assert total.shape == torch.Size(pooling.features)
    assert total.sum().item() == pytest.approx(z.sum().item())
    assert pooling.numbers.sum().item() == math.prod(ITEM)
    torch.testing.assert_close(pooling.inverse(pooling.forward(z)), z)


def test_bands_go_from_low_to_high_frequencies():
    pooling = Pooling("spectral", ITEM)
    flat = pooling.total(pooling.forward(torch.ones(1, *ITEM).double()).square()).flatten()
    assert flat[0] == pytest.approx(math.prod(ITEM)) and flat[1:].abs().max() < 1e-9
    checkers = (torch.arange(8)[:, None] + torch.arange(8)) % 2 * 2.0 - 1
    fine = pooling.total(pooling.forward(checkers.expand(1, *ITEM).double()).square()).flatten()
    assert fine[BANDS // 2 :].sum() > 0.9 * fine.sum()


def test_pooling_of_packed_and_video_latents():
    assert Pooling("channel", (1, 500)).features == (1, 1, 1)
    assert Pooling("global", (1, 500)).total(torch.ones(2, 1, 500)).item() == 1000
    with pytest.raises(ValueError, match="packed.*Set pooling to channel or global"):
        Pooling("spectral", (1, 500))
    video = Pooling("pixel", (2, 3, 4, 5))
    assert video.total(torch.ones(2, 2, 3, 4, 5)).unique().tolist() == [6.0]
    with pytest.raises(ValueError, match="pooling is 'all'; choose one of global"):
        Pooling("all", ITEM)


@pytest.mark.parametrize("cfg, calls, most", [(1.0, 5, 0.3), (7.5, 5, 0.5), (7.5, 8, 0.5)])
def test_measured_statistics_at_least_halve_the_error_without(cfg, calls, most):
    """The point of it all, with guidance on and other seeds than those of the measurement."""
    model = picture_like()
    labels = torch.arange(16) % 8
    denoise = GuidedMixture(model, VARIANCE_EXPLODING, labels, cfg)
    generator = torch.Generator().manual_seed(1)
    pooling = Pooling("global", (4, 16, 16))
    sums = Sums.empty(LAM, pooling.features)
    measurement = Measurement(
        VARIANCE_EXPLODING,
        pooling,
        sums,
        lambda level, shape: torch.randint(0, 2, shape, generator=generator) * 2.0 - 1,
    )
    observer = Observer(denoise, measurement)
    sigmas = torch.exp(-LAM)
    solver = DPMSolverV3(VARIANCE_EXPLODING, options=Options(order=3, corrector="off", last_step="denoised"))
    noise = torch.randn((2, 16, 4, 16, 16), generator=generator, dtype=torch.float64)
    solver(observer, sigmas[0] * noise[0], torch.cat([sigmas, sigmas.new_zeros(1)]))
    observer.finish()
    fine = torch.cat([torch.exp(-torch.linspace(-2.7, 6, 400)).double(), torch.zeros(1).double()])
    end = solver(denoise, sigmas[0] * noise[1], fine)
    grid = torch.linspace(15 ** (1 / 7), 0.03 ** (1 / 7), calls).double() ** 7
    grid = torch.cat([sigmas[:1], grid[1:], torch.zeros(1).double()])
    errors = []
    for table in (sums.statistics(0.3, 0.3), Statistics.data_prediction()):
        drawn = DPMSolverV3(VARIANCE_EXPLODING, table)(denoise, sigmas[0] * noise[1], grid)
        errors.append((drawn - end).square().mean().item())
    assert errors[0] < most * errors[1]
