"""Measurements and the step towards them: adjoints, and on Gaussians the exact posterior."""

from __future__ import annotations

import pytest
import torch
from fewstep.samplers.constraint import Blurred, Grey, Identity, Measurement, Pooled, fitted
from scipy.ndimage import gaussian_filter
from support.inverse import covariance, judged, matrix_of, posterior
from support.mixture import one_gaussian, picture_like

OPERATORS = {
    "inpaint": Identity(),
    "downsample": Pooled(2),
    "grey": Grey((0.3, 0.5, 0.1, 0.4)),
    "blur": Blurred(1.5),
}
EVERY = pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def hole(size: int = 4) -> torch.Tensor:
    """Known around a square, (1, 1, size, size)."""
    weight = torch.ones(1, 1, size, size, dtype=torch.float64)
    weight[..., 1:-1, 1:-1] = 0
    return weight


@EVERY
@pytest.mark.parametrize("frames", [(), (3,)], ids=["picture", "video"])
def test_what_is_spread_is_the_adjoint_of_what_is_measured(operator, frames):
    x = noise(2, 4, *frames, 4, 6)
    y = noise(*operator.measure(x).shape, seed=1)
    both = (operator.measure(x) * y).sum(), (x * operator.spread(y)).sum()
    torch.testing.assert_close(*both)


@EVERY
def test_what_is_restored_is_the_smallest_that_measures_so(operator):
    """A A^+ y = y for what can be measured, and A^+ y has no part that is not measured."""
    x = noise(2, 4, 4, 6)
    y = operator.measure(x)
    restored = operator.restore(y)
    seen = operator.measure(restored)
    if isinstance(operator, Blurred):  # which leaves out what the blur has taken
        assert (operator.restore(seen) - restored).abs().max() < 1e-9
        assert (seen - y).abs().max() < 0.11 * x.abs().max()
        return
    torch.testing.assert_close(seen, y)
    torch.testing.assert_close((restored * (x - restored)).sum(), torch.zeros(()).double(), atol=1e-9, rtol=0)


def test_a_blur_is_a_gaussian_with_mirrored_edges():
    x = noise(1, 1, 16, 12)
    usual = gaussian_filter(x[0, 0].numpy(), 1.5, mode="reflect", truncate=8)
    torch.testing.assert_close(Blurred(1.5).measure(x)[0, 0], torch.from_numpy(usual), rtol=0, atol=2e-3)
    torch.testing.assert_close(Blurred(0.0).measure(x), x)


def of_one_gaussian(weight: torch.Tensor, sigma: float, iterations: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The moved prediction at x = x0 + sigma e, and the exact mean given x and y."""
    mixture = one_gaussian()
    prior, mean = covariance(mixture), mixture.to_pixels(mixture.means).flatten()
    true, x = mixture.sample(1, 3), noise(1, 4, 4, 4, seed=4) * sigma
    after = prior - prior @ torch.linalg.solve(prior + sigma**2 * torch.eye(64), prior)
    denoised = mixture.denoise(x, sigma)
    measurement = Measurement(Identity(), true, weight.expand_as(true))
    jacobian = after / sigma**2
    move = measurement.move(denoised, lambda v: (v.flatten(1) @ jacobian).view_as(v), iterations)
    a = matrix_of(lambda v: v * weight, (4, 4, 4))
    gain = after @ a.T @ torch.linalg.inv(a @ after @ a.T)
    exact = denoised.flatten() + gain @ (a @ (true - denoised).flatten())
    assert mean.isfinite().all()
    return measurement.kept(denoised + move), exact.view_as(denoised)


@pytest.mark.parametrize("sigma", [0.05, 1.0, 20.0])
def test_one_number_known_is_exact_at_once(sigma):
    """Whatever the noise: the length needs no setting."""
    weight = torch.zeros(1, 4, 4, 4, dtype=torch.float64)
    weight[0, 2, 1, 1] = 1
    torch.testing.assert_close(*of_one_gaussian(weight, sigma, 1), rtol=0, atol=1e-8)


@pytest.mark.parametrize("sigma", [0.3, 3.0])
def test_more_iterations_come_nearer_and_all_of_them_are_exact(sigma):
    errors = []
    for iterations in (1, 2, 4, 8, 60):
        moved, exact = of_one_gaussian(hole(), sigma, iterations)
        errors.append(float((moved - exact).square().mean()))
    assert errors == sorted(errors, reverse=True) and errors[0] > 10 * errors[3] and errors[-1] < 1e-10


def test_each_picture_has_a_length_of_its_own():
    """The published code takes the norm of the batch."""
    measurement = Measurement(Identity(), noise(2, 1, 4, 4), hole().expand(2, 1, 4, 4))
    alone = [Measurement(Identity(), measurement.y[i : i + 1], hole()) for i in range(2)]
    mixing = noise(16, 16, seed=2)
    mixing = mixing @ mixing.T

    def respond(v: torch.Tensor) -> torch.Tensor:
        return (v.flatten(1) @ mixing).view_as(v)

    denoised = noise(2, 1, 4, 4, seed=5) * torch.tensor([1.0, 30.0]).double()[:, None, None, None]
    together = measurement.move(denoised, respond, 3)
    apart = [one.move(denoised[i : i + 1], respond, 3) for i, one in enumerate(alone)]
    torch.testing.assert_close(together, torch.cat(apart))


@pytest.mark.parametrize("iterations", [1, 4])
@pytest.mark.parametrize("kind", ["nothing", "backwards", "askew"])
def test_a_response_that_makes_no_sense_does_no_harm(kind, iterations):
    """Of a network, which is no exact model: the linear prediction is never further from y than it was."""
    matrices = {"nothing": torch.zeros(16, 16), "backwards": -torch.eye(16), "askew": noise(16, 16, seed=3)}
    matrix = matrices[kind].double()
    measurement = Measurement(Identity(), noise(5, 1, 4, 4), hole().expand(5, 1, 4, 4))
    denoised = noise(5, 1, 4, 4, seed=1)
    move = measurement.move(denoised, lambda v: (v.flatten(1) @ matrix).view_as(v), iterations)
    before, after = (measurement.missed(d).flatten(1).norm(dim=1) for d in (denoised, denoised + move))
    assert move.isfinite().all() and (after <= before * (1 + 1e-9)).all()
    assert kind == "askew" or not move.any()


def test_what_is_half_known_is_blended():
    weight = torch.full((1, 1, 2, 2), 0.5).double()
    measurement = Measurement(Identity(), torch.ones(1, 1, 2, 2).double(), weight)
    torch.testing.assert_close(measurement.kept(torch.zeros(1, 1, 2, 2).double()), weight)


def test_weights_at_another_size_keep_their_mean():
    weight = torch.zeros(1, 1, 8, 8)
    weight[..., 4:] = 1
    small = fitted(weight, (2, 2))
    assert small.shape == (1, 1, 2, 2) and float(small.mean()) == pytest.approx(0.5)
    assert float(small[..., 0].max()) < 0.2 and fitted(weight, (8, 8)) is weight


def test_the_instrument_judges_true_draws_as_unbiased():
    """Of one Gaussian, draws of the posterior by their covariance; and wrong ones are noticed."""
    mixture = picture_like(channels=1, size=4, components=1, classes=1)
    a = matrix_of(lambda v: v * hole(), (1, 4, 4))
    true = mixture.sample(1, 0)[0]
    truth, prior = posterior(mixture, a, true), covariance(mixture)
    after = prior - prior @ a.T @ torch.linalg.solve(a @ prior @ a.T, a @ prior)
    values, vectors = torch.linalg.eigh(after)
    draws = truth.mean + (noise(4000, 16) * values.clamp(min=0).sqrt() @ vectors.T).view(-1, 1, 4, 4)
    good, wrong = judged(draws, truth), judged(draws + 0.3, truth)
    assert abs(good.bias) < 0.002 and good.variance == pytest.approx(1, abs=0.05)
    assert wrong.bias == pytest.approx(0.09, abs=0.02)
