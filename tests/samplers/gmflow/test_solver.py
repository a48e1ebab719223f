"""GM-ODE and GM-SDE on a law that is known, and what every latent and schedule has to get from them."""

from __future__ import annotations

import gc
import math
import weakref
from dataclasses import dataclass, field, replace
from functools import cache

import pytest
import torch
from fewstep.samplers.gmflow.guidance import Prediction, guided
from fewstep.samplers.gmflow.mixture import Mixture, mean
from fewstep.samplers.gmflow.solver import MODES, GMFlow, between
from fewstep.samplers.gmflow.transition import Posterior
from support.gmflow import (
    COUNT,
    Exact,
    Guided,
    distance_to_three_peaks,
    noise_of,
    normal,
    random_mixture,
    sigmas,
    three_peaks,
    tiny_gmdit,
    true_samples,
)
from support.metrics import sliced_energy_distance
from torch import Tensor

MEAN_EULER = GMFlow("ode", order=1, substeps=1)


distance = cache(distance_to_three_peaks)


# ---------------------------------------------------------------------------------------------------------
# A known law


@pytest.mark.parametrize("steps", [4, 6, 8])
@pytest.mark.parametrize(
    "solver, share",
    [
        (GMFlow("ode", 1, 32), 1 / 3),
        (GMFlow("ode", 2, 32), 1 / 3),
        (GMFlow("sde", 1, sample_last=True), 1 / 2),
        (GMFlow("sde", 2, sample_last=True), 1 / 2),
        (GMFlow("sde", 2), 0.8),
    ],
)
def test_few_calls_reach_the_law_where_the_mean_alone_does_not(solver, share, steps):
    """An SDE that ends on the mean leaves out the spread of its last mixture."""
    assert distance(solver, steps) < share * distance(MEAN_EULER, steps)


def test_a_step_of_the_sde_has_the_exact_law():
    """From noise to sigma 0.1 in one call: the law of (1 - sigma) x0 + sigma e."""
    exact, x = three_peaks(), normal((COUNT, 2, 1, 1), 0)
    drawn = GMFlow("sde")(exact, x, torch.tensor([1.0, 0.1]), noise=noise_of(x, 1))
    expected = 0.9 * true_samples(exact.law, COUNT) + 0.1 * normal(x.shape, 5)
    assert sliced_energy_distance(drawn, expected) < 0.002


@pytest.mark.parametrize("order", [1, 2])
def test_with_an_exact_model_one_call_does_what_eight_do(order):
    x = normal((20, 2, 1, 1), 0)
    one = GMFlow("ode", order, substeps=64)(three_peaks(), x, sigmas(1))
    eight = GMFlow("ode", order, substeps=8)(three_peaks(), x, sigmas(8))
    torch.testing.assert_close(one, eight, rtol=0, atol=1e-9)


def test_the_posterior_of_an_exact_model_is_the_exact_model():
    exact, x = three_peaks(), normal((20, 2, 1, 1), 0)
    posterior = Posterior(exact(x, 0.9).mixture, x, 0.9)
    for sigma in (0.9, 0.5, 0.01):
        x_low = normal(x.shape, 1)
        torch.testing.assert_close(posterior.mean_at(x_low, sigma), exact(x_low, sigma).centre, rtol=0, atol=1e-8)


def test_the_posterior_keeps_its_digits_in_float32():
    """At sigma 1e-4 the likelihood has a precision of 1e8."""
    exact, x = three_peaks(), normal((200, 2, 1, 1), 0)
    known = exact(x, 0.5).mixture
    single = Mixture(known.means.float(), known.logweights.float(), known.logstds.float())
    x_low = mean(known) + 1e-4 * normal(x.shape, 1)
    found = Posterior(single, x.float(), 0.5).mean_at(x_low.float(), 1e-4)
    torch.testing.assert_close(found.double(), Posterior(known, x, 0.5).mean_at(x_low, 1e-4), rtol=0, atol=1e-5)


# ---------------------------------------------------------------------------------------------------------
# Steps


@dataclass
class Watched:
    """A mixture denoiser that keeps where it was asked."""

    predict: Exact | Guided
    sigmas: list[float] = field(default_factory=list)
    states: list[Tensor] = field(default_factory=list)

    def __call__(self, x: Tensor, sigma: float) -> Prediction:
        self.sigmas.append(sigma)
        self.states.append(x)
        return self.predict(x, sigma)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("order", [1, 2])
def test_one_call_a_step_at_its_start_whatever_the_sub_steps(mode, order):
    watched, told = Watched(three_peaks()), []
    x = normal((3, 2, 1, 1), 0)
    nodes = torch.tensor([0.9, 0.5, 0.4, 0.0], dtype=torch.float64)
    solver = GMFlow(mode, order, substeps=5)
    end = solver(watched, x, nodes, noise=noise_of(x, 1), on_step=lambda *step: told.append(step))
    assert watched.sigmas == [0.9, 0.5, 0.4]
    assert [(step, sigma) for step, sigma, *_ in told] == [(0, 0.9), (1, 0.5), (2, 0.4)]
    assert all(torch.equal(seen, at) for seen, (_, _, at, _) in zip(watched.states, told, strict=True))
    if mode != "ode":
        assert torch.equal(end, told[-1][3])


def test_a_schedule_that_ends_above_zero():
    x = normal((3, 2, 1, 1), 0)
    whole = GMFlow("ode", 1, 4)(three_peaks(), x, torch.tensor([1.0, 0.5, 0.25]))
    first = GMFlow("ode", 1, 4)(three_peaks(), x, torch.tensor([1.0, 0.5]))
    torch.testing.assert_close(GMFlow("ode", 1, 4)(three_peaks(), first, torch.tensor([0.5, 0.25])), whole)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_sub_steps_are_uniform_before_the_shift(shift):
    nodes = torch.tensor(between(0.9, 0.3, 6, shift), dtype=torch.float64)
    times = nodes / (shift - (shift - 1) * nodes)
    torch.testing.assert_close(times.diff(), times.diff().mean().expand(6))
    assert nodes[0] == 0.9 and nodes[-1] == 0.3


def test_temperature_sharpens_all_steps_but_the_last():
    x = normal((50, 2, 1, 1), 0)
    cold, warm = GMFlow("sde", 1, temperature=0.05), GMFlow("sde", 1)
    one = [solver(three_peaks(), x, sigmas(1), noise=noise_of(x, 1)) for solver in (cold, warm)]
    assert torch.equal(*one)
    two = [solver(three_peaks(), x, sigmas(2), noise=noise_of(x, 1)) for solver in (cold, warm)]
    assert two[0].std() < two[1].std()


def test_the_draw_can_be_another():
    x = normal((3, 2, 1, 1), 0)
    constant = replace(GMFlow("sde", 1), draw=lambda mixture, noise: torch.zeros_like(x))
    end = constant(three_peaks(), x, torch.tensor([1.0, 0.5]), noise=lambda *_: torch.ones_like(x))
    torch.testing.assert_close(end, torch.full_like(x, 0.5))


# ---------------------------------------------------------------------------------------------------------
# Any latent


@pytest.mark.parametrize("mode", MODES)
def test_an_item_does_not_depend_on_its_batch(mode):
    x, labels = normal((3, 4, 7, 5), 0, torch.float32), torch.tensor([1, 4, 10])
    draws = normal((20, 3, 4, 7, 5), 1, torch.float32)

    def solve(part: slice) -> Tensor:
        recorded = iter(draws[:, part])
        predict = Guided(tiny_gmdit(), labels[part], 0.3)
        return GMFlow(mode)(predict, x[part], sigmas(4), noise=lambda *_: next(recorded))

    torch.testing.assert_close(solve(slice(0, 3))[1:2], solve(slice(1, 2)), rtol=0, atol=1e-4)


@pytest.mark.parametrize("space", [(3, 2, 5), (7,), (1, 1)])
@pytest.mark.parametrize("mode", ["ode", "sde"])
def test_pixels_of_any_latent_go_as_they_would_alone(mode, space):
    """A video, a line, a point: with an exact model pixels are independent in first order."""
    law = random_mixture((1, 2, *space), 3)
    x, draws = normal((2, 2, *space), 1), normal((20, 2, 2, *space), 2)
    recorded = iter(draws)
    whole = GMFlow(mode, 1)(Exact(law), x, sigmas(3), noise=lambda *_: next(recorded))
    alone = iter(draws[..., :1])
    first = Mixture(law.means[..., :1], law.logweights[..., :1], law.logstds)
    part = GMFlow(mode, 1)(Exact(first), x[..., :1], sigmas(3), noise=lambda *_: next(alone))
    torch.testing.assert_close(whole[..., :1], part, rtol=0, atol=1e-10)


def test_half_precision_is_stepped_in_float32():
    x = normal((20, 2, 1, 1), 0)
    half = GMFlow("ode")(three_peaks(), x.half(), sigmas(4))
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.double(), GMFlow("ode")(three_peaks(), x, sigmas(4)), rtol=0, atol=0.01)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("mode", MODES)
def test_no_mixture_outlives_its_step(mode, order):
    kept: list[weakref.ref] = []
    exact = three_peaks()

    def predict(x: Tensor, sigma: float) -> Prediction:
        gc.collect()
        assert [ref() for ref in kept if ref() is not None] == []
        prediction = exact(x, sigma)
        kept.append(weakref.ref(prediction.conditional.means))
        kept.append(weakref.ref(prediction.mixture.logweights))
        return prediction

    x = normal((3, 2, 1, 1), 0)
    GMFlow(mode, order)(predict, x, sigmas(3), noise=noise_of(x, 1))
    assert len(kept) == 6


# ---------------------------------------------------------------------------------------------------------
# Bad input


@pytest.mark.parametrize("nodes", [[0.5, 0.7], [14.6, 1.0, 0.0], [1.0, -0.1], [float("nan"), 0.0]])
def test_sigmas_that_are_no_flow_schedule_are_told(nodes):
    with pytest.raises(ValueError, match="flow model|a number from 0 to 1"):
        GMFlow()(three_peaks(), normal((1, 2, 1, 1), 0), torch.tensor(nodes))


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "euler"},
        {"order": 3},
        {"substeps": 0},
        {"temperature": 0.0},
        {"temperature": 1.5},
        {"shift": 0.0},
        {"corrections": -1},
    ],
)
def test_options_out_of_range_are_told(options):
    with pytest.raises(ValueError, match="cannot be|choose one of"):
        GMFlow(**options)


def test_an_sde_without_noise_is_told():
    with pytest.raises(ValueError, match="draws noise, and none was given"):
        GMFlow("sde")(three_peaks(), normal((1, 2, 1, 1), 0), sigmas(2))


@pytest.mark.parametrize("fails", ["conditional", "unconditional"])
def test_a_model_that_fails_is_told_at_once(fails):
    def broken(x: Tensor, sigma: float) -> Prediction:
        conditional, unconditional = (three_peaks()(x, sigma).conditional for _ in range(2))
        failing = conditional if fails == "conditional" else unconditional
        failing.logweights[0] = torch.nan
        return guided(conditional, unconditional, 0.5)

    with pytest.raises(ValueError, match="not numbers"):
        GMFlow()(broken, normal((1, 2, 1, 1), 0), sigmas(2))


@pytest.mark.parametrize("mode", ["ode", "sde"])
@pytest.mark.parametrize("largest", [1e4, 3e38, math.inf, -math.inf, math.nan])
def test_logits_that_overflow_are_a_picture_or_told(mode, largest):
    """Up to float32's end the heaviest component is all there is; beyond it there is no mixture."""

    def predict(x: Tensor, sigma: float) -> Prediction:
        means = torch.stack([torch.zeros_like(x), torch.ones_like(x)], 1)
        logits = torch.zeros(len(x), 2, 1, *x.shape[2:])
        logits[:, 1], logits[:, 0] = largest, -largest if abs(largest) < math.inf else largest
        mixture = Mixture.of_logits(means, logits, torch.full((len(x), 1, 1, 1, 1), -3.0))
        return guided(mixture, mixture, 0.5)

    x = normal((1, 2, 2, 2), 0, torch.float32)

    def run() -> Tensor:
        return GMFlow(mode, temperature=0.5)(predict, x, sigmas(4), noise=noise_of(x, 1))

    if math.isfinite(largest):
        torch.testing.assert_close(run(), torch.ones_like(x), rtol=0, atol=0.2)
    else:
        with pytest.raises(ValueError, match=r"weights.* are not numbers \(at sigma 1, step 1 of 4\)"):
            run()


def test_which_call_failed_is_told():
    def broken(x: Tensor, sigma: float) -> Prediction:
        prediction = three_peaks()(x, sigma)
        prediction.mixture.means[sigma < 0.7] = torch.nan
        return prediction

    with pytest.raises(ValueError, match="at sigma 0.5, step 3 of 4"):
        GMFlow()(broken, normal((1, 2, 1, 1), 0), sigmas(4))


@pytest.mark.parametrize("mode", ["ode", "sde"])
@pytest.mark.parametrize(
    "nodes, same", [([0.5, 1e-38], [0.5, 0.0]), ([1.0000001, 0.5, 0.0], [1.0, 0.5, 0.0]), ([1, 1, 0.5, 0], [1, 0.5, 0])]
)
def test_sigmas_that_float32_cannot_tell_apart_are_one(mode, nodes, same):
    """A likelihood at 1e-38 has no place in it, 1.0000001 is 1, and between equal ones there is no way to go."""
    x = normal((1, 2, 1, 1), 0)
    one, two = (
        GMFlow(mode)(three_peaks(), x, torch.tensor(sigmas, dtype=torch.float64), noise=noise_of(x, 1))
        for sigmas in (nodes, same)
    )
    assert torch.equal(one, two) and one.isfinite().all()
