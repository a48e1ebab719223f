"""A GUIDER in the place of model, positive, negative and cfg: every kind that the host has, and what is kept of it."""

from __future__ import annotations

import importlib
import math
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.examples import mostly
from support.nodes import executed, of_the_pack

from . import test_requests
from .test_requests import NODES, SIZE, numbers_of, request, run

pytestmark = pytest.mark.usefixtures("host")
CFG = 3.0


def model(kind: str = "FLOW"):
    """A mixture whose prompts differ a little down to sigma 0: Perp-Neg divides by their difference."""
    patcher = test_requests.model(kind)
    original = patcher.model.diffusion_model.denoise

    def denoise(x, sigma, labels):
        return original(x, sigma, labels) + 0.01 * labels.view(-1, 1, 1, 1)

    patcher.model.diffusion_model.denoise = denoise
    return patcher


def prompt(label: int) -> list:
    from support.host_mixture import label_conditioning

    return label_conditioning([label])


def node(name: str) -> Any:
    """One of the host's, wherever it stands."""
    for module in ("nodes_custom_sampler", "nodes_perpneg", "nodes_lt", "nodes_flux"):
        found = getattr(importlib.import_module(f"comfy_extras.{module}"), name, None)
        if found is not None:
            return found
    return pytest.skip(f"this ComfyUI has no {name}")


def plain(patcher, cfg: float = CFG):
    return executed(node("CFGGuider"), patcher, prompt(0), prompt(-1), cfg)


def dual_cfg(patcher, cfg1: float = CFG, cfg2: float = 1.0, style: str = "regular", middle: int = -1):
    return executed(node("DualCFGGuider"), patcher, prompt(0), prompt(middle), prompt(-1), cfg1, cfg2, style)


def dual_model(patcher, cfg: float = CFG, other=None):
    return executed(node("DualModelGuider"), patcher, prompt(0), cfg, other or patcher, prompt(-1))


def perp_neg(patcher, cfg: float = CFG, neg_scale: float = 0.0):
    return executed(node("PerpNegGuider"), patcher, prompt(0), prompt(1), prompt(-1), cfg, neg_scale)


def video_and_audio(patcher, video: float = CFG, audio: float = 7.0):
    return executed(node("LTXVDualCFGGuider"), patcher, prompt(0), prompt(-1), video, audio)


def two_experts(patcher, cfg: float = CFG):
    """The same model on both sides of the boundary."""
    return executed(of_the_pack()["FewStepTwoExperts"], patcher, patcher.clone(), prompt(0), prompt(-1), cfg, cfg, 0.6)


# With the numbers they have here, each of them guides as a CFG Guider at CFG does.
KINDS = {f.__name__: f for f in (dual_cfg, dual_model, perp_neg, video_and_audio, two_experts)}
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)


@cache
def through_cfg(name: str):
    """What a node finds through a CFG Guider."""
    patcher = model()
    return numbers_of(run(name, patcher, model=None, positive=None, negative=None, cfg=99.0, guider=plain(patcher)))


# ---------------------------------------------------------------------------------------------------------
# The ordinary ones


@pytest.mark.parametrize("name", NODES)
def test_a_cfg_guider_is_the_four_sockets_to_the_bit(name):
    patcher = model()
    four = {"positive": prompt(0), "negative": prompt(-1), "cfg": CFG}
    through = {"model": None, "positive": None, "negative": None, "cfg": 99.0, "guider": plain(patcher)}
    assert request(name, patcher, **through).facts == request(name, patcher, **four).facts
    assert through_cfg(name) == numbers_of(run(name, patcher, **four))


@pytest.mark.parametrize("negative", [None, []])
@pytest.mark.parametrize("name", NODES)
def test_a_basic_guider_is_cfg_1_without_a_negative(name, negative):
    patcher = model()
    four = {"positive": prompt(0), "negative": negative, "cfg": 1.0}
    through = {"guider": executed(node("BasicGuider"), patcher, prompt(0))}
    assert request(name, patcher, **through).facts == request(name, patcher, **four).facts
    if negative is None:
        assert numbers_of(run(name, patcher, **through)) == numbers_of(run(name, patcher, **four))


def test_what_was_kept_of_prompts_before_there_were_guiders_is_kept_still():
    """Files that earlier versions saved are found: with pooled output, areas, masks and LoRA hooks."""
    import comfy.hooks
    from fewstep.nodes.host.identity import conditioning_digest

    further = {
        "pooled_output": torch.ones(1, 4),
        "guidance": 3.5,
        "area": (4, 4, 0, 0),
        "mask": torch.ones(1, 8, 8),
        "start_percent": 0.2,
        "hooks": comfy.hooks.HookGroup(),
    }
    positive = [[torch.zeros(1, 1, 1), further], [None, {"strength": 0.5}]]
    facts = request("spread", model(), positive=positive, negative=prompt(-1), cfg=2.0).facts
    assert facts["prompt"] == conditioning_digest(positive, prompt(-1)) and "guider" not in facts


def test_flux_guidance_counts():
    patcher, asked = model(), []
    for guidance in (3.5, 3.5, 2.0):
        conditioning = executed(node("FluxGuidance"), prompt(0), guidance)
        asked.append(request("search", patcher, guider=executed(node("BasicGuider"), patcher, conditioning)).facts)
    assert asked[0] == asked[1] and asked[0]["prompt"] != asked[2]["prompt"]


def test_a_file_is_found_both_ways(tmp_path, monkeypatch):
    import folder_paths

    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
    known = {name: place for name, place in folder_paths.folder_names_and_paths.items() if name != "fewstep"}
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", known)
    patcher, calls = model(), []
    network = patcher.model.diffusion_model
    original = network.denoise

    def denoise(*args):
        calls.append(1)
        return original(*args)

    network.denoise = denoise
    latent = {"samples": torch.zeros(1, 4, SIZE, SIZE)}
    common = {"latent_image": latent, "seed": 0, "images": 2, "levels": 6, "cfg": CFG}
    measuring = of_the_pack()["FewStepMeasureSpread"]
    ready: Any = type("Ready", (measuring,), {"hidden": SimpleNamespace(unique_id=None)})
    first = ready.execute(**common, model=patcher, positive=prompt(0), negative=prompt(-1)).args[0]
    done = len(calls)
    second = ready.execute(**common, guider=plain(patcher)).args[0]
    assert len(calls) == done > 0 and numbers_of(first) == numbers_of(second)
    third = ready.execute(**common, guider=plain(patcher, 2.0)).args[0]
    assert len(calls) > done and numbers_of(third) != numbers_of(first)


# ---------------------------------------------------------------------------------------------------------
# The others


@EVERY_KIND
@pytest.mark.parametrize("name", mostly("search", "spread", longer=("estimate",)))
def test_every_kind_is_measured_through(kind, name):
    """What they do at these numbers is CFG, so what is measured is what a CFG Guider gives."""
    patcher = model()
    found = numbers_of(run(name, patcher, guider=KINDS[kind](patcher)))
    assert found == pytest.approx(through_cfg(name), rel=0.02)


@EVERY_KIND
def test_every_kind_guides_while_it_is_measured_through(kind):
    patcher = model()
    strong = run("spread", patcher, guider=KINDS[kind](patcher, 9.0))
    assert numbers_of(strong) != pytest.approx(numbers_of(run("spread", patcher, guider=KINDS[kind](patcher))), rel=0.1)


@EVERY_KIND
def test_every_kind_is_told_from_the_ordinary_one(kind):
    patcher = model()
    facts = request("search", patcher, guider=KINDS[kind](patcher)).facts
    assert facts == request("search", patcher, guider=KINDS[kind](patcher)).facts and facts["cfg"] == CFG
    assert facts["guider"].startswith(("cfg 3", "cfg1 3", "video_cfg 3")) and "unknown" not in facts["guider"]
    ordinary = request("search", patcher, guider=plain(patcher)).facts
    assert ordinary == {name: ordinary[name] for name in ordinary if name != "guider"}
    assert facts != ordinary and facts != request("search", patcher, guider=KINDS[kind](patcher, 4.0)).facts


@pytest.mark.parametrize(
    "changed", [{"cfg1": 4.0}, {"cfg2": 2.0}, {"style": "nested"}, {"middle": 1}], ids=lambda changed: str(changed)
)
def test_each_setting_of_a_guider_counts(changed):
    patcher = model()
    facts = request("search", patcher, guider=dual_cfg(patcher)).facts
    assert request("search", patcher, guider=dual_cfg(patcher, **changed)).facts != facts


def test_the_model_of_the_negative_prompt_counts_and_is_loaded_too():
    patcher, other = model(), model()
    lora = other.clone()
    lora.model_options["sampler_post_cfg_function"] = [lambda args: args["denoised"]]
    through = {one: dual_model(patcher, other=one) for one in (patcher, other, lora)}
    facts = [request("search", patcher, guider=guider).facts["guider"] for guider in through.values()]
    assert facts[0] == facts[1] != facts[2]
    assert request("search", patcher, guider=through[other]).models == [patcher, other]


class Own:
    """A guider of another pack, which keeps what it was given where it likes."""

    @staticmethod
    def of(patcher, **settings):
        import comfy.samplers

        class Guider(comfy.samplers.CFGGuider):
            def predict_noise(self, *args, **named):
                self._calls = getattr(self, "_calls", 0) + 1
                return super().predict_noise(*args, **named)

        guider = Guider(patcher)
        guider.set_conds(prompt(0), prompt(-1))
        for name, value in settings.items():
            setattr(guider, name, value)
        return guider


def test_what_another_pack_sets_on_its_guider_counts_and_what_cannot_be_told_is_unknown():
    patcher = model()

    def fact(**settings) -> str:
        return request("search", patcher, guider=Own.of(patcher, **settings)).facts["guider"]

    assert fact(weight=0.5) == fact(weight=0.5) != fact(weight=0.6)
    assert fact(curve=torch.ones(3)) != fact(curve=torch.zeros(3))
    assert fact(weight=0.5, _calls=3) == fact(weight=0.5)
    running = [(number for number in [1]) for _ in range(2)]
    assert fact(weight=running[0]).startswith("unknown") and fact(weight=running[0]) != fact(weight=running[1])


@EVERY_KIND
@pytest.mark.parametrize("name", NODES)
def test_the_persons_guider_stays_as_it_is(kind, name):
    patcher = model()
    guider = KINDS[kind](patcher)
    before = dict(vars(guider))
    run(name, patcher, guider=guider)
    assert vars(guider) == before


# ---------------------------------------------------------------------------------------------------------
# Statistics, where they are sampled with


def remarks(measured, guider) -> str:
    """What DPM-Solver-v3 says of its statistics when this guider samples."""
    from fewstep.nodes.host.dpm_solver_v3 import Choice, dpm_solver_v3_sampler
    from fewstep.nodes.host.progress import Report
    from fewstep.samplers.dpm_solver_v3 import Options

    report = Report(None)
    sampler = dpm_solver_v3_sampler(Choice(Options(), measured, "data", "always", report))
    noise = torch.randn((1, 4, SIZE, SIZE), generator=torch.Generator().manual_seed(0))
    sigmas = torch.tensor([1.0, 0.8, 0.5, 0.2, 0.0])
    drawn = guider.sample(noise, torch.zeros_like(noise), sampler, sigmas, disable_pbar=True, seed=1)
    assert drawn.isfinite().all()
    return report.entry["text"]


@pytest.mark.parametrize("kind", ["plain", *KINDS])
def test_statistics_know_the_guider_they_were_measured_through(kind):
    patcher, make = model(), {"plain": plain, **KINDS}[kind]
    guider = make(patcher)
    measured = run("estimate", patcher, guider=guider)
    for _ in range(2):  # of what it noted in its first run nothing counts
        assert "The statistics were" not in remarks(measured, guider)
    assert "The statistics were" not in remarks(measured, make(patcher))
    said = remarks(measured, make(patcher, 4.0))
    assert ("at cfg 3.0, not 4.0" in said) if kind == "plain" else ("with other guidance: " in said and " 4" in said)
    if kind != "plain":
        assert "not CFG Guider" in remarks(measured, plain(patcher))
        assert "CFG Guider, not" in remarks(run("estimate", patcher, guider=plain(patcher)), guider)


def test_files_say_the_guider(tmp_path):
    from fewstep.nodes.host.loading import searched as carried_over
    from fewstep.samplers.noise_law import FLOW
    from fewstep.schedulers.optimal_steps.schedules import load_schedules

    patcher = model()
    schedules = run("search", patcher, guider=dual_cfg(patcher))
    schedules.calibration().save(tmp_path / "s.safetensors")
    loaded = load_schedules(tmp_path / "s.safetensors")
    said = "cfg1 3, cfg2 1, nested False (Guider_DualCFG)"
    assert f"2 calls, {said}: " in loaded.describe()
    from fewstep.nodes.host.identity import identify

    _, told = carried_over(loaded, identify(patcher), FLOW, 2)
    assert told == [f"Searched for euler at {said}: use that sampler, and that guider."]


# ---------------------------------------------------------------------------------------------------------
# What is none


@pytest.mark.parametrize("name", NODES)
def test_what_is_no_guider_is_said(name):
    import comfy.samplers

    patcher = model()
    bare, headless = comfy.samplers.CFGGuider(patcher), plain(patcher)
    headless.model_patcher = None
    lacking = executed(node("BasicGuider"), patcher, prompt(0))
    lacking.set_cfg(2.0)
    cases = [
        ({}, "guider is a dict; it must be a GUIDER"),
        (patcher, "guider is a ModelPatcher; it must be a GUIDER"),
        (headless, "The guider CFGGuider has no model"),
        (bare, "The guider CFGGuider has no prompt"),
        (lacking, "negative is missing; it must be a CONDITIONING"),
        (plain(patcher, math.nan), "cfg is nan; it must be a number of 0 or more"),
        (dual_cfg(patcher, cfg2=-1.0), "cfg2 is -1.0; it must be a number of 0 or more"),
    ]
    for guider, words in cases:
        with pytest.raises(ValueError, match=words):
            run(name, None, guider=guider)
    with pytest.raises(ValueError, match="model is missing; .* or a guider that has one"):
        run(name, None)


@pytest.mark.parametrize(
    "name", ["FewStepEstimateStatistics", "FewStepSearchSchedule", "FewStepMeasureSpread", "FewStepTune"]
)
def test_the_nodes_say_what_is_missing(name):
    node_class = of_the_pack()[name]
    widgets = {spec.id: spec.default for spec in node_class.define_schema().inputs if hasattr(spec, "default")}
    widgets = {key: value for key, value in widgets.items() if value is not None}
    latent = {"samples": torch.zeros(1, 4, SIZE, SIZE)}
    for given, words in [
        ({}, "model is missing; .*a guider that has one"),
        ({"model": model()}, "latent_image is missing, without samples"),
        ({"model": model(), "latent_image": latent}, "positive is missing"),
        ({"model": model(), "latent_image": latent, "positive": prompt(0)}, "negative is missing"),
        ({"guider": 5, "latent_image": latent}, "guider is a int"),
    ]:
        with pytest.raises(ValueError, match=words):
            node_class.execute(**widgets, **given)
