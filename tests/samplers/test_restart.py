"""Restart's run: the law after a jump, what it calls and draws, and what must not change the picture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
import torch
from fewstep.samplers.heun import heun
from fewstep.samplers.noise_law import FLOW, VARIANCE_EXPLODING, NoiseLaw
from fewstep.samplers.restart import restart, solver_steps
from fewstep.schedulers.restart.plan import Interval, restart_plan, rho_grid
from support.metrics import directions, pair_sums, sliced_energy_distance, sliced_energy_distances
from support.mixture import GuidedMixture, Mixture, picture_like
from support.recording import Recording
from torch import Tensor

LAWS = pytest.mark.parametrize("law", [VARIANCE_EXPLODING, FLOW], ids=["ve", "flow"])
DRAWS = 10_000
SMALL = picture_like(channels=1, size=4, components=8)


@dataclass
class Drawn:
    """A Noise of one generator that keeps where it was asked."""

    like: Tensor
    seed: int = 0
    asked: list[tuple[float, float]] = field(default_factory=list)

    def __post_init__(self):
        self.generator = torch.Generator().manual_seed(self.seed)

    def __call__(self, sigma_from: float, sigma_to: float) -> Tensor:
        self.asked.append((sigma_from, sigma_to))
        return torch.randn(self.like.shape, generator=self.generator, dtype=torch.float64).to(self.like)


@dataclass
class RecordingInner:
    """An inner solver that keeps the runs it was given."""

    inner: Callable[..., Tensor] = heun
    runs: list[list[float]] = field(default_factory=list)

    def __call__(self, denoise, x, sigmas, *, noise=None, on_step=None):
        self.runs.append(sigmas.tolist())
        return self.inner(denoise, x, sigmas, noise=noise, on_step=on_step)


def adams_bashforth(denoise, x, sigmas, *, noise=None, on_step=None):
    """A solver with a history, of second order from its second step on."""
    old = None
    for sigma, sigma_next in pairwise(sigmas.tolist()):
        d = (x - denoise(x, sigma)) / sigma
        x = x + (sigma_next - sigma) * (d if old is None else 1.5 * d - 0.5 * old)
        old = d
    return x


def expanded(law: NoiseLaw, finer: int = 1) -> Tensor:
    """A schedule with three jumps, two of them from one node."""
    main = [*(law.sigma(ratio) for ratio in rho_grid(10.0, 0.05, 8 * finer)), 0.0]
    intervals = [Interval(2 * finer + 1, 2, 0.2, 0.8), Interval(finer + 1, 1, 1.5, 4.0)]
    plan = restart_plan(main, intervals, law)
    return torch.tensor(plan.sigmas, dtype=torch.float64)


def noised(mixture: Mixture, law: NoiseLaw, sigma: float, seed: int = 5, count: int = DRAWS) -> Tensor:
    """True draws of the mixture at `sigma`."""
    x0 = mixture.sample(count, seed)
    e = torch.randn(x0.shape, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    return law.alpha(sigma) * x0 + sigma * e


def assert_law(x: Tensor, mixture: Mixture, law: NoiseLaw, sigma: float) -> None:
    """Every pixel's mean within 5 standard errors, its variance within 7 percent (5 standard errors)."""
    mean, variance = mixture.moments()
    mean, variance = law.alpha(sigma) * mean, law.alpha(sigma) ** 2 * variance + sigma**2
    assert ((x.mean(0) - mean).abs() / (variance / len(x)).sqrt()).max() < 5
    assert (x.var(0) / variance - 1).abs().max() < 0.07


# ---------------------------------------------------------------------------------------------------------
# The law


@LAWS
@pytest.mark.parametrize("low, high", [(0.0, 0.2), (0.05, 0.3), (0.3, 0.6), (0.1, 0.9)])
def test_the_law_after_a_jump(law, low, high):
    x = noised(SMALL, law, low)
    after = restart(GuidedMixture(SMALL, law), x, torch.tensor([low, high]).double(), noise=Drawn(x), law=law)
    assert_law(after, SMALL, law, high)


@LAWS
@pytest.mark.parametrize("s_noise", [0.0, 0.9, 1.1])
def test_s_noise_scales_the_noise_and_nothing_else(law, s_noise):
    x = noised(SMALL, law, 0.1, count=4)
    sigmas = torch.tensor([0.1, 0.6]).double()
    still = restart(GuidedMixture(SMALL, law), x, sigmas, noise=lambda *_: torch.zeros_like(x), law=law)
    full, part = (
        restart(GuidedMixture(SMALL, law), x, sigmas, noise=Drawn(x), law=law, s_noise=s) for s in (1.0, s_noise)
    )
    torch.testing.assert_close(still, x * law.alpha(0.6) / law.alpha(0.1))
    torch.testing.assert_close(part - still, s_noise * (full - still))


@LAWS
def test_the_law_after_jumps_and_fine_falling_runs(law):
    """The noise of later jumps is independent of the earlier, or variances would come out wrong."""
    low, high = (law.sigma(ratio) for ratio in (0.1, 2.0))
    down = [law.sigma(ratio) for ratio in rho_grid(2.0, 0.1, 30)]
    x = noised(SMALL, law, low)
    sigmas = torch.tensor([low, *down, *down, *down], dtype=torch.float64)
    after = restart(GuidedMixture(SMALL, law), x, sigmas, noise=Drawn(x), law=law)
    assert_law(after, SMALL, law, low)
    assert ((after - x) / high).square().mean() > 0.1  # it is not the picture that went in


@LAWS
def test_the_whole_plan_draws_the_mixture(law):
    """Sliced energy distance to other true draws: that of true draws, and more when a jump puts no noise back."""
    sigmas = expanded(law, finer=4)
    x = noised(SMALL, law, float(sigmas[0]), count=DRAWS)
    true = SMALL.sample(DRAWS, seed=77)
    drawn, starved = (
        restart(GuidedMixture(SMALL, law), x, sigmas, noise=Drawn(x), law=law, s_noise=s) for s in (1.0, 0.0)
    )
    floor = max(abs(sliced_energy_distance(SMALL.sample(DRAWS, seed), true)) for seed in range(10))
    assert sliced_energy_distance(drawn, true) < 2 * floor
    assert sliced_energy_distance(starved, true) > 10 * floor


# ---------------------------------------------------------------------------------------------------------
# What is called and drawn


@LAWS
def test_every_falling_run_is_one_call_of_the_inner_solver(law):
    sigmas, inner = expanded(law), RecordingInner()
    x = noised(SMALL, law, float(sigmas[0]), count=2)
    restart(GuidedMixture(SMALL, law), x, sigmas, noise=Drawn(x), inner=inner, law=law)
    assert [value for run in inner.runs for value in run] == sigmas.tolist()
    assert len(inner.runs) == 4  # before, between and after three jumps
    assert all(a > b for run in inner.runs for a, b in pairwise(run))


@LAWS
def test_no_history_crosses_a_jump(law):
    """A solver with a history gives what its separate calls on the falling runs give."""
    sigmas, inner = expanded(law), RecordingInner(adams_bashforth)
    denoise = GuidedMixture(SMALL, law)
    x = start = noised(SMALL, law, float(sigmas[0]), count=2)
    whole = restart(denoise, start, sigmas, noise=Drawn(x), inner=inner, law=law)
    noise = Drawn(x)
    for number, run in enumerate(inner.runs):
        if number:
            low = inner.runs[number - 1][-1]
            x = law.renoise(x, low, run[0], noise(low, run[0]))
        x = adams_bashforth(denoise, x, torch.tensor(run, dtype=torch.float64))
    torch.testing.assert_close(whole, x, rtol=0, atol=0)


@LAWS
def test_noise_is_drawn_once_a_jump_and_never_from_the_global_generator(law):
    sigmas = expanded(law)
    x = noised(SMALL, law, float(sigmas[0]), count=2)
    noise, state = Drawn(x), torch.get_rng_state()
    restart(GuidedMixture(SMALL, law), x, sigmas, noise=noise, law=law)
    assert noise.asked == [(a, b) for a, b in pairwise(sigmas.tolist()) if b > a]
    assert torch.equal(torch.get_rng_state(), state)


def test_the_model_is_called_where_the_plan_says():
    recorded = Recording(GuidedMixture(SMALL, VARIANCE_EXPLODING))
    x = torch.zeros(1, 1, 4, 4)
    restart(recorded, x, torch.tensor([2.0, 1.0, 0.5, 1.5, 0.5, 0.0]), noise=Drawn(x))
    assert recorded.sigmas == [2.0, 1.0, 1.0, 0.5, 1.5, 0.5, 0.5]


def test_without_a_jump_it_is_the_inner_solver():
    sigmas = torch.tensor([*rho_grid(10.0, 0.05, 8), 0.0], dtype=torch.float64)
    denoise, x = GuidedMixture(SMALL, VARIANCE_EXPLODING), noised(SMALL, VARIANCE_EXPLODING, 10.0, count=2)
    noise = Drawn(x)
    torch.testing.assert_close(restart(denoise, x, sigmas, noise=noise), heun(denoise, x, sigmas), rtol=0, atol=0)
    assert noise.asked == []


def test_equal_sigmas_are_neither_a_step_nor_a_jump():
    """A step that goes nowhere would cost a call, and multistep samplers divide by its length."""
    sigmas, inner = torch.tensor([2.0, 1.0, 1.0, 0.5, 0.0, 0.0]), RecordingInner()
    x = torch.zeros(1, 1, 4, 4)
    noise = Drawn(x)
    restart(GuidedMixture(SMALL, VARIANCE_EXPLODING), x, sigmas, noise=noise, inner=inner)
    assert (inner.runs, noise.asked) == ([[2.0, 1.0, 0.5, 0.0]], [])
    assert solver_steps(sigmas) == 3


@LAWS
def test_steps_are_counted_over_all_runs(law):
    sigmas, told = expanded(law), []
    x = noised(SMALL, law, float(sigmas[0]), count=2)

    def on_step(step: int, sigma: float, x: Tensor, denoised: Tensor) -> None:
        told.append((step, sigma))

    restart(GuidedMixture(SMALL, law), x, sigmas, noise=Drawn(x), law=law, on_step=on_step)
    starts = [a for a, b in pairwise(sigmas.tolist()) if b < a]
    assert told == list(enumerate(starts))
    assert len(told) == solver_steps(sigmas) == 8 + 2 * 2 + 1


# ---------------------------------------------------------------------------------------------------------
# What must not change the picture


@LAWS
def test_a_schedule_cut_anywhere_gives_the_same_picture_in_two_parts(law):
    """SplitSigmas: inside a segment, before a jump and on it. Both parts hold the value at the cut."""
    sigmas, denoise = expanded(law), GuidedMixture(SMALL, law)
    x = noised(SMALL, law, float(sigmas[0]), count=2)
    whole = restart(denoise, x, sigmas, noise=Drawn(x), law=law)
    for cut in range(1, len(sigmas)):
        noise = Drawn(x)
        half = restart(denoise, x, sigmas[: cut + 1], noise=noise, law=law)
        both = restart(denoise, half, sigmas[cut:], noise=noise, law=law)
        torch.testing.assert_close(both, whole, rtol=0, atol=0, msg=f"cut at {cut}")
        assert solver_steps(sigmas[: cut + 1]) + solver_steps(sigmas[cut:]) == solver_steps(sigmas)


@LAWS
def test_a_part_that_ends_on_a_jump_has_the_law_there(law):
    """Its last step is the noise; a second part goes on from there."""
    low, high = law.sigma(0.1), law.sigma(2.0)
    x = noised(SMALL, law, low)
    inner = RecordingInner()
    after = restart(GuidedMixture(SMALL, law), x, torch.tensor([low, high]), noise=Drawn(x), inner=inner, law=law)
    assert inner.runs == []
    assert_law(after, SMALL, law, high)


def test_one_sigma_is_no_step():
    x = torch.ones(1, 1, 4, 4)
    noise = Drawn(x)
    assert torch.equal(restart(GuidedMixture(SMALL, FLOW), x, torch.tensor([0.5]), noise=noise, law=FLOW), x)
    assert noise.asked == []
    assert restart(GuidedMixture(SMALL, FLOW), x, torch.empty(0), noise=noise, law=FLOW) is x


@LAWS
def test_float32_draws_the_picture_of_float64(law):
    sigmas, denoise = expanded(law), GuidedMixture(SMALL, law)
    x = noised(SMALL, law, float(sigmas[0]), count=16)
    double = restart(denoise, x, sigmas, noise=Drawn(x), law=law)
    single = restart(denoise, x.float(), sigmas.float(), noise=Drawn(x.float()), law=law)
    assert (double.dtype, single.dtype) == (torch.float64, torch.float32)
    torch.testing.assert_close(single.double(), double, rtol=0, atol=1e-3)


@LAWS
@pytest.mark.parametrize("shape", [(3, 2, 2, 4, 1), (3, 1, 16)], ids=["video", "packed"])
def test_latents_of_any_shape_give_the_same_picture(law, shape):
    sigmas = expanded(law)
    x = noised(SMALL, law, float(sigmas[0]), count=3)
    exact, seen = GuidedMixture(SMALL, law), set()

    def denoise(x: Tensor, sigma: float) -> Tensor:
        seen.add(tuple(x.shape))
        return exact(x.reshape(3, 1, 4, 4), sigma).reshape(x.shape)

    flat = restart(exact, x, sigmas, noise=Drawn(x), law=law)
    shaped = restart(denoise, x.reshape(shape), sigmas, noise=Drawn(x.reshape(shape)), law=law)
    assert seen == {shape}
    torch.testing.assert_close(shaped.reshape(x.shape), flat, rtol=1e-12, atol=1e-12)


def test_a_model_that_fails_ends_the_run_at_that_call():
    class Full(RuntimeError):
        pass

    calls = []

    def denoise(x: Tensor, sigma: float) -> Tensor:
        calls.append(sigma)
        if len(calls) == 5:
            raise Full
        return x * 0

    x = torch.ones(1, 1, 4, 4)
    with pytest.raises(Full):
        restart(denoise, x, expanded(VARIANCE_EXPLODING), noise=Drawn(x))
    assert len(calls) == 5


# ---------------------------------------------------------------------------------------------------------
# The distance that the laws above, and benchmarks/restart.py, are measured by


def test_pair_sums_are_those_of_all_pairs():
    lines = torch.randn((3, 7), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    pairs = [(lines[:, i] - lines[:, j]).abs() for j in range(7) for i in range(j)]
    torch.testing.assert_close(pair_sums(lines), torch.stack(pairs).sum(0))


def test_the_distance_is_that_of_its_definition():
    generator = torch.Generator().manual_seed(1)
    x, y = (torch.randn((n, 2, 3), generator=generator, dtype=torch.float64) for n in (6, 9))
    along = directions(6, 4)
    torch.testing.assert_close(along.norm(dim=1), torch.ones(4, dtype=torch.float64))
    a, b = x.flatten(1) @ along.T, y.flatten(1) @ along.T
    cross = (a[:, None] - b[None]).abs().mean((0, 1))
    own = [(v[:, None] - v[None]).abs().sum((0, 1)) / (len(v) * (len(v) - 1)) for v in (a, b)]
    torch.testing.assert_close(sliced_energy_distances(x, y, along), 2 * cross - own[0] - own[1])


def test_the_distance_has_no_bias_and_sees_a_shift():
    """400 pairs of samples of one law: their mean distance is 0; for N(0, 1) and N(d, 1) it is d^2 / sqrt(pi)."""
    along = torch.ones(1, 1, dtype=torch.float64)
    same, shifted = [], []
    for seed in range(400):
        drawn = torch.randn((2, 50, 1), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        same.append(sliced_energy_distances(drawn[0], drawn[1], along))
        shifted.append(sliced_energy_distances(drawn[0], drawn[1] + 0.3, along))
    zero, moved = torch.cat(same), torch.cat(shifted)
    assert zero.mean().abs() < 4 * zero.std() / 20
    assert moved.mean().item() == pytest.approx(0.09 / torch.pi**0.5, abs=4 * moved.std().item() / 20)
