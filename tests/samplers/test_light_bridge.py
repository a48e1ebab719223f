"""The light Schroedinger bridge: the closed form between Gaussians, its marginals, and sets that are apart."""

from __future__ import annotations

import math

import pytest
import torch
from fewstep.samplers.light_bridge import LightBridge, energy_distance, fit, slope_between


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def exactly(count: int, mean: list[float], variance: list[float], seed: int = 0) -> torch.Tensor:
    """Codes whose sample mean and covariance are these to the last digit, so that the fit has nothing to average."""
    drawn = noise(count, len(mean), seed=seed)
    drawn = drawn - drawn.mean(0)
    root = torch.linalg.cholesky(drawn.T @ drawn / count)
    return torch.linalg.solve_triangular(root, drawn.T, upper=False).T * torch.tensor(
        variance
    ).double().sqrt() + torch.tensor(mean)


def uniform(count: int, seed: int = 9) -> torch.Tensor:
    return torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


MEANS = [0.5, -2.0, 3.0], [1.0, 4.0, -1.0]
VARIANCES = [1.0, 0.25, 4.0], [0.5, 2.0, 1.0]


@pytest.mark.parametrize("eps", [0.05, 1.0, 10.0])
def test_between_gaussians_it_is_the_known_plan(eps):
    """Entropic transport of N(m, a) to N(n, b): covariance c = (sqrt(eps^2 + 4 ab) - eps) / 2, y | x linear in x."""
    x, y = (
        exactly(200, mean, variance, seed) for seed, (mean, variance) in enumerate(zip(MEANS, VARIANCES, strict=True))
    )
    bridge = fit(x, y, 1, eps)
    a, b = (torch.tensor(variance).double() for variance in VARIANCES)
    c = ((eps**2 + 4 * a * b).sqrt() - eps) / 2
    expected = torch.tensor(MEANS[1]).double() + c / a * (x - torch.tensor(MEANS[0]).double())
    torch.testing.assert_close(bridge.mean(x), expected, rtol=0, atol=5e-3)
    torch.testing.assert_close((eps * bridge.log_slopes.exp())[0], b - c**2 / a, rtol=0.01, atol=0)


def test_the_plan_is_where_the_loss_is_least():
    """As the fit begins at it between Gaussians, whose test would pass without any descent."""
    x, y = (
        exactly(200, mean, variance, seed) for seed, (mean, variance) in enumerate(zip(MEANS, VARIANCES, strict=True))
    )
    right = fit(x, y, 1, 0.5)
    worse = [LightBridge(0.5, right.log_a, right.centres + 0.1 * d, right.log_slopes) for d in noise(5, 1, 3, seed=4)]
    worse += [LightBridge(0.5, right.log_a, right.centres, right.log_slopes + 0.2 * sign) for sign in (1, -1)]
    best = float(right.loss(x, y))
    assert all(float(one.loss(x, y)) > best + 1e-4 for one in worse)


def test_a_mixture_is_reached_in_its_marginal():
    """Two clouds to three: drawn codes are distributed as the second set, and each keeps near to where it was."""
    x = torch.cat(
        [noise(150, 2) * 0.3 + torch.tensor([0.0, 2.0]), noise(150, 2, seed=1) * 0.3 - torch.tensor([0, 2.0])]
    )
    parts = [noise(100, 2, seed=n) * 0.25 + torch.tensor([3.0, 2.0 * n]) for n in (-1, 0, 1)]
    y = torch.cat(parts)
    bridge = fit(x, y, 5, 0.1)
    drawn = bridge.draw(x, uniform(len(x)), noise(len(x), 2, seed=7))
    assert energy_distance(drawn, y) < 0.03 and energy_distance(x, y) > 1
    upper = x[:, 1] > 0
    assert float(drawn[upper, 1].mean() - drawn[~upper, 1].mean()) > 2


def test_draws_have_the_mean_that_is_said_and_the_noise():
    bridge = LightBridge(0.2, torch.tensor([0.0, -1.0]).double(), noise(2, 3), 0.3 * noise(2, 3, seed=1))
    x = noise(1, 3, seed=2).expand(200_000, 3)
    drawn = bridge.draw(x, uniform(len(x)), noise(len(x), 3, seed=3))
    torch.testing.assert_close(drawn.mean(0), bridge.mean(x)[0], rtol=0, atol=0.01)


def test_rare_components_are_drawn_as_often_as_they_should():
    """In float64, by the inverse of the distribution: a weight of 1e-9 is neither lost nor doubled."""
    log_a = torch.tensor([0.0, math.log(1e-9)]).double()
    bridge = LightBridge(1.0, log_a, torch.tensor([[0.0], [50.0]]).double(), torch.zeros(2, 1).double())
    x, below = torch.zeros(2, 1).double(), torch.tensor([1 - 2e-9, 1 - 0.5e-9], dtype=torch.float64)
    assert bridge.draw(x, below, torch.zeros(2, 1).double()).flatten().tolist() == [0.0, 50.0]


def test_far_apart_and_with_hardly_any_noise_there_is_no_overflow():
    x, y = noise(20, 4) * 100, noise(20, 4, seed=1) * 1e-3 + 500
    bridge = fit(x, y, 4, 1e-3, 50)
    assert bridge.draw(x, uniform(20), noise(20, 4)).isfinite().all()


@pytest.mark.parametrize("count", [1, 3])
def test_few_codes_do_not_close_around_one(count):
    y = noise(count, 4)
    bridge = fit(noise(2, 4, seed=3), y, 3, 0.1, 300)
    deviation = (0.1 * bridge.log_slopes.exp()).sqrt()
    assert (deviation >= 0.0999 * y.std(0, correction=0)).all() and bridge.centres.isfinite().all()


def test_it_can_be_stopped():
    class Stopped(Exception): ...

    def stop(step: int) -> None:
        if step == 3:
            raise Stopped

    with pytest.raises(Stopped):
        fit(noise(5, 2), noise(5, 2, seed=1), 2, 0.1, on_step=stop)


def test_the_slope_between_gaussians_tends_to_transport_and_to_independence():
    a, b = torch.tensor(4.0).double(), torch.tensor(1.0).double()
    assert float(slope_between(a, b, 1e-9)) == pytest.approx(0.5)
    assert float(slope_between(a, b, 1e6)) < 1e-5
