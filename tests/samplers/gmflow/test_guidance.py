"""Probabilistic guidance: what it promises, and where the authors' quotient breaks its promise."""

import pytest
import torch
from fewstep.samplers.gmflow.guidance import Earlier, Prediction, extrapolated, guided, second_order
from fewstep.samplers.gmflow.mixture import Gaussian, Mixture, mean, moments, times_gaussian
from support.gmflow import assert_same, item, normal, random_mixture

SHAPE = (2, 4, 5, 3)


def bias_of(prediction: Prediction) -> torch.Tensor:
    assert prediction.bias is not None
    return prediction.bias


def rms(x: torch.Tensor) -> torch.Tensor:
    return x.square().mean((1, 2, 3)).sqrt()


@pytest.mark.parametrize("orthogonal", [0.0, 1.0])
def test_the_bias_has_the_size_that_the_strength_says(orthogonal):
    prediction = guided(random_mixture(SHAPE, 3), random_mixture(SHAPE, 3, seed=1), 0.4, orthogonal)
    torch.testing.assert_close(rms(bias_of(prediction)), 0.4 * prediction.spread.flatten().sqrt())


def test_the_bias_is_orthogonal_to_the_mean():
    cond = random_mixture(SHAPE, 3)
    along = [
        (bias_of(guided(cond, random_mixture(SHAPE, 3, seed=1), 0.4, share)) * mean(cond)).sum().abs().item()
        for share in (0.0, 1.0)
    ]
    assert along[0] > 0.1 and along[1] < 1e-12


def test_one_component_becomes_exactly_the_gaussian_aimed_at():
    cond, strength = random_mixture(SHAPE, 1), 0.6
    prediction = guided(cond, random_mixture(SHAPE, 1, seed=1), strength)
    found = moments(prediction.mixture)
    torch.testing.assert_close(found.mean, mean(cond) + bias_of(prediction))
    torch.testing.assert_close(found.var, (cond.var * (1 - strength**2)).expand_as(found.var))


def low_noise(sigma: float) -> tuple[Mixture, Mixture]:
    """Two mixtures of one component whose deviation is 0.45 sigma, around pictures that differ by as little."""
    picture, other = normal((1, 4, 8, 8), 0), normal((1, 4, 8, 8), 1)
    logstds = torch.full((1, 1, 1, 1, 1), 0.45 * sigma, dtype=torch.float64).log()
    weights = torch.zeros(1, 1, 1, 8, 8, dtype=torch.float64)
    return Mixture(picture[:, None], weights, logstds), Mixture((picture + sigma * other)[:, None], weights, logstds)


def amplitude(mixture: Mixture, picture: torch.Tensor) -> float:
    """How much of the picture is left in the mean."""
    return ((mean(mixture) * picture).sum() / picture.square().sum()).item()


def authors_quotient(prediction: Prediction) -> Mixture:
    """The mask as a Gaussian, its mean and variance over a denominator that is held above 1e-6."""
    wide, share = prediction.spread, prediction.strength**2
    narrow = wide * (1 - share)
    denominator = (wide - narrow).clamp(min=1e-6)
    aim = prediction.centre + bias_of(prediction)
    mask = Gaussian((wide * aim - narrow * prediction.centre) / denominator, wide * narrow / denominator)
    return times_gaussian(prediction.conditional, mask)


@pytest.mark.parametrize("sigma, theirs", [(0.0078, 0.93), (0.002, 0.45)])
def test_no_amplitude_is_lost_at_low_noise(sigma, theirs):
    prediction = guided(*low_noise(sigma), strength=0.04)
    picture = prediction.centre
    assert amplitude(authors_quotient(prediction), picture) == pytest.approx(theirs, abs=0.01)
    assert amplitude(prediction.mixture, picture) == pytest.approx(1, abs=1e-4)


def test_above_the_authors_clamp_the_quotient_is_the_same():
    prediction = guided(random_mixture(SHAPE, 3), random_mixture(SHAPE, 3, seed=1), 0.3)
    assert_same(prediction.mixture, authors_quotient(prediction), 1e-9)


def test_float32_follows_float64_at_low_noise():
    exact = guided(*low_noise(0.002), strength=0.04).mixture
    single = [Mixture(m.means.float(), m.logweights.float(), m.logstds.float()) for m in low_noise(0.002)]
    assert_same(guided(single[0], single[1], strength=0.04).mixture, as_single(exact), 1e-5)


def as_single(m: Mixture) -> Mixture:
    return Mixture(m.means.float(), m.logweights.float(), m.logstds.float())


def test_prompts_that_agree_give_no_bias():
    cond = random_mixture(SHAPE, 3)
    assert bias_of(guided(cond, cond, 0.5)).abs().max() == 0


@pytest.mark.parametrize("strength", [-0.1, 1.0, float("nan")])
def test_a_strength_out_of_range_is_told(strength):
    with pytest.raises(ValueError, match="at least 0 and below 1"):
        guided(random_mixture(SHAPE, 2), random_mixture(SHAPE, 2), strength)


@pytest.mark.parametrize("shape", [(2, 4, 5, 3), (2, 4, 3, 2, 5), (2, 3, 7)])
def test_an_item_does_not_depend_on_its_batch_at_any_shape(shape):
    cond, uncond = random_mixture(shape, 3), random_mixture(shape, 3, seed=1)
    earlier = Earlier(normal(shape, 2), 0.9)
    whole = second_order(guided(cond, uncond, 0.3), earlier, 0.4, corrections=1)
    for i in range(2):
        alone = guided(item(cond, i), item(uncond, i), 0.3)
        single = second_order(alone, Earlier(earlier.expected[i : i + 1], 0.9), 0.4, corrections=1)
        assert_same(item(whole, i), single, 1e-12)


# ---------------------------------------------------------------------------------------------------------
# Second order


def test_the_mean_is_extrapolated_by_half_the_difference():
    """At a mixture of one narrow component and equal steps: arXiv 2504.05304 section A.2, (mu+ - mu-) / 2."""
    cond = random_mixture(SHAPE, 1)
    narrow = Mixture(cond.means, cond.logweights, cond.logstds - 4)
    step = 1e-4 * normal(SHAPE, 3)
    found = second_order(Prediction(narrow), Earlier(mean(narrow) - step, 0.5), 0.5)
    torch.testing.assert_close(mean(found), mean(narrow) + step / 2, rtol=0, atol=1e-6)


def test_a_wide_mixture_is_not_extrapolated():
    cond = random_mixture(SHAPE, 1)
    wide = Mixture(cond.means, cond.logweights, cond.logstds + 4)
    found = second_order(Prediction(wide), Earlier(mean(wide) - 1, 0.1), 0.1)
    torch.testing.assert_close(mean(found), mean(wide))


def test_a_bias_at_low_noise_is_not_shrunk():
    """The authors' floor of 1e-6 on its square would leave a tenth of it."""
    cond = random_mixture(SHAPE, 1)
    narrow = Mixture(cond.means, cond.logweights, torch.full_like(cond.logstds, 1e-4).log())
    step = 1e-5 * normal(SHAPE, 3)
    bias, _ = extrapolated(Prediction(narrow), Earlier(mean(narrow) - step, 0.01), 0.01)
    torch.testing.assert_close(bias, step / 2, rtol=1e-4, atol=1e-9)


def test_the_bias_never_exceeds_the_spread():
    prediction = guided(random_mixture(SHAPE, 3), random_mixture(SHAPE, 3, seed=1), 0.3)
    bias, share = extrapolated(prediction, Earlier(normal(SHAPE, 4) * 50, 1.0), 1.0)
    torch.testing.assert_close(rms(bias), prediction.spread.flatten().sqrt())
    assert (share < 1).all()
