"""The algebra against the authors' code, array by array (tests/goldens/gmflow), in float64."""

import pytest
import torch
from fewstep.samplers.gmflow import covariance, mixture
from fewstep.samplers.gmflow.covariance import FullGaussian, FullMixture
from fewstep.samplers.gmflow.guidance import Prediction, guided, shifted
from fewstep.samplers.gmflow.mixture import Gaussian, Mixture
from fewstep.samplers.gmflow.spectral import Line, chance, coloured, density, from_gaussian, quantile, to_gaussian
from fewstep.samplers.gmflow.transition import Posterior, bridge, reverse_transition
from fewstep.samplers.noise_law import FLOW
from support.gmflow import Recorded, assert_same, golden, item
from torch import Tensor

TOLERANCE = 1e-9
POWERS = [("p1.q1", 1, 1), ("p2.q1", 2, 1), ("p1.q0.5", 1, 0.5)]


@pytest.fixture(params=["gm_ops_K1", "gm_ops_K8"])
def ops(request) -> Recorded:
    return golden(request.param)


def close(actual: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


def same_gaussian(actual: Gaussian, expected: Gaussian) -> None:
    close(actual.mean, expected.mean)
    close(actual.var, expected.var)


def at_times(ops: Recorded) -> list[tuple[int, float, float]]:
    """Item, sigma and lower sigma: the recordings have a time for each."""
    pairs = zip((ops.tensor("t") / 1000).tolist(), (ops.tensor("t_low") / 1000).tolist(), strict=True)
    return [(i, high, low) for i, (high, low) in enumerate(pairs)]


# ---------------------------------------------------------------------------------------------------------
# Isotropic


@pytest.mark.parametrize("power", ["0.5", "1", "2"])
def test_mean(ops, power):
    close(mixture.mean(ops.mixture("gm"), float(power)), ops.tensor(f"gm_to_mean.p{power}"))


def test_moments(ops):
    same_gaussian(mixture.moments(ops.mixture("gm")), ops.gaussian("iso"))
    full = covariance.full_moments(ops.mixture("gm"))
    close(full.mean, ops.tensor("full.mean"))
    close(full.cov, ops.tensor("full.cov"))


@pytest.mark.parametrize("name, p, q", [("p1.q1", 1, 1), ("p1.q-1", 1, -1), ("p0.5.q2", 0.5, 2)])
def test_product_and_quotient_of_gaussians(ops, name, p, q):
    """A quotient is a Gaussian only where the divisor is the wider one; elsewhere the authors clamp it."""
    a, b = ops.gaussian("gi"), ops.gaussian("gj")
    product, expected = mixture.gaussian_product(a, b, p, q), ops.gaussian(f"iso_mul_iso.{name}")
    proper = (p / a.var + q / b.var > 0).flatten()
    assert proper.any()
    same_gaussian(
        Gaussian(product.mean[proper], product.var[proper]), Gaussian(expected.mean[proper], expected.var[proper])
    )


@pytest.mark.parametrize("name, p, q", POWERS)
def test_mixture_times_gaussian(ops, name, p, q):
    product = mixture.times_gaussian(ops.mixture("gm"), ops.gaussian("gi"), p, q)
    assert_same(product, ops.mixture(f"gm_mul_iso.{name}"), TOLERANCE)


def test_mixture_times_mixture(ops):
    assert_same(mixture.product(ops.mixture("gm"), ops.mixture("gu")), ops.mixture("gm_mul_gm"), TOLERANCE)


def test_log_prob(ops):
    gm, samples = ops.mixture("gm"), ops.tensor("smp").unbind(1)
    close(torch.stack([mixture.log_prob(gm, x) for x in samples], 1), ops.tensor("gm_logprob"))
    apart = torch.stack([mixture.log_prob_of_components(gm, x) for x in samples], 1)
    close(apart, ops.tensor("gm_logprob.per"))


@pytest.mark.parametrize("name", ["n1.p1.sharp0", "n3.p1.sharp0", "n1.p2.sharp0", "n1.p2.sharp1"])
def test_sample(ops, name):
    """The power is in the recorded components; sharp divides the variance by 2, as a temperature of 1 / 2 does."""
    gm = ops.mixture("gm")
    gm = mixture.tempered(gm, 0.5) if name.endswith("sharp1") else gm
    for n in range(int(name[1])):
        drawn = mixture.sample(gm, indices(ops, f"sample.{name}.inds", n), ops.tensor(f"sample.{name}.noise")[:, n])
        close(drawn, ops.tensor(f"sample.{name}")[:, n])


def indices(ops: Recorded, key: str, n: int) -> Tensor:
    """The recorded components of draw n, (B, 1, H, W)."""
    batch, _, _, *space = ops.tensor("gm.means").shape
    return ops.tensor(key)[:, n].view(batch, 1, *space)


@pytest.mark.parametrize("name", ["kl16", "ent16"])
def test_divergence_and_entropy_from_the_recorded_samples(ops, name):
    gm, noise = ops.mixture("gm"), ops.tensor(f"{name}.noise")
    samples = [mixture.sample(gm, indices(ops, f"{name}.inds", n), noise[:, n]) for n in range(16)]
    found = (
        mixture.divergence(gm, ops.mixture("gu"), torch.stack(samples))
        if name == "kl16"
        else mixture.entropy(gm, torch.stack(samples))
    )
    close(found[:, None], ops.tensor(name))


# ---------------------------------------------------------------------------------------------------------
# Full covariance


def full(ops: Recorded, key: str) -> FullGaussian:
    return FullGaussian(ops.tensor(f"{key}.mean"), ops.tensor(f"{key}.cov"))


def recorded_full_mixture(ops: Recorded, key: str) -> FullMixture:
    return FullMixture(*(ops.tensor(f"{key}.{part}") for part in ("means", "logweights", "covs")))


@pytest.mark.parametrize("name, p, q", [("p1.q1", 1, 1), ("p2.q0.5", 2, 0.5)])
def test_product_of_full_gaussians(ops, name, p, q):
    product = covariance.full_product(full(ops, "gcov"), full(ops, "gcov2"), p, q)
    close(product.mean, ops.tensor(f"gauss_mul_gauss.{name}.mean"))
    close(product.cov, ops.tensor(f"gauss_mul_gauss.{name}.cov"))


@pytest.mark.parametrize("name, p, q", POWERS[:2])
def test_mixture_times_full_gaussian(ops, name, p, q):
    product = covariance.times_full_gaussian(covariance.full_mixture(ops.mixture("gm")), full(ops, "gcov"), p, q)
    expected = recorded_full_mixture(ops, f"gm_mul_gauss.{name}")
    for part in ("means", "covs", "logweights"):
        close(getattr(product, part), getattr(expected, part))


def test_full_log_prob_and_sample(ops):
    gm = recorded_full_mixture(ops, "gm_mul_gauss.p1.q1")
    samples = ops.tensor("smp").movedim(2, -1).unbind(1)
    close(torch.stack([covariance.full_log_prob(gm, x) for x in samples], 1), ops.tensor("gm_logprob_cov"))
    for n in range(2):
        noise = ops.tensor("sample_cov.n2.noise")[:, n, ..., 0]
        drawn = covariance.full_sample(gm, indices(ops, "sample_cov.n2.inds", n)[:, 0], noise)
        close(drawn.movedim(-1, 1), ops.tensor("sample_cov.n2")[:, n])


# ---------------------------------------------------------------------------------------------------------
# Changes of variables and of noise level


def test_velocity_to_x0(ops):
    x0 = mixture.x0_from_u(ops.mixture("gm"), ops.tensor("xt"), ops.tensor("t") / 1000)
    assert_same(x0, ops.mixture("u2x0"), TOLERANCE)


def test_forward_transition(ops):
    """In these arrays the lower sigma is the one of xt."""
    for i, high, low in at_times(ops):
        found = FLOW.renoise(ops.tensor("xt")[i], low, high, ops.tensor("nz")[i])
        close(found, ops.tensor("fwd_trans")[i])


@pytest.mark.parametrize("name", ["rev_u", "rev_x0"])
def test_reverse_transition(ops, name):
    for i, high, low in at_times(ops):
        found = reverse_transition(item(ops.mixture("u2x0"), i), ops.tensor("xt")[i : i + 1], high, low)
        assert_same(found, item(ops.mixture(name), i), TOLERANCE)


def test_reverse_transition_to_the_end(ops):
    """There the bridge has no variance. The authors' has 1e-6."""
    for i, high, _ in at_times(ops):
        found = reverse_transition(item(ops.mixture("u2x0"), i), ops.tensor("xt")[i : i + 1], high, 0.0)
        expected = item(ops.mixture("rev_to0"), i)
        close(found.means, expected.means)
        close(found.logweights, expected.logweights)
        close(found.var + 1e-6, expected.var)


def test_reverse_transition_of_a_sample(ops):
    for i, high, low in at_times(ops):
        step = bridge(high, low)
        found = step.x * ops.tensor("xt")[i] + step.x0 * ops.tensor("u2x0_sample")[i]
        close(found + step.var**0.5 * ops.tensor("rev_sample_u.noise")[i], ops.tensor("rev_sample_u")[i])


def test_posterior_mean(ops):
    for i, high, low in at_times(ops):
        posterior = Posterior(item(ops.mixture("u2x0"), i), ops.tensor("xt")[i : i + 1], high)
        close(posterior.mean_at(ops.tensor("x_low")[i : i + 1], low), ops.tensor("conv_mean_x0")[i : i + 1])


# ---------------------------------------------------------------------------------------------------------
# Guidance: the natural form gives what the authors' quotient gives, since V w^2 > 1e-6 in all of these


@pytest.mark.parametrize("orthogonal", ["0", "0.5", "1"])
@pytest.mark.parametrize("strength", ["0.1", "0.3", "0.7", "0.9"])
def test_probabilistic_guidance(ops, strength, orthogonal):
    key = f"pg.w{strength}.o{orthogonal}"
    uncond = one_component(ops.tensor("pg.uncond_mean"))
    prediction = guided(ops.mixture("u2x0"), uncond, float(strength), float(orthogonal))
    assert prediction.bias is not None
    close(prediction.bias, ops.tensor(f"{key}.bias"))
    close(prediction.spread, ops.tensor(f"{key}.avg_var"))
    assert_same(prediction.mixture, ops.mixture(f"{key}.gm"), TOLERANCE)
    close(mixture.mean(prediction.mixture), ops.tensor(f"{key}.gm_mean"))


def one_component(mean: Tensor) -> Mixture:
    """A mixture with a given mean."""
    return Mixture(mean[:, None], torch.zeros_like(mean[:, None, :1]), torch.zeros_like(mean[:, None, :1, :1, :1]))


def test_no_strength_leaves_the_mixture_as_it_is(ops):
    """The authors' clamp makes something else of it."""
    gm = ops.mixture("u2x0")
    assert_same(guided(gm, one_component(ops.tensor("pg.uncond_mean")), 0.0).mixture, gm, 1e-12)
    assert_same(shifted(Prediction(gm), torch.zeros_like(gm.means[:, 0]), torch.zeros_like(gm.var)), gm, 1e-12)


# ---------------------------------------------------------------------------------------------------------
# Spectral


def one_axis(ops: Recorded) -> Line:
    return Line(ops.tensor("g1.means"), ops.tensor("g1.logweights"), ops.tensor("g1.logstds").exp())


def test_density_and_chance_on_one_axis(ops):
    line = one_axis(ops)
    for n, x in enumerate(ops.tensor("g1.x").unbind(1)):
        close(density(line, x), ops.tensor("g1.pdf")[:, n])
        close(chance(line, x), ops.tensor("g1.cdf")[:, n])


@pytest.mark.parametrize("steps, tolerance", [(4, 1e-5), (16, 1e-9)])
def test_quantile(ops, steps, tolerance):
    """But for the far tails, where the authors start elsewhere. After four steps not all have converged."""
    for n, cdf in enumerate(ops.tensor("g1.cdf").unbind(1)):
        inside = cdf.abs() < 1 - 1e-6
        found = quantile(one_axis(ops), 2**0.5 * torch.erfinv(cdf), steps)
        close(found[inside], ops.tensor(f"g1.inv{steps}")[:, n][inside], tolerance)


def test_knothe_rosenblatt_with_the_recorded_axes(ops):
    gm, axes = ops.mixture("gm"), ops.tensor("kr.eigvecs")[:, 0, 0].double()
    for n, z in enumerate(ops.tensor("kr.z").unbind(1)):
        close(from_gaussian(gm, z, axes), ops.tensor("kr.to_gm.n16")[:, n])
    for n, z in enumerate(ops.tensor("kr.to_gauss.al1").unbind(1)):
        close(from_gaussian(gm, z, axes), ops.tensor("kr.back.al1")[:, n])


def test_knothe_rosenblatt_inverse(ops):
    """Compared as chances: the authors' axes are float32, and the tails would show that as 0.004."""
    gm, axes = ops.mixture("gm"), ops.tensor("kr.eigvecs")[:, 0, 0].double()
    for n, x in enumerate(ops.tensor("smp").unbind(1)):
        found, expected = to_gaussian(gm, x, axes), ops.tensor("kr.to_gauss.al1")[:, n]
        close(torch.erf(found / 2**0.5), torch.erf(expected / 2**0.5), 1e-6)


def test_spectral_sample(ops):
    """float32, with the recorded white noise and axes."""
    gm = ops.mixture("gm")
    gm = Mixture(gm.means.float(), gm.logweights.float(), gm.logstds.float())
    log_power, white = ops.tensor("power_spectrum").float(), ops.tensor("spectral_sample.white")[:, 0]
    field = coloured(white, log_power)
    close(field, ops.tensor("spectral_sample.gauss")[:, 0], 1e-5)
    drawn = from_gaussian(gm, field, ops.tensor("kr.eigvecs")[:, 0, 0])
    close(drawn, ops.tensor("spectral_sample")[:, 0], 1e-4)
