"""Pixels and frequencies: orthonormal, one result for one table, and where the coefficients go."""

from __future__ import annotations

import pytest
import torch
from fewstep.samplers.dpm_solver_v3 import DPMSolverV3, Options, Statistics, basis_for
from fewstep.samplers.dpm_solver_v3.bases import (
    POINTS_PER_BAND,
    band_position,
    between_bands,
    dct_matrix,
    to_frequencies,
    to_pixels,
)
from fewstep.samplers.noise_law import VARIANCE_EXPLODING
from support.mixture import GuidedMixture, Mixture, picture_like
from torch import Tensor

RATIOS = torch.logspace(1, -1, 6, dtype=torch.float64)


def table(*features: int) -> Statistics:
    generator = torch.Generator().manual_seed(3)
    l, s, b = torch.rand((3, 9, *features), generator=generator, dtype=torch.float64)  # noqa: E741
    return Statistics(torch.linspace(-3, 3, 9), l, s - 1, b / 5)


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


# ---------------------------------------------------------------------------------------------------------
# The transform


@pytest.mark.parametrize("shape", [(2, 3, 8, 12), (1, 2, 5, 9, 16)], ids=["picture", "video"])
def test_the_dct_is_orthonormal(shape):
    x = noise(*shape)
    z = to_frequencies(x)
    torch.testing.assert_close(to_pixels(z), x, rtol=0, atol=1e-13)
    torch.testing.assert_close(z.square().sum((-2, -1)), x.square().sum((-2, -1)))
    constant = to_frequencies(torch.ones(shape, dtype=torch.float64))
    assert constant[..., 0, 0].allclose(torch.tensor(float(shape[-1] * shape[-2])).double().sqrt())
    assert constant.flatten(-2)[..., 1:].abs().max() < 1e-13


def test_white_noise_stays_white():
    """Covariance of 20,000 draws of 4 x 4: the identity within 5 standard errors."""
    z = to_frequencies(noise(20000, 1, 4, 4)).flatten(1)
    covariance = z.T @ z / len(z)
    assert ((covariance - torch.eye(16)).abs() / (1 + torch.eye(16)).sqrt()).max() < 5 / 20000**0.5


def test_the_matrices_are_made_once_and_outlive_inference_mode():
    with torch.inference_mode():
        matrix = dct_matrix(11, torch.float32, torch.device("cpu"))
    assert dct_matrix(11, torch.float32, torch.device("cpu")) is matrix
    assert not matrix.is_inference() and matrix.dtype == torch.float32


# ---------------------------------------------------------------------------------------------------------
# Bands


def test_bands_are_those_of_the_frequency_whatever_the_size_and_the_shape():
    small, large, wide = band_position(8, 8, 5), band_position(16, 16, 5), band_position(8, 16, 5)
    torch.testing.assert_close(large[::2, ::2], small)
    torch.testing.assert_close(wide[:, ::2], small)
    torch.testing.assert_close(band_position(16, 8, 5), wide.T)
    assert small[0, 0] == 0 and 3.5 < small[-1, -1] < 4 and (small.diff(dim=0) > 0).all()
    assert band_position(4, 4, 1).eq(0).all()


def test_the_table_is_interpolated_between_bands_and_the_latents_frequencies_find_their_point():
    statistics = table(2, 3)
    fine = between_bands(statistics)
    assert fine.features == (2, 2 * POINTS_PER_BAND + 1)
    torch.testing.assert_close(fine.l[..., ::POINTS_PER_BAND], statistics.l)
    half = POINTS_PER_BAND // 2
    torch.testing.assert_close(fine.s[..., half], (statistics.s[..., 0] + statistics.s[..., 1]) / 2)
    placed = basis_for(statistics, (2, 6, 10)).place(fine.b)
    assert placed.shape == (9, 2, 6, 10)
    smallest_step = 1 / POINTS_PER_BAND
    position = band_position(6, 10, 3)
    lower = position.floor().long().clamp(max=1)
    exact = statistics.b[..., lower].lerp(statistics.b[..., lower + 1], position - lower)
    steepest = statistics.b.diff(dim=-1).abs().max()
    assert (placed - exact).abs().max() <= steepest * smallest_step / 2 + 1e-12


# ---------------------------------------------------------------------------------------------------------
# The solver in a basis


@pytest.mark.parametrize("options", [Options(3), Options(3, pseudo_corrector=True), Options(2, "off")])
def test_a_table_for_all_frequencies_alike_is_the_one_for_all_pixels_alike(options):
    mixture = picture_like(channels=2, size=8, components=6)
    pixels = table(2, 1, 1)
    spectral = Statistics(pixels.lam, *(t.expand(9, 2, 1, 3)[..., 0, :] for t in (pixels.l, pixels.s, pixels.b * 0)))
    pixels = Statistics(pixels.lam, pixels.l, pixels.s, pixels.b * 0)  # a bias is no constant in the other basis
    ends = [
        DPMSolverV3(VARIANCE_EXPLODING, statistics, options)(
            GuidedMixture(mixture, VARIANCE_EXPLODING), 10 * noise(2, 2, 8, 8), RATIOS
        )
        for statistics in (pixels, spectral)
    ]
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-11, atol=1e-11)


def test_spectral_statistics_of_a_gaussian_leave_less_error_than_any_global_ones():
    """Of N(0, P_f) l is s^2 / (P_f + s^2) at the frequency f, which leaves no f at all; their mean leaves some."""
    full = picture_like(channels=1, size=8)
    gaussian = Mixture(full.means[:1] * 0, full.spectrum, full.classes[:1])
    lam = torch.linspace(-3, 4, 141, dtype=torch.float64)
    ratio = torch.exp(-lam)[:, None, None]
    power = gaussian.spectrum[0]
    l_frequency = ratio**2 / (power + ratio**2)
    x = 10 * noise(2, 1, 8, 8)
    scale = ((power + RATIOS[-1] ** 2) / (power + RATIOS[0] ** 2)).sqrt()
    exact = to_pixels(scale * to_frequencies(x))
    errors = {}
    bands = 12
    band = band_position(8, 8, bands).round().long().flatten()
    used = torch.zeros(bands, dtype=torch.float64).index_add(0, band, torch.ones(64, dtype=torch.float64))
    sums = torch.zeros(141, bands, dtype=torch.float64).index_add(1, band, l_frequency.flatten(1))
    by_band = sums / used.clamp(min=1)
    by_band[:, used == 0] = 1
    for name, l in (("global", l_frequency.mean((1, 2)).view(-1, 1, 1, 1)), ("spectral", by_band[:, None])):  # noqa: E741
        statistics = Statistics(lam, l, torch.zeros_like(l), torch.zeros_like(l))
        solver = DPMSolverV3(VARIANCE_EXPLODING, statistics, Options(2, "off"))
        end = solver(GuidedMixture(gaussian, VARIANCE_EXPLODING), x, RATIOS)
        errors[name] = (end - exact).square().mean().item()
    assert errors["spectral"] < errors["global"] / 3


def test_video_latents_have_the_statistics_of_a_frame_in_every_frame():
    """Every basis: a video of equal frames is the picture, frame by frame."""
    denoise_picture = GuidedMixture(picture_like(channels=2, size=8, components=6), VARIANCE_EXPLODING)
    x = 10 * noise(1, 2, 8, 8)

    def denoise_video(x: Tensor, sigma: float) -> Tensor:
        return torch.stack([denoise_picture(frame, sigma) for frame in x.unbind(2)], 2)

    for statistics in (table(1, 1, 1), table(2, 1, 1), table(2, 8, 8), table(1, 4), table(2, 4)):
        solver = DPMSolverV3(VARIANCE_EXPLODING, statistics, Options(2))
        picture = solver(denoise_picture, x, RATIOS)
        video = solver(denoise_video, x[:, :, None].expand(-1, -1, 3, -1, -1), RATIOS)
        torch.testing.assert_close(video, picture[:, :, None].expand_as(video), rtol=1e-11, atol=1e-11)


def test_latents_without_rows_and_columns_have_channels():
    statistics = table(4, 1, 1)
    basis = basis_for(statistics, (4, 32))
    assert torch.equal(basis.place(statistics.l), statistics.l.view(9, 4, 1))


@pytest.mark.parametrize(
    "features, item, words",
    [
        ((4, 1, 1), (16, 8, 8), "of 4 channels; this latent has 16"),
        ((4, 5), (16, 8, 8), "of 4 channels; this latent has 16"),
        ((4, 8, 8), (4, 8, 16), "per pixel at 8 x 8; this latent is 8 x 16"),
        ((4, 8, 8), (4, 64), "per pixel at 8 x 8; this latent is 64"),
        ((1, 5), (64, 32), "rows and columns; this one is 64 x 32. Pool them by channel"),
    ],
)
def test_statistics_of_another_latent_are_refused_in_words(features, item, words):
    with pytest.raises(ValueError, match=words):
        basis_for(table(*features), item)
