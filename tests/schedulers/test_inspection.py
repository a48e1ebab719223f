"""What is said of a schedule: numbers, jumps, and sentences where something is unusual and only there."""

from __future__ import annotations

import math

import pytest
from fewstep.samplers.noise_law import FLOW, VARIANCE_EXPLODING
from fewstep.schedulers.inspection import Looked
from fewstep.schedulers.restart.plan import rho_grid

KARRAS = (*rho_grid(14.6, 0.06, 10), 0.0)


def looked(sigmas) -> Looked:
    return Looked(tuple(sigmas), VARIANCE_EXPLODING, (0.029, 14.6))


def test_of_an_ordinary_schedule_nothing_is_said():
    assert looked(KARRAS).remarks() == []
    assert Looked((1.0, 0.9, 0.75, 0.5, 0.25, 0.1, 0.0), FLOW, (0.0, 1.0)).remarks() == []
    assert looked(KARRAS).words() == "10 calls from sigma 14.6 to 0"


@pytest.mark.parametrize(
    "sigmas, words",
    [
        ((14.6, 3.0, math.nan, 0.0), "Number 3 is nan: no sampler can begin"),
        ((14.6, -1.0, 0.0), "Number 2 is -1"),
        ((14.6, math.inf, 0.0), "Number 2 is inf"),
        ((14.6, 9.0, 9.0, 3.0, 0.0), "Step 2 goes nowhere: it begins and ends at 9"),
        ((20.0, 9.0, 3.0, 0.0), "up to 20; the model knows no noise above 14.6"),
        ((7.0, 3.0, 1.0, 0.0), "begins at 7, below the model's 14.6"),
        ((14.6, 3.0, 0.01, 0.0), "goes below 0.029"),
        ((14.6, 3.0, 1.0), "ends at 1, not at 0"),
        ((0.0, 1.0, 3.0), "All steps rise"),
        ((14.6, 3.0, 0.5, 3.0, 0.5, 0.0), "goes back up once"),
        ((14.6, 1.0, 3.0, 1.0, 3.0, 0.5, 0.0), "goes back up 2 times"),
        ((*KARRAS[:-1], 0.03, 0.0), "The last call is spent between 0.03 and 0"),
        ((14.6, 5.0, 2.0, 1.0, 0.04, 0.035, 0.03, 0.0), "The last 3 calls are spent below 0.04"),
        ((10.0, 8.0, 6.5, 5.0, 0.5, 0.4, 0.3, 0.2, 0.0), "Step 4 is long: from 5 to 0.5"),
    ],
)
def test_what_is_unusual_is_said(sigmas, words):
    assert any(words in sentence for sentence in looked(sigmas).remarks())
    assert words in looked(sigmas).words()


@pytest.mark.parametrize("sigmas", [(), (1.0,)])
def test_too_few(sigmas):
    assert f"{len(sigmas)} sigmas: a schedule has two or more" in looked(sigmas).words()


def test_jumps_cost_no_call_and_the_way_up_does():
    one = looked((14.6, 3.0, 0.5, 3.0, 0.5, 0.0))
    assert one.jumps == [2] and one.calls == [0, 1, 2, 2, 3, 4]
    assert looked((0.0, 1.0, 3.0)).calls == [0, 1, 2]


def test_the_numbers_are_the_laws():
    rows = [line.split() for line in Looked((1.0, 0.8, 0.5, 0.0), FLOW).numbers()]
    assert rows[0] == ["calls", "sigma", "noise/signal", "log-SNR"]
    assert rows[1:3] == [["0", "1", "infinite", "-infinite"], ["1", "0.8", "4", f"{-2 * math.log(4):.4g}"]]
    assert rows[3:] == [["2", "0.5", "1", "0"], ["3", "0", "0", "infinite"]]
    assert [*Looked((1.0, 0.5, 0.0)).numbers()][0].split() == ["calls", "sigma"]
    assert [*looked([14.6 * 0.95**n for n in range(200)]).numbers()][-1] == "and 140 more"
