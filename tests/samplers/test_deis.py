"""DEIS on a clock: its order, what it integrates exactly, both noise laws, and where it calls the model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fewstep.samplers.clock import LogisticClock
from fewstep.samplers.deis import DEIS, make_plan
from fewstep.samplers.noise_law import FLOW, VARIANCE_EXPLODING
from scipy.integrate import quad
from support.mixture import GuidedMixture, exact_of_one, one_gaussian, picture_like
from support.recording import Recording

CLOCK = LogisticClock(1.6, 1.3)


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("corrector", [False, True])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_order_of_convergence_against_the_exact_solution(order, corrector):
    mixture, y = one_gaussian(), 10 * noise(2, 4, 4, 4)
    end = exact_of_one(mixture, y, 10, 0.1)
    errors = []
    for steps in (160, 320, 640):
        sigmas = torch.logspace(1, -1, steps + 1, dtype=torch.float64)
        drawn = DEIS(VARIANCE_EXPLODING, CLOCK, order, corrector)(GuidedMixture(mixture, VARIANCE_EXPLODING), y, sigmas)
        errors.append(float((drawn - end).square().mean().sqrt()))
    found = [np.log2(a / b) for a, b in zip(errors, errors[1:], strict=False)]
    reached = order if corrector else min(order, 2)  # the first step has one answer, and an error of second order
    assert found == pytest.approx([reached, reached], abs=0.25)


@pytest.mark.parametrize("law", [VARIANCE_EXPLODING, FLOW], ids=["ve", "flow"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_answers_that_are_a_polynomial_in_the_clock_are_integrated_exactly(law, order):
    def answer(sigma: float) -> float:
        u = float(CLOCK(law.ratio(torch.tensor(sigma, dtype=torch.float64))))
        return 2.0 - 3 * u * (order > 1) + u**2 * (order > 2)

    sigmas = [0.9, 0.7, 0.55, 0.4, 0.15, 0.05]
    x = torch.ones(1, 1, dtype=torch.float64)
    ends = []
    for stop in (order - 1, len(sigmas) - 1):  # of the steps before it there are too few answers
        exact = quad(lambda sigma: answer(sigma) / sigma**2, sigmas[stop], sigmas[order - 1], epsabs=1e-13)[0]
        ends.append(sigmas[stop] / sigmas[order - 1] + sigmas[stop] * exact)
    states = []
    DEIS(law, CLOCK, order, corrector=False)(
        lambda x, sigma: torch.full_like(x, answer(sigma)),
        x,
        [*sigmas],
        on_step=lambda step, sigma, x, denoised: states.append(float(x)),
    )
    begun = states[order - 1]
    end = DEIS(law, CLOCK, order, corrector=False)(lambda x, s: torch.full_like(x, answer(s)), x, sigmas)
    assert float(end) == pytest.approx(ends[1] + (begun - 1) * sigmas[-1] / sigmas[order - 1], rel=1e-10)


@pytest.mark.parametrize("order, corrector", [(1, False), (2, False), (2, True), (3, True)])
def test_the_same_noise_gives_the_same_picture_under_either_law(order, corrector):
    mixture = picture_like(size=8)
    ratios, y = torch.logspace(1, -2, 9, dtype=torch.float64), 10 * noise(2, 4, 8, 8)
    exploding = DEIS(VARIANCE_EXPLODING, CLOCK, order, corrector)(GuidedMixture(mixture, VARIANCE_EXPLODING), y, ratios)
    sigmas = FLOW.sigma(ratios)
    start = y * FLOW.alpha(float(sigmas[0]))
    flow = DEIS(FLOW, CLOCK, order, corrector)(GuidedMixture(mixture, FLOW), start, sigmas)
    assert (flow / FLOW.alpha(float(sigmas[-1])) - exploding).abs().max() < 1e-9


def test_one_call_at_every_sigma_but_the_last():
    recorded = Recording(GuidedMixture(picture_like(size=4), FLOW))
    DEIS(FLOW, CLOCK, 3)(recorded, noise(1, 4, 4, 4), [1.0, 0.8, 0.5, 0.2, 0.0])
    assert recorded.sigmas == [1.0, 0.8, 0.5, 0.2]


@pytest.mark.parametrize("law", [VARIANCE_EXPLODING, FLOW], ids=["ve", "flow"])
def test_the_step_to_zero_is_the_limit_of_steps_to_ever_less_noise(law):
    denoise, x = GuidedMixture(picture_like(size=4), law), noise(1, 4, 4, 4)
    to_zero, nearly = (DEIS(law, CLOCK)(denoise, x, [0.9, 0.5, 0.2, last]) for last in (0.0, 1e-10))
    assert (to_zero - nearly).abs().max() < 1e-5


def test_at_order_one_a_run_in_two_parts_is_the_whole_run():
    denoise, x = GuidedMixture(picture_like(size=4), FLOW), noise(1, 4, 4, 4)
    sigmas, solver = [1.0, 0.8, 0.5, 0.2, 0.0], DEIS(FLOW, CLOCK, 1)
    assert torch.equal(solver(denoise, x, sigmas), solver(denoise, solver(denoise, x, sigmas[:3]), sigmas[2:]))


def test_the_corrector_uses_no_answer_beyond_the_last_call():
    plan = make_plan([1.0, 0.8, 0.5, 0.2, 0.0], FLOW, CLOCK)
    assert [len(hop.arrived) for hop in plan] == [2, 2, 2, 0]
    assert [len(hop.weights) for hop in plan] == [1, 2, 2, 2]
    assert not any(hop.arrived for hop in make_plan([1.0, 0.8, 0.5], FLOW, CLOCK, corrector=False))


def test_weights_of_a_constant_answer_carry_it_to_the_end():
    for hop in make_plan([1.0, 0.8, 0.5, 0.2, 0.0], FLOW, CLOCK, 3):
        assert hop.decay + sum(hop.weights) == pytest.approx(1, abs=1e-12)
        assert not hop.arrived or hop.decay + sum(hop.arrived) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(
    "sigmas, order, words",
    [
        ([1.0, 0.5, 0.5, 0.0], 2, "fall"),
        ([0.5, 1.0], 2, "fall"),
        ([1.0, 0.0], 5, "order is 5"),
        ([1.0, 0.0], 0, "1, 2"),
    ],
)
def test_what_cannot_be_run_is_refused_in_words(sigmas, order, words):
    with pytest.raises(ValueError, match=words):
        make_plan(sigmas, FLOW, CLOCK, order)
