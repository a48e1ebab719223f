"""Where steps err and how curved a path is: as an exact solver of the mixture says, and as closed forms do."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from fewstep.samplers.noise_law import FLOW, VARIANCE_EXPLODING, NoiseLaw
from fewstep.samplers.streams import ALONE, Streams
from fewstep.schedulers.meters import (
    STUDENTS,
    Fine,
    Meter,
    calls_of,
    curvature,
    finer,
    followed,
    run_through,
    steps_of,
)
from fewstep.schedulers.restart.plan import rho_grid
from scipy.integrate import quad, solve_ivp
from support.exact import Case
from support.mixture import Mixture, exact_of_one, one_gaussian
from torch import Tensor

CPU = torch.device("cpu")
LAWS = [VARIANCE_EXPLODING, FLOW]
NO_NOISE = lambda jump: torch.zeros(())  # noqa: E731
SCHEDULES = {
    VARIANCE_EXPLODING: (14.6, *rho_grid(14.6, 0.03, 6)[1:], 0.0),
    FLOW: (1.0, 0.94, 0.86, 0.75, 0.6, 0.35, 0.0),
}


def exact_states(case: Case, x: Tensor, sigmas) -> list[Tensor]:
    """x at every sigma, by an eighth-order method; in tau = ln sigma the ODE is dx/dtau = x - x0."""
    states = [x]

    def slope(tau: float, flat: np.ndarray) -> np.ndarray:
        at = torch.from_numpy(flat).view_as(x)
        return (at - case.denoise(at, math.exp(tau))).numpy().ravel()

    for begin, end in pairwise(sigmas):
        span = (math.log(begin), math.log(end or 1e-5))
        solved = solve_ivp(slope, span, states[-1].numpy().ravel(), "DOP853", (span[1],), rtol=1e-7, atol=1e-7)
        states.append(torch.from_numpy(solved.y[:, -1]).view_as(x))
    return states


def one_run(sigmas, law: NoiseLaw) -> Fine:
    (fine,) = finer(sigmas, law, 0.0)
    return fine


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("cfg", [1.0, 5.0])
def test_the_errors_of_the_steps_are_the_exact_ones(law, cfg):
    """The samplers' formulas written out here, from the exact states, with the exact answers."""
    case = Case(law, cfg)
    x, sigmas = case.start(2, seed=3), SCHEDULES[law]
    states = exact_states(case, x, sigmas)
    fine = one_run(sigmas, law)
    found = steps_of(followed(case.denoise, x, law, fine, CPU), fine, law)
    assert [(step.begin, step.end) for step in found] == list(pairwise(sigmas))
    before: Tensor | None = None
    for n, (step, (begin, end)) in enumerate(zip(found, pairwise(sigmas), strict=True)):
        answer = case.denoise(states[n], begin)
        euler = states[n] + (end - begin) * (states[n] - answer) / begin
        size = law.alpha(end) ** 2 + law.deviation(end) ** 2
        exact = float((euler - states[n + 1]).square().mean()) / size
        assert step.errors["euler"] == pytest.approx(exact, rel=0.05, abs=1e-7), n
        used = answer
        if before is not None and end > 0:
            used = answer + math.log(begin / end) / (2 * math.log(sigmas[n - 1] / begin)) * (answer - before)
        twice = used + end / begin * (states[n] - used)
        exact = float((twice - states[n + 1]).square().mean()) / size
        assert step.errors["dpmpp_2m"] == pytest.approx(exact, rel=0.05, abs=1e-7), n
        after = states[n + 1] if end == 0 else case.denoise(states[n + 1], end)
        assert step.turn == pytest.approx(float((after - answer).square().mean().sqrt()), rel=0.03), n
        before = answer


@pytest.mark.parametrize("law", LAWS)
def test_the_whole_error_is_that_of_the_sampler_run_through(law):
    case, sigmas = Case(law, 5.0), SCHEDULES[law]
    x = case.start(2, seed=3)
    found = Meter(case.denoise, law, [one_run(sigmas, law)], NO_NOISE)(x)
    end = exact_states(case, x, sigmas)[-1]
    at = x
    for begin, after in pairwise(sigmas):
        at = at + (after - begin) * (at - case.denoise(at, begin)) / begin
    assert found.whole["euler"] == pytest.approx(float((at - end).square().mean()), rel=0.02)
    torch.testing.assert_close(found.end, end, rtol=0, atol=0.01)
    assert found.worst("euler")[0] == 1 + max(range(len(sigmas) - 1), key=lambda n: found.steps[n].errors["euler"])


def gaussian(law: NoiseLaw, variance: float, middle: float = 0.0) -> tuple[Mixture, Case]:
    """Of one component, the same variance everywhere."""
    one = one_gaussian()
    mixture = replace(one, means=torch.full_like(one.means, middle), spectrum=torch.full_like(one.spectrum, variance))
    return mixture, Case(law, 1.0, mixture)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("last", [0.0, 0.2])
def test_the_path_to_a_point_is_straight_and_no_step_errs(law, last):
    _, case = gaussian(law, 0.0, middle=0.5)
    fine = one_run((case.first, 0.5 * case.first, last), law)
    found = Meter(case.denoise, law, [fine], NO_NOISE)(case.start(2).float())
    assert found.curvature < 1e-9
    assert all(step.turn < 1e-5 for step in found.steps)
    assert max(found.whole.values()) < 1e-10 and max(found.added(name) for name in STUDENTS) < 1e-10


@pytest.mark.parametrize("law", [*LAWS, NoiseLaw(True, 2.0)])
@pytest.mark.parametrize("last", [0.0, 0.2])
def test_the_curvature_of_a_gaussian_is_the_integral_of_its_closed_form(law, last):
    """y = sqrt(P + ratio^2) n, so z = (1 - u) y = sqrt(P (1 - u)^2 + u^2) n, with u = ratio / (1 + ratio)."""
    variance = 0.3
    _, case = gaussian(law, variance)
    sigmas = (case.first, 0.6 * case.first, last)
    noise = case.start(64) / case.first
    ratio = law.ratio(case.first)
    begin, end = (law.deviation(s) / (law.alpha(s) + law.deviation(s)) for s in (case.first, last))
    size = lambda u: math.sqrt(variance * (1 - u) ** 2 + u**2)  # noqa: E731
    slope = lambda u: (u - variance * (1 - u)) / size(u)  # noqa: E731
    chord = (size(begin) - size(end)) / (begin - end)
    exact = quad(lambda u: (chord - slope(u)) ** 2, end, begin)[0] / (begin - end) * float(noise.square().mean())
    x = noise * (math.sqrt(variance + ratio**2) if ratio < math.inf else law.deviation(case.first))
    run = followed(case.denoise, x, law, one_run(sigmas, law), CPU)
    assert curvature(run, law) == pytest.approx(exact, rel=0.03)


@pytest.mark.parametrize("law", LAWS)
def test_a_steps_error_is_what_remains_of_it_in_a_gaussian_picture_of_variance_1(law):
    mixture, case = gaussian(law, 1.0)
    sigmas = (0.9, 0.5, 0.0)
    x = case.start(2) / case.first * math.hypot(law.alpha(0.9), 0.9)
    fine = one_run(sigmas, law)
    step = steps_of(followed(case.denoise, x, law, fine, CPU), fine, law)[0]
    euler = x + (0.5 - 0.9) * (x - case.denoise(x, 0.9)) / 0.9
    ends = [
        exact_of_one(mixture, at / law.alpha(sigma), law.ratio(sigma), 0.0) for at, sigma in ((euler, 0.5), (x, 0.9))
    ]
    assert step.errors["euler"] == pytest.approx(float((ends[0] - ends[1]).square().mean()), rel=0.02)


# ---------------------------------------------------------------------------------------------------------
# The finer run


@pytest.mark.parametrize("steps, calls", [(1, 48), (8, 48), (20, 80)])
def test_how_many_calls(steps, calls):
    sigmas = [n / steps for n in range(steps, -1, -1)]
    fine = one_run(sigmas, FLOW)
    assert fine.calls == calls and fine.schedule == tuple(sigmas)
    assert list(fine.sigmas) == sorted({*fine.sigmas}, reverse=True)
    assert calls_of([fine]) == calls + 2 * steps


@pytest.mark.parametrize("last", [0.0, 0.2])
@pytest.mark.parametrize("law", LAWS)
def test_as_many_calls_are_made_as_are_told(law, last):
    case, asked = Case(law, 1.0), []

    def counted(x: Tensor, sigma: float) -> Tensor:
        asked.append(sigma)
        return case.denoise(x, sigma)

    fine = [one_run((case.first, 0.5 * case.first, last), law)]
    Meter(counted, law, fine, NO_NOISE)(case.start(1))
    assert len(asked) == calls_of(fine)
    assert min(asked) > 0


def test_a_model_is_asked_where_it_stands_and_not_below_its_lowest():
    stands = lambda sigmas: [round(sigma, 1) for sigma in sigmas]  # noqa: E731
    (fine,) = finer((14.6, 1.0, 0.2, 0.03, 0.0), VARIANCE_EXPLODING, 0.03, stands)
    assert fine.schedule == (14.6, 1.0, 0.2, 0.03, 0.0)
    inner = set(fine.sigmas) - set(fine.schedule)
    assert len(inner) > 15 and all(sigma == round(sigma, 1) for sigma in inner)
    assert fine.sigmas[-2:] == (0.03, 0.0)


def test_steps_that_go_nowhere_are_left_out_and_runs_part_at_jumps():
    fine = finer((10.0, 3.0, 3.0, 1.0, 4.0, 0.5, 2.0), VARIANCE_EXPLODING, 0.0)
    assert [one.schedule for one in fine] == [(10.0, 3.0, 1.0), (4.0, 0.5)]
    assert finer((0.0, 0.5, 1.0), FLOW, 0.0) == []


def test_a_jump_puts_the_same_noise_on_whoever_runs():
    """Of the jump's own number, on the finer run as on the samplers' runs."""
    case = Case(FLOW, 1.0)
    x, drawn = case.start(2, seed=1), torch.randn(2, *case.mixture.spectrum.shape, dtype=torch.float64)
    fine = finer((1.0, 0.6, 0.2, 0.5, 0.0), FLOW, 0.0)
    found = Meter(case.denoise, FLOW, fine, lambda jump: jump * drawn)(x)
    first = run_through(STUDENTS["euler"], case.denoise, x, (1.0, 0.6, 0.2))
    by_hand = run_through(STUDENTS["euler"], case.denoise, FLOW.renoise(first, 0.2, 0.5, drawn), (0.5, 0.0))
    assert found.whole["euler"] == pytest.approx(float((by_hand - found.end).square().mean()), rel=1e-9)
    assert len(found.steps) == 3
    again = Meter(case.denoise, FLOW, fine, lambda jump: -jump * drawn)(x)
    assert (again.end - found.end).abs().max() > 0.1


def test_streams_count_alike():
    """A stream that is straight beside one that is not: half of its curvature and of its errors."""
    _, case = gaussian(FLOW, 0.3)
    sizes = (case.mixture.spectrum.numel(), 1000)
    streams = Streams((tuple(case.mixture.spectrum.shape), (1000,)))
    x = torch.cat([case.start(2).flatten(1), torch.ones(2, 1000, dtype=torch.float64)], 1)[:, None]

    def denoise(x: Tensor, sigma: float) -> Tensor:
        one, other = x.split(sizes, -1)
        return torch.cat([case.denoise(one.reshape(2, *case.mixture.spectrum.shape), sigma).flatten(1)[:, None],
                          torch.zeros_like(other)], -1)  # fmt: skip

    fine = [one_run(SCHEDULES[FLOW], FLOW)]
    alone, both = (
        Meter(case.denoise, FLOW, fine, NO_NOISE, ALONE)(case.start(2)),
        Meter(denoise, FLOW, fine, NO_NOISE, streams)(x),
    )
    assert both.curvature == pytest.approx(alone.curvature / 2, rel=1e-6)
    assert both.added("euler") == pytest.approx(alone.added("euler") / 2, rel=1e-6)
