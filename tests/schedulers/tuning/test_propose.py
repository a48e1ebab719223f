"""Candidates judged without calls: the shadow of a path, the linearised model, how errors are carried, the ranking."""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import pairwise

import pytest
import torch
from fewstep.samplers.clock import LogisticClock, PowerClock
from fewstep.samplers.deis import DEIS
from fewstep.samplers.dpm_solver_v3 import DPMSolverV3, Options, Statistics
from fewstep.samplers.noise_law import FLOW, VARIANCE_EXPLODING, NoiseLaw
from fewstep.schedulers.optimal_steps.students import Euler, Multistep2M, State
from fewstep.schedulers.tuning.path import Path
from fewstep.schedulers.tuning.propose import (
    Places,
    Response,
    expected,
    linearised,
    ranked,
    rules,
    seen_response,
    shadow,
)
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import spearmanr
from support.exact import Case, error
from support.examples import mostly, some
from support.mixture import picture_like

LAWS = pytest.mark.parametrize("law", [VARIANCE_EXPLODING, FLOW], ids=["ve", "flow"])
RESPONSE = Response(LogisticClock(0.8, 0.9))
ANSWERS = LogisticClock(7.4, 1.2)


@lru_cache(maxsize=8)
def known(law: NoiseLaw, cfg: float = 3.0, count: int = 3) -> tuple[Case, Path]:
    case = Case(law, cfg)
    return case, case.path(case.start(count))


def vectors(path: Path) -> torch.Tensor:
    """(B, m, n), of every run, such that products are means over a latent's numbers."""
    both = torch.cat([path.states.flatten(2), path.answers.flatten(2)], 1)
    return both / math.sqrt(both.shape[2]) if path.states.ndim > 3 else both


# ---------------------------------------------------------------------------------------------------------
# The shadow


@LAWS
def test_a_shadow_has_the_same_inner_products(law):
    _, path = known(law)
    small = shadow(path)
    whole, short = vectors(path), vectors(small)
    assert short.shape[2] <= whole.shape[1] < whole.shape[2]  # no longer than there are vectors
    gram = whole @ whole.mT
    assert (short @ short.mT - gram).abs().max() < 1e-11 * gram.abs().max()
    assert small.sigmas == path.sigmas and small.law == path.law
    assert small.states.shape[:2] == path.states.shape[:2] and small.answers.shape[:2] == path.answers.shape[:2]


def test_a_shadow_of_few_pixels_is_no_longer_than_those():
    _, path = known(FLOW)
    tiny = Path(FLOW, path.sigmas, path.states[..., :1, :2], path.answers[..., :1, :2])
    small = shadow(tiny)
    assert small.states.shape[2] <= 8
    assert (vectors(small) @ vectors(small).mT - vectors(tiny) @ vectors(tiny).mT).abs().max() < 1e-9


# ---------------------------------------------------------------------------------------------------------
# A solver on the linearised model, in full size and in the shadow


def stepped(student):
    def solve(denoise, x, sigmas, law):
        state = State((sigmas[0],), x)
        for sigma in sigmas[1:]:
            state = student.move(student.know(state, denoise(state.x, state.sigmas[-1])), sigma)
        return state.x

    return solve


def v3(order: int, corrector: str = "off"):
    """Never held back by its bound, which looks at the size of a latent."""

    def solve(denoise, x, sigmas, law):
        held: list[torch.Tensor] = []
        options = Options(order, corrector, last_step="denoised")
        end = DPMSolverV3(law, Statistics.data_prediction(), options, on_held=held.append)(
            denoise, x, torch.tensor(sigmas, dtype=torch.float64)
        )
        assert not any(bool(count.any()) for count in held)
        return end

    return solve


def deis(order: int, corrector: bool = False):
    return lambda denoise, x, sigmas, law: DEIS(law, ANSWERS, order, corrector)(denoise, x, sigmas)


SOLVERS = {
    "euler": stepped(Euler()),
    "dpmpp_2m": stepped(Multistep2M()),
    **{f"v3 {order}": v3(order) for order in (1, 2, 3)},
    **{f"v3 {order} corrected": v3(order, "everywhere") for order in (2, 3)},
    **{f"deis {order}": deis(order) for order in (1, 2, 3, 4)},
    "deis 2 corrected": deis(2, corrector=True),
}


def mean_squares(of: torch.Tensor, scaled: bool) -> torch.Tensor:
    flat = of.flatten(1)
    return flat.square().mean(1) if scaled else flat.square().sum(1)


@LAWS
@pytest.mark.parametrize("name", SOLVERS)
def test_what_a_solver_reaches_on_the_linearised_model_is_told_by_the_shadow(law, name):
    """The Gram evaluation: the error of any linear solver's run, in coordinates of the span, is that in full size."""
    case, path = known(law)
    small = shadow(path)
    # The bound of DPM-Solver-v3 counts coordinates, so they stand as a latent of one row here.
    row = Path(law, path.sigmas, small.states[:, :, None, None], small.answers[:, :, None, None])
    sigmas = Places("some", LogisticClock(1.65, 1.5)).sigmas(law, case.first, 7)
    full_end = SOLVERS[name](linearised(path, RESPONSE), path.states[:, 0], sigmas, law)
    small_end = SOLVERS[name](linearised(row, RESPONSE), row.states[:, 0], sigmas, law)
    largest = float(mean_squares(path.states[:, 0], True).max())
    for full, short in ((full_end, small_end), (full_end - path.end, small_end - row.end)):
        assert (mean_squares(full, True) - mean_squares(short, False)).abs().max() < 1e-10 * largest
    assert float(mean_squares(full_end - path.end, True).min()) > 1e-7  # it is an error of some size


@LAWS
def test_near_the_path_the_linearised_model_is_the_path_and_what_it_follows(law):
    _, path = known(law)
    model = linearised(path, RESPONSE)
    for sigma in (path.sigmas[0], path.sigmas[7], path.sigmas[20], 0.0):
        alpha, there = law.alpha(sigma), path.state(sigma)
        assert (model(there, sigma) - path.answer(sigma)).abs().max() < 1e-12
        away = torch.ones_like(there)
        moved = model(there + alpha * away, sigma) - path.answer(sigma)
        follows = RESPONSE(law, sigma) if alpha else 0.0  # at sigma 1 of a flow model nothing of a picture is left
        assert (moved - follows * away).abs().max() < 1e-9


# ---------------------------------------------------------------------------------------------------------
# How much of an error is followed, and what becomes of it


@LAWS
@some
@given(st.floats(0.05, 5), st.floats(0.4, 2), st.floats(1e-2, 0.99))
def test_an_error_is_carried_as_its_integral_says(law, centre, width, share):
    response = Response(LogisticClock(centre, width))
    sigma = share if law.is_flow else 20 * share
    top = math.log(law.ratio(sigma))
    # Below, 1 - J is (sigma~ / centre)^(1 / width) or less.
    bottom = math.log(centre) - 30 * width
    lost = 0.0
    if bottom < top:
        (lost, _) = quad(
            lambda tau: 1 - response(law, law.sigma(math.exp(tau))), bottom, top, limit=400, points=[min(top, 0.0)]
        )
    assert response.carried(law, sigma) == pytest.approx(math.exp(-lost) / law.alpha(sigma), rel=1e-6)


def test_at_the_end_all_of_an_error_is_left():
    for law in (VARIANCE_EXPLODING, FLOW):
        assert RESPONSE.carried(law, 0.0) == 1 and RESPONSE(law, 0.0) == 1
        assert RESPONSE.carried(law, 1e-9) == pytest.approx(1, abs=1e-6)


@LAWS
def test_a_small_error_of_a_run_on_the_linearised_model_is_carried_so(law):
    """By a solver of many steps from the middle of the way."""
    case, path = known(law, 1.0)
    model = linearised(path, RESPONSE)
    begin = next(s for s in path.sigmas if law.ratio(s) < 3)
    ratios = torch.logspace(math.log10(law.ratio(begin)), -5, 400, dtype=torch.float64)
    sigmas = [begin, *law.sigma(ratios).tolist()[1:], 0.0]
    solver = DEIS(law, PowerClock(0.3), 2, corrector=False)
    x, away = path.state(begin), 1e-3 * case.start(3, seed=5)
    moved = solver(model, x + away, sigmas) - solver(model, x, sigmas)
    carried = RESPONSE.carried(law, begin)
    assert (moved - carried * away).abs().max() < 2e-3 * carried * away.abs().max()


@pytest.mark.parametrize("width", [0.45, 0.8, 1.3, 1.9])
@pytest.mark.parametrize("centre", [0.06, 0.2, 0.7, 1.5, 4.5])
def test_a_response_is_found_again(centre, width):
    true = LogisticClock(centre, width)
    ratios = torch.logspace(-2, 1.5, 25, dtype=torch.float64)
    found = Response.of(list(zip(ratios.tolist(), (1 - true(ratios)).tolist(), strict=True)))
    assert (found.clock(ratios) - true(ratios)).abs().max() < 0.1 and not found.is_unknown


def test_a_response_of_noisy_pairs_is_the_nearest_logistic():
    ratios = torch.logspace(-2, 1.5, 40, dtype=torch.float64)
    noise = 0.05 * torch.randn(40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = Response.of(list(zip(ratios.tolist(), (1 - RESPONSE.clock(ratios) + noise).tolist(), strict=True)))
    assert (found.clock(ratios) - RESPONSE.clock(ratios)).abs().max() < 0.08
    assert Response.unknown().is_unknown and Response.unknown()(FLOW, 0.5) == pytest.approx(0.5)


@LAWS
def test_what_a_students_answers_follow_is_seen(law):
    _, path = known(law)
    model = linearised(path, RESPONSE)
    direction = torch.randn(path.states[:, 0].shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for sigma in path.sigmas[8:30:6]:
        x = path.state(sigma) + 0.1 * law.alpha(sigma) * direction
        ratio, j = seen_response(path, sigma, x, model(x, sigma)) or (0.0, 0.0)
        assert ratio == pytest.approx(law.ratio(sigma)) and j == pytest.approx(RESPONSE(law, sigma), rel=1e-6)


@LAWS
def test_where_there_is_nothing_to_see_nothing_is_seen(law):
    case, path = known(law)
    sigma = path.sigmas[12]
    x = path.state(sigma)
    assert seen_response(path, sigma, x, path.answer(sigma)) is None
    one_on_it = torch.cat([x[:1], x[1:] + 0.1])
    assert seen_response(path, sigma, one_on_it, path.answer(sigma)) is None
    for where in (law.sigma(1e-4), 1.0 if law.is_flow else 5000.0):
        assert seen_response(path, where, x + 1, x) is None


def test_half_of_the_runs_may_be_followed_by_fewer_latents():
    """Runs of a student are compared with as many of the path's."""
    _, path = known(FLOW)
    sigma, x = path.sigmas[12], path.state(path.sigmas[12])[:2]
    model = linearised(Path(FLOW, path.sigmas, path.states[:2], path.answers[:2]), RESPONSE)
    ratio, j = seen_response(path, sigma, x + 0.1, model(x + 0.1, sigma)) or (0.0, 0.0)
    assert ratio == pytest.approx(FLOW.ratio(sigma)) and j == pytest.approx(RESPONSE(FLOW, sigma))


# ---------------------------------------------------------------------------------------------------------
# Places, and their ranking


@LAWS
@pytest.mark.parametrize("shift", [1.0, 5.0])
def test_every_rule_gives_falling_sigmas_between_the_same_ends(law, shift):
    among, first = rules(law, shift), 1.0 if law.is_flow else 14.6
    assert len(among) > 20 and len({rule.name for rule in among}) == len(among)
    assert any(rule.name.startswith("edm") for rule in among) == (not law.is_flow)
    for rule in among:
        for steps in (1, 2, 3, 12, 30):
            sigmas = rule.sigmas(law, first, steps)
            assert len(sigmas) == steps + 1 and (sigmas[0], sigmas[-1]) == (first, 0.0)
            assert all(high > low for high, low in pairwise(sigmas))
            if rule.rest and steps > 1:
                assert law.ratio(sigmas[-2]) == pytest.approx(rule.rest)


def test_a_shifted_model_has_its_steps_at_higher_noise():
    for plain, shifted in zip(rules(FLOW, 1.0), rules(FLOW, 5.0), strict=True):
        assert plain.name == shifted.name
        assert shifted.sigmas(FLOW, 1.0, 6)[3] > plain.sigmas(FLOW, 1.0, 6)[3]


def judged(law: NoiseLaw, cfg: float, calls: int) -> tuple[list[float], list[float]]:
    """Of all rules, best expected first: what is expected, and the error of a table on runs that it did not see."""
    case = Case(law, cfg, picture_like())
    path = case.path(case.start(6))
    small = shadow(Path(law, path.sigmas, path.states[:3], path.answers[:3]))
    order = ranked(small, rules(law, 1.0), calls, ANSWERS, RESPONSE)
    tables = [case.fitted(path, rule, calls) for _, rule in order]
    real = [error(case.by_table(table, path.states[3:, 0]), path.end[3:]) for table in tables]
    return [claimed for claimed, _ in order], real


@pytest.mark.parametrize(
    "law, cfg, calls", mostly((FLOW, 1.0, 5), (VARIANCE_EXPLODING, 5.0, 6), longer=((FLOW, 5.0, 8),)), ids=str
)
def test_the_first_picks_are_near_the_best_of_all_rules(law, cfg, calls):
    claimed, real = judged(law, cfg, calls)
    assert claimed == sorted(claimed)
    picked, middle = min(real[:3]), sorted(real)[len(real) // 2]
    assert picked < 3 * min(real) and picked < 0.5 * middle
    assert spearmanr(claimed, real).statistic > 0.3


def test_what_is_expected_does_not_depend_on_the_order_of_the_runs_or_the_size_of_latents():
    _, path = known(FLOW)
    sigmas = rules(FLOW, 1.0)[3].sigmas(FLOW, 1.0, 6)
    small = shadow(path)
    one = expected(small, sigmas, ANSWERS, RESPONSE)
    back = Path(FLOW, path.sigmas, path.states.flip(0), path.answers.flip(0))
    assert expected(shadow(back), sigmas, ANSWERS, RESPONSE) == pytest.approx(one, rel=1e-6)
    twice = Path(FLOW, path.sigmas, path.states.repeat(1, 1, 1, 2, 2), path.answers.repeat(1, 1, 1, 2, 2))
    assert expected(shadow(twice), sigmas, ANSWERS, RESPONSE) == pytest.approx(one, rel=1e-6)


@LAWS
def test_what_a_step_leaves_is_expected_to_be_carried_to_the_end(law):
    """Of one run and two steps, E = r1 c(t)^2 + r2 for every response: r1 is the same from any two."""
    case, path = known(law)
    small = shadow(Path(law, path.sigmas, path.states[:1], path.answers[:1]))
    sigmas = (case.first, law.sigma(1.2), 0.0)
    responses = [Response(LogisticClock(centre, 0.7)) for centre in (0.3, 1.0, 4.0)]
    claims = [expected(small, sigmas, ANSWERS, response) for response in responses]
    carried = [response.carried(law, sigmas[1]) ** 2 for response in responses]
    slopes = [(claims[0] - claims[n]) / (carried[0] - carried[n]) for n in (1, 2)]
    assert slopes[0] > 1e-6 and slopes[1] == pytest.approx(slopes[0], rel=1e-6)


def test_a_linear_models_runs_are_expected_to_cost_next_to_nothing():
    """Answers that are one vector at every sigma: a row of two weights is exact."""
    constant = torch.randn((2, 1, 4, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    _, path = known(FLOW)
    x = torch.randn((2, 1, 4, 4, 4), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    sigmas = torch.tensor(path.sigmas, dtype=torch.float64).view(1, -1, 1, 1, 1)
    straight = Path(FLOW, path.sigmas, sigmas * x + (1 - sigmas) * constant, constant.expand(2, 40, 4, 4, 4))
    for rule in rules(FLOW, 1.0)[::7]:
        assert expected(shadow(straight), rule.sigmas(FLOW, 1.0, 5), ANSWERS, RESPONSE) < 1e-6
