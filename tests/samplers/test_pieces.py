"""A run in pieces: all steps in one row, and no memory across a cut."""

from __future__ import annotations

import pytest
import torch
from fewstep.samplers.dpm_solver_v3 import DPMSolverV3
from fewstep.samplers.noise_law import FLOW
from fewstep.samplers.pieces import InPieces, pieces
from support.mixture import GuidedMixture, picture_like
from support.recording import Recording

SIGMAS = torch.tensor([1.0, 0.9, 0.7, 0.4, 0.2, 0.0], dtype=torch.float64)


@pytest.mark.parametrize(
    "at, lengths",
    [
        (None, [6]),
        (0.8, [3, 4]),  # 0.7 is the first node beyond it: it ends a piece and begins one
        (0.9, [3, 4]),  # a node on it is above it
        (0.9 + 1e-8, [3, 4]),  # also by rounding
        (1.5, [6]),
        (0.1, [6]),  # no call is made at the last node
        (0.3, [5, 2]),
    ],
)
def test_where_it_is_cut(at, lengths):
    found = pieces(SIGMAS, at)
    assert [len(piece) for piece in found] == lengths
    assert torch.equal(torch.cat([piece[:-1] for piece in found] + [SIGMAS[-1:]]), SIGMAS)


def test_rising_sigmas_are_cut_too():
    assert [piece.tolist() for piece in pieces(SIGMAS.flip(0), 0.8)] == [[0, 0.2, 0.4, 0.7, 0.9], [0.9, 1.0]]


def test_no_history_crosses_a_cut_and_steps_are_counted_through():
    """The same as two runs, with as many calls, at the same sigmas."""
    model = Recording(GuidedMixture(picture_like(), FLOW, torch.tensor([0, 3])))
    x = torch.randn((2, 4, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    solver, told = DPMSolverV3(FLOW), []
    whole = InPieces(solver, 0.5)(model, x, SIGMAS, on_step=lambda step, sigma, *_: told.append((step, sigma)))
    assert told == list(enumerate(SIGMAS[:-1].tolist())) and model.sigmas == SIGMAS[:-1].tolist()
    apart = solver(model, solver(model, x, SIGMAS[:4]), SIGMAS[3:])
    assert torch.equal(whole, apart)
    assert torch.equal(InPieces(solver, None)(model, x, SIGMAS), solver(model, x, SIGMAS))
    assert (solver(model, x, SIGMAS) - whole).abs().max() > 1e-3
