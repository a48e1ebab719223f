"""DPM-Solver-v3 as the host's SAMPLER: when statistics are used, how far a step may lead, and schedules of any kind."""

from __future__ import annotations

import math
import weakref
from functools import lru_cache

import pytest
import torch
from fewstep.nodes.host.progress import Report
from fewstep.nodes.measuring.interrupted import Parts
from fewstep.samplers.dpm_solver_v3 import Options, Statistics
from fewstep.samplers.dpm_solver_v3.measured import Measured
from support.mixture import Mixture, picture_like

pytestmark = pytest.mark.usefixtures("host")


@pytest.fixture(scope="module", autouse=True)
def forgotten(host):
    """Models are not kept beyond this file."""
    yield
    model.cache_clear()
    measured.cache_clear()


@lru_cache(maxsize=4)
def model(kind: str, single: bool = False):
    """The mixture, or a single Gaussian, on which spectral statistics are all noise: f vanishes."""
    from support.host_mixture import mixture_model

    mixture = picture_like()
    if single:
        mixture = Mixture(mixture.means[:1] * 0, mixture.spectrum * 2, mixture.classes[:1])
    return mixture_model(mixture, kind, 3.0 if kind == "flow" else 1.0)


@lru_cache(maxsize=8)
def measured(kind: str, single: bool = False, pooling: str = "global") -> Measured:
    from fewstep.nodes.measuring.estimate import Request, estimate
    from support.host_mixture import label_conditioning

    labels = [0, 0] if single else [0, 3]
    conditioning = label_conditioning(labels), label_conditioning([-1, -1])
    given = (model(kind, single), *conditioning, 1.0, torch.zeros(2, 4, 16, 16), 99, 6, 20, pooling, "differences")
    return estimate(Request(*given), None, Parts(), None)


def sigmas_of(kind: str, scheduler: str, steps: int) -> torch.Tensor:
    import comfy.samplers

    return comfy.samplers.calculate_sigmas(model(kind).get_model_object("model_sampling"), scheduler, steps)


def draw(kind: str, sigmas, statistics=None, use="always", single=False, report=None, **given):
    """Four pictures; `report` is the node's."""
    import comfy.sample
    from fewstep.nodes.host import dpm_solver_v3 as module
    from support.host_mixture import label_conditioning

    patcher = given.pop("patcher", None) or model(kind, single)
    noise = given.pop("noise", torch.randn((4, 4, 16, 16), generator=torch.Generator().manual_seed(0)))
    latent = given.pop("latent", torch.zeros(4, 4, 16, 16))
    labels = label_conditioning(given.pop("labels", [0] * 4 if single else [0, 3, 5, 1]))
    sampler = module.dpm_solver_v3_sampler(module.Choice(Options(**given), statistics, "data", use, report))
    return comfy.sample.sample_custom(
        patcher, noise, 1.0, sampler, sigmas, labels, label_conditioning([-1] * 4), latent, disable_pbar=True, seed=0
    )


# ---------------------------------------------------------------------------------------------------------
# How far a step may lead


@pytest.mark.parametrize("kind, scheduler, steps", [
    *(("eps", "beta", steps) for steps in (1, 2, 3, 4, 5)),
    ("eps", "linear_quadratic", 8), ("eps", "simple", 20),
    ("flow", "exponential", 8), ("flow", "exponential", 20), ("flow", "simple", 20),
])  # fmt: skip
def test_statistics_that_are_all_noise_ruin_no_picture(kind, scheduler, steps):
    """Without the bound: up to 1e7 times as large, or NaN."""
    sigmas = sigmas_of(kind, scheduler, steps)
    drawn = draw(kind, sigmas, measured(kind, single=True, pooling="spectral"), single=True)
    plain = draw(kind, sigmas, single=True)
    assert drawn.square().mean() < 4 * plain.square().mean().clamp(min=1)


def test_what_was_held_back_is_said():
    said = Report(None)
    table = measured("eps", single=True, pooling="spectral")
    draw("eps", sigmas_of("eps", "beta", 5), table, single=True, report=said)
    assert "of 5 steps led further than a picture can be, and were made at order 1" in said.entry["text"]
    said = Report(None)
    draw("eps", sigmas_of("eps", "beta", 5), measured("eps"), report=said)
    assert said.entry["text"] == "5 calls with statistics."


@pytest.mark.parametrize("kind", ["eps", "flow"])
def test_good_statistics_and_ordinary_extrapolation_are_never_held_back(kind, monkeypatch):
    """To the bit what an unbounded solver draws."""
    from fewstep.samplers.dpm_solver_v3 import solver

    def drawn():
        schedules = [sigmas_of(kind, scheduler, steps) for scheduler in ("beta", "simple") for steps in (5, 8, 20)]
        return [draw(kind, s, table) for s in schedules for table in (None, measured(kind))]

    bounded = drawn()
    monkeypatch.setattr(solver, "FURTHEST", math.inf)
    assert all(torch.equal(a, b) for a, b in zip(bounded, drawn(), strict=True))


def test_a_step_without_a_finite_result_is_made_without_the_statistics():
    lam = torch.linspace(-3, 4, 8, dtype=torch.float64)
    wild = Statistics(lam, *(torch.full((8, 1, 1, 1), value, dtype=torch.float64) for value in (0.5, 400.0, 1.0)))
    sigmas = sigmas_of("eps", "beta", 5)
    drawn = draw("eps", sigmas, Measured(wild))
    assert drawn.isfinite().all() and drawn.std() < 3
    assert (drawn - draw("eps", sigmas, order=1)).square().mean() < 1e-3  # but for the noise that the last step leaves


# ---------------------------------------------------------------------------------------------------------
# What their check covers


@pytest.mark.parametrize("steps, used", [(1, False), (2, False), (4, False), (5, True), (8, True)])
def test_statistics_are_not_used_at_fewer_calls_than_were_checked(steps, used):
    said = Report(None)
    draw("eps", sigmas_of("eps", "beta", steps), measured("eps"), "when_checked", report=said)
    assert ("with statistics" in said.entry["text"]) == used
    assert used or "statistics are checked from 5 calls on" in said.entry["text"]


def test_a_part_of_a_schedule_is_held_to_its_part_of_the_calls():
    """The last 3 of 8 steps, as Split Sigmas gives them: their steps are as short as in the whole."""
    said = Report(None)
    sigmas = sigmas_of("eps", "beta", 8)
    draw("eps", sigmas[-4:], measured("eps"), "when_checked", report=said)
    assert said.entry["text"].startswith("3 calls with statistics")


@pytest.mark.parametrize(
    "kind, scheduler, steps, used",
    [
        ("eps", "linear_quadratic", 8, False),
        ("flow", "exponential", 20, False),
        ("eps", "karras", 8, True),
        ("eps", "simple", 8, True),
        ("flow", "simple", 20, True),
        ("flow", "sgm_uniform", 5, True),
    ],
)
def test_statistics_are_not_used_over_longer_steps_than_were_checked(kind, scheduler, steps, used):
    said = Report(None)
    sigmas = sigmas_of(kind, scheduler, steps)
    drawn = draw(kind, sigmas, measured(kind), "when_checked", report=said)
    assert ("with statistics" in said.entry["text"]) == used
    if not used:
        assert "take the schedule beta, or more steps" in said.entry["text"]
        assert torch.equal(drawn, draw(kind, sigmas))


# ---------------------------------------------------------------------------------------------------------
# Schedules of any kind


@pytest.mark.parametrize("kind", ["eps", "flow"])
def test_a_schedule_without_a_step_hands_the_latent_on(kind):
    latent = picture_like().sample(4, seed=1).float()
    drawn = draw(kind, torch.tensor([0.5]), latent=latent, noise=torch.zeros(4, 4, 16, 16))
    torch.testing.assert_close(drawn, latent, atol=1e-5, rtol=0)


@pytest.mark.parametrize("sigmas, words", [([0.9, math.nan], "Number 2 of the 2 sigmas is nan"), ([0.9, -1.0], "-1")])
def test_sigmas_that_are_no_schedule_are_refused_in_words(sigmas, words):
    with pytest.raises(ValueError, match=words):
        draw("eps", torch.tensor(sigmas))


def test_repeated_sigmas_are_no_steps():
    once, twice = torch.tensor([9.0, 3.0, 1.0, 0.3, 0.0]), torch.tensor([9.0, 9.0, 3.0, 1.0, 1.0, 0.3, 0.0, 0.0])
    assert torch.equal(draw("eps", once), draw("eps", twice))


@pytest.mark.parametrize("kind, top", [("eps", 14.6), ("flow", 0.995)])
def test_unsampling_and_sampling_again_gives_the_picture_back(kind, top):
    """Rising sigmas, as Flip Sigmas makes them; the host's euler is an order worse."""
    import comfy.sample
    import comfy.samplers
    from support.host_mixture import label_conditioning

    said = Report(None)
    latent, nothing = picture_like().sample(4, seed=1).float(), torch.zeros(4, 4, 16, 16)
    ratios = torch.logspace(math.log10(14.6 if kind == "eps" else 199.0), -2, 30)
    down = ratios if kind == "eps" else ratios / (1 + ratios)
    up = torch.cat([torch.tensor([1e-4]), down.flip(0)])
    labels, any_class = [label_conditioning([-1] * 4)] * 2, [-1] * 4
    given = {"noise": nothing, "labels": any_class}
    ours = draw(kind, up, measured(kind), latent=latent, report=said, **given)
    euler = comfy.samplers.sampler_object("euler")
    theirs = comfy.sample.sample_custom(model(kind), nothing, 1.0, euler, up, *labels, latent, seed=0)
    errors = []
    for noised in (ours, theirs):
        back = draw(kind, torch.cat([down, torch.zeros(1)]), latent=noised, order=3, **given)
        errors.append((back - latent).square().mean().item())
    assert errors[0] < 1e-3 and errors[0] < errors[1] / 5
    assert "data prediction: statistics are for falling sigmas, and these rise" in said.entry["text"]


def test_unsampling_up_to_nothing_but_noise_stays_finite():
    """A flow model at sigma 1, where y = x / alpha has no value."""
    from fewstep.samplers.dpm_solver_v3 import DPMSolverV3
    from fewstep.samplers.noise_law import FLOW
    from support.mixture import GuidedMixture

    mixture = picture_like()
    x0 = mixture.sample(2, seed=1)
    t = torch.cat([torch.tensor([1e-4]).double(), torch.linspace(0.01, 1, 60, dtype=torch.float64)])
    noise = DPMSolverV3(FLOW)(GuidedMixture(mixture, FLOW), x0, t)
    assert noise.std().item() == pytest.approx(1.0, abs=0.15)
    back = DPMSolverV3(FLOW)(GuidedMixture(mixture, FLOW), noise, torch.cat([t.flip(0), t.new_zeros(1)]))
    assert (back - x0).square().mean() < 0.01


def test_a_model_that_answers_nan_is_said_with_its_step():
    from support.host_mixture import fail, mixture_model

    patcher = mixture_model(picture_like(), "eps")
    said = Report(None)
    fail(patcher, at=4)
    draw("eps", sigmas_of("eps", "beta", 8), patcher=patcher, report=said)
    assert "NaN or infinity at step " in said.entry["text"] and "items 0, 1, 2, 3 of the batch" in said.entry["text"]


def test_a_model_is_looked_at_once(monkeypatch):
    """Its weights leave the device for that, which takes longer than a call: a second run knows it."""
    from fewstep.nodes.host import guiders
    from fewstep.nodes.host.identity import identify

    looked: list[int] = []

    def noted(model):
        looked.append(1)
        return identify(model)

    monkeypatch.setattr(guiders, "identify", noted)
    monkeypatch.setattr(guiders.recognised, "models", weakref.WeakKeyDictionary())
    for _ in range(2):
        draw("flow", sigmas_of("flow", "beta", 6), measured("flow"))
    assert len(looked) == 1
