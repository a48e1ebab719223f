"""DEIS as the paper has it: polynomials through slopes, the weights of even steps, and Runge-Kutta."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from fewstep.samplers.clock import LogisticClock, PowerClock, hosts_sigma, log_noise
from fewstep.samplers.deis import DEIS, EVEN, IPNDM, SLOPE, even_plan, make_plan, weights_of
from fewstep.samplers.heun import heun
from fewstep.samplers.noise_law import FLOW, VARIANCE_EXPLODING
from fewstep.samplers.runge_kutta import RungeKutta, calls_of
from support.examples import mostly
from support.mixture import GuidedMixture, exact_of_one, one_gaussian, picture_like
from support.recording import Recording

LAWS = pytest.mark.parametrize("law", [VARIANCE_EXPLODING, FLOW], ids=["ve", "flow"])
CLOCKS = {"log_snr": log_noise, "sigma": None, "logistic": LogisticClock(1.6, 1.3)}
EVERY_CLOCK = pytest.mark.parametrize("clock", CLOCKS)
FALLING = [0.98, 0.9, 0.7, 0.55, 0.4, 0.15, 0.05, 0.0]


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def clock_of(name: str, law):
    return CLOCKS[name] or hosts_sigma(law)


def plan_of(law, clock, order: int, sigmas=FALLING, cap: float = math.inf):
    return make_plan(sigmas, law, clock, order, corrector=False, ends_denoised=True, answers=SLOPE, cap=cap)


def orders_reached(solver, grid=lambda steps: torch.logspace(1, -1, steps + 1, dtype=torch.float64)) -> list[float]:
    """Of the error at the exact end of one Gaussian, from 80 to 160 to 320 steps."""
    mixture, y = one_gaussian(), 10 * noise(2, 4, 4, 4)
    end, errors = exact_of_one(mixture, y, 10, 0.1), []
    for steps in (80, 160, 320):
        drawn = solver(GuidedMixture(mixture, VARIANCE_EXPLODING), y, grid(steps))
        errors.append(float((drawn - end).square().mean().sqrt()))
    return [float(np.log2(a / b)) for a, b in zip(errors, errors[1:], strict=False)]


@LAWS
@EVERY_CLOCK
@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("cap", [math.inf, 1.0])
def test_the_weights_of_every_step_add_up_to_its_length(law, clock, order, cap):
    """A slope that does not change is carried exactly, whatever the clock and the cap."""
    for hop, s, t in zip(plan_of(law, clock_of(clock, law), order, cap=cap), FALLING, FALLING[1:], strict=False):
        assert hop.decay == 1
        assert sum(hop.weights) == pytest.approx(t - s, abs=1e-12)
    assert [sum(map(bool, hop.weights)) for hop in plan_of(law, clock_of(clock, law), order)][-1] == 1  # ends with D


@LAWS
@EVERY_CLOCK
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_slopes_that_are_a_polynomial_in_the_clock_are_integrated_exactly(law, clock, order):
    time, nodes = clock_of(clock, law), [0.7, 0.55, 0.4, 0.15][-order:]
    s, t = nodes[-1], 0.1

    def u(sigma) -> np.ndarray:
        return time(law.ratio(torch.as_tensor(sigma, dtype=torch.float64))).numpy()

    grid, weights = np.polynomial.legendre.leggauss(400)
    inner = t + (s - t) * (grid + 1) / 2
    for power in range(order):
        exact = -(weights * (s - t) / 2) @ u(inner) ** power
        made = np.dot(weights_of(nodes, s, t, law, time, SLOPE), u(nodes)[::-1] ** power)
        assert made == pytest.approx(exact, rel=1e-10)


@EVERY_CLOCK
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_order_of_convergence(clock, order):
    """The first step has one answer, and an error of second order, which higher ones show in the end."""
    solver = DEIS(VARIANCE_EXPLODING, clock_of(clock, VARIANCE_EXPLODING), order, False, True, SLOPE)
    found = orders_reached(solver)
    assert found == pytest.approx([order] * 2, abs=0.25) if order < 3 else min(found) > 1.75


@pytest.mark.parametrize("order", [3, 4])
def test_a_history_that_is_known_gives_the_full_order(order):
    """Begun with exact answers, as a long run has them."""
    mixture, y = one_gaussian(), 10 * noise(1, 4, 4, 4)
    denoise, errors = GuidedMixture(mixture, VARIANCE_EXPLODING), []
    for steps in (40, 80, 160):
        sigmas = torch.logspace(1, -1, steps + 1, dtype=torch.float64).tolist()
        plan = plan_of(VARIANCE_EXPLODING, log_noise, order, sigmas)
        states = [exact_of_one(mixture, y, 10, sigma) for sigma in sigmas[:order]]
        known = [(x - denoise(x, s)) / s for x, s in zip(states, sigmas, strict=False)][::-1]
        x = states[-1]
        for n in range(order - 1, steps):
            if n >= order:
                known = [(x - denoise(x, sigmas[n])) / sigmas[n], *known][:order]
            x = plan[n](x, known, plan[n].weights)
        errors.append(float((x - exact_of_one(mixture, y, 10, sigmas[-1])).square().mean().sqrt()))
    assert [np.log2(a / b) for a, b in zip(errors, errors[1:], strict=False)] == pytest.approx([order] * 2, abs=0.4)


def test_the_cap_moves_nothing_where_steps_shrink_and_holds_where_they_grow():
    shrinking, growing = [8.0, 4.0, 2.0, 1.0], [8.0, 7.9, 7.0, 3.0]
    for order in (2, 3):
        args = VARIANCE_EXPLODING, PowerClock(1.0), order
        assert plan_of(*args, shrinking, cap=1.0) == plan_of(*args, shrinking)
        capped, free = (plan_of(*args, growing, cap=cap) for cap in (1.0, math.inf))
        assert capped != free
        assert all(sum(map(abs, hop.weights)) <= 11 / 3 * abs(sum(hop.weights)) + 1e-9 for hop in capped)
    first, second = plan_of(VARIANCE_EXPLODING, PowerClock(1.0), 2, growing, cap=1.0)[1:]
    assert first.weights == pytest.approx((-1.35, 0.45)) and second.weights == pytest.approx((-6.0, 2.0))


def test_short_before_long_with_guidance_no_longer_explodes():
    """beta's first step on a flow model: without the cap order 3 is worse than Euler by two orders of magnitude."""
    labels = torch.tensor([0, 3])
    denoise, x = GuidedMixture(picture_like(), FLOW, labels, 5.0), noise(2, 4, 16, 16)
    sigmas = [1.0, 0.99, 0.83, 0.5, 0.17, 0.0]
    end = heun(denoise, x, torch.tensor([*np.linspace(1, 0, 400)], dtype=torch.float64))
    error = {
        cap: float(
            (DEIS(FLOW, hosts_sigma(FLOW), 3, False, True, SLOPE, cap)(denoise, x, sigmas) - end).square().mean()
        )
        for cap in (1.0, math.inf)
    }
    euler = float((DEIS(FLOW, log_noise, 1, False, True, SLOPE)(denoise, x, sigmas) - end).square().mean())
    assert error[1.0] < 3 * euler and error[math.inf] > 30 * euler


def test_pure_noise_has_no_place_on_the_clock_of_log_snr_and_is_left_out_of_the_history():
    plan = plan_of(FLOW, log_noise, 3, [1.0, 0.8, 0.5, 0.2])
    assert [tuple(map(bool, hop.weights)) for hop in plan] == [(True,), (True, False), (True, True, False)]
    assert all(math.isfinite(weight) for hop in plan for weight in hop.weights)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_ipndm_has_the_weights_of_even_steps(order):
    """On even steps it is rhoAB, once there are as many answers as its order."""
    sigmas = [8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0]
    even, exact = even_plan(sigmas, order), plan_of(VARIANCE_EXPLODING, PowerClock(1.0), order, sigmas)
    for ours, theirs in zip(even, exact, strict=True):
        assert ours.weights == pytest.approx(theirs.weights, abs=1e-12)
    assert all(sum(weights) == pytest.approx(1) for weights in EVEN)
    assert even_plan([2.0, 1.0, 0.0], order)[-1].weights == (-1.0,)


@pytest.mark.parametrize("order", mostly(4, longer=(2, 3)))
def test_order_of_convergence_of_ipndm_on_even_steps(order):
    grid = lambda steps: torch.linspace(10, 0.1, 8 * steps + 1, dtype=torch.float64)  # noqa: E731
    assert orders_reached(IPNDM(order), grid) == pytest.approx([order] * 2, abs=0.3)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_order_of_convergence_of_runge_kutta(order):
    mixture, y, errors = one_gaussian(), 10 * noise(2, 4, 4, 4), []
    for steps in (20, 40, 80):
        sigmas = torch.logspace(1, -1, steps + 1, dtype=torch.float64)
        drawn = RungeKutta(order)(GuidedMixture(mixture, VARIANCE_EXPLODING), y, sigmas)
        errors.append(float((drawn - exact_of_one(mixture, y, 10, 0.1)).square().mean().sqrt()))
    found = [np.log2(a / b) for a, b in zip(errors, errors[1:], strict=False)]
    assert found == pytest.approx([order, order], abs=0.35)


@pytest.mark.parametrize(
    "order, sigmas", [(1, [2, 1, 0]), (2, [2, 1, 1, 0]), (3, [2, 1.5, 1, 1, 0]), (4, [2, 1.5, 1.5, 1, 1, 0])]
)
def test_where_runge_kutta_calls(order, sigmas):
    recorded = Recording(GuidedMixture(picture_like(size=4), VARIANCE_EXPLODING))
    steps: list[int] = []
    RungeKutta(order)(
        recorded, noise(1, 4, 4, 4), [2.0, 1.0, 0.0], on_step=lambda step, sigma, x, denoised: steps.append(step)
    )
    assert recorded.sigmas == sigmas[:-1]
    assert recorded.calls == calls_of(order, 2, to_zero=True) and steps == [0, 1]
    assert calls_of(order, 2, to_zero=False) == 2 * order


def test_heun_is_the_second_of_them():
    denoise, x = GuidedMixture(picture_like(size=4), FLOW), noise(1, 4, 4, 4)
    sigmas = torch.tensor([1.0, 0.8, 0.5, 0.2, 0.0], dtype=torch.float64)
    torch.testing.assert_close(RungeKutta(2)(denoise, x, sigmas), heun(denoise, x, sigmas), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("solver", [RungeKutta(5), IPNDM(0), DEIS(FLOW, log_noise, 7)])
def test_an_order_that_is_none_is_refused(solver):
    with pytest.raises(ValueError, match=r"it must be 1, 2, 3 or 4\."):
        solver(GuidedMixture(picture_like(size=4), FLOW), noise(1, 4, 4, 4), [1.0, 0.5, 0.0])


@pytest.mark.parametrize("solver", [RungeKutta(2), IPNDM(2)])
def test_sigmas_that_rise_are_refused(solver):
    with pytest.raises(ValueError, match="fall"):
        solver(GuidedMixture(picture_like(size=4), FLOW), noise(1, 4, 4, 4), [0.5, 1.0])
