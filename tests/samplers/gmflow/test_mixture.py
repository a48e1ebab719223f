"""The algebra where no recording reaches: chances of draws, temperature, half precision, words for bad input."""

import pytest
import torch
from fewstep.samplers.gmflow.mixture import (
    Mixture,
    Tilt,
    checked,
    choose,
    log_prob,
    mean,
    moments,
    product,
    sample,
    tempered,
    tilt,
    x0_from_u,
)
from support.gmflow import assert_same, normal, random_mixture

SHAPES = [(2, 4, 5, 3), (2, 4, 3, 2, 5), (2, 3, 7)]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_tilt_multiplies_the_density(shape):
    """log q' - log q - log factor is the same number at every x: the normaliser."""
    gm = random_mixture(shape, 3)
    factor = Tilt(normal(shape, 1), normal(shape, 2), torch.full_like(gm.var, 0.7))
    constants = []
    for seed in (3, 4):
        x = normal(shape, seed)
        away = x - factor.centre
        log_factor = (factor.force * away - factor.precision / 2 * away.square()).sum(1)
        constants.append(log_prob(tilt(gm, factor), x) - log_prob(gm, x) - log_factor)
    torch.testing.assert_close(*constants)


def test_a_tilt_and_its_inverse():
    gm = random_mixture((2, 4, 3, 3), 3)
    factor = Tilt(normal((2, 4, 3, 3), 1), normal((2, 4, 3, 3), 2), torch.full_like(gm.var, 0.7))
    back = Tilt(factor.centre, -factor.force, -factor.precision)
    assert_same(tilt(tilt(gm, factor), back), gm, 1e-12)


def test_a_tilt_about_a_near_centre_keeps_its_digits_in_float32():
    """Precision 1e8: about 0 the terms of the logits are 1e8 and cancel; about the mean nothing does."""
    shape = (1, 2, 1, 1)
    gm = random_mixture(shape, 2)
    tight = Mixture(5 + 1e-4 * gm.means, gm.logweights, gm.logstds - 9)
    single = Mixture(tight.means.float(), tight.logweights.float(), tight.logstds.float())
    exact = Mixture(single.means.double(), single.logweights.double(), single.logstds.double())
    centre, precision = mean(single), torch.full((1, 1, 1, 1), 1e8)
    factor = Tilt(centre.double(), torch.zeros(shape).double(), precision.double())
    found = tilt(single, Tilt(centre, torch.zeros(shape), precision))
    torch.testing.assert_close(found.logweights.double(), tilt(exact, factor).logweights, rtol=0, atol=1e-4)


def test_a_product_multiplies_the_densities():
    shape = (2, 3, 4, 2)
    a, b = random_mixture(shape, 2), random_mixture(shape, 3, seed=1)
    both = product(a, b)
    assert both.components == 6
    constants = [log_prob(both, x) - log_prob(a, x) - log_prob(b, x) for x in (normal(shape, 2), normal(shape, 3))]
    torch.testing.assert_close(*constants)


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_components_are_chosen_by_their_weights(power):
    gm = random_mixture((1, 2, 1, 1), 4)
    chances = (power * gm.logweights).softmax(1).flatten()
    many = Mixture(gm.means.expand(1, 4, 2, 200, 100), gm.logweights.expand(1, 4, 1, 200, 100), gm.logstds)
    index = choose(many, normal((1, 2, 200, 100), 5), power)
    found = torch.bincount(index.flatten(), minlength=4) / index.numel()
    assert (found - chances).abs().max() < 5 * 0.5 / 20000**0.5


def test_noise_beyond_all_digits_still_chooses_a_component():
    gm = random_mixture((1, 2, 1, 3), 4, dtype=torch.float32)
    index = choose(gm, torch.tensor([-40.0, 0.0, 40.0]).expand(1, 2, 1, 3))
    assert index.min() == 0 and index.max() == 3


def test_samples_have_the_moments_of_the_mixture():
    gm = random_mixture((1, 2, 1, 1), 3)
    many = Mixture(gm.means.expand(1, 3, 2, 300, 200), gm.logweights.expand(1, 3, 1, 300, 200), gm.logstds)
    drawn = sample(many, choose(many, normal((1, 2, 300, 200), 1)), normal((1, 2, 300, 200), 2))
    expected = moments(gm)
    torch.testing.assert_close(drawn.mean((2, 3)), expected.mean[..., 0, 0], rtol=0, atol=0.03)
    torch.testing.assert_close(drawn.var((2, 3)).mean(1), expected.var.flatten(), rtol=0.03, atol=0)


def test_a_low_temperature_leaves_the_likeliest_component():
    gm = random_mixture((2, 3, 4, 4), 5)
    cold = tempered(gm, 1e-3)
    best = gm.logweights.argmax(1, keepdim=True)
    likeliest = gm.means.gather(1, best.expand(-1, -1, 3, -1, -1))[:, 0]
    inside = gm.logweights.topk(2, 1).values.diff(dim=1).abs()[:, 0] > 0.02  # elsewhere two components are on a par
    torch.testing.assert_close((mean(cold) * inside), (likeliest * inside), rtol=0, atol=1e-6)
    torch.testing.assert_close(cold.var, 1e-3 * gm.var)


def test_temperature_one_changes_nothing():
    gm = random_mixture((2, 3, 4, 4), 5)
    assert_same(tempered(gm, 1.0), gm, 1e-12)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_a_temperature_out_of_range_is_told(temperature):
    with pytest.raises(ValueError, match="must be above 0"):
        tempered(random_mixture((1, 2, 3, 3), 2), temperature)


def test_u_to_x0_is_the_change_of_variables():
    """q(x0) = q(u) / sigma^C at u = (x - x0) / sigma."""
    shape = (2, 4, 3, 3)
    u, x, x0 = random_mixture(shape, 3), normal(shape, 1), normal(shape, 2)
    expected = log_prob(u, (x - x0) / 0.3) - 4 * torch.tensor(0.3).double().log()
    torch.testing.assert_close(log_prob(x0_from_u(u, x, 0.3), x0), expected, rtol=0, atol=1e-6)


def test_half_precision_becomes_float32():
    parts = [
        t.half()
        for t in (normal((1, 3, 2, 2, 2), 0), 6e4 * normal((1, 3, 1, 2, 2), 1).sign(), torch.zeros(1, 1, 1, 1, 1))
    ]
    gm = Mixture.of_logits(*parts)
    assert gm.logweights.dtype == gm.means.dtype == torch.float32
    assert checked(gm).logweights.isfinite().all()


@pytest.mark.parametrize("part", ["means", "logweights", "logstds"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_is_told(part, value):
    parts = vars(random_mixture((1, 2, 3, 3), 2)).copy()
    parts[part] = parts[part].clone()
    parts[part].view(-1)[0] = value
    with pytest.raises(ValueError, match="not numbers.*Half precision"):
        checked(Mixture(**parts))


def test_a_component_without_weight_is_no_error():
    gm = Mixture.of_logits(
        normal((1, 2, 3, 2, 2), 0),
        torch.tensor([0.0, -torch.inf]).view(1, 2, 1, 1, 1).expand(1, 2, 1, 2, 2),
        torch.zeros(1, 1, 1, 1, 1),
    )
    assert mean(checked(gm)).isfinite().all()


def test_shapes_that_do_not_fit_are_told():
    gm = random_mixture((2, 4, 3, 3), 2)
    with pytest.raises(ValueError, match=r"needs log-weights \(2, 2, 1, 3, 3\)"):
        Mixture(gm.means, gm.logweights[:, :, 0], gm.logstds)
    with pytest.raises(ValueError, match="one log-deviation an item"):
        Mixture(gm.means, gm.logweights, gm.logstds.expand(2, 1, 1, 3, 3))
