"""What Boost does on a model of which nothing was measured: its sigmas, and its error on exact mixtures."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import pytest
import torch
from fewstep.samplers.clock import LogisticClock
from fewstep.samplers.deis import DEIS
from fewstep.samplers.noise_law import FLOW, VARIANCE_EXPLODING, NoiseLaw
from fewstep.schedulers.recipe import REST, recipe, recipe_between
from hypothesis import given
from hypothesis import strategies as st
from support.mixture import GuidedMixture, converged, picture_like

LAWS = {"eps": VARIANCE_EXPLODING, "flow": FLOW}
FIRST = {"eps": 14.6146, "flow": 1.0}
SEEDS = 12


def euler_simple(kind: str, calls: int) -> list[float]:
    """The host's *simple*: even in the model's own time, which is 1000 steps of SD's noise or the flow time itself."""
    if kind == "flow":
        return torch.linspace(1, 0, calls + 1, dtype=torch.float64).tolist()
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    kept = torch.cumprod(1 - betas, 0)
    sigmas = ((1 - kept) / kept).sqrt()
    return [*(float(sigmas[-(1 + int(i * 1000 / calls))]) for i in range(calls)), 0.0]


@cache
def problem(kind: str, cfg: float) -> tuple[GuidedMixture, torch.Tensor, torch.Tensor]:
    """The denoiser, the starts, and where the ODE leads from them."""
    labels = torch.arange(SEEDS) % 8
    denoise = GuidedMixture(picture_like(size=8), LAWS[kind], labels, cfg)
    noise = torch.randn((SEEDS, 4, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return denoise, FIRST[kind] * noise, converged(denoise, FIRST[kind] * noise, FIRST[kind], 1e-7)


def error(drawn: torch.Tensor, end: torch.Tensor) -> float:
    return float((drawn - end).square().flatten(1).mean(1).log().mean().exp())


@pytest.mark.parametrize("calls, share", [(4, 0.5), (6, 0.3), (8, 0.2), (12, 0.15), (20, 0.15)])
@pytest.mark.parametrize("cfg", [1.0, 5.0])
@pytest.mark.parametrize("kind", LAWS)
def test_it_is_far_nearer_to_the_converged_picture_than_euler(kind, cfg, calls, share):
    denoise, start, end = problem(kind, cfg)
    ours = recipe(calls, kind == "flow")
    solver = DEIS(LAWS[kind], ours.answers, ours.order, ours.corrector, ours.ends_denoised)
    drawn = solver(denoise, start, ours.sigmas(LAWS[kind], FIRST[kind], 0.0, calls))
    plain = DEIS(LAWS[kind], LogisticClock(1.0), order=1)(denoise, start, euler_simple(kind, calls))
    assert error(drawn, end) < share * error(plain, end)


@given(
    st.floats(1e-3, 50.0),
    st.floats(0.0, 0.99),
    st.integers(2, 60),
    st.floats(0.5, 12.0),
    st.sampled_from([*LAWS.values()]),
)
def test_its_sigmas_fall_between_the_ends_that_came_in(ratio, part, steps, shift, law: NoiseLaw):
    first, last = law.sigma(ratio), law.sigma(ratio) * part
    for calls in (steps, 3 * steps):  # a whole run, and a third of a longer one
        sigmas = recipe(calls, law.is_flow, shift).sigmas(law, first, last, steps)
        assert (sigmas[0], sigmas[-1], len(sigmas)) == (first, last, steps + 1)
        assert all(high > low for high, low in pairwise(sigmas))


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
def test_from_ten_calls_on_the_last_one_is_the_picture(law):
    few, many = recipe(7, law.is_flow), recipe(10, law.is_flow)
    assert not few.ends_denoised and many.ends_denoised
    assert law.ratio(many.sigmas(law, 0.9, 0.0, 10)[-2]) == pytest.approx(REST)
    assert many.sigmas(law, law.sigma(REST / 2), 0.0, 10)[-2] < law.sigma(REST / 2)
    assert law.ratio(many.sigmas(law, 0.9, 0.1, 10)[-2]) > REST


def test_a_shift_moves_both_clocks_to_more_noise():
    plain, shifted = recipe(8, True), recipe(8, True, 4.0)
    assert isinstance(plain.places, LogisticClock) and isinstance(plain.answers, LogisticClock)
    assert shifted.places == LogisticClock(2 * plain.places.centre, plain.places.width)
    assert shifted.answers == LogisticClock(2 * plain.answers.centre, plain.answers.width)


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
def test_a_part_of_the_way_is_run_as_the_whole_one_of_steps_as_long(law):
    top = 14.6 if not law.is_flow else 1.0
    assert recipe_between(law, top, 0.0, 20) == recipe_between(law, law.sigma(1.65), 0.0, 10)
    assert (
        recipe_between(law, law.sigma(0.05), 0.0, 4).ends_denoised
        and not recipe_between(law, top, 0.0, 4).ends_denoised
    )


def test_edms_places_are_the_host_s_karras():
    sigmas = torch.linspace(14.6 ** (1 / 7), REST ** (1 / 7), 12, dtype=torch.float64) ** 7
    assert recipe(12, False).sigmas(VARIANCE_EXPLODING, 14.6, 0.0, 12) == pytest.approx([*sigmas.tolist(), 0.0])
