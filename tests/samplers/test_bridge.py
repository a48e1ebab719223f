"""Bridges between exact distributions: the closed form of Gaussians, there and back, and across the two noise laws."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from fewstep.samplers.bridge import calls_up, down, handed_over, meeting, noise_in, spread, up
from fewstep.samplers.clock import LogisticClock
from fewstep.samplers.noise_law import FLOW, VARIANCE_EXPLODING, NoiseLaw
from fewstep.schedulers.placed import placed
from fewstep.schedulers.recipe import recipe
from support.mixture import GuidedMixture, Mixture, converged, exact_of_one, picture_like
from support.recording import Recording

LAWS = pytest.mark.parametrize("law", [VARIANCE_EXPLODING, FLOW], ids=["ve", "flow"])
TOP = {False: 14.6, True: 1.0}
LOUD = NoiseLaw(is_flow=True, scale=1.5)


def sigmas_of(law: NoiseLaw, steps: int, top: float | None = None) -> tuple[float, ...]:
    return recipe(steps, law.is_flow).sigmas(law, top or TOP[law.is_flow], 0.0, steps)


def to_zero(law: NoiseLaw, steps: int) -> tuple[float, ...]:
    """Finer at either end the more steps there are: the recipe's rest at one noise, which they do not come below."""
    return placed(LogisticClock(1.65, 1.5), law, TOP[law.is_flow], 0.0, steps)


def gaussian(seed: int) -> Mixture:
    """Of one component, its mean and the power of its waves its own."""
    full = picture_like(size=4, seed=seed)
    power = full.spectrum * torch.linspace(0.5, 2, 4, dtype=torch.float64) ** seed
    return Mixture(full.means[seed : seed + 1], power, full.classes[:1])


def rmse(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).square().mean().sqrt())


def bridged(mixtures, law, x0, steps, law_to=None, order=2, labels=(None, None), places=sigmas_of):
    """From the first mixture to the second."""
    law_to = law_to or law
    first, second = (
        GuidedMixture(mixture, its, label and torch.full((len(x0),), label))
        for mixture, its, label in zip(mixtures, (law, law_to), labels, strict=True)
    )
    above, below = places(law, steps), places(law_to, steps)
    x = up(first, x0, above, law, order=order)
    return down(second, handed_over(x, law, above[0], law_to, below[0]), below, law_to, order=order)


@LAWS
def test_a_gaussian_becomes_the_other_by_the_closed_form(law):
    """The optimal map: mu_B + sqrt(P_B / P_A) (x - mu_A), for every wave."""
    ours, theirs = gaussian(0), gaussian(1)
    x0, noise = ours.sample(6, seed=3), 1e7 if law.is_flow else TOP[False]
    exact = exact_of_one(theirs, exact_of_one(ours, x0, 0.0, noise), noise, 0.0)
    scale = (theirs.spectrum / ours.spectrum).sqrt()
    as_written = theirs.to_pixels(theirs.means[0] + scale * (ours.to_frequency(x0) - ours.means[0]))
    assert rmse(exact, as_written) < (1e-5 if law.is_flow else 0.1)
    errors = [rmse(bridged((ours, theirs), law, x0, steps, places=to_zero), exact) for steps in (20, 40, 80)]
    assert errors[0] < 0.02 and errors[-1] < 0.001
    assert all(later < 0.4 * error for error, later in pairwise(errors))


@LAWS
def test_there_and_back_is_nearer_the_higher_the_order_and_the_more_the_steps(law):
    mixture = picture_like(size=4, components=16)
    x0 = mixture.sample(4, seed=3, label=2)
    denoise = GuidedMixture(mixture, law, torch.full((4,), 2))

    def cycle(steps: int, order: int) -> float:
        sigmas = to_zero(law, steps)
        return rmse(down(denoise, up(denoise, x0, sigmas, law, order=order), sigmas, law, order=order), x0)

    euler, ab2 = ([cycle(steps, order) for steps in (20, 40)] for order in (1, 2))
    assert ab2[0] < euler[0] / 3 and ab2[1] < euler[1] / 6 and ab2[1] < 0.4 * ab2[0]


@LAWS
def test_between_two_mixtures_it_ends_where_the_exact_ways_do(law):
    ours, theirs = (picture_like(size=4, components=16, seed=seed) for seed in (0, 1))
    x0 = ours.sample(4, seed=4, label=2)
    there, back = (GuidedMixture(m, law, torch.full((4,), label)) for m, label in ((ours, 2), (theirs, 5)))
    top = TOP[law.is_flow]
    fine = to_zero(law, 150)
    exact = converged(back, up(there, x0, fine, law), top, 1e-6)
    drawn = bridged((ours, theirs), law, x0, 40, labels=(2, 5))
    assert float((drawn - exact).square().flatten(1).mean(1).sqrt().median()) < 0.01
    assert rmse(drawn, x0) > 0.5  # it did become something else


@pytest.mark.parametrize("law, law_to", [(VARIANCE_EXPLODING, FLOW), (FLOW, VARIANCE_EXPLODING), (FLOW, LOUD)])
def test_across_noise_laws_it_ends_where_one_law_would(law, law_to):
    """The noise is the same noise, whoever adds it; a highest sigma of 14.6 is as good as nothing but noise."""
    ours, theirs = gaussian(0), gaussian(1)
    x0 = ours.sample(6, seed=3)
    across = bridged((ours, theirs), law, x0, 30, law_to)
    assert rmse(across, bridged((ours, theirs), FLOW, x0, 30)) < 0.06
    assert rmse(across, theirs.to_pixels(theirs.means[0].expand_as(x0))) > 0.3


@pytest.mark.parametrize("law", [VARIANCE_EXPLODING, FLOW, LOUD], ids=["ve", "flow", "scaled flow"])
def test_the_noise_in_between_is_ordinary_noise(law):
    mixture = picture_like(size=4, components=8)
    x0, sigmas = mixture.sample(32, seed=1), sigmas_of(law, 20)
    x = up(GuidedMixture(mixture, law), x0, sigmas, law)
    assert x.isfinite().all() and float(x.std()) / spread(law, sigmas[0]) == pytest.approx(1, abs=0.06)
    noise = noise_in(x, x0, law, sigmas[0])
    torch.testing.assert_close(law.noised(x0, sigmas[0], noise), x)


@LAWS
def test_half_way_up_the_same_latent_is_handed_over_at_the_same_noise(law):
    other = FLOW if law is VARIANCE_EXPLODING else VARIANCE_EXPLODING
    sigma = law.sigma(0.7)
    met = meeting(law, sigma, other, TOP[other.is_flow])
    assert other.ratio(met) == pytest.approx(0.7)
    x0, noise = torch.randn(2, 3, 4, 4, dtype=torch.float64), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    handed = handed_over(law.noised(x0, sigma, noise), law, sigma, other, met)
    torch.testing.assert_close(handed, other.noised(x0, met, noise))
    assert meeting(FLOW, 1.0, other, 5.0) == 5.0 and meeting(VARIANCE_EXPLODING, 99.0, VARIANCE_EXPLODING, 14.6) == 14.6


@LAWS
def test_where_the_model_is_asked(law):
    """Up: at every sigma but 0 and the highest, where a flow model knows nothing. Down: at all but 0."""
    sigmas = sigmas_of(law, 10)
    asked = Recording(GuidedMixture(picture_like(size=4), law))
    told: list[tuple[int, float]] = []
    x = up(
        asked,
        torch.zeros(1, 4, 4, 4, dtype=torch.float64),
        sigmas,
        law,
        on_step=lambda step, sigma, x, denoised: told.append((step, sigma)),
    )
    assert asked.sigmas == list(sigmas[1:-1])[::-1] and len(asked.sigmas) == calls_up(10)
    assert told == list(enumerate(asked.sigmas))
    down(asked, x, sigmas, law)
    assert asked.sigmas[9:] == list(sigmas[:-1])


def test_it_keeps_the_latents_dtype():
    sigmas = sigmas_of(FLOW, 10)
    x = up(lambda x, sigma: x * (1 - sigma), torch.ones(1, 4, 4, 4), sigmas, FLOW)
    assert x.dtype == torch.float32 and down(lambda x, sigma: x * (1 - sigma), x, sigmas, FLOW).dtype == torch.float32


@pytest.mark.parametrize("way", [up, down])
@pytest.mark.parametrize("sigmas", [[1.0, 0.5], [0.5, 0.7, 0.0], [1.0, 1.0, 0.0], [0.0], [math.nan, 0.0], []])
def test_what_does_not_fall_to_0_is_refused(way, sigmas):
    with pytest.raises(ValueError, match="sigmas that fall"):
        way(lambda x, sigma: x, torch.zeros(1, 1, 1, 1), sigmas, FLOW)
