"""The order of convergence to the exact ODE, with statistics that have nothing to do with the model.

The first step of a multistep method is of first order, and one such step bounds the order of the whole by 2. So the
first interval is graded: its nodes lie at h^2, h^1.5 and h from the start.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from fewstep.samplers.dpm_solver_v3 import DPMSolverV3, Options, Statistics
from fewstep.samplers.noise_law import FLOW, VARIANCE_EXPLODING
from scipy.integrate import solve_ivp
from support.mixture import GuidedMixture, picture_like
from torch import Tensor

FIRST, LAST = -1.2, 1.8  # lambda
MIXTURE = picture_like(channels=2, size=4, components=6)


def smooth_table(seed: int) -> Statistics:
    """Random waves over lambda, a set for each channel; on a grid so fine that its bends are below the errors."""
    generator = torch.Generator().manual_seed(seed)
    lam = torch.linspace(-4, 4, 4001, dtype=torch.float64)
    rates, phases = 1.5 * torch.rand((2, 3, 1, 2), generator=generator, dtype=torch.float64)
    waves = torch.sin(rates * lam[:, None] + 4 * phases)
    middle, height = torch.tensor([[0.5, -0.5, 0.0], [0.5, 1.0, 0.3]], dtype=torch.float64)[..., None, None]
    return Statistics(lam, *(middle + height * waves)[..., None, None])


def start() -> Tensor:
    noise = torch.randn((2, 2, 4, 4), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return MIXTURE.sample(2, seed=2) + math.exp(-FIRST) * noise


@pytest.fixture(scope="module")
def exact() -> Tensor:
    """y at LAST of y' = D - y."""
    y = start()

    def slope(lam: float, flat: np.ndarray) -> np.ndarray:
        at = torch.from_numpy(flat).view_as(y)
        return (MIXTURE.denoise(at, math.exp(-lam)) - at).numpy().ravel()

    solution = solve_ivp(slope, (FIRST, LAST), y.numpy().ravel(), "DOP853", (LAST,), rtol=1e-12, atol=1e-13)
    return torch.from_numpy(solution.y[:, -1]).view_as(y)


def graded(steps: int) -> Tensor:
    """lambda of the nodes."""
    h = (LAST - FIRST) / steps
    first = torch.tensor([0, h**2, h**1.5], dtype=torch.float64)
    return FIRST + torch.cat([first, torch.arange(1, steps + 1, dtype=torch.float64) * h])


def errors(exact: Tensor, statistics: Statistics, options: Options, law=VARIANCE_EXPLODING, steps=(20, 40, 80)):
    found = []
    for count in steps:
        sigmas = law.sigma(torch.exp(-graded(count)))
        x = start() * law.alpha(sigmas[0].item())
        x = DPMSolverV3(law, statistics, options)(GuidedMixture(MIXTURE, law), x, sigmas)
        found.append((x / law.alpha(sigmas[-1].item()) - exact).square().mean().sqrt().item())
    return found


def slopes(found: list[float]) -> list[float]:
    return [math.log2(a / b) for a, b in zip(found[:-1], found[1:], strict=True)]


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_predictor_converges_with_its_order(exact, seed, order):
    found = errors(exact, smooth_table(seed), Options(order, "off"))
    assert slopes(found)[-1] == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize("order", [2, 3])
def test_the_corrector_keeps_the_order_and_takes_most_of_the_error(exact, order):
    (without,) = errors(exact, smooth_table(0), Options(order, "off"), steps=[160])
    found = errors(exact, smooth_table(0), Options(order, "everywhere"), steps=[80, 160])
    assert slopes(found)[-1] == pytest.approx(order, abs=0.25)
    assert found[-1] < without / 5


def test_the_pseudo_corrector_is_of_second_order(exact):
    """Its higher derivatives are divided differences, right to first order only; the authors use it at few calls."""
    found = errors(exact, smooth_table(0), Options(3, "everywhere", pseudo_corrector=True))
    assert slopes(found)[-1] == pytest.approx(2, abs=0.1)


def test_the_flow_law_has_the_same_errors(exact):
    options, statistics = Options(3, "everywhere"), smooth_table(1)
    ve, flow = (errors(exact, statistics, options, law, steps=[20]) for law in (VARIANCE_EXPLODING, FLOW))
    assert flow == pytest.approx(ve, rel=1e-7)
