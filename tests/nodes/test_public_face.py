"""What a person reads of every node: help page, translations, tooltips; and what the pack costs to load."""

from __future__ import annotations

import json
import os
import re
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
    return {name_of(name): spec for group in groups for name, spec in group.items()}


def name_of(name: str) -> str:
    """Of an input that grows, on older hosts so many sockets: entries, entries.entry0 and so on."""
    return name.split(".")[0]


def in_order(node: dict, group: str) -> list[str]:
    return list(dict.fromkeys(map(name_of, node["input_order"].get(group, []))))


# The public contract: required inputs, optional inputs, outputs, in their order. Append-only: shared workflows
# hold widget values by position and outputs by number.
SOCKETS = ["model", "positive", "negative", "latent_image"]  # once required; a guider may stand for all but the last
CONTRACT = {
    "FewStepInspectSchedule": (
        ["sigmas"],
        [
            *["model", "compare_with", "compare_with_2", "compare_with_3"],
            *["positive", "negative", "cfg", "latent_image", "seed", "guider"],
        ],
        ["SIGMAS", "IMAGE"],
    ),
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
        [*SOCKETS, "estimator", "save_as", "guider", "prompts", "bands"],
        ["FEWSTEP_SPREAD"],
    ),
    "FewStepProbabilisticGuidance": (
        ["model", "strength", "mode", "orthogonal", "start_percent", "end_percent"],
        ["spread", "prompt_cfg"],
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
    "FewStepEntry": (["label", "sampler", "sigmas"], ["guider"], ["FEWSTEP_ENTRY"]),
    "FewStepCompare": (
        ["cfg", "seed", "reference_steps"],
        [
            *SOCKETS,
            *["entries", "calls", "images", "rivals", "filename_prefix", "tuning", "vae", "guider", "prompts"],
        ],
        ["LATENT", "IMAGE", "STRING", "IMAGE"],
    ),
    "FewStepDEIS": (["method", "order", "clock"], [], ["SAMPLER"]),
    "FewStepDualFast": (["sampler", "strength", "ramp"], ["reference"], ["SAMPLER"]),
    "FewStepTrigFlow": (["model", "sigma_data"], [], ["MODEL"]),
    "FewStepTrigFlowSchedule": (["model", "steps", "times"], ["own_times"], ["SIGMAS"]),
    "FewStepFlowMapSampler": (["method", "gamma"], [], ["SAMPLER"]),
    "FewStepHeavyTailNoise": (["noise_seed", "dimension"], [], ["NOISE"]),
    "FewStepBridge": (
        [
            *["model_from", "positive_from", "model_to", "positive_to", "latent_image", "steps", "cfg_from", "cfg_to"],
            "strength",
        ],
        ["negative_from", "negative_to", "measure_cycle"],
        ["LATENT", "LATENT"],
    ),
    "FewStepDatasetModel": (["images", "smoothing", "neighbours"], ["variant"], ["MODEL", "CLIP", "VAE"]),
    "FewStepTwoExperts": (
        ["model_high", "model_low", "positive", "negative", "cfg_high", "cfg_low", "boundary"],
        [],
        ["GUIDER"],
    ),
}


def test_every_node_keeps_its_contract(nodes):
    assert CONTRACT == {
        name: (in_order(node, "required"), in_order(node, "optional"), node["output"]) for name, node in nodes.items()
    }


# The inputs that the front end folds away, as the host's own of their kind: orders, noise strengths, percents, the
# choices of a measurement. What a person turns every day (steps, cfg, denoise, strength, seeds) stays in sight.
PERCENTS = {"orthogonal", "start_percent", "end_percent"}
RARE = {
    "FewStepRestartSampler": {"s_noise"},
    "FewStepDPMSolverV3": {
        *{"order", "pseudo_predictor", "pseudo_corrector", "lower_order_final", "prediction", "last_step"}
    },
    "FewStepDEIS": {"order"},
    "FewStepDualFast": {"ramp", "reference"},
    "FewStepEstimateStatistics": {"levels", "pooling", "derivative"},
    "FewStepSearchSchedule": {"teacher_steps", "start", "polish"},
    "FewStepCompare": {"reference_steps"},
    "FewStepMeasureSpread": {"levels", "estimator"},
    "FewStepProbabilisticGuidance": PERCENTS,
    "FewStepGMFlowGuider": PERCENTS,
    "FewStepGMFlowSampler": {"order", "substeps", "spectral"},
    "FewStepPiFlowSampler": {"noise", "substeps", "last_step"},
    "FewStepTrigFlow": {"sigma_data"},
    "FewStepTrigFlowSchedule": {"own_times"},
    "FewStepFlowMapSampler": {"gamma"},
    "FewStepBridge": {"measure_cycle"},
    "FewStepDatasetModel": {"neighbours", "variant"},
    "FewStepRestartKSampler": {"restart_scheduler"},
    "FewStepRestartKSamplerAdvanced": {
        *{"add_noise", "start_at_step", "end_at_step", "return_with_leftover_noise", "restart_scheduler"}
    },
}


def folded(node: dict) -> set[str]:
    return {name for name, (_, *options) in inputs_of(node).items() if options and options[0].get("advanced")}


def test_rare_inputs_are_folded_away_where_the_host_does_that(server, nodes):
    hosts_own = server.get("/object_info/KSamplerAdvanced").json()["KSamplerAdvanced"]
    known = RARE if folded(hosts_own) else {}
    assert {name: folded(node) for name, node in nodes.items() if folded(node)} == known


# What people type who look for one of these, and a node that they must find by it.
SOUGHT = {
    "restart": "FewStepRestartSchedule",
    "krestart": "FewStepRestartKSampler",
    "dpm3": "FewStepDPMSolverV3",
    "flow dpm": "FewStepDPMSolverV3",
    "oss": "FewStepSearchSchedule",
    "ays": "FewStepLoadSchedule",
    "which scheduler": "FewStepSearchSchedule",
    "which sampler": "FewStepTune",
    "few steps": "FewStepBoost",
    "gmflow": "FewStepGMFlowSampler",
    "pi-flow": "FewStepPiFlowSampler",
    "piflow": "FewStepLoadGMFlow",
    "4 steps": "FewStepPiFlowSampler",
    "flux few steps": "FewStepLoadGMFlow",
    "apg": "FewStepProbabilisticGuidance",
    "burn": "FewStepProbabilisticGuidance",
    "wan 2.2": "FewStepTwoExperts",
    "plot sigmas": "FewStepInspectSchedule",
    "compare samplers": "FewStepCompare",
    "xy plot": "FewStepEntry",
    "deis": "FewStepDEIS",
    "ipndm": "FewStepDEIS",
    "gradient estimation": "FewStepDualFast",
    "scm": "FewStepTrigFlow",
    "rcm": "FewStepTrigFlowSchedule",
    "meanflow": "FewStepFlowMapSampler",
    "pfgm": "FewStepHeavyTailNoise",
    "ddib": "FewStepBridge",
    "inversion": "FewStepBridge",
    "train on my pictures": "FewStepDatasetModel",
}


def test_every_node_is_found_by_what_people_call_it_where_the_host_looks_for_that(server, nodes):
    hosts_own = server.get("/object_info/CLIPTextEncode").json()["CLIPTextEncode"]
    aliases = {name: node.get("search_aliases") or [] for name, node in nodes.items()}
    if "search_aliases" not in hosts_own:
        assert not any(aliases.values())
        return
    assert all(aliases.values()), [name for name, words in aliases.items() if not words]
    assert {word: name for word, name in SOUGHT.items() if word not in aliases[name]} == {}
    assert all(word == word.lower().strip() for words in aliases.values() for word in words)


# What the measuring nodes were saved with before a guider could stand for their sockets: the values of their widgets by
# position, and their sockets in the order in which front ends draw them.
SAVED = {
    "FewStepEstimateStatistics": ["cfg", "seed", "images", "levels", "pooling", "derivative", "save_as"],
    "FewStepSearchSchedule": [
        *["cfg", "seed", "steps", "solver", "teacher_steps", "trajectories", "start", "polish", "denoise", "save_as"]
    ],
    "FewStepMeasureSpread": ["cfg", "seed", "images", "levels", "estimator", "save_as"],
}
WIDGETS_SINCE = ["bands"]


@pytest.mark.parametrize("name", SAVED)
def test_what_was_saved_before_guiders_finds_its_widgets_and_sockets(nodes, name):
    values = {word: f"value of {word}" for word in SAVED[name]}
    assert widget_values({"widgets_values": list(values.values())}, nodes[name]) == values
    drawn = [word for group in ("required", "optional") for word in nodes[name]["input_order"].get(group, [])]
    sockets = [word for word in drawn if word not in values and word not in WIDGETS_SINCE]
    assert drawn[: len(values) + len(sockets)] == [word for word in drawn if word not in WIDGETS_SINCE]
    assert sockets[:4] == SOCKETS and sockets[-2:] == ["guider", "prompts"] and len(sockets) <= 7


def test_every_node_has_a_help_page_that_the_host_serves(server, nodes):
    for name in nodes:
        page = server.get(f"/extensions/fewstep/docs/{name}.md").text
        assert page.startswith(f"# {nodes[name]['display_name']}\n")
        assert all(f"**{word}" in page for word in inputs_of(nodes[name]))
        assert (
            f"]({name}.jpg)" in page and server.get(f"/extensions/fewstep/docs/{name}.jpg").content[:2] == b"\xff\xd8"
        )


def test_every_input_says_what_it_does(nodes):
    for name, node in nodes.items():
        assert node["description"] and node["category"].startswith("FewStep")
        for word, (_, options) in inputs_of(node).items():
            assert options.get("tooltip"), f"{name}.{word}"


def figures(text: str) -> list[str]:
    """The numbers in it, sorted: 1,000 is 1000, and 3.0e-03 one number."""
    plain = re.sub(r"(?<=\d),(?=\d{3}\b)", "", text)
    return sorted(re.findall(r"\d+(?:\.\d+)?(?:e[+-]?\d+)?", plain))


def test_every_number_says_its_range(nodes):
    """But for seeds, and for a limit that is there to keep a value off it, as 0.999 is: the tooltip says below 1."""
    for name, node in nodes.items():
        for word, (kind, options) in inputs_of(node).items():
            if kind not in ("INT", "FLOAT") or "seed" in word:
                continue
            limits = {f"{round(options[limit], 2):.12g}" for limit in ("min", "max")}
            told = {*figures(options["tooltip"]), *re.findall(r"-\d+", options["tooltip"])}
            assert limits <= told, f"{name}.{word}: {limits}, {options['tooltip']}"


# ---------------------------------------------------------------------------------------------------------
# In other languages


def keys_of(words: object) -> object:
    return {key: keys_of(value) for key, value in words.items()} if isinstance(words, dict) else None


def test_all_languages_have_the_same_keys():
    files = {path.name for language in LANGUAGES for path in (ROOT / "locales" / language).iterdir()}
    for file in files:
        keys = [keys_of(json.loads((ROOT / "locales" / language / file).read_text("utf-8"))) for language in LANGUAGES]
        assert all(words == keys[0] for words in keys[1:]), file


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_node_is_translated(server, nodes, language):
    words = server.get("/i18n").json()[language]["nodeDefs"]
    assert set(words) >= set(nodes)
    for name, node in nodes.items():
        assert words[name]["display_name"] and words[name]["description"]
        assert set(words[name]["inputs"]) == set(inputs_of(node))
        assert all(entry["name"] and entry["tooltip"] for entry in words[name]["inputs"].values())
        assert list(words[name]["outputs"]) == [str(i) for i in range(len(node["output"]))]


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_category_is_translated(server, nodes, language):
    parts = {part for node in nodes.values() for part in node["category"].split("/")[1:]}
    assert parts <= set(server.get("/i18n").json()[language]["nodeCategories"])


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_translated_tooltip_has_the_figures_of_the_english_one(server, nodes, language):
    words = server.get("/i18n").json()[language]["nodeDefs"]
    for name, node in nodes.items():
        assert set(figures(node["description"])) <= set(figures(words[name]["description"])), name
        for word, (_, options) in inputs_of(node).items():
            translated = words[name]["inputs"][word]["tooltip"]
            assert set(figures(options["tooltip"])) <= set(figures(translated)), f"{name}.{word}: {translated}"


def shape(page: str) -> list[str]:
    """The first sign of every heading, table row and item of a list."""
    return re.findall(r"^(#+|\||- |\d+\. )", page, re.MULTILINE)


def rows(page: str) -> list[list[str]]:
    return [figures(line) for line in page.splitlines() if line.startswith("|")]


def long_figures(page: str) -> set[str]:
    """Those of more than one digit: a language may write `once` and `half` as it likes."""
    return {figure for figure in figures(page) if len(figure) > 1}


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_node_has_a_help_page_in_every_language(server, nodes, language):
    """That the host serves where the front end looks for it, and that keeps up with the English one."""
    words = server.get("/i18n").json()[language]["nodeDefs"]
    assert [name for name in nodes if not (ROOT / "web" / "docs" / name / f"{language}.md").exists()] == []
    for name, node in nodes.items():
        english, page = (server.get(f"/extensions/fewstep/docs/{name}{of}.md").text for of in ("", f"/{language}"))
        assert page.startswith(f"# {words[name]['display_name']}\n"), name
        for word in inputs_of(node):
            entry = f"**{words[name]['inputs'][word]['name']}** (`{word}`)"
            assert entry in " ".join(page.split()), f"{name}: {entry}"
        assert shape(page) == shape(english), name
        assert rows(page) == rows(english), name
        assert long_figures(page) == long_figures(english), f"{name}: {long_figures(page) ^ long_figures(english)}"


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
