"""Flow maps of one Gaussian, which are exact: any steps reach the same end, and noise put back leaves the marginal."""

from __future__ import annotations

import math

import pytest
import torch
from fewstep.samplers.flow_map import FlowMap, share_of
from fewstep.samplers.heun import heun
from fewstep.samplers.noise_law import FLOW, VARIANCE_EXPLODING
from support.mixture import GuidedMixture, picture_like

MEAN, VAR = 0.7, 0.3
LAWS = pytest.mark.parametrize("law", [FLOW, VARIANCE_EXPLODING], ids=["flow", "ve"])


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def drawn_noise(shape, seed: int = 1):
    generator = torch.Generator().manual_seed(seed)
    return lambda sigma_from, sigma_to: torch.randn(shape, generator=generator, dtype=torch.float64)


def deviation(law, sigma: float) -> float:
    return math.sqrt(law.alpha(sigma) ** 2 * VAR + law.deviation(sigma) ** 2)


def mapped(law, x, t: float, r: float):
    """The exact map of N(MEAN, VAR) from sigma t to r."""
    return law.alpha(r) * MEAN + deviation(law, r) / deviation(law, t) * (x - law.alpha(t) * MEAN)


def gaussian(law):
    """x - t u(x, t, r), u being the average velocity; at r = t the velocity itself, as its limit."""

    def denoise(x, t: float, r: float):
        r = min(r, t * (1 - 1e-7))
        return x - t * (mapped(law, x, t, r) - x) / (r - t)

    return denoise


@LAWS
def test_the_average_velocities_form_one_flow(law):
    """From t to s and on to r is from t to r; and u tends to the velocity of the ODE."""
    x, top = noise(6), 0.9
    torch.testing.assert_close(mapped(law, mapped(law, x, top, 0.5), 0.5, 0.1), mapped(law, x, top, 0.1))
    y = x / law.alpha(top)
    s = law.ratio(top)
    x0 = MEAN + VAR / (VAR + s**2) * (y - MEAN)
    torch.testing.assert_close(gaussian(law)(x, top, top), x0, rtol=0, atol=1e-5)


@LAWS
@pytest.mark.parametrize("sigmas", [[0.9, 0.0], [0.9, 0.4, 0.0], [0.9, 0.7, 0.2, 0.05, 0.0]])
def test_euler_reaches_the_exact_end_in_any_number_of_steps(law, sigmas):
    x = noise(6)
    end = FlowMap(law, 1.0)(gaussian(law), x, sigmas, noise=drawn_noise(x.shape))
    torch.testing.assert_close(end, mapped(law, x, 0.9, 0.0), rtol=0, atol=1e-9)


@LAWS
@pytest.mark.parametrize("method, gamma", [("euler", 0.9), ("restart", 0.9), ("ctm", 0.9), ("ctm", 0.4)])
@pytest.mark.parametrize("sigmas", [[0.9, 0.5], [0.9, 0.6, 0.3, 0.0]])
def test_every_method_leaves_the_marginal_as_it_is(law, method, gamma, sigmas):
    """Begun with true draws at 0.9; the published ctm would leave a quarter less noise at 0.5."""
    count = 400_000
    x = law.noised(MEAN + VAR**0.5 * noise(count), 0.9, noise(count, seed=5))
    end = FlowMap(law, share_of(method, gamma))(gaussian(law), x, sigmas, noise=drawn_noise((count,)))
    assert float(end.mean()) == pytest.approx(law.alpha(sigmas[-1]) * MEAN, abs=0.01)
    assert float(end.std()) == pytest.approx(deviation(law, sigmas[-1]), rel=0.01)


def test_the_published_ctm_adds_too_little_noise():
    """What this sampler does differently, in numbers: at t' 0.5 and gamma 0.9, 0.361 where 0.480 is right."""
    t, r = 0.5, share_of("ctm", 0.9) * 0.5
    a = FLOW.alpha(t) / FLOW.alpha(r)
    assert 1 - a == pytest.approx(0.361, abs=1e-3)
    added = FLOW.renoise(torch.zeros(1), r, t, torch.ones(1))
    assert float(added) == pytest.approx(math.sqrt(t**2 - (a * r) ** 2)) == pytest.approx(0.480, abs=1e-3)


def test_ctm_lies_between_the_other_two():
    assert share_of("ctm", 0.0) == share_of("euler", 0.7) == 1
    assert share_of("ctm", 1.0) == share_of("restart", 0.7) == 0


@LAWS
def test_a_network_that_ignores_where_to_go_is_eulers(law):
    denoise, x = GuidedMixture(picture_like(size=4), law), noise(2, 4, 4, 4)
    sigmas = [0.95, 0.6, 0.2, 0.0]
    end = FlowMap(law)(lambda x, sigma, r: denoise(x, sigma), x, sigmas, noise=drawn_noise(x.shape))
    for s, t in zip(sigmas, sigmas[1:], strict=False):
        x = x + (t - s) * (x - denoise(x, s)) / s
    torch.testing.assert_close(end, x, rtol=0, atol=1e-12)
    fine = heun(denoise, noise(2, 4, 4, 4), torch.linspace(0.95, 0, 200, dtype=torch.float64))
    assert (end - fine).square().mean() > 1e-4  # and not the exact flow


def test_where_it_calls_and_what_it_is_told():
    asked: list[tuple[float, float]] = []

    def denoise(x, sigma, r):
        asked.append((sigma, r))
        return x

    for method, to in (("euler", [0.6, 0.2, 0.0]), ("restart", [0.0, 0.0, 0.0])):
        asked.clear()
        FlowMap(FLOW, share_of(method, 0.5))(denoise, noise(1, 2), [1.0, 0.6, 0.2, 0.0], noise=drawn_noise((1, 2)))
        assert asked == list(zip([1.0, 0.6, 0.2], to, strict=True))


@pytest.mark.parametrize(
    "given, words", [(("leap", 0.5), "method is 'leap'"), (("ctm", 1.5), "gamma is 1.5"), (("ctm", math.nan), "gamma")]
)
def test_what_cannot_be_is_refused_in_words(given, words):
    with pytest.raises(ValueError, match=words):
        share_of(*given)


def test_sigmas_that_rise_are_refused():
    with pytest.raises(ValueError, match="fall"):
        FlowMap(FLOW)(lambda x, s, r: x, noise(1, 2), [0.5, 0.9], noise=drawn_noise((1, 2)))
