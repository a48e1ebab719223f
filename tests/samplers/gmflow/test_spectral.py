"""Spectral sampling: fields with the spectrum asked for, at any size, carried to the mixture and back."""

import math

import pytest
import torch
from fewstep.samplers.gmflow.mixture import Gaussian, Mixture, log_prob, moments
from fewstep.samplers.gmflow.solver import GMFlow
from fewstep.samplers.gmflow.spectral import (
    SpectralDraw,
    coloured,
    fitted,
    from_gaussian,
    hartley,
    principal_axes,
    statistics,
    to_gaussian,
)
from support.gmflow import Exact, Guided, item, normal, random_mixture, tiny_gmdit, tiny_spectrum

SIZES = [(8, 8), (6, 5), (5, 7), (1, 3), (4, 1)]


@pytest.mark.parametrize("size", SIZES)
def test_hartley_is_orthogonal_and_its_own_inverse(size):
    x, y = normal((2, 3, *size), 0), normal((2, 3, *size), 1)
    torch.testing.assert_close(hartley(hartley(x)), x)
    torch.testing.assert_close((hartley(x) * hartley(y)).sum(), (x * y).sum())


@pytest.mark.parametrize("size", SIZES)
def test_a_flat_spectrum_leaves_white_noise_white(size):
    field = coloured(normal((4000, 1, *size), 0), torch.zeros(4000, 1, *size))
    covariance = field.flatten(1).T.cov()
    torch.testing.assert_close(covariance, torch.eye(math.prod(size)).double(), rtol=0, atol=0.15)


def test_a_red_spectrum_ties_neighbours_and_keeps_the_variance():
    base = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    base[..., 0, 0] = 4
    base[..., 0, 1] = base[..., 1, 0] = base[..., 0, -1] = base[..., -1, 0] = 3
    log_power = fitted(base, 8, 8)
    field = coloured(normal((4000, 1, 8, 8), 0), log_power.expand(4000, -1, -1, -1))
    assert field.var().item() == pytest.approx(1, abs=0.05)
    assert (field[..., 1:] * field[..., :-1]).mean() > 0.4


@pytest.mark.parametrize("height, width", [(64, 48), (40, 24), (33, 31), (7, 96)])
def test_a_spectrum_for_larger_sizes_has_mean_power_one_and_the_same_slope(height, width):
    """Larger than it was trained at, a spectrum keeps its shape in cycles per pixel; smaller, its low frequencies."""
    rows, columns = torch.fft.fftfreq(32, dtype=torch.float64)[:, None], torch.fft.fftfreq(32, dtype=torch.float64)
    base = -20 * (rows.abs() + columns.abs()).expand(1, 2, 32, 32)
    log_power = fitted(base, height, width)
    torch.testing.assert_close(log_power.exp().mean((2, 3)), torch.ones(1, 2).double())
    kept = [torch.fft.fftfreq(n, dtype=torch.float64).abs() * min(n, 32) / 32 for n in (height, width)]
    expected = -20 * (kept[0][:, None] + kept[1])
    found = log_power[0, 0] - log_power[0, 0, 0, 0]
    torch.testing.assert_close(found, expected, rtol=0, atol=0.7)  # half a bin of 20 / 32, at the highest frequency


@pytest.mark.parametrize("shape", [(2, 4, 5, 3), (2, 4, 3, 2, 5), (2, 1, 6), (2, 2, 3, 3)])
def test_knothe_rosenblatt_there_and_back(shape):
    gm = random_mixture(shape, 3)
    axes, z = principal_axes(gm), normal(shape, 1).clamp(-3, 3)
    torch.testing.assert_close(to_gaussian(gm, from_gaussian(gm, z, axes), axes), z, rtol=0, atol=1e-4)


def test_knothe_rosenblatt_carries_the_gaussian_to_the_mixture():
    """By the densities: log N(z) = log q(x) + log |dx/dz|."""
    gm, z = random_mixture((1, 3, 1), 3), normal((1, 3, 1), 1)
    axes = principal_axes(gm)
    jacobian = torch.autograd.functional.jacobian(
        lambda v: from_gaussian(gm, v.view(1, 3, 1), axes).flatten(), z.flatten()
    )
    expected = -z.square().sum() / 2 - 1.5 * math.log(2 * math.pi)
    found = log_prob(gm, from_gaussian(gm, z, axes)).sum() + torch.linalg.slogdet(jacobian)[1]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_axes_have_signs_that_do_not_depend_on_the_solver(monkeypatch):
    gm = random_mixture((3, 4, 5, 3), 3)
    axes, eigh = principal_axes(gm), torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda matrix: (eigh(matrix)[0], -eigh(matrix)[1]))
    torch.testing.assert_close(principal_axes(gm), axes, rtol=0, atol=0)
    torch.testing.assert_close(axes.mT @ axes, torch.eye(4).double().expand(3, 4, 4))


@pytest.mark.parametrize("shape", [(1000, 4, 6, 7), (500, 4, 3, 6, 7)])
def test_a_draw_has_the_moments_of_the_mixture(shape):
    """Images of an odd width, and videos."""
    law = random_mixture((1, *shape[1:]), 3)
    many = Mixture(*(t.expand(shape[0], *t.shape[1:]) for t in (law.means, law.logweights, law.logstds)))
    drawn = SpectralDraw(tiny_spectrum().double())(many, lambda: normal(shape, 2))
    expected = moments(law)
    torch.testing.assert_close(drawn.mean(0), expected.mean[0], rtol=0, atol=0.3)
    variance = drawn.var(0).mean(0, keepdim=True)
    assert (variance / expected.var[0]).mean().item() == pytest.approx(1, abs=0.03)


def test_a_draw_does_not_depend_on_its_batch():
    gm, white = random_mixture((2, 4, 5, 7), 3, dtype=torch.float32), normal((2, 4, 5, 7), 1, torch.float32)
    draw = SpectralDraw(tiny_spectrum())
    alone = draw(item(gm, 1), lambda: white[1:])
    torch.testing.assert_close(draw(gm, lambda: white)[1:], alone, rtol=0, atol=1e-4)


@pytest.mark.parametrize("pixels, across", [(1, 0.0), (2, 2.0), (3, 4.0)])
def test_a_spectrum_depends_on_the_variances_within_and_between_pixels(pixels, across):
    """Of 0, 2, 4: the unbiased one, and none where there is one pixel only."""
    mean = torch.stack([2 * torch.arange(pixels), torch.zeros(pixels)]).view(1, 2, 1, pixels).double()
    found = statistics(Gaussian(mean, torch.tensor([0.3]).double().view(1, 1, 1, 1)))
    assert found.tolist() == [[pytest.approx(0.3), pytest.approx(across / 2)]]


def test_a_single_pixel_has_a_draw():
    gm = random_mixture((2, 4, 1, 1), 3, dtype=torch.float32)
    assert SpectralDraw(tiny_spectrum())(gm, lambda: normal((2, 4, 1, 1), 1, torch.float32)).isfinite().all()


def test_a_spectrum_of_another_latent_is_told():
    with pytest.raises(ValueError, match="of 4 channels; this latent has 3"):
        SpectralDraw(tiny_spectrum().double())(random_mixture((2, 3, 5, 7), 3), lambda: normal((2, 3, 5, 7), 1))


def test_in_the_solver_at_a_size_beyond_the_spectrum():
    x = normal((2, 4, 9, 11), 0, torch.float32)
    solver = GMFlow("sde", draw=SpectralDraw(tiny_spectrum()))
    predict = Guided(tiny_gmdit(), torch.tensor([3, 7]), 0.3)
    noise = iter(normal((20, *x.shape), 1, torch.float32))
    end = solver(predict, x, torch.linspace(1, 0, 4), noise=lambda *_: next(noise))
    assert end.shape == x.shape and end.isfinite().all()


def test_neighbours_hang_together_in_the_solver():
    """One step with a red spectrum, on a law that is the same at every pixel."""
    point = random_mixture((1, 2, 1, 1), 3)
    law = Mixture(point.means.expand(1, 3, 2, 8, 8), point.logweights.expand(1, 3, 1, 8, 8), point.logstds)
    x = torch.zeros(500, 2, 8, 8, dtype=torch.float64)
    red = torch.zeros(1, 2, 8, 8, dtype=torch.float64)
    red[..., 0, 0] = 9
    ties = []
    for draw in (SpectralDraw(lambda statistics: red.expand(len(statistics), -1, -1, -1)), GMFlow("sde").draw):
        noise = iter(normal((3, *x.shape), 1))
        end = GMFlow("sde", 1, draw=draw, sample_last=True)(
            Exact(law), x, torch.tensor([1.0, 0.0]), noise=lambda *_, noise=noise: next(noise)
        )
        centred = end - end.mean()
        ties.append(((centred[..., 1:] * centred[..., :-1]).mean() / centred.square().mean()).item())
    assert ties[0] > 0.8 and abs(ties[1]) < 0.2
