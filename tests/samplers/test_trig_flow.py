"""TrigFlow: its angles against other ways to write noise, and consistency sampling of one Gaussian, which is exact."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from fewstep.samplers.noise_law import FLOW, VARIANCE_EXPLODING
from fewstep.samplers.trig_flow import (
    PRESETS,
    angle,
    predicted,
    ratio,
    read_times,
    rotated,
    sample_consistency,
    schedule,
)

MEAN, VAR = 0.7, 0.3  # of the data


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("s_d", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("t", [1e-3, 0.4, 1.1, 1.5645])
def test_an_angle_is_the_same_noise_under_every_law(s_d, t):
    """x_t of TrigFlow, divided by what it keeps of x0, is the picture of either law at the same ratio."""
    x0, e = noise(5), noise(5, seed=1)
    trig = math.cos(t) * x0 + math.sin(t) * s_d * e
    assert angle(ratio(t, s_d), s_d) == pytest.approx(t, abs=1e-12)
    for law in (VARIANCE_EXPLODING, FLOW):
        sigma = law.sigma(ratio(t, s_d))
        torch.testing.assert_close(law.noised(x0, sigma, e) / law.alpha(sigma), trig / math.cos(t), rtol=1e-12, atol=0)
    if s_d == 1:
        assert FLOW.sigma(ratio(t, s_d)) == pytest.approx(math.sin(t) / (math.sin(t) + math.cos(t)), rel=1e-12)


def test_a_rotation_is_exact_where_the_network_does_not_change_along_the_arc():
    """x = cos t x0 + sin t z with F = dx/dt / s_d: the circle through both."""
    x0, z, s_d = noise(5), 0.5 * noise(5, seed=1), 0.5

    def at(t: float) -> torch.Tensor:
        return math.cos(t) * x0 + math.sin(t) * z

    network = (-math.sin(1.2) * x0 + math.cos(1.2) * z) / s_d
    torch.testing.assert_close(rotated(at(1.2), network, 1.2, 0.3, s_d), at(0.3), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(predicted(at(1.2), network, 1.2, s_d), x0, rtol=1e-12, atol=1e-12)


def exact_end(s_d: float):
    """The consistency function of N(MEAN, VAR), of x_t at t."""

    def f(x: torch.Tensor, t: float) -> torch.Tensor:
        y, sigma = x / math.cos(t), ratio(t, s_d)
        return MEAN + math.sqrt(VAR / (VAR + sigma**2)) * (y - MEAN)

    return f


@pytest.mark.parametrize("times", [(1.5645,), (1.5645, 1.1), (1.5645, 1.2, 0.8, 0.3)])
def test_every_number_of_steps_leaves_the_gaussian_as_it_is(times):
    """Putting noise back after an exact end, and going there again, draws the data whatever the times."""
    z = [noise(200_000, seed=n) for n in range(len(times))]
    drawn = sample_consistency(exact_end(0.5), z, times, 0.5)
    assert float(drawn.mean()) == pytest.approx(MEAN, abs=0.02)  # the first call takes noise alone for x_t
    assert float(drawn.var()) == pytest.approx(VAR, rel=0.01)


def test_the_ends_of_one_step_lie_on_the_ode():
    """Fine rotations of the exact slope from the same start end where the consistency function says."""
    s_d, t0 = 0.5, 1.5
    x = math.sin(t0) * s_d * noise(8)
    times, at = np.linspace(t0, 0, 4001), x
    for t, s in zip(times, times[1:], strict=False):
        y, sigma = at / math.cos(t), ratio(t, s_d)
        x0 = MEAN + VAR / (VAR + sigma**2) * (y - MEAN)
        network = (math.cos(t) * at - x0) / (s_d * math.sin(t))
        at = rotated(at, network, t, s, s_d)
    torch.testing.assert_close(at, exact_end(s_d)(x, t0), rtol=0, atol=2e-3)


def test_published_times():
    first = 80.0
    assert schedule(VARIANCE_EXPLODING, 1, "scm", 0.5, first) == (80.0, 0.0)
    assert schedule(VARIANCE_EXPLODING, 2, "scm", 0.5, first) == pytest.approx((80, 0.5 * math.tan(1.1), 0))
    wan = schedule(FLOW, 4, "rcm_wan", 1.0, FLOW.sigma(80.0))
    flow = [math.sin(t) / (math.sin(t) + math.cos(t)) for t in (1.5, 1.4, 1.0)]
    assert wan == pytest.approx((80 / 81, *flow, 0))
    assert schedule(FLOW, 2, "rcm_wan", 1.0, FLOW.sigma(80.0))[:2] == wan[:2]


def test_where_nothing_is_published_the_times_are_even():
    sigmas = schedule(VARIANCE_EXPLODING, 4, "scm", 0.5, 80.0)
    times = [angle(sigma, 0.5) for sigma in sigmas]
    assert np.diff(times) == pytest.approx([-times[0] / 4] * 4)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("steps", [1, 2, 3, 4])
@pytest.mark.parametrize("law, s_d, first", [(VARIANCE_EXPLODING, 0.5, 80.0), (FLOW, 1.0, 80 / 81)])
def test_every_preset_falls_for_every_number_of_steps(name, steps, law, s_d, first):
    sigmas = schedule(law, steps, name, s_d, first)
    assert len(sigmas) == steps + 1 and all(s > t for s, t in zip(sigmas, sigmas[1:], strict=False))


@pytest.mark.parametrize(
    "steps, times, words",
    [
        (5, "scm", "1 to 4"),
        (0, "scm", "1 to 4"),
        (2, "own", "times is 'own'"),
        (3, (1.0,), "need 2 times"),
        (2, (1.6,), "pi/2"),
        (2, (0.0,), "pi/2"),
        (2, (float("nan"),), "pi/2"),
        (3, (1.0, 1.2), "do not fall"),
        (2, (1.57,), "do not fall"),
    ],
)
def test_what_is_no_schedule_is_refused_in_words(steps, times, words):
    with pytest.raises(ValueError, match=words):
        schedule(VARIANCE_EXPLODING, steps, times, 0.5, 80.0)


def test_own_times_are_read_with_commas_or_blanks():
    assert read_times("1.5, 1.4 1.0,") == (1.5, 1.4, 1.0)
    assert read_times("") == ()
    with pytest.raises(ValueError, match="write angles"):
        read_times("1.5; 1.4")
