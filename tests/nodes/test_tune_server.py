"""Tune in the running host: measured, used by Boost and Tuned Sampler, found again, cancelled and gone on with."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from support.examples import mostly
from support.server import NOT_IN_LIST, Cancelled, HostError

from .test_boost_server import CFGS, advanced, batch, boosted, converged, image_to_image, ksampler, pictures
from .test_demo_server import custom_graph, node
from .test_dpm_solver_v3_server import files, run

PAGE = Path(__file__).parents[2] / "web" / "docs" / "FewStepTune.md"
CFG = CFGS[-1]
STEPS = (6, 8, 12)


def tune_node(**changed) -> dict:
    given = {"cfg": CFG, "seed": 0, "effort": "quick"}
    linked = {"model": ["1", 0], "positive": ["2", 0], "negative": ["3", 0], "latent_image": ["70", 0]}
    return node("FewStepTune", **(linked | given | changed))


def load_node(name: str) -> dict:
    return node("FewStepLoadTuning", name=name)


def tuned_graph(tuning: dict, prompt: dict) -> dict:
    """A graph with Boost behind the model, and the node that gives the tuning ("71")."""
    small = node("EmptyLatentImage", width=512, height=512, batch_size=1)
    return boosted(prompt, tuning=["71", 0]) | {"70": small, "71": tuning}


def alone(tuning: dict, variant: str = "flow") -> dict:
    prompt = tuned_graph(tuning, ksampler(variant))
    return {number: prompt[number] for number in ("1", "2", "3", "70", "71")}


def told_calls(text: str) -> int:
    """What the node said before it began."""
    (total,) = {int(number) for number in re.findall(r"MB of latents\): (\d+) model calls of one latent", text)}
    return total


@pytest.fixture(scope="module")
def saved(server) -> str:
    """The name of a file with a tuning of effort quick, cfg 5."""
    progress, text = run(server, alone(tune_node(save_as="quick")))
    total = told_calls(text)
    assert (total, total) in progress and progress.count((total, total)) == 1 and 200 < total <= 250
    assert re.search(rf"\d+ of {total} model calls of one latent at most, 0:\d\d left", text)
    assert f"quick: {total} model calls of one latent, cfg 5\n" in text and "without Tune" in text
    assert text.endswith("models/fewstep/quick.safetensors")
    return "quick.safetensors"


@cache
def measured(server, variant: str) -> str:
    """The name of a file with a tuning of effort normal."""
    name = f"normal-{variant}"
    _, text = run(server, alone(tune_node(effort="normal", save_as=name), variant))
    assert 500 < told_calls(text) <= 1000 and re.search(r"^\d+ calls now ", text, re.MULTILINE)
    return f"{name}.safetensors"


# ---------------------------------------------------------------------------------------------------------
# The gain


@pytest.mark.parametrize("variant", mostly("flow", longer=("eps",)))
def test_the_picture_is_nearer_to_the_converged_one(server, variant):
    """The median over 16 seeds, none of them Tune's, of the mean squared error: without Boost, by its recipe, tuned."""
    end = converged(server, variant, CFG)
    tuning = load_node(measured(server, variant))
    for steps in STEPS if variant == "flow" else STEPS[1:2]:
        prompt = batch(ksampler(variant, steps=steps, cfg=CFG))
        without, recipe, tuned = (
            np.median(np.square(pictures(server, one) - end).mean((1, 2, 3)))
            for one in (prompt, boosted(prompt), tuned_graph(tuning, prompt))
        )
        told = f"{steps} calls: {without:.2g} without Boost, {recipe:.2g} by its recipe, {tuned:.2g} tuned"
        assert tuned < 0.1 * without and tuned < 0.5 * recipe, told


# ---------------------------------------------------------------------------------------------------------
# What is kept


def test_the_same_tuning_costs_nothing_again(server, saved):
    """Another workflow, so that the host itself has nothing cached: the file is found by its content."""
    progress, text = run(server, tuned_graph(tune_node(save_as=" quick "), ksampler("flow", steps=8, cfg=CFG)))
    assert "Tuning, quick" not in text and {total for _, total in progress} <= {1, 8}
    assert "KSampler: 8 steps of euler simple -> 8 calls of Tuned Sampler, sigmas 1 " in text


def test_a_tuning_is_loaded_in_a_second_workflow_with_its_chart(server, saved):
    assert saved in files(server)
    offered, other = (
        server.get(f"/object_info/{name}").json()[name]["input"]["required"]["name"][1]["options"]
        for name in ("FewStepLoadTuning", "FewStepLoadStatistics")
    )
    assert saved in offered and saved not in other
    history = server.run(tuned_graph(load_node(saved), ksampler("flow", steps=6, cfg=CFG)))
    text = server.reports(history)
    assert "cfg 5\n\n4 calls: error " in text and "6 calls of Tuned Sampler" in text
    (chart,) = history["outputs"]["71"]["images"]
    shown = server.get("/view", **{key: chart[key] for key in ("filename", "subfolder", "type")})
    assert chart["type"] == "temp" and shown.content[1:4] == b"PNG"


def test_a_cancelled_tuning_leaves_no_file_and_goes_on_later(server):
    before = files(server)
    prompt = alone(tune_node(save_as="stopped", seed=5))
    seen: list[int] = []

    def stop(value: int, total: int) -> None:
        if total > 100:
            seen.append(total)
            if value > total // 2:
                server.cancel()

    with pytest.raises(Cancelled):
        server.run(prompt, stop)
    assert files(server) == before
    pictures(server, ksampler("eps", steps=4))
    progress, text = run(server, prompt)
    rest = told_calls(text)
    assert 0 < rest < 0.7 * seen[0] and (rest, rest) in progress
    assert files(server) == before | {"stopped.safetensors"}


def test_a_broken_file_is_said_and_kept(server):
    path = server.base / "models" / "fewstep" / "torn.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"no tensors here")
    with pytest.raises(HostError, match="FewStepLoadTuning: torn.safetensors cannot be read"):
        server.run(tuned_graph(load_node("torn.safetensors"), ksampler("flow")))
    run(server, alone(tune_node(save_as="torn", seed=6)))
    assert path.read_bytes() == b"no tensors here" and "torn-2.safetensors" in files(server)


# ---------------------------------------------------------------------------------------------------------
# Where there is no table


@pytest.mark.parametrize(
    "prompt, why",
    [
        (ksampler("flow", steps=9, cfg=CFG), "The tuning has tables for .*12 calls; this run has 9"),
        (ksampler("flow", steps=3, cfg=CFG), "The tuning has tables for .*12 calls; this run has 3"),
        (image_to_image("flow", 0.6), "The tuning is of whole runs, sigma 1 to 0; this is 0.6"),
        (advanced("flow", 4, "enable"), "The tuning is of whole runs, sigma 1 to 0; this is 1 to 0.5"),
    ],
    ids=["10 steps", "3 steps", "denoise", "cut"],
)
def test_without_a_table_the_recipe_runs_and_the_node_says_so(server, saved, prompt, why):
    with_tuning = tuned_graph(load_node(saved), prompt)
    _, text = run(server, with_tuning)
    assert re.search(f"calls of FewStep's DEIS, sigmas .*\n{why}.*What needs no measurement runs", text)
    # Another file name, because the host has the picture of this very graph cached.
    with_tuning["7"]["inputs"]["filename_prefix"] = "again"
    np.testing.assert_array_equal(pictures(server, with_tuning), pictures(server, boosted(prompt)))


def test_another_cfg_is_said(server, saved):
    _, text = run(server, tuned_graph(load_node(saved), ksampler("flow", steps=8, cfg=2.0)))
    assert "8 calls of Tuned Sampler" in text and "Tuned at cfg 5.0, not 2.0" in text


def test_what_else_is_connected_comes_before_a_tuning(server, saved):
    prompt = tuned_graph(load_node(saved), ksampler("flow", steps=8, cfg=CFG))
    prompt["90"]["inputs"]["sampler"] = ["91", 0]
    _, text = run(server, prompt | {"91": node("KSamplerSelect", sampler_name="ipndm")})
    assert "8 calls of ipndm, sigmas" in text


def test_a_tuning_of_another_kind_of_model_is_refused(server, saved):
    _, text = run(server, tuned_graph(load_node(saved), ksampler("eps", steps=8, cfg=CFG)))
    words = "This tuning is of a flow model, and the model is an eps, v or EDM model. Tune this model."
    assert f"8 steps of euler, left as they are: {words}" in text
    with pytest.raises(HostError, match=f"FewStepTunedSampler: {words}"):
        server.run(custom(saved, "eps"))


# ---------------------------------------------------------------------------------------------------------
# Tuned Sampler


def custom(name: str, variant: str = "flow", steps: int = 8, denoise: float = 1.0) -> dict:
    """SamplerCustomAdvanced with the sampler and the sigmas of Tuned Sampler ("22")."""
    tuned = node("FewStepTunedSampler", tuning=["71", 0], model=["1", 0], steps=steps, denoise=denoise)
    prompt = custom_graph(variant, "simple", steps, tuned) | {"71": load_node(name)}
    prompt["21"]["inputs"]["cfg"], prompt["5"]["inputs"]["sigmas"] = CFG, ["22", 1]
    return prompt


def test_tuned_sampler_draws_what_boost_draws(server, saved):
    drawn = pictures(server, custom(saved))
    np.testing.assert_allclose(
        drawn, pictures(server, tuned_graph(load_node(saved), ksampler("flow", steps=8, cfg=CFG))), atol=1.5 / 255
    )
    assert np.abs(drawn - pictures(server, boosted(ksampler("flow", steps=8, cfg=CFG)))).max() > 3 / 255
    assert "6 calls by table." in run(server, custom(saved, steps=6))[1]


def test_tuned_sampler_without_a_table_says_so(server, saved):
    _, text = run(server, custom(saved, steps=7))
    assert "this run has 7. What needs no measurement runs." in text and "7 steps without a table" in text
    progress, text = run(server, custom(saved, denoise=0.5))
    assert "The tuning is of whole runs" in text and (8, 8) in progress


def test_tuned_sampler_with_sigmas_of_another_scheduler_says_so(server, saved):
    prompt = custom(saved)
    prompt["5"]["inputs"]["sigmas"] = ["24", 0]
    text = run(server, prompt)[1]
    assert "8 steps without a table: its sigmas are those of no table. Nothing measured is used." in text


# ---------------------------------------------------------------------------------------------------------
# Bad input


def with_prompts(count: int, **changed) -> dict:
    """Tune with so many further prompts."""
    prompt = alone(tune_node(prompts=[str(80 + count - 1), 0], **changed))
    for number in range(count):
        linked = {"previous": [str(79 + number), 0]} if number else {}
        prompt[str(80 + number)] = node("FewStepPromptList", positive=["2", 0], negative=["3", 0], **linked)
    return prompt


@pytest.mark.parametrize(
    "prompt, words",
    [
        (alone(tune_node(effort="fast")), "effort is 'fast'; choose one of quick"),
        (alone(tune_node(save_as="../../x")), "leads out of"),
        (with_prompts(2), "There are 3 prompts, and effort quick measures on 2 latents, one prompt each. Raise effort"),
        (tuned_graph(load_node("elsewhere.safetensors"), ksampler("flow")), "There is no 'elsewhere"),
    ],
    ids=["effort", "name", "prompts", "no such file"],
)
def test_bad_input_is_said_on_the_node(server, prompt, words):
    with pytest.raises(HostError, match=f"FewStep(LoadTuning|Tune): (.*{words}|{NOT_IN_LIST})"):
        server.run(prompt)


def test_a_missing_prompt_is_said(server):
    prompt = alone(tune_node())
    del prompt["71"]["inputs"]["negative"]
    with pytest.raises(HostError, match="FewStepTune: negative is missing"):
        server.run(prompt)


def test_another_prompt_is_another_tuning(server):
    names = [run(server, prompt)[1].splitlines()[-1] for prompt in (with_prompts(1), alone(tune_node()))]
    assert names[0] != names[1] and all(name.startswith("models/fewstep/tuning-flow-quick-cfg5-") for name in names)


# ---------------------------------------------------------------------------------------------------------


def test_the_help_page_tells_the_costs(server):
    """Rounded; to a tenth."""
    tooltip = server.get("/object_info/FewStepTune").json()["FewStepTune"]["input"]["required"]["effort"][1]["tooltip"]
    costs = dict(re.findall(r"(\w+): (\d+) model calls of one latent", tooltip))
    for effort, calls in costs.items():
        (told,) = re.findall(rf"\| {effort} \| about ([\d,]+)", PAGE.read_text(encoding="utf-8"))
        assert abs(int(told.replace(",", "")) / int(calls) - 1) < 0.1
    assert len(costs) == 3
