"""Converged runs between their nodes: what the interpolation reproduces, how fast it converges, where the runs end."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fewstep.samplers.clock import LogisticClock
from fewstep.samplers.noise_law import FLOW, VARIANCE_EXPLODING, NoiseLaw
from fewstep.schedulers.tuning.path import Path, followed, teacher
from support.mixture import GuidedMixture, converged, exact_of_one, one_gaussian, picture_like
from support.recording import Recording

LAWS = pytest.mark.parametrize("law", [VARIANCE_EXPLODING, FLOW], ids=["ve", "flow"])
FIRST = {False: 14.6, True: 1.0}


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def even(law: NoiseLaw, count: int) -> tuple[float, ...]:
    """Falling sigmas of even steps on a clock, to 0."""
    ratios = LogisticClock(1.65, 1.75).ratio(torch.linspace(0.92, 0.08, count - 1, dtype=torch.float64))
    return (*law.sigma(ratios).tolist(), 0.0)


def cubic(path: Path, sigma: float) -> torch.Tensor:
    """(2, 3), of two runs: cubics in the path's clock."""
    (u,) = path.time([sigma])
    return torch.tensor([[1 - 2 * u + 3 * u**2 - u**3, u**3, 2.0], [u, -(u**2), 5 * u**3]], dtype=torch.float64)


@LAWS
def test_cubics_in_the_clock_are_followed_exactly(law):
    sigmas = even(law, 9)
    empty = Path(law, sigmas, torch.zeros(2, 9, 3), torch.zeros(2, 8, 3))
    states = torch.stack([cubic(empty, sigma) for sigma in sigmas], 1)
    path = Path(law, sigmas, states, 2 * states[:, :-1])
    for sigma in np.linspace(sigmas[0], 0, 37):
        assert (path.state(sigma) - cubic(path, sigma)).abs().max() < 1e-11
        assert (path.answer(sigma) - 2 * cubic(path, sigma)).abs().max() < 1e-9  # beyond the last answer, too


@LAWS
def test_between_nodes_it_is_of_fourth_order(law):
    """Against the closed form of a Gaussian's runs, with the nodes ever nearer."""
    mixture = one_gaussian()
    denoise, y = GuidedMixture(mixture, law), 10 * noise(2, 4, 4, 4)

    def exact(sigma: float) -> torch.Tensor:
        return law.alpha(sigma) * exact_of_one(mixture, y, 10, law.ratio(sigma))

    between = law.sigma(torch.logspace(0.9, -0.9, 29, dtype=torch.float64)).tolist()
    errors = []
    for count in (21, 41, 81):
        sigmas = even(law, count)
        states = torch.stack([exact(sigma) for sigma in sigmas], 1)
        answers = torch.stack([denoise(exact(sigma), sigma) for sigma in sigmas[:-1]], 1)
        path = Path(law, sigmas, states, answers)
        away = [(path.state(s) - exact(s), path.answer(s) - denoise(exact(s), s)) for s in between]
        errors.append([float(torch.stack(one).square().mean().sqrt()) for one in zip(*away, strict=True)])
    for coarse, fine in zip(errors, errors[1:], strict=False):
        assert [np.log2(a / b) for a, b in zip(coarse, fine, strict=True)] == pytest.approx([4, 4], abs=0.5)


@LAWS
def test_at_a_node_it_is_the_node_and_some_runs_are_asked_by_slice(law):
    sigmas = even(law, 12)
    path = Path(law, sigmas, noise(5, 12, 4, 2, 2), noise(5, 11, 4, 2, 2, seed=1))
    for number, sigma in enumerate(sigmas):
        assert (path.state(sigma) - path.states[:, number]).abs().max() < 1e-12
        if sigma:
            assert (path.answer(sigma) - path.answers[:, number]).abs().max() < 1e-12
    assert torch.equal(path.end, path.states[:, -1])
    between = sum(sigmas[3:5]) / 2
    for part in (slice(0, 2), slice(1, 4), slice(4, 5)):
        assert (path.state(between, part) - path.state(between)[part]).abs().max() < 1e-12
        assert (path.answer(between, part) - path.answer(between)[part]).abs().max() < 1e-12


def test_the_type_of_the_states_is_kept():
    sigmas = even(FLOW, 12)
    path = Path(FLOW, sigmas, noise(2, 12, 3).float(), noise(2, 11, 3).float())
    assert path.state(0.4).dtype == path.answer(0.4).dtype == torch.float32


@LAWS
@pytest.mark.parametrize("steps", [34, 60])
def test_a_followed_run_is_what_the_model_was_asked_and_answered(law, steps):
    recorded = Recording(GuidedMixture(picture_like(size=4), law))
    x = FIRST[law.is_flow] * noise(3, 4, 4, 4)
    path = followed(recorded, x, law, steps, FIRST[law.is_flow], 1.0, torch.device("cpu"))
    assert recorded.calls == steps and list(path.sigmas) == [*recorded.sigmas, 0.0]
    assert path.states.shape == (3, steps + 1, 4, 4, 4) and path.answers.shape == (3, steps, 4, 4, 4)
    assert path.sigmas[0] == FIRST[law.is_flow] and torch.equal(path.states[:, 0], x)
    there = torch.stack([recorded.denoise(path.states[:, n], sigma) for n, sigma in enumerate(path.sigmas[:-1])], 1)
    corrected = (path.answers - there).abs().amax()  # states are made again with their own answers
    assert corrected < 0.2 * (path.answers[:, 1:] - there[:, :-1]).abs().amax()


@pytest.mark.parametrize("law, shift", [(VARIANCE_EXPLODING, 1.0), (FLOW, 1.0), (FLOW, 3.0)], ids=str)
@pytest.mark.parametrize("cfg", [1.0, 5.0])
def test_the_teacher_ends_where_the_exact_solution_does(law, cfg, shift):
    mixture, labels = picture_like(size=8, components=8), torch.tensor([0, 3])
    denoise, first = GuidedMixture(mixture, law, labels, cfg), FIRST[law.is_flow]
    x = first * noise(2, 4, 8, 8)
    path = followed(denoise, x, law, 40, first, shift, torch.device("cpu"))
    exact = converged(denoise, x, min(first, 1 - 1e-6) if law.is_flow else first, 1e-7)
    error = float((path.end - exact).square().mean())
    assert error < {1.0: 1e-5, 5.0: 2e-4}[cfg]


def test_a_shifted_flow_models_teacher_takes_more_of_its_steps_at_high_noise():
    plain, shifted = (teacher(FLOW, 1.0, 40, shift)[0] for shift in (1.0, 5.0))
    assert len(plain) == len(shifted) == 41 and (plain[0], plain[-1]) == (shifted[0], shifted[-1]) == (1.0, 0.0)
    assert sum(sigma > 0.8 for sigma in shifted) > sum(sigma > 0.8 for sigma in plain) + 3
