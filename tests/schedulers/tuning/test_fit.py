"""Weights of a step: the least squares with their ridge and their trust, and tables fitted on exact models."""

from __future__ import annotations

import math
from functools import lru_cache

import pytest
import torch
from fewstep.samplers.clock import LogisticClock
from fewstep.samplers.noise_law import FLOW, VARIANCE_EXPLODING, NoiseLaw
from fewstep.samplers.table import step_by_table
from fewstep.schedulers.tuning.fit import fit_table, fitted, formula
from fewstep.schedulers.tuning.path import Path
from fewstep.schedulers.tuning.propose import Places, Response, ranked, rules, shadow
from hypothesis import given
from hypothesis import strategies as st
from support.exact import Case, error
from support.examples import many

LAWS = pytest.mark.parametrize("law", [VARIANCE_EXPLODING, FLOW], ids=["ve", "flow"])
CFGS = pytest.mark.parametrize("cfg", [1.0, 5.0])
PLACES = Places("some", LogisticClock(1.65, 1.5), 0.03)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def columns(count: int, batch: int = 4, seed: int = 0) -> list[torch.Tensor]:
    return list(noise(count, batch, 4, 8, 8, seed=seed))


def mixed(weights, among) -> torch.Tensor:
    return sum(float(w) * column for w, column in zip(weights, among, strict=True))


@many
@given(st.lists(st.floats(-3, 3), min_size=2, max_size=6), st.integers(0, 9), st.sampled_from([1e-3, 1.0, 1e3]))
def test_known_weights_are_found_again(weights, seed, scale):
    """Whatever the size of the latents, from a formula that is not far off."""
    among, true = [scale * column for column in columns(len(weights), seed=seed)], torch.tensor(weights).double()
    found = fitted(among, mixed(weights, among), 0.9 * true)
    assert found.dtype == torch.float64 and found.device.type == "cpu"
    assert (found - true).abs().max() < 2e-2


def test_what_the_formula_does_exactly_it_is():
    among, prior = columns(4), torch.tensor([0.7, 1.2, -0.4, 0.1], dtype=torch.float64)
    assert (fitted(among, mixed(prior, among), prior) - prior).abs().max() < 1e-9


def test_where_two_columns_are_one_the_formula_says_how_they_share():
    """Along their difference nothing is known; a fit without a ridge would have weights of any size there."""
    first, *_ = columns(2)
    prior = torch.tensor([1.5, -0.5], dtype=torch.float64)
    found = fitted([first, first], 1.2 * first, prior)
    assert float(found.sum()) == pytest.approx(1.2, abs=1e-2) and float(found[0] - found[1]) == pytest.approx(
        2, abs=1e-6
    )


def test_columns_that_are_nearly_one_do_not_blow_up():
    first, second, further = columns(3)
    near = first + 1e-4 * second
    target = 2 * first + 1e-2 * further  # a residual that no column has
    assert fitted([first, near], target, torch.tensor([1.0, 0.0])).abs().max() < 3
    plain = torch.linalg.lstsq(torch.stack([first.flatten(), near.flatten()], 1), target.flatten()).solution
    assert plain.abs().max() > 3


def test_a_column_that_is_nothing_keeps_its_weight():
    """A push at a sigma at which nobody guides."""
    first, second = columns(2)
    found = fitted([first, second * 0], 2 * first, torch.tensor([1.9, 0.0]))
    assert found.tolist() == pytest.approx([2, 0], abs=1e-2) and float(found[1]) == 0


def test_one_run_that_falls_into_another_picture_does_not_decide():
    among, true, prior = columns(3, batch=5), [0.6, 1.1, -0.3], torch.tensor([0.5, 1.0, -0.2], dtype=torch.float64)
    target = mixed(true, among)
    target[3] = 30 * noise(4, 8, 8, seed=7) - 20 * among[1][3]
    found = fitted(among, target, prior)
    stacked = torch.stack([column.flatten() for column in among], 1)
    plain = torch.linalg.lstsq(stacked, target.flatten()).solution
    wrong = (plain - torch.tensor(true)).abs().max()
    assert wrong > 1 and (found - torch.tensor(true)).abs().max() < 0.02 * wrong


def test_the_order_of_the_runs_does_not_matter():
    among, prior = columns(3, batch=5), torch.zeros(3)
    target, order = noise(5, 4, 8, 8, seed=3) + among[0], torch.tensor([4, 2, 0, 1, 3])
    one, other = fitted(among, target, prior), fitted([column[order] for column in among], target[order], prior)
    assert (one - other).abs().max() < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_latents_of_less_precision_are_added_up_in_double(dtype):
    among = [column.to(dtype) for column in columns(3)]
    prior = torch.zeros(3)
    target = mixed([0.5, 1.0, -1.0], [column.double() for column in among])
    exact = fitted([column.double() for column in among], target.to(dtype).double(), prior)
    assert (fitted(among, target.to(dtype), prior) - exact).abs().max() < 1e-12


# ---------------------------------------------------------------------------------------------------------
# Tables


@LAWS
@CFGS
def test_a_table_is_fitted_on_its_own_runs(law, cfg):
    """One call a step, and what it ends at is where a run of the finished table ends."""
    case = Case(law, cfg)
    x = case.start(3)
    path = case.path(x)
    asked: list[float] = []

    def ask(x, sigma):
        asked.append(sigma)
        return case.ask(x, sigma)

    sigmas = PLACES.sigmas(law, case.first, 6)
    table, end = fit_table(ask, x, sigmas, path, LogisticClock(20.0, 1.2))
    assert tuple(asked) == sigmas[:-1] and table.sigmas == sigmas
    assert table.parts == (1 if cfg == 1 else 2)
    assert [len(row.weights[0]) for row in table.rows] == [1, 2, 3, 4, 4, 4]
    again = step_by_table(case.ask, x, table)
    assert (again - end).abs().max() < 1e-9
    assert error(end, path.end) < 0.1 * error(case.by_recipe(6, x), path.end)


@LAWS
def test_a_row_mends_what_the_rows_before_it_did_wrong(law):
    """Of runs that are begun a third too large: what no formula could know."""
    case = Case(law, 1.0)
    x = case.start(3)
    path, sigmas = case.path(x), PLACES.sigmas(law, case.first, 8)
    _, end = fit_table(case.ask, 1.3 * x, sigmas, path, LogisticClock(20.0, 1.2))
    assert error(end, path.end) < 0.1 * error(case.by_recipe(8, 1.3 * x), path.end)


def test_the_formula_is_of_second_order_and_a_step_to_zero_ends_denoised():
    clock = LogisticClock(1.6, 1.3)
    assert len(formula([1.0], 1.0, 0.8, FLOW, clock)) == 1
    assert len(formula([1.0, 0.8, 0.5], 0.5, 0.2, FLOW, clock)) == 2
    assert formula([1.0, 0.8, 0.5], 0.5, 0.0, FLOW, clock) == (1.0,)


@lru_cache(maxsize=4)
def seen_and_unseen(law: NoiseLaw, cfg: float) -> tuple[Case, Path]:
    """Three runs to fit on, and five more."""
    case = Case(law, cfg)
    return case, case.path(case.start(8))


@CFGS
@LAWS
def test_on_seeds_that_it_did_not_see_a_table_is_nearer_by_a_wide_margin(law, cfg):
    """On exact mixtures, than what needs no measurement, with the steps where `ranked` puts them."""
    case, path = seen_and_unseen(law, cfg)
    small = shadow(Path(law, path.sigmas, path.states[:3], path.answers[:3]))
    unseen, end, shares = path.states[3:, 0], path.end[3:], []
    for calls in (4, 6, 10):
        (_, places), *_ = ranked(small, rules(law, 1.0)[::2], calls, LogisticClock(20.0, 1.2), Response.unknown())
        table = case.fitted(path, places, calls)
        shares.append(error(case.by_table(table, unseen), end) / error(case.by_recipe(calls, unseen), end))
    assert max(shares) < 0.8 and math.prod(shares) ** (1 / len(shares)) < 0.2
