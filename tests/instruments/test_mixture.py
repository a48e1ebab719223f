"""The exact test model is exact."""

import pytest
import torch
from support.mixture import dct_matrix, picture_like
from support.recording import Failing


def test_the_denoiser_matches_brute_force_in_pixels():
    """Posterior mean by full covariance matrices, no DCT and no expansion."""
    mixture, s = picture_like(channels=1, size=4, components=5), 0.8
    basis = torch.kron(dct_matrix(4), dct_matrix(4))
    covariance = basis.T @ torch.diag(mixture.spectrum.flatten()) @ basis
    noisy = covariance + s**2 * torch.eye(16, dtype=torch.float64)
    means = mixture.to_pixels(mixture.means).reshape(5, 16)
    y = torch.randn((3, 1, 4, 4), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    d = y.reshape(3, 1, 16) - means
    weights = (-0.5 * torch.einsum("bki,ij,bkj->bk", d, noisy.inverse(), d)).softmax(1)
    posterior = means + d @ (covariance @ noisy.inverse()).T
    expected = torch.einsum("bk,bki->bi", weights, posterior).reshape(3, 1, 4, 4)
    torch.testing.assert_close(mixture.denoise(y, s), expected, rtol=1e-10, atol=1e-10)


def test_samples_have_the_stated_moments():
    mixture = picture_like(size=8)
    x, (mean, variance) = mixture.sample(20000, seed=2), mixture.moments()
    assert ((x.mean(0) - mean).abs() / variance.sqrt()).max() < 5 / 20000**0.5
    assert (x.var(0) / variance - 1).abs().max() < 0.06


def test_the_denoiser_is_the_regression_of_the_clean_picture():
    """E[(x0 - D) D] = 0, and at no noise D is y."""
    mixture = picture_like(size=8)
    x0 = mixture.sample(4000, seed=3)
    y = x0 + 0.7 * torch.randn(x0.shape, generator=torch.Generator().manual_seed(4), dtype=x0.dtype)
    d = mixture.denoise(y, 0.7)
    assert ((x0 - d) * d).mean().abs() < 0.005
    torch.testing.assert_close(mixture.denoise(x0, 1e-6), x0, atol=1e-6, rtol=0)


def test_a_failing_denoiser_fails_where_it_was_told():
    failing = Failing(lambda x, sigma: x, at=1)
    assert failing(torch.ones(2), 1.0).isfinite().all() and failing(torch.ones(2), 1.0).isnan().all()
    with pytest.raises(InterruptedError):
        Failing(lambda x, sigma: x, at=0, error=InterruptedError())(torch.ones(1), 1.0)
