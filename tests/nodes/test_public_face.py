"""What a person reads of every node: help page, translations, tooltips; and what the pack costs to load."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.workflow import widget_values

ROOT = Path(os.environ["FEWSTEP_ROOT"])
LANGUAGES = sorted(path.name for path in (ROOT / "locales").iterdir())


@pytest.fixture(scope="module")
def nodes(server) -> dict:
    """object_info of the pack's nodes."""
    info = server.get("/object_info").json()
    return {name: node for name, node in info.items() if node["python_module"] == "custom_nodes.fewstep"}


def inputs_of(node: dict) -> dict:
    groups = (node["input"].get(group, {}) for group in ("required", "optional"))
    return {name: spec for group in groups for name, spec in group.items()}


# The public contract: required inputs, optional inputs, outputs, in their order. Append-only: shared workflows
# hold widget values by position and outputs by number.
SOCKETS = ["model", "positive", "negative", "latent_image"]  # once required; a guider may stand for all but the last
CONTRACT = {
    "FewStepDemoModel": (["variant"], [], ["MODEL", "CLIP", "VAE"]),
    "FewStepRestartInterval": (
        ["sigma_min", "sigma_max", "steps", "repeats", "unit"],
        ["previous"],
        ["FEWSTEP_INTERVALS"],
    ),
    "FewStepRestartSchedule": (["model", "sigmas", "preset", "budget"], ["intervals"], ["SIGMAS", "INT"]),
    "FewStepRestartSampler": (["s_noise"], ["sampler"], ["SAMPLER"]),
    "FewStepDPMSolverV3": (
        ["order", "corrector", "pseudo_predictor", "pseudo_corrector", "lower_order_final"],
        ["statistics", "prediction", "last_step", "use"],
        ["SAMPLER"],
    ),
    "FewStepEstimateStatistics": (
        ["cfg", "seed", "images", "levels", "pooling", "derivative"],
        [*SOCKETS, "save_as", "guider", "prompts"],
        ["FEWSTEP_STATISTICS"],
    ),
    "FewStepLoadStatistics": (["name"], ["model"], ["FEWSTEP_STATISTICS"]),
    "FewStepSearchSchedule": (
        ["cfg", "seed", "steps", "solver", "teacher_steps", "trajectories", "start", "polish", "denoise"],
        [*SOCKETS, "statistics", "save_as", "guider", "prompts"],
        ["SIGMAS", "FEWSTEP_SCHEDULE"],
    ),
    "FewStepLoadSchedule": (["name", "model", "steps", "denoise"], [], ["SIGMAS"]),
    "FewStepMeasureSpread": (
        ["cfg", "seed", "images", "levels"],
        [*SOCKETS, "estimator", "save_as", "guider", "prompts"],
        ["FEWSTEP_SPREAD"],
    ),
    "FewStepProbabilisticGuidance": (
        ["model", "strength", "mode", "orthogonal", "start_percent", "end_percent"],
        ["spread"],
        ["MODEL"],
    ),
    "FewStepLoadGMFlow": (["name"], ["model", "strength"], ["MODEL"]),
    "FewStepGMFlowLabel": (["model", "label"], [], ["CONDITIONING", "CONDITIONING"]),
    "FewStepGMFlowGuider": (
        ["model", "positive", "negative", "strength", "orthogonal", "start_percent", "end_percent"],
        [],
        ["GUIDER"],
    ),
    "FewStepPromptList": (["positive"], ["negative", "previous"], ["FEWSTEP_PROMPTS"]),
    "FewStepGMFlowSampler": (["mode", "order", "substeps", "temperature", "spectral"], [], ["SAMPLER"]),
    "FewStepPiFlowSampler": (
        ["model", "steps", "denoise", "noise", "temperature", "substeps", "last_step"],
        [],
        ["SAMPLER", "SIGMAS"],
    ),
    "FewStepBoost": (["model", "enabled"], ["tuning", "sampler", "sigmas", "schedule"], ["MODEL"]),
    "FewStepRestartKSampler": (
        [
            *["model", "seed", "steps", "cfg", "sampler_name", "scheduler", "positive", "negative", "latent_image"],
            *["denoise", "segments", "restart_scheduler"],
        ],
        [],
        ["LATENT"],
    ),
    "FewStepRestartKSamplerAdvanced": (
        [
            *["model", "add_noise", "noise_seed", "steps", "cfg", "sampler_name", "scheduler", "positive", "negative"],
            *["latent_image", "start_at_step", "end_at_step", "return_with_leftover_noise", "segments"],
            "restart_scheduler",
        ],
        ["sampler"],
        ["LATENT", "LATENT"],
    ),
    "FewStepTune": (["cfg", "seed", "effort"], [*SOCKETS, "save_as", "guider", "prompts"], ["FEWSTEP_TUNING"]),
    "FewStepLoadTuning": (["name"], [], ["FEWSTEP_TUNING"]),
    "FewStepTunedSampler": (["tuning", "model", "steps", "denoise"], [], ["SAMPLER", "SIGMAS"]),
    "FewStepTwoExperts": (
        ["model_high", "model_low", "positive", "negative", "cfg_high", "cfg_low", "boundary"],
        [],
        ["GUIDER"],
    ),
}


def test_every_node_keeps_its_contract(nodes):
    orders = {name: node["input_order"] for name, node in nodes.items()}
    assert CONTRACT == {
        name: (order.get("required", []), order.get("optional", []), nodes[name]["output"])
        for name, order in orders.items()
    }


# What the measuring nodes were saved with before a guider could stand for their sockets: the values of their widgets by
# position, and their sockets in the order in which front ends draw them.
SAVED = {
    "FewStepEstimateStatistics": ["cfg", "seed", "images", "levels", "pooling", "derivative", "save_as"],
    "FewStepSearchSchedule": [
        *["cfg", "seed", "steps", "solver", "teacher_steps", "trajectories", "start", "polish", "denoise", "save_as"]
    ],
    "FewStepMeasureSpread": ["cfg", "seed", "images", "levels", "estimator", "save_as"],
}


@pytest.mark.parametrize("name", SAVED)
def test_what_was_saved_before_guiders_finds_its_widgets_and_sockets(nodes, name):
    values = {word: f"value of {word}" for word in SAVED[name]}
    assert widget_values({"widgets_values": list(values.values())}, nodes[name]) == values
    drawn = [word for group in ("required", "optional") for word in nodes[name]["input_order"].get(group, [])]
    sockets = [word for word in drawn if word not in values]
    assert sockets[:4] == SOCKETS and sockets[-2:] == ["guider", "prompts"] and len(sockets) <= 7


def test_every_node_has_a_help_page_that_the_host_serves(server, nodes):
    for name in nodes:
        page = server.get(f"/extensions/fewstep/docs/{name}.md").text
        assert page.startswith(f"# {nodes[name]['display_name']}\n")
        assert all(f"**{word}" in page for word in inputs_of(nodes[name]))


def test_every_input_says_what_it_does(nodes):
    for name, node in nodes.items():
        assert node["description"] and node["category"].startswith("FewStep")
        for word, (_, options) in inputs_of(node).items():
            assert options.get("tooltip"), f"{name}.{word}"


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_node_is_translated(server, nodes, language):
    words = server.get("/i18n").json()[language]["nodeDefs"]
    for name, node in nodes.items():
        assert words[name]["display_name"] and words[name]["description"]
        assert set(words[name]["inputs"]) == set(inputs_of(node))
        assert all(entry["name"] and entry["tooltip"] for entry in words[name]["inputs"].values())
        assert list(words[name]["outputs"]) == [str(i) for i in range(len(node["output"]))]


def test_every_example_has_a_thumbnail_and_is_offered_by_the_host(server):
    examples = sorted(path.stem for path in (ROOT / "example_workflows").glob("*.json"))
    assert sorted(path.stem for path in (ROOT / "example_workflows").glob("*.jpg")) == examples
    assert sorted(server.get("/workflow_templates").json()["fewstep"]) == examples


def test_importing_the_pack_pulls_in_nothing_but_torch_and_comfy():
    """The cost that a test can hold without a clock: no package beyond those that the host itself has loaded."""
    code = """
import sys
from support.host import start_host
start_host()
import comfy.sd, comfy.sample, comfy.controlnet, comfy_api.latest
before = set(sys.modules)
import fewstep, asyncio
extension = asyncio.run(fewstep.comfy_entrypoint())
asyncio.run(extension.get_node_list())
added = {name.split('.')[0] for name in set(sys.modules) - before}
print(*sorted(added - set(sys.stdlib_module_names)))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["fewstep"]
