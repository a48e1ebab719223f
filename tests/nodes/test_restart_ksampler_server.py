"""Restart KSampler in the running host, and the exchange of other packs' nodes for it where the host can (0.33)."""

from __future__ import annotations

import numpy as np
import pytest
import requests
from support.server import PREVIEW, Cancelled, HostError

from .test_demo_server import draw, graph, middle, node


def restart_ksampler(prompt: dict, segments="default", restart_scheduler="karras", **given) -> dict:
    """The same graph with Restart KSampler in the place of KSampler."""
    inputs = prompt["5"]["inputs"] | {"segments": segments, "restart_scheduler": restart_scheduler} | given
    return prompt | {"5": node("FewStepRestartKSampler", **inputs)}


@pytest.mark.parametrize("variant", ["eps", "v", "flow", "gmflow"])
@pytest.mark.parametrize("denoise", [1.0, 0.5])
def test_without_restarts_it_draws_what_ksampler_draws_to_the_bit(server, variant, denoise):
    first = graph(variant, scheduler="simple", steps=6)
    prompt = first | {"8": first["5"], "5": graph(variant, steps=6, latent=["8", 0], denoise=denoise)["5"]}
    np.testing.assert_array_equal(draw(server, restart_ksampler(prompt, "")), draw(server, prompt))


@pytest.mark.parametrize("variant", ["eps", "v", "flow", "gmflow"])
def test_restarts_draw_with_a_preview_a_step_and_a_true_total(server, variant):
    progress: list[tuple[int, int]] = []
    previews: list[int] = []
    history = server.run(
        restart_ksampler(graph(variant, scheduler="simple", steps=12), "[4, 2, 0.1, 0.8]"),
        lambda *step: progress.append(step),
        lambda kind, payload: previews.append(1) if kind == PREVIEW else None,
    )
    assert [step for step in progress if step[1] == 18] == [(i, 18) for i in range(1, 19)]
    assert len(previews) == 18
    text = server.reports(history)
    assert "18 steps: 12 main, 6 in 2 restarts\n" in text and "18 model calls of euler, sigmas " in text


@pytest.mark.parametrize("variant", ["eps", "flow"])
def test_the_picture_is_what_the_prompt_says(server, variant):
    picture = draw(server, restart_ksampler(graph(variant, scheduler="simple", steps=20), "a1111"))
    red, green, blue = middle(picture)
    assert red > 0.6 and green < 0.6 and blue < 0.5
    assert picture[0, 0].min() > 0.8


def test_cancelled_in_a_restart_and_run_again(server):
    prompt = restart_ksampler(graph("flow", scheduler="simple", steps=8, seed=21), "[20, 2, 0.1, 0.8]")
    seen = []

    def stop(value: int, total: int) -> None:
        seen.append(value)
        if value >= 12:
            server.cancel()

    with pytest.raises(Cancelled):
        server.run(prompt, stop)
    assert 12 <= max(seen) < 46
    first = draw(server, prompt)
    draw(server, graph("eps", steps=4))
    np.testing.assert_array_equal(first, draw(server, prompt | {"0": graph()["4"]}))


def test_boost_before_it_works_without_restarts_and_leaves_them_alone(server):
    for variant, segments, words in (
        ("flow", "", "FewStepRestartKSampler: 8 steps of euler simple -> 8 calls of FewStep's DEIS"),
        ("eps", "default", "its sigmas rise, as for unsampling or a restart"),
    ):
        prompt = restart_ksampler(graph(variant, scheduler="simple", steps=8), segments, model=["90", 0])
        prompt["90"] = node("FewStepBoost", model=["1", 0], enabled=True)
        assert words in server.reports(server.run(prompt))


def test_what_cannot_be_read_is_refused_before_anything_runs(server):
    with pytest.raises(HostError, match=r"refused.*FewStepRestartKSampler: .*segments cannot be read from '\[3,' on"):
        server.run(restart_ksampler(graph(), "[3,"))


# ---------------------------------------------------------------------------------------------------------
# Other packs' nodes


@pytest.fixture
def exchanges(server) -> dict:
    """What this host exchanges, by the old node's name."""
    answer = requests.get(server.url + "/node_replacements", timeout=60)
    if answer.status_code == 404:
        pytest.skip("This ComfyUI does not exchange nodes; 0.33 does: run.py test --comfyui FOLDER.")
    return answer.json()


def old_node(name: str, **changed) -> dict:
    """A node as a prompt of ssitu's pack has it, with all its inputs."""
    linked = {"model": ["1", 0], "positive": ["2", 0], "negative": ["3", 0], "latent_image": ["4", 0]}
    values = {"steps": 12, "cfg": 3.0, "scheduler": "karras", "segments": "[4,2,0.1,0.8]"}
    span = {"add_noise": "enable", "noise_seed": 1, "start_at_step": 0, "end_at_step": 10000}
    span |= {"return_with_leftover_noise": "disable"}
    written = {"restart_scheduler": "normal", "chunked_mode": True}
    own: dict[str, dict] = {
        "KRestartSamplerSimple": {"seed": 1, "sampler_name": "heun", "denoise": 1.0},
        "KRestartSampler": {"seed": 1, "sampler_name": "heun", "denoise": 1.0, **written},
        "KRestartSamplerAdv": {**span, "sampler_name": "heun", **written},
        "KRestartSamplerCustom": {**span, "sampler": ["30", 0], **written},
    }
    return node(name, **(linked | values | own[name] | changed))


def old_graph(name: str, **changed) -> dict:
    """As the browser sends it: every node has its title beside it."""
    prompt = graph("eps") | {"5": old_node(name, **changed), "30": node("KSamplerSelect", sampler_name="heun")}
    return {number: part | {"_meta": {"title": part["class_type"]}} for number, part in prompt.items()}


RESTART_GRID = {"KRestartSamplerSimple": "karras"}  # the same as its scheduler
OLD = ["KRestartSamplerSimple", "KRestartSampler", "KRestartSamplerAdv", "KRestartSamplerCustom"]


@pytest.mark.parametrize("name", OLD)
def test_a_prompt_with_an_old_node_draws_through_ours(server, exchanges, name):
    history = server.run(old_graph(name))
    assert "18 steps: 12 main, 6 in 2 restarts\n" in server.reports(history)
    assert "35 model calls of heun" in server.reports(history)
    again = restart_ksampler(graph("eps", sampler="heun"), "[4,2,0.1,0.8]", RESTART_GRID.get(name, "normal"))
    np.testing.assert_array_equal(draw(server, old_graph(name) | {"0": graph()["4"]}), draw(server, again))


def test_the_second_output_of_the_old_node_is_our_second(server, exchanges):
    """Cut with leftover noise: the prediction is a clean picture where the latent is not."""
    cut = {"end_at_step": 4, "return_with_leftover_noise": "enable", "segments": '[2,1,-900,"1%"]'}
    noisy, clean = (old_graph("KRestartSamplerCustom", **cut) for _ in range(2))
    clean["6"]["inputs"]["samples"] = ["5", 1]
    rough, smooth = (np.abs(np.diff(draw(server, prompt), axis=0)).mean() for prompt in (noisy, clean))
    assert rough > 3 * smooth


@pytest.mark.parametrize("name", OLD)
def test_every_input_of_ours_is_filled_and_every_widget_of_theirs_is_known(server, exchanges, name):
    (exchange,) = exchanges[name]
    info = server.get(f"/object_info/{exchange['new_node_id']}").json()[exchange["new_node_id"]]
    filled = [entry["new_id"] for entry in exchange["input_mapping"]]
    required, optional = info["input_order"]["required"], info["input_order"].get("optional", [])
    assert set(required) <= set(filled) <= {*required, *optional} and len(filled) == len(set(filled))
    theirs = set(old_node(name)["inputs"])
    assert {entry["old_id"] for entry in exchange["input_mapping"] if "old_id" in entry} == theirs - {"chunked_mode"}
    sockets = {word for word, value in old_node(name)["inputs"].items() if isinstance(value, list)}
    assert set(exchange["old_widget_ids"]) == theirs - sockets | {"control_after_generate"}
    seed = exchange["old_widget_ids"].index("control_after_generate") - 1
    assert exchange["old_widget_ids"][seed] in ("seed", "noise_seed")


def test_nothing_of_the_host_is_exchanged(server, exchanges):
    ours = {old for old, new in exchanges.items() if any(one["new_node_id"].startswith("FewStep") for one in new)}
    assert ours == set(OLD) and not ours & set(server.get("/object_info").json())
