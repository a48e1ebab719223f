"""Any row of numbers as SIGMAS, on every kind of model: a picture, or a sentence; never a raw error, a hang, or NaN
without a word. 300 examples; 5,000 with FEWSTEP_LONG=1.
"""

from __future__ import annotations

import logging
import os
from functools import lru_cache

import pytest
import torch
from fewstep.nodes.measuring.interrupted import Parts
from fewstep.samplers.dpm_solver_v3 import Options
from fewstep.schedulers.restart.presets import PRESETS
from fewstep.schedulers.restart.request import BUDGETS, requested_plan
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from support import field
from support.mixture import picture_like

pytestmark = [pytest.mark.usefixtures("host"), pytest.mark.filterwarnings("ignore")]
EXAMPLES = 5000 if os.environ.get("FEWSTEP_LONG") else 300
MOST_CALLS = 2000  # of one picture: who needs more does not come back
INNER = [None, "euler", "heun", "dpmpp_2m", "euler_ancestral", "dpmpp_sde", "dpm_fast", "dpm_adaptive", "uni_pc"]

ORDINARY = st.one_of(st.sampled_from([0.0, 1.0, 1.0000001, 0.5, 14.6146]), st.floats(0, 1), st.floats(0, 30))
ODD = st.one_of(st.floats(), st.sampled_from([1e-45, 1e-30, 1e-7, 1e5, 1e6, 1e7, 1e300, -0.0, -1e-9]))
VALUES = st.lists(ORDINARY, max_size=9) | st.lists(ORDINARY | ODD, max_size=6)


@st.composite
def schedules(draw) -> torch.Tensor:
    values = draw(VALUES)
    order = draw(st.sampled_from(["falls", "falls to 0", "rises", "as drawn", "twice"]))
    if order != "as drawn":
        values = sorted(values, reverse=order != "rises")
    if order == "falls to 0":
        values = [*values, 0.0]
    if order == "twice":
        values = [*values, *values]
    sigmas = torch.tensor(values, dtype=draw(st.sampled_from([torch.float32, torch.float64])))
    whole = sigmas.isfinite().all() and (not len(sigmas) or sigmas.abs().max() < 1e6)
    return sigmas.round().long() if whole and draw(st.integers(0, 9)) == 0 else sigmas


@lru_cache(maxsize=4)
def model(kind: str):
    from support.host_mixture import mixture_model

    return mixture_model(picture_like(size=4, components=6, classes=2), kind, 3.0 if kind == "flow" else 1.0)


@lru_cache(maxsize=4)
def measured(kind: str):
    from fewstep.nodes.measuring.estimate import Request, estimate
    from support.host_mixture import label_conditioning

    conditioning = label_conditioning([0, 1]), label_conditioning([-1, -1])
    given = (model(kind), *conditioning, 1.0, torch.zeros(2, 4, 4, 4), 0, 4, 12, "global", "differences")
    return estimate(Request(*given), None, Parts(), None)


@pytest.fixture(scope="module", autouse=True)
def forgotten(host):
    """Models are not kept beyond this file."""
    yield
    model.cache_clear()
    measured.cache_clear()


class Heard(logging.Handler):
    """What is said in the log."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


def drawn(kind: str, sampler, sigmas: torch.Tensor) -> tuple[torch.Tensor | None, list[str]]:
    """Two pictures, or None where it was refused in words; and what was said in the log."""
    import comfy.sample
    from support.host_mixture import fail, label_conditioning

    noise = torch.randn((2, 4, 4, 4), generator=torch.Generator().manual_seed(0))
    patcher, heard = model(kind), Heard()
    fail(patcher, MOST_CALLS, AssertionError("it does not come back"))
    logging.getLogger("fewstep").addHandler(heard)
    conditioning = label_conditioning([0, 1]), label_conditioning([-1, -1])
    latent = torch.zeros_like(noise)
    try:
        end = comfy.sample.sample_custom(
            patcher, noise, 1.0, sampler(), sigmas, *conditioning, latent, disable_pbar=True, seed=0
        )
    except (ValueError, TypeError) as refused:
        assert_words(str(refused))
        return None, heard.said
    finally:
        logging.getLogger("fewstep").removeHandler(heard)
        patcher.model.diffusion_model.failing = None
    return end, heard.said


def assert_words(text: str) -> None:
    """A sentence of ours that says what to do, and not what a library says to its programmer."""
    assert text[0].isupper() and text.endswith(".") and len(text.split()) > 8, text


def assert_a_picture_or_a_word(kind: str, sampler, sigmas: torch.Tensor) -> None:
    end, said = drawn(kind, sampler, sigmas)
    last_is_pure_noise = len(sigmas) and float(sigmas[-1]) >= 1 and kind == "flow"  # the host divides by 1 - sigma
    if end is not None and not end.isfinite().all() and not last_is_pure_noise:
        assert said, "NaN without a word"


SETTINGS = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=not os.environ.get("FEWSTEP_LONG"),
    suppress_health_check=list(HealthCheck),
    database=None,
)
METHODS, CLOCKS = ("tab", "rhoab", "rhork", "ipndm"), ("model", "log_snr", "sigma")
KINDS = st.sampled_from(["eps", "edm", "flow"])


@SETTINGS
@given(KINDS, schedules(), st.sampled_from(INNER))
@example("flow", torch.tensor([14.6, 3.0, 0.0]), "dpm_adaptive")
@example("eps", torch.tensor([14, 3, 0]), "dpm_adaptive")
@example("eps", torch.tensor([1e6, 1.0, 0.0]), "dpm_adaptive")
@example("eps", torch.tensor([14.6146, 1.0000001, 1.0]), "dpmpp_sde")
@example("eps", torch.tensor([14.6, 1.0, 0.5, 0.0]).double(), "uni_pc")
@example("flow", torch.tensor([0.0, 1.0, 0.5]), None)
def test_restart_sampler(kind, sigmas, inner):
    import comfy.samplers
    from fewstep.nodes.host.sampler import restart_sampler

    assert_a_picture_or_a_word(
        kind, lambda: restart_sampler(inner and comfy.samplers.sampler_object(inner), 1.0), sigmas
    )


@SETTINGS
@given(
    KINDS,
    schedules(),
    st.sampled_from(["when_checked", "always", "never"]),
    st.integers(1, 3),
    st.booleans(),
    st.sampled_from(["data", "noise"]),
)
def test_dpm_solver_v3(kind, sigmas, use, order, pseudo, prediction):
    from fewstep.nodes.host.dpm_solver_v3 import Choice, dpm_solver_v3_sampler

    options = Options(order, pseudo_predictor=pseudo, pseudo_corrector=pseudo)
    assert_a_picture_or_a_word(
        kind, lambda: dpm_solver_v3_sampler(Choice(options, measured(kind), prediction, use, None)), sigmas
    )


@SETTINGS
@given(KINDS, schedules(), st.sampled_from(METHODS), st.integers(1, 4), st.sampled_from(CLOCKS))
@example("flow", torch.tensor([1.0, 0.999999, 0.5, 1e-6, 0.0]), "tab", 4, "log_snr")
def test_deis(kind, sigmas, method, order, clock):
    assert_a_picture_or_a_word(kind, lambda: field.deis(method, order, clock), sigmas)


@SETTINGS
@given(KINDS, schedules(), st.sampled_from(INNER[1:]), st.sampled_from(["previous", "first"]), st.booleans())
@example("flow", torch.tensor([1.0, 0.6, 0.9, 0.0]), "euler", "first", True)
def test_dual_fast(kind, sigmas, inner, reference, restarts):
    """restarts: with a Restart Sampler in it, which takes sigmas that rise."""
    import comfy.samplers
    from fewstep.nodes.host.sampler import restart_sampler

    def sampler():
        host = comfy.samplers.sampler_object(inner)
        return field.dual_fast(restart_sampler(host, 1.0) if restarts else host, 0.5, "linear", reference)

    assert_a_picture_or_a_word(kind, sampler, sigmas)


@SETTINGS
@given(KINDS, schedules(), st.sampled_from(["euler", "restart", "ctm"]), st.floats(0, 1))
def test_flow_map(kind, sigmas, method, gamma):
    assert_a_picture_or_a_word(kind, lambda: field.flow_map(method, gamma), sigmas)


@SETTINGS
@given(KINDS, schedules(), st.sampled_from(list(PRESETS)), st.sampled_from(BUDGETS))
def test_restart_schedule(kind, sigmas, preset, budget):
    from fewstep.nodes.host.noise_law import noise_law

    law = noise_law(model(kind).get_model_object("model_sampling"))
    try:
        plan = requested_plan(sigmas.tolist(), law, preset, budget)
    except ValueError as refused:
        assert_words(str(refused))
        return
    made = torch.tensor(plan.sigmas)
    assert made.isfinite().all() and (made >= 0).all() and (not law.is_flow or (made <= 1).all())
    assert plan.steps >= 0 and str(plan)
