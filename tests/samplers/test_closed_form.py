"""The denoiser of a set of pictures: as written, a gradient, its limits, and which pictures are drawn."""

from __future__ import annotations

import pytest
import torch
from fewstep.samplers.clock import hosts_sigma
from fewstep.samplers.closed_form import AT_ONCE, DRAWS, ClosedForm, PictureSet, latent_scale
from fewstep.samplers.deis import DEIS, SLOPE
from fewstep.samplers.noise_law import FLOW, VARIANCE_EXPLODING
from torch import Tensor

SHAPE = (3, 4, 4)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


PICTURES = randn(12, *SHAPE)


def model(smoothing: float = 0.0, neighbours: int = 0, pictures: Tensor = PICTURES) -> ClosedForm:
    return ClosedForm(pictures, PictureSet(pictures).shifts(smoothing), neighbours)


def at(ratio: float, x: Tensor) -> tuple[Tensor, Tensor]:
    """alpha and deviation of an eps model."""
    return torch.ones(len(x), dtype=x.dtype), torch.full((len(x),), ratio, dtype=x.dtype)


def as_written(x: Tensor, alpha: float, v: float, draws: Tensor) -> Tensor:
    """The paper's: every draw around x by itself, every weight by itself."""
    ends = []
    for item in x:
        moved = item + alpha * draws
        weights = torch.stack([(-(moved - alpha * one).square().flatten(1).sum(1) / (2 * v**2)) for one in PICTURES], 1)
        ends.append(torch.einsum("mn,nchw->chw", weights.softmax(1), PICTURES) / len(draws))
    return torch.stack(ends)


@pytest.mark.parametrize("alpha, v", [(1.0, 14.6), (1.0, 2.0), (1.0, 0.1), (0.3, 0.7), (0.9, 0.1), (0.0, 1.0)])
def test_it_is_the_sum_as_it_is_written(alpha, v):
    x = alpha * PICTURES[:3] + v * randn(3, *SHAPE, seed=1)
    given = torch.full((3,), alpha, dtype=torch.float64), torch.full((3,), v, dtype=torch.float64)
    torch.testing.assert_close(model()(x, *given), as_written(x, alpha, v, torch.zeros(1, *SHAPE)))
    pictures = PictureSet(PICTURES)
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([torch.randn(48, generator=generator) for _ in range(DRAWS)]).double().view(-1, *SHAPE)
    smoothed = as_written(x, alpha, v, 0.7 * pictures.nearest * draws)
    torch.testing.assert_close(model(0.7)(x, *given), smoothed)


def test_every_item_has_its_own_noise():
    x, alpha, v = randn(2, *SHAPE, seed=1), torch.tensor([1.0, 0.4]).double(), torch.tensor([3.0, 0.6]).double()
    together = model(0.5, 5)(x, alpha, v)
    for n in range(2):
        torch.testing.assert_close(model(0.5, 5)(x[n : n + 1], alpha[n : n + 1], v[n : n + 1]), together[n : n + 1])


@pytest.mark.parametrize("smoothing", [0.0, 0.5])
@pytest.mark.parametrize("neighbours", [0, 4])
def test_it_is_the_gradient_of_something_convex(smoothing, neighbours):
    """Its Jacobian is a covariance over v^2: symmetric, no negative eigenvalue."""
    x = PICTURES[:1] + 2 * randn(1, *SHAPE, seed=2)
    jacobian = torch.autograd.functional.jacobian(lambda x: model(smoothing, neighbours)(x, *at(2.0, x)), x)
    matrix = jacobian.reshape(48, 48)
    torch.testing.assert_close(matrix, matrix.T)
    values = torch.linalg.eigvalsh(matrix)
    assert values.min() > -1e-9 and values.max() > 1e-3


def test_with_little_noise_it_is_a_picture_of_the_set():
    x = PICTURES + 0.05 * randn(*PICTURES.shape, seed=3)
    torch.testing.assert_close(model()(x, *at(0.05, x)), PICTURES)
    torch.testing.assert_close(model(neighbours=1)(x, *at(0.05, x)), PICTURES)


def test_with_much_noise_it_is_their_mean():
    x = 1e4 * randn(2, *SHAPE, seed=3)
    torch.testing.assert_close(model()(x, *at(1e6, x)), PICTURES.mean(0).expand(2, -1, -1, -1), atol=1e-2, rtol=0)
    alpha, v = torch.zeros(2), torch.ones(2)  # a flow model at sigma 1
    torch.testing.assert_close(model(0.5)(x, alpha, v), PICTURES.mean(0).expand(2, -1, -1, -1))


def test_smoothed_it_ends_between_pictures_and_the_more_the_smoother():
    """Shares of the end that are not the nearest picture's."""
    x = PICTURES
    shares = []
    for smoothing in (0.0, 0.25, 0.5, 1.0, 3.0):
        weights, _ = model(smoothing).weights(x.flatten(1), PICTURES.flatten(1), *(o[:, None] for o in at(0.01, x)))
        torch.testing.assert_close(weights.sum(1), torch.ones(12, dtype=torch.float64))
        shares.append(1 - float(weights.diagonal().mean()))
    assert shares[0] < 1e-9 and shares[1] < 0.1 < shares[2] < shares[3] < shares[4] < 0.95


def test_neighbours_leave_out_what_hardly_counts_and_nothing_where_they_are_all():
    x = PICTURES[:3] + 2 * randn(3, *SHAPE, seed=4)
    for smoothing in (0.0, 0.3):
        exact = model(smoothing)(x, *at(2.0, x))
        errors = [float((model(smoothing, n)(x, *at(2.0, x)) - exact).abs().max()) for n in (1, 4, 8, 12, 99)]
        assert errors[0] > 2 * errors[1] > 4 * errors[2] > 0 and errors[3:] == [0, 0]
        assert errors[2] < (0.1 if smoothing else 1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_weights_are_right_in_whatever_the_model_runs_in(dtype):
    """Logarithms of weights of large pictures are in the millions, and half precision ends at 65504."""
    pictures = randn(5, 3, 64, 64).to(dtype)
    x = (pictures[:2].double() + 0.03 * randn(2, 3, 64, 64, seed=1)).to(dtype)
    drawn = model(pictures=pictures)(x, *at(0.03, x))
    assert drawn.dtype == dtype and torch.equal(drawn, pictures[:2])


def test_two_that_are_nearly_the_same_are_told_apart_as_far_as_the_noise_allows():
    """In float32, where |x|^2 - 2 <x, x_i> + |x_i|^2 has lost the difference."""
    pictures = randn(2, 3, 64, 64)
    pictures[1] = pictures[0] + 2e-4 * randn(3, 64, 64, seed=1)
    x = pictures[:1] + 0.01 * randn(1, 3, 64, 64, seed=2)
    given = torch.ones(1), torch.full((1,), 0.01)
    (exact,), (found,) = (
        model(pictures=p).weights(y.flatten(1), p.flatten(1), *(o[:, None].to(p) for o in given))[0]
        for p, y in ((pictures, x), (pictures.float(), x.float()))
    )
    assert 0.1 < float(exact[0]) < 0.9 + 0.1 and float((exact - found).abs().max()) < 0.02


def test_more_pictures_than_fit_at_once(monkeypatch):
    whole = model(0.4)(PICTURES, *at(1.0, PICTURES))
    monkeypatch.setattr("fewstep.samplers.closed_form.AT_ONCE", 2 * PICTURES.numel())
    torch.testing.assert_close(model(0.4)(PICTURES, *at(1.0, PICTURES)), whole)
    assert AT_ONCE > 2 * PICTURES.numel()


def test_of_one_picture_or_the_same_ones_there_is_nothing_to_smooth():
    for pictures in (PICTURES[:1], PICTURES[:1].expand(4, -1, -1, -1)):
        assert PictureSet(pictures).nearest == 0 and PictureSet(pictures).shifts(2.0) is None
        torch.testing.assert_close(model(2.0, pictures=pictures)(PICTURES, *at(1.0, PICTURES))[0], PICTURES[0])
    assert latent_scale(0.0, 14.6) == 1.0


@pytest.mark.parametrize("law, top", [(VARIANCE_EXPLODING, 14.6), (FLOW, 1.0)])
def test_at_the_right_scale_every_picture_is_drawn_as_often(law, top):
    """Though they differ in contrast: the least of it would win every time where the first noise is too little."""
    pictures = randn(4, 3, 32, 32) * torch.tensor([0.5, 1.0, 1.5, 2.0]).view(-1, 1, 1, 1)
    sizes = []
    for scale in (1.0, latent_scale(PictureSet(pictures).farthest, 14.6)):
        own = ClosedForm(scale * pictures)

        def denoise(x: Tensor, sigma: float, own=own) -> Tensor:
            given = law.alpha(sigma), law.deviation(sigma)
            return own(x, *(torch.full((len(x),), one, dtype=x.dtype) for one in given))

        ratios = torch.logspace(1.16, -1.5, 16).tolist()
        sigmas = [top, *(law.sigma(ratio) for ratio in ratios[1:]), 0.0]
        solver = DEIS(law, hosts_sigma(law), 1, corrector=False, ends_denoised=True, answers=SLOPE)
        ends = solver(denoise, top * randn(120, 3, 32, 32, seed=5), sigmas)
        distances = torch.cdist(ends.flatten(1), own.pictures.flatten(1))
        assert distances.min(1).values.max() < 1e-3 * distances.mean()
        sizes.append(distances.argmin(1).bincount(minlength=4).tolist())
    assert min(sizes[0]) == 0 and min(sizes[1]) > 12, sizes
