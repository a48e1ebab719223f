"""Every node with whatever an API user may send it: a result, or a sentence of ours; never a raw error, NaN or a hang.

Widgets get values within their limits, at them and beyond; sockets get real objects, some of which do not fit. What
comes out is used: a SAMPLER samples, a MODEL and SIGMAS are sampled with. 300 examples; FEWSTEP_LONG=1 takes 5,000.
"""

from __future__ import annotations

import linecache
import math
import os
import re
import traceback
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from fewstep.nodes.measuring.interrupted import Parts
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.examples import LONG
from support.nodes import executed as executed_in_host
from support.nodes import of_the_pack, outside_of_a_graph
from torch import Tensor

pytestmark = pytest.mark.usefixtures("host")
ROOT = Path(os.environ["FEWSTEP_ROOT"])
MEASURING = (  # and what takes as long
    "FewStepBridge",
    "FewStepCompare",
    "FewStepDatasetModel",
    "FewStepEstimateStatistics",
    "FewStepLightBridge",
    "FewStepMeasureSpread",
    "FewStepSearchSchedule",
    "FewStepTune",
)
QUICK = [
    "FewStepBoost",
    "FewStepDEIS",
    "FewStepDemoModel",
    "FewStepDPMSolverV3",
    "FewStepDualFast",
    "FewStepEntry",
    "FewStepFlowMapSampler",
    "FewStepGMFlowGuider",
    "FewStepGMFlowLabel",
    "FewStepGMFlowSampler",
    "FewStepHeavyTailNoise",
    "FewStepInspectSchedule",
    "FewStepLoadGMFlow",
    "FewStepLoadSchedule",
    "FewStepLoadStatistics",
    "FewStepLoadTuning",
    "FewStepManifoldConstraint",
    "FewStepPiFlowSampler",
    "FewStepProbabilisticGuidance",
    "FewStepPromptList",
    "FewStepRestartInterval",
    "FewStepRestartKSampler",
    "FewStepRestartKSamplerAdvanced",
    "FewStepRestartSampler",
    "FewStepRestartSchedule",
    "FewStepTrigFlow",
    "FewStepTrigFlowSchedule",
    "FewStepTunedSampler",
    "FewStepTwoExperts",
]
SMALL = {
    "images": (2, 3),
    "levels": (6, 8),
    "steps": (1, 4),
    "teacher_steps": (20, 30),
    "reference_steps": (20, 30),
    "trajectories": (2, 3),
    "polish": (0, 1),
    "components": (1, 3),
}
AFFORDABLE = {"effort": ("quick",)}  # of a combo's options
SELDOM_MISSING = ("model", "positive", "negative", "latent_image")  # optional, because a guider may stand for most
SEGMENTS = ("", "default", "a1111", "[3, 1, 0.1, 0.8]", '[2, 2, -100, "50%"], default', "[3, 1, 0, 30]", "[9, 9, 9")
CALLS = ("2", "3, 4", "5 5", "1")  # of Compare's rivals
ODD_NUMBERS = (-1, 0, 1, 2, 3, 2**70, -(2**70))
ODD_FLOATS = (-1.0, 0.0, 1.0, 1e-30, 1e30, -1e30, math.inf, -math.inf, math.nan)
ODD_WORDS = ("", " ", "elsewhere", "../../x", "a\0b", "x" * 300, ".hidden", "sub/", "red\N{SNOWMAN}")


def profile(examples: int):
    return settings(
        max_examples=examples, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )


# ---------------------------------------------------------------------------------------------------------
# What comes in at the sockets


@cache
def demo(variant: str) -> tuple:
    from fewstep.nodes.models.demo import load_clip, load_model

    clip = load_clip()
    prompts = [clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in ("red apple", "")]
    return load_model(variant), *prompts


@cache
def statistics():
    """Measured on the bundled flow model."""
    from fewstep.nodes.measuring.estimate import Request, estimate

    model, positive, negative = demo("flow")
    latent = torch.zeros(1, 3, 16, 16)
    return estimate(
        Request(model, positive, negative, 3.0, latent, 0, 2, 8, "global", "differences"), None, Parts(), None
    )


@cache
def spread():
    from fewstep.nodes.measuring.spread import Request, measure_spread

    model, positive, negative = demo("flow")
    return measure_spread(Request(model, positive, negative, 3.0, torch.zeros(1, 3, 16, 16), 0, 2, 6), None)


@cache
def searched():
    from fewstep.nodes.measuring.search import Request, search_schedule

    model, positive, negative = demo("flow")
    latent = torch.zeros(1, 3, 8, 8)
    request = Request(model, positive, negative, 3.0, latent, 0, 3, "dpmpp_2m", 20, 2, polish=0)
    return search_schedule(request, Parts(), None)


@cache
def tuned():
    from fewstep.nodes.measuring.tune import Request, tune

    model, positive, negative = demo("flow")
    return tune(Request(model, positive, negative, 3.0, torch.zeros(1, 3, 8, 8), 0, "quick"), Parts(), None)


def samplers() -> st.SearchStrategy:
    import comfy.samplers
    from fewstep.nodes.host.sampler import restart_sampler

    ready = [comfy.samplers.sampler_object(name) for name in ("euler", "dpmpp_2m_sde", "dpm_adaptive", "uni_pc")]
    return st.sampled_from([*ready, restart_sampler(None, 1.0)])


def guiders() -> st.SearchStrategy:
    """An ordinary one, two of other kinds, one without prompts, and what is none."""
    import comfy.samplers
    from comfy_extras.nodes_custom_sampler import BasicGuider, DualCFGGuider
    from fewstep.nodes.host.gmflow import Guidance, gmflow_guider
    from fewstep.nodes.host.guiders import guider_for

    flow, positive, negative = demo("flow")
    dual = executed_in_host(DualCFGGuider, flow, positive, negative, negative, 3.0, 2.0, "nested")
    mixtures = gmflow_guider(demo("gmflow")[0], positive, negative, Guidance(0.45))
    ordinary = guider_for(flow, positive, negative, 3.0), executed_in_host(BasicGuider, flow, positive)
    return st.sampled_from([*ordinary, dual, mixtures, comfy.samplers.CFGGuider(flow), None, 5])


def latents() -> st.SearchStrategy:
    shapes = [(1, 3, 16, 16), (2, 3, 8, 16), (1, 4, 16, 16), (1, 3, 2, 2), (1, 16, 1, 8, 8), (0, 3, 16, 16)]
    empty = st.sampled_from(shapes).map(lambda shape: {"samples": torch.zeros(shape)})
    pictures = st.sampled_from(shapes[:2]).map(
        lambda shape: {"samples": torch.linspace(-1, 1, math.prod(shape)).view(shape)}
    )
    return st.one_of(empty, pictures, st.just({}))


def entries() -> st.SearchStrategy:
    """Of Compare: some of which cannot run."""
    from fewstep.nodes.measuring.comparing.entries import Entry

    labels = st.sampled_from(["mine", "", "a | b $x$", "x" * 300, 5])
    return st.builds(Entry, labels, st.one_of(samplers(), st.none()), schedules(), guiders())


def vaes() -> st.SearchStrategy:
    from fewstep.nodes.models.demo import load_vae

    return st.sampled_from([load_vae(), None, 5])


def pictures() -> st.SearchStrategy:
    """Batches of them, some of which are none."""
    shapes = [(3, 8, 8, 3), (1, 8, 8, 4), (2, 4, 9, 1), (1, 1, 1, 3), (0, 8, 8, 3), (2, 8, 8, 2)]
    ramps = st.sampled_from(shapes).map(
        lambda shape: torch.linspace(0, 1, max(math.prod(shape), 1))[: math.prod(shape)].view(shape)
    )
    return st.one_of(ramps, st.sampled_from([torch.full((1, 8, 8, 3), math.nan), torch.zeros(2, 8, 8, 3), None]))


def schedules() -> st.SearchStrategy:
    good = st.sampled_from([[1.0, 0.7, 0.3, 0.0], [1.0, 0.5, 0.0], [0.6, 0.2, 0.0], [14.6, 3.0, 0.5, 0.0]])
    numbers = st.one_of(st.floats(-1, 20, width=32), st.sampled_from([math.nan, math.inf, 0.0, 1.0, 1.0000001]))
    return st.one_of(good, good, st.lists(numbers, max_size=6)).map(torch.tensor)


def sockets() -> dict[str, st.SearchStrategy]:
    """What is measured for one is measured where a node has it."""
    from fewstep.schedulers.restart.plan import Interval

    variants = st.sampled_from(["eps", "v", "flow", "gmflow"])
    prompts = st.sampled_from([demo("eps")[1], demo("eps")[2], []])
    return {
        "MODEL": variants.map(lambda variant: demo(variant)[0]),
        "CONDITIONING": prompts,
        "LATENT": latents(),
        "GUIDER": guiders(),
        "FEWSTEP_PROMPTS": st.sampled_from([(), (demo("eps")[1:],), (demo("eps")[1:], (demo("eps")[2], []))]),
        "SIGMAS": schedules(),
        "MASK": st.sampled_from(
            [torch.zeros(1, 16, 16), torch.eye(8)[None], torch.ones(3, 5, 7), torch.zeros(0, 4, 4)]
        ),
        "VAE": vaes(),
        "IMAGE": pictures(),
        "FEWSTEP_ENTRY": entries(),
        "COMFY_AUTOGROW_V3": st.lists(entries(), max_size=2).map(lambda those: dict(enumerate_named(those))),
        "SAMPLER": samplers(),
        "FEWSTEP_INTERVALS": st.sampled_from([(Interval(3, 1, 0.1, 0.8),), (Interval(2, 2, 0.3, 9.0),)]),
        "FEWSTEP_STATISTICS": st.builds(statistics),
        "FEWSTEP_SPREAD": st.builds(spread),
        "FEWSTEP_SCHEDULE": st.builds(searched),
        "FEWSTEP_TUNING": st.builds(tuned),
    }


def enumerate_named(those: list):
    """As a newer host hands over a list that grows."""
    return ((f"entry{number}", one) for number, one in enumerate(those))


def widget(spec, odd: bool) -> st.SearchStrategy:
    """Values of one widget by its schema; odd: those that no widget would give."""
    kind = spec.io_type
    if kind == "COMBO":
        options = AFFORDABLE.get(spec.id, [str(option) for option in spec.options or []])
        return st.sampled_from(options) if options and not odd else st.sampled_from(ODD_WORDS)
    if kind == "BOOLEAN":
        return st.booleans()
    if spec.id == "segments" and not odd:
        return st.sampled_from(SEGMENTS)
    if spec.id == "calls" and not odd:
        return st.sampled_from(CALLS)
    if kind == "STRING":
        return st.sampled_from(ODD_WORDS) if odd else st.sampled_from(["", "mine", "golden retriever", "7"])
    if kind == "INT":
        low, high = SMALL.get(spec.id, (spec.min, min(spec.max, 1000)))
        return st.sampled_from(ODD_NUMBERS) if odd else st.integers(max(low, spec.min), high)
    if kind == "FLOAT":
        return st.sampled_from(ODD_FLOATS) if odd else st.floats(spec.min, spec.max)
    raise AssertionError(f"No values for {kind}")


def inputs(node) -> st.SearchStrategy:
    """All inputs of a node; at most one widget is odd, so that the others are looked at too."""
    schema, ready = node.define_schema(), sockets()
    seldom = st.integers(0, 9).map(lambda number: number == 9)

    @st.composite
    def drawn(draw) -> dict[str, Any]:
        widgets = [spec.id for spec in schema.inputs if spec.io_type not in ready]
        odd = draw(st.sampled_from([None, *widgets]))
        values = {}
        for spec in schema.inputs:
            if re.fullmatch(r"entries\.entry([2-9]|\d\d)", spec.id):
                continue  # of the many sockets of an older host two are enough
            if spec.optional and draw(seldom if spec.id in SELDOM_MISSING else st.booleans()):
                continue
            values[spec.id] = draw(ready[spec.io_type] if spec.io_type in ready else widget(spec, spec.id == odd))
        return values

    return drawn()


# ---------------------------------------------------------------------------------------------------------
# What may come out


def said_by_us(error: Exception) -> bool:
    """Whether it is a sentence that our code raises on purpose."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    ours = Path(frame.filename).resolve().is_relative_to(ROOT) and "tests" not in Path(frame.filename).parts
    raised = linecache.getline(frame.filename, frame.lineno or 0).strip().startswith("raise ")
    return isinstance(error, (ValueError, TypeError)) and ours and raised and len(str(error).split()) > 4


def in_words(work: Callable, *given, **named) -> Any:
    """The result, or None after a sentence of ours."""
    try:
        return work(*given, **named)
    except Exception as error:
        if not said_by_us(error):
            raise
    return None


def executed(name: str, values: dict[str, Any]) -> tuple:
    result = in_words(outside_of_a_graph(of_the_pack()[name]).execute, **values)
    return () if result is None else result.args


def check_result(value: Any, sigmas: Tensor) -> None:
    """What a node gives is used as it would be in a graph."""
    import comfy.samplers

    if torch.is_tensor(value):
        assert not value.isnan().any()
    elif isinstance(value, dict):
        assert value["samples"].isfinite().all()
    elif hasattr(value, "generate_noise"):
        drawn = [value.generate_noise({"samples": torch.zeros(2, 3, 8, 8)}) for _ in range(2)]
        assert drawn[0].isfinite().all() and torch.equal(*drawn)
    elif isinstance(value, comfy.samplers.KSAMPLER):
        for variant in ("eps", "gmflow"):
            check_picture(demo(variant), value, sigmas)
    elif hasattr(value, "get_model_object") and value.model.latent_format.latent_channels == 3:
        euler = comfy.samplers.sampler_object("euler")
        check_picture((value, *demo("eps")[1:]), euler, torch.tensor([1.0, 0.5, 0.0]), 16)  # as most latents are


def check_picture(parts: tuple, sampler, sigmas: Tensor, size: int = 8) -> None:
    from fewstep.nodes.host.guiders import guider_for

    noise = torch.randn((2, 3, size, size), generator=torch.Generator().manual_seed(0))
    model, positive, negative = parts
    if len(sigmas) and sigmas[-1] == 1 and model.get_model_object("model_sampling").sigma_max <= 1:
        return  # the host itself divides by 1 - sigma in the end, whatever sampled
    guider = guider_for(model, positive, negative, 3.0)
    drawn = in_words(guider.sample, noise, torch.zeros_like(noise), sampler, sigmas, disable_pbar=True, seed=1)
    assert drawn is None or drawn.isfinite().all()


# ---------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    """Files go nowhere that matters."""
    import folder_paths

    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
    known = dict(folder_paths.folder_names_and_paths)
    known.pop("fewstep", None)
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", known)


def test_no_node_is_forgotten():
    assert sorted([*QUICK, *MEASURING]) == sorted(of_the_pack())


@pytest.mark.parametrize("name", QUICK)
def test_whatever_comes_in(name):
    @profile(5000 // len(QUICK) if LONG else 25)
    @given(inputs(of_the_pack()[name]), schedules())
    def holds(values, sigmas):
        for value in executed(name, values):
            check_result(value, sigmas)

    holds()


@pytest.mark.parametrize("name", MEASURING)
def test_whatever_is_to_be_measured(name):
    @profile(300 if LONG else 12)
    @given(inputs(of_the_pack()[name]), schedules())
    def holds(values, sigmas):
        for value in executed(name, values):
            check_result(value, sigmas)

    holds()
