"""Restart against the authors' code: every recorded run, model call by model call (tests/goldens/restart)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fewstep.samplers.contract import Denoiser
from fewstep.samplers.heun import heun
from fewstep.samplers.noise_law import VARIANCE_EXPLODING
from fewstep.samplers.restart import restart
from fewstep.schedulers.restart.plan import Interval, RestartPlan, Segment, restart_plan, rho_grid
from fewstep.schedulers.restart.presets import PRESETS
from support.goldens import FOLDER, Arrays
from torch import Tensor

TOLERANCE = 1e-9

Step = Callable[[Denoiser, Tensor, float, float], Tensor]  # one step, from a sigma to the next


@dataclass(frozen=True)
class Golden(Arrays):
    """A recorded run."""

    def json(self, key: str) -> dict[str, Any]:
        return json.loads(str(self.arrays[key]) or "{}")

    @property
    def intervals(self) -> list[Interval]:
        return [Interval(*entry) for entry in self.json("restart_info").values()]


@dataclass
class Watched:
    """A denoiser that keeps what it was asked."""

    denoise: Denoiser
    states: list[Tensor] = field(default_factory=list)
    sigmas: list[float] = field(default_factory=list)

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        self.states.append(x)
        self.sigmas.append(sigma)
        return self.denoise(x, sigma)


@dataclass
class Replayed:
    """A Noise that gives the recorded draws, in order."""

    draws: Iterator[Tensor]

    def __call__(self, sigma_from: float, sigma_to: float) -> Tensor:
        return next(self.draws)

    @classmethod
    def of(cls, golden: Golden, key: str = "noise_jump") -> Replayed:
        return cls(iter(golden.tensor(key)))

    @property
    def is_spent(self) -> bool:
        return next(self.draws, None) is None


@dataclass
class Scripted:
    """An inner solver that makes each step as it is told: the authors' code treats main and restart steps apart."""

    steps: Iterator[Step]

    @classmethod
    def of(cls, plan: RestartPlan, step_of: Callable[[Segment, float, float], Step]) -> Scripted:
        return cls(iter([step_of(segment, *ends) for segment in plan.segments for ends in pairwise(segment.sigmas)]))

    def __call__(self, denoise, x, sigmas, *, noise=None, on_step=None):
        for sigma, sigma_next in pairwise(sigmas.tolist()):
            x = next(self.steps)(denoise, x, sigma, sigma_next)
        return x


# ---------------------------------------------------------------------------------------------------------
# The steps of the authors' inner solvers


def heun_step(denoise: Denoiser, x: Tensor, sigma: float, sigma_next: float) -> Tensor:
    return heun(denoise, x, torch.tensor([sigma, sigma_next], dtype=torch.float64))


def euler_step(denoise: Denoiser, x: Tensor, sigma: float, sigma_next: float) -> Tensor:
    return x + (sigma_next - sigma) * (x - denoise(x, sigma)) / sigma


def churned(noise: Replayed, options: dict[str, float]) -> Step:
    """Heun after noise was added up to (1 + gamma) sigma, where S_min <= sigma <= S_max (arXiv 2206.00364 alg. 2)."""

    def step(denoise: Denoiser, x: Tensor, sigma: float, sigma_next: float) -> Tensor:
        drawn = noise(sigma, sigma)
        if options["S_min"] <= sigma <= options["S_max"]:
            raised = (1 + options["restart_gamma"]) * sigma
            x = x + options["S_noise"] * (raised**2 - sigma**2) ** 0.5 * drawn
            sigma = raised
        return heun_step(denoise, x, sigma, sigma_next)

    return step


def dpm_solver_2(denoise: Denoiser, x: Tensor, sigma: float, sigma_next: float) -> Tensor:
    """DPM-Solver-2, arXiv 2206.00927 algorithm 1, r = 1/2, in the variance-exploding form (alpha = 1)."""
    h = np.log(sigma / sigma_next)
    middle = (sigma * sigma_next) ** 0.5
    eps = (x - denoise(x, sigma)) / sigma
    u = x - middle * np.expm1(h / 2) * eps
    return x - sigma_next * np.expm1(h) * (u - denoise(u, middle)) / middle


def dpm_solver_3(denoise: Denoiser, x: Tensor, sigma: float, sigma_next: float) -> Tensor:
    """DPM-Solver-3, arXiv 2206.00927 algorithm 2, r1 = 1/3, r2 = 2/3, in the variance-exploding form (alpha = 1)."""
    h = np.log(sigma / sigma_next)
    first, second = sigma * np.exp(-h / 3), sigma * np.exp(-2 * h / 3)
    eps = (x - denoise(x, sigma)) / sigma
    u = x - first * np.expm1(h / 3) * eps
    d = (u - denoise(u, first)) / first - eps
    bend = np.expm1(2 * h / 3) / (2 * h / 3) - 1
    u = x - second * np.expm1(2 * h / 3) * eps - second * 2 * bend * d
    d = (u - denoise(u, second)) / second - eps
    return x - sigma_next * np.expm1(h) * eps - sigma_next * 1.5 * (np.expm1(h) / h - 1) * d


# ---------------------------------------------------------------------------------------------------------
# Replay


def edm_plan(golden: Golden, intervals: list[Interval]) -> RestartPlan:
    top, bottom = golden.arrays["model_sigma"][0], golden.arrays["model_sigma"][-1]
    main = [*rho_grid(top, bottom, int(golden.arrays["num_steps"])), 0.0]
    return restart_plan(main, intervals, VARIANCE_EXPLODING)


def replay(golden: Golden, plan: RestartPlan, x: Tensor, inner=heun, s_noise: float = 1.0) -> tuple[Watched, Tensor]:
    """The plan run with the recorded jumps; all of them must have been drawn."""
    watched, noise = Watched(golden.denoise), Replayed.of(golden)
    sigmas = torch.tensor(plan.sigmas, dtype=torch.float64)
    end = restart(watched, x, sigmas, noise=noise, inner=inner, s_noise=s_noise)
    assert noise.is_spent
    return watched, end


def replay_edm(golden: Golden, inner_of: Callable[[RestartPlan], Any] = lambda plan: heun) -> RestartPlan:
    """Assert that every call and the end are the recorded ones."""
    plan = edm_plan(golden, golden.intervals)
    start = golden.tensor("latents") * golden.arrays["model_sigma"][0]
    watched, end = replay(golden, plan, start, inner_of(plan), golden.json("options")["S_noise"])
    np.testing.assert_allclose(watched.sigmas, golden.arrays["model_sigma"], rtol=1e-12)
    torch.testing.assert_close(torch.stack(watched.states), golden.tensor("model_x"), rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(end, golden.tensor("x_final"), rtol=0, atol=TOLERANCE)
    return plan


@pytest.mark.parametrize(
    "name, preset",
    [
        ("heun_none_n18", None),
        ("heun_cifar_vp_nfe43", "cifar10_vp_43"),
        ("heun_cifar_vp_nfe75", "cifar10_vp_75"),
        ("heun_cifar_edm_nfe43", "cifar10_edm_43"),
        ("heun_snoise0_n18", "cifar10_vp_43"),
    ],
)
def test_heun(name, preset):
    golden = Golden.load(f"restart/{name}")
    assert golden.intervals == (list(PRESETS[preset](18)) if preset else [])
    replay_edm(golden)


def test_heun_with_churn_inside_the_restarts():
    """ImageNet-64 with S_noise 1.003 and gamma 0.05; main steps are not churned."""
    golden = Golden.load("restart/heun_imagenet_nfe99")
    assert golden.intervals == list(PRESETS["imagenet64_99"](18))
    churn = Replayed.of(golden, "noise_churn")
    step = churned(churn, golden.json("options"))
    replay_edm(golden, lambda plan: Scripted.of(plan, lambda segment, *_: step if segment.interval else heun_step))
    assert churn.is_spent


def test_dpm_solver_3():
    """Third order but for the last two main steps, of order 2 and 1."""
    golden = Golden.load("restart/dpm3_cifar_vp_n5")
    assert golden.intervals == list(PRESETS["cifar10_vp_dpm3"](5))
    lowest = golden.arrays["model_sigma"][-1]

    def step(segment: Segment, sigma: float, sigma_next: float) -> Step:
        if sigma_next == 0:
            return euler_step
        return dpm_solver_2 if segment.interval is None and sigma_next == lowest else dpm_solver_3

    replay_edm(golden, lambda plan: Scripted.of(plan, step))


def test_two_intervals_on_one_node_both_run_the_widest_first():
    """Here we differ on purpose: the authors' code kept the last interval of the list and dropped the other."""
    golden = Golden.load("restart/heun_collision_n10")
    narrow, wide = golden.intervals
    plan = edm_plan(golden, golden.intervals)
    restarts = [(s.sigmas[0], s.sigmas[-1]) for s in plan.segments if s.interval]
    node = golden.arrays["model_sigma"][13]
    assert restarts == [(1.09, pytest.approx(node)), (1.09, pytest.approx(node)), (0.59, pytest.approx(node))]
    watched = Watched(golden.denoise)
    sigmas = torch.tensor(plan.sigmas, dtype=torch.float64)
    x = golden.tensor("latents") * sigmas[0]
    restart(watched, x, sigmas, noise=lambda *_: torch.zeros_like(x))
    assert len(watched.sigmas) == len(golden.arrays["model_sigma"]) + 2 * narrow.solver_steps

    theirs = edm_plan(golden, [wide])
    watched, end = replay(golden, theirs, x)
    np.testing.assert_allclose(watched.sigmas, golden.arrays["model_sigma"], rtol=1e-12)
    torch.testing.assert_close(end, golden.tensor("x_final"), rtol=0, atol=TOLERANCE)


# ---------------------------------------------------------------------------------------------------------
# Stable Diffusion: DDIM (Euler in sigma~) outside, Heun inside, sub-grids uniform in whole time steps


def alpha_and_ratio() -> tuple[np.ndarray, np.ndarray]:
    """alpha and sigma~ of Stable Diffusion's 1000 time steps (scaled linear betas)."""
    alpha = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2) ** 0.5
    return alpha, (1 / alpha**2 - 1) ** 0.5


def time_grid(top: float, bottom: float, points: int) -> list[float]:
    """`grid` of a plan: whole time steps, evenly spaced, between those nearest to the ends."""
    ratio = alpha_and_ratio()[1]
    first, last = (int(np.abs(ratio - end).argmin()) for end in (top, bottom))
    return ratio[np.linspace(first, last, points).round().astype(int)].tolist()


def ddim_step(segment: Segment, sigma: float, sigma_next: float) -> Step:
    """Heun in restarts, but not for a step that ends at time 1."""
    return heun_step if segment.interval and sigma_next > alpha_and_ratio()[1][1] else euler_step


@pytest.mark.parametrize(
    "name, preset", [("w2", "sd_cfg_2"), ("w5", "sd_cfg_5_to_8"), ("w7", None), ("w8", "sd_cfg_5_to_8")]
)
def test_stable_diffusion(name, preset):
    """w7 is no guidance scale of the authors' list, so nothing restarts there; w8 was run with S_noise 1.003."""
    golden = Golden.load(f"restart/sd_ddim30_{name}")
    listed = [Interval(n, k, float(low), high) for low, (n, k, high) in golden.json("restart_list").items()]
    assert listed == (list(PRESETS[preset](30)) if preset else [])
    alpha, ratio = alpha_and_ratio()
    times = golden.arrays["timesteps"]
    plan = restart_plan(ratio[times].tolist(), listed, VARIANCE_EXPLODING, grid=time_grid)
    start = golden.tensor("x_init") / alpha[times[0]]
    watched, end = replay(golden, plan, start, Scripted.of(plan, ddim_step), float(golden.arrays["S_noise"]))
    np.testing.assert_allclose(watched.sigmas, golden.arrays["model_sigma_ve"], rtol=1e-12)
    shares = torch.tensor([1 / (1 + sigma**2) ** 0.5 for sigma in watched.sigmas], dtype=torch.float64)
    states = torch.stack(watched.states) * shares.view(-1, 1, 1, 1, 1)
    torch.testing.assert_close(states, golden.tensor("model_x"), rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(end * alpha[times[-1]], golden.tensor("x_final"), rtol=0, atol=TOLERANCE)


def test_every_recorded_run_is_replayed_here():
    """A golden that is added is tested, or this says so."""
    text = Path(__file__).read_text(encoding="utf-8")
    names = [path.stem for path in (FOLDER / "restart").glob("*.npz")]
    assert len(names) == 12
    assert [name for name in names if f'{name.removeprefix("sd_ddim30_")}"' not in text] == []
