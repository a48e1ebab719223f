"""DualFast: nothing at strength 0, Adams and Bashforth's method around Euler, and which estimate is the earlier one."""

from __future__ import annotations

import pytest
import torch
from fewstep.samplers.clock import PowerClock
from fewstep.samplers.deis import DEIS, SLOPE
from fewstep.samplers.dual_fast import DualFast, Strength, check_strength, strength_of
from fewstep.samplers.heun import heun
from fewstep.samplers.noise_law import FLOW, VARIANCE_EXPLODING
from fewstep.samplers.runge_kutta import RungeKutta
from support.mixture import GuidedMixture, exact_of_one, one_gaussian, picture_like
from support.recording import Recording

SIGMAS = [8.0, 5.0, 3.5, 1.2, 0.4]
EULER = RungeKutta(1)


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def half_the_ratio(sigmas):
    """c by which Euler becomes the second-order method of Adams and Bashforth."""
    steps = [t - s for s, t in zip(sigmas, sigmas[1:], strict=False)]
    by_sigma = {sigmas[n]: steps[n] / (2 * steps[n - 1]) for n in range(1, len(steps))}
    return lambda sigma: by_sigma.get(sigma, 0.0)


def test_at_strength_zero_nothing_changes_to_the_bit():
    denoise, x = GuidedMixture(picture_like(size=4), VARIANCE_EXPLODING), 8 * noise(2, 4, 4, 4)
    for solver in (EULER, heun):
        sigmas = torch.tensor([*SIGMAS, 0.0], dtype=torch.float64)
        mixed = DualFast(denoise, strength_of(0.0, "constant", SIGMAS))
        assert torch.equal(solver(mixed, x, sigmas), solver(denoise, x, sigmas))


@pytest.mark.parametrize("law", [VARIANCE_EXPLODING, FLOW], ids=["ve", "flow"])
def test_around_euler_it_is_adams_and_bashforths_second_order_method(law):
    sigmas = SIGMAS if not law.is_flow else [1.0, 0.8, 0.5, 0.3, 0.1]
    denoise, x = GuidedMixture(picture_like(size=4), law), noise(2, 4, 4, 4)
    mixed = EULER(DualFast(denoise, half_the_ratio(sigmas)), x, sigmas)
    known = DEIS(law, PowerClock(1.0) if not law.is_flow else lambda ratio: 1 / (1 + 1 / ratio), 2, False, True, SLOPE)
    torch.testing.assert_close(mixed, known(denoise, x, sigmas), rtol=0, atol=1e-9)
    assert (mixed - EULER(denoise, x, sigmas)).abs().max() > 1e-3


def test_order_of_convergence_around_euler():
    """On a linear model with even steps in sigma, half the difference makes the first order the second."""
    mixture, y = one_gaussian(), 10 * noise(2, 4, 4, 4)
    end = exact_of_one(mixture, y, 10, 1.0)
    errors: dict[float, list[float]] = {0.0: [], 0.5: []}
    for strength, found in errors.items():
        for steps in (200, 400, 800):
            sigmas = torch.linspace(10, 1, steps + 1, dtype=torch.float64).tolist()
            denoise = GuidedMixture(mixture, VARIANCE_EXPLODING)
            drawn = EULER(DualFast(denoise, strength_of(strength, "constant", sigmas)), y, sigmas)
            found.append(float((drawn - end).square().mean().sqrt()))
    order = {
        s: [torch.log2(torch.tensor(a / b)).item() for a, b in zip(e, e[1:], strict=False)] for s, e in errors.items()
    }
    assert order[0.0] == pytest.approx([1, 1], abs=0.1) and order[0.5] == pytest.approx([2, 2], abs=0.2)


class Told:
    """A denoiser whose slope at a call is the number of the call, from 1."""

    def __init__(self):
        self.calls = 0

    def __call__(self, x: torch.Tensor, sigma: float) -> torch.Tensor:
        self.calls += 1
        return x - sigma * self.calls


@pytest.mark.parametrize(
    "reference, sigmas, earlier",
    [
        ("previous", [4, 3, 2, 1], [None, 1, 2, 3]),
        ("first", [4, 3, 2, 1], [None, 1, 1, 1]),
        ("previous", [4, 3, 3, 2, 2, 1], [None, 1, 1, 3, 3, 5]),  # Heun's calls: never the one at the same sigma
        ("first", [4, 3, 3, 2], [None, 1, 1, 1]),
        ("previous", [4, 3, 5, 4], [None, 1, None, 3]),  # a jump: what was known is of another picture
        ("first", [4, 3, 5, 4], [None, 1, None, 3]),
        ("previous", [2, 0], [None, None]),
    ],
)
def test_which_estimate_is_mixed_in(reference, sigmas, earlier):
    mixed, x = DualFast(Told(), lambda sigma: 1.0, reference), torch.zeros(1, 1)
    for call, (sigma, number) in enumerate(zip(sigmas, earlier, strict=True), start=1):
        added = float(mixed(x, float(sigma)) - (x - sigma * call))
        assert added == (0 if number is None else -sigma * (call - number))


def test_a_ramp_begins_at_nothing_and_ends_at_the_strength():
    rising = strength_of(0.6, "linear", [8.0, 4.0, 2.0, 1.0, 0.0])
    assert [rising(sigma) for sigma in (8.0, 4.0, 2.0, 1.0)] == pytest.approx([0, 0.2, 0.4, 0.6])
    assert rising(3.0) == pytest.approx(0.3) and rising(0.1) == 0.6 and rising(20.0) == 0
    assert Strength(0.6, "constant", (8.0, 1.0))(8.0) == 0.6
    assert Strength(0.6, "linear", (8.0,))(8.0) == 0.6


def test_no_further_call():
    recorded = Recording(GuidedMixture(picture_like(size=4), VARIANCE_EXPLODING))
    EULER(DualFast(recorded, lambda sigma: 0.5), noise(1, 4, 4, 4), [*SIGMAS, 0.0])
    assert recorded.sigmas == SIGMAS


@pytest.mark.parametrize(
    "given, words",
    [
        ((-0.1, "linear", "previous"), "strength is -0.1"),
        ((float("nan"), "linear", "previous"), "strength is nan"),
        ((0.5, "steep", "previous"), "ramp is 'steep'"),
        ((0.5, "linear", "next"), "reference is 'next'"),
    ],
)
def test_what_cannot_be_is_refused_in_words(given, words):
    with pytest.raises(ValueError, match=words):
        check_strength(*given)
