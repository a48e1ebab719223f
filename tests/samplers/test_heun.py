"""Heun against the exact solution of one Gaussian, and where it calls the model."""

import pytest
import torch
from fewstep.samplers.heun import heun
from fewstep.samplers.noise_law import FLOW, VARIANCE_EXPLODING
from support.mixture import GuidedMixture, exact_of_one, one_gaussian, picture_like
from support.recording import Recording


def test_second_order_against_the_exact_solution():
    mixture = one_gaussian()
    y = 10 * torch.randn((2, 4, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    errors = []
    for steps in (40, 80, 160):
        sigmas = torch.logspace(1, -1, steps + 1, dtype=torch.float64)
        x = heun(GuidedMixture(mixture, VARIANCE_EXPLODING), y, sigmas)
        errors.append((x - exact_of_one(mixture, y, 10, 0.1)).square().mean().sqrt().item())
    orders = [torch.log2(torch.tensor(a / b)).item() for a, b in zip(errors, errors[1:], strict=False)]
    assert orders == pytest.approx([2, 2], abs=0.15)


def test_the_flow_law_reaches_the_same_picture():
    mixture, ratios = picture_like(size=8), torch.logspace(1, -2, 201, dtype=torch.float64)
    y = 10 * torch.randn((2, 4, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ve = heun(GuidedMixture(mixture, VARIANCE_EXPLODING), y, ratios)
    sigmas = FLOW.sigma(ratios)
    flow = heun(GuidedMixture(mixture, FLOW), y * FLOW.alpha(sigmas[0].item()), sigmas) / FLOW.alpha(sigmas[-1].item())
    assert (ve - flow).square().mean().sqrt() < 0.01


def test_calls_are_made_at_the_nodes_twice_inside_and_once_at_the_ends():
    recorded = Recording(GuidedMixture(picture_like(size=4), VARIANCE_EXPLODING))
    heun(recorded, torch.randn(1, 4, 4, 4), torch.tensor([2.0, 1.0, 0.5, 0.0]))
    assert recorded.sigmas == [2.0, 1.0, 1.0, 0.5, 0.5]
    assert recorded.calls == 5
