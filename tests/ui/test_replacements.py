"""A workflow that was saved with another pack's nodes, opened without that pack: exchanged by a click, and drawn."""

from __future__ import annotations

import pytest
import requests

from .test_blueprints import node
from .test_examples import photograph, run

SOCKETS = ["model", "positive", "negative", "latent_image"]
KINDS = ["MODEL", "CONDITIONING", "CONDITIONING", "LATENT"]
LIST = "[3,2,0.1,0.8]"
SPAN = [0, 10000, "disable"]
# As the browser saves ssitu's nodes: their widgets by position, with its own control behind the seed.
OLD = {
    "KRestartSamplerSimple": [7, "fixed", 8, 3.5, "heun", "karras", 0.9, LIST],
    "KRestartSampler": [7, "fixed", 8, 3.5, "heun", "karras", 0.9, LIST, "normal", True],
    "KRestartSamplerAdv": ["enable", 7, "fixed", 8, 3.5, "heun", "karras", *SPAN, LIST, "normal", True],
    "KRestartSamplerCustom": ["enable", 7, "fixed", 8, 3.5, "karras", *SPAN, LIST, "normal", True],
}
WIDGETS = "Object.fromEntries(window.app.graph.getNodeById(8).widgets.map(widget => [widget.name, widget.value]))"


@pytest.fixture
def exchanging(server):
    if requests.get(server.url + "/node_replacements", timeout=60).status_code == 404:
        pytest.skip("This ComfyUI does not exchange nodes; 0.33 does: run.py test --comfyui FOLDER.")


def old_workflow(name: str) -> dict:
    """Text to picture through an old node, which is number 8."""
    custom = name == "KRestartSamplerCustom"
    sockets = [(socket, kind, 4 + i) for i, (socket, kind) in enumerate(zip(SOCKETS, KINDS, strict=True))]
    sockets[1:1] = [("sampler", "SAMPLER", 11)] if custom else []
    nodes = [
        node(2, "FewStepDemoModel", (0, 0), outputs=("MODEL", "CLIP", "VAE"), values=["eps"]),
        node(3, "CLIPTextEncode", (400, 0), [("clip", "CLIP", 1)], ["CONDITIONING"], ["red apple"]),
        node(4, "CLIPTextEncode", (400, 250), [("clip", "CLIP", 2)], ["CONDITIONING"], [""]),
        node(5, "EmptyLatentImage", (400, 500), outputs=["LATENT"], values=[512, 512, 1]),
        node(9, "KSamplerSelect", (400, 700), outputs=["SAMPLER"], values=["heun"]),
        node(8, name, (900, 60), sockets, ["LATENT", "LATENT"][: 1 + custom], OLD[name]),
        node(6, "VAEDecode", (1300, 60), [("samples", "LATENT", 8), ("vae", "VAE", 9)], ["IMAGE"]),
        node(7, "SaveImage", (1500, 60), [("images", "IMAGE", 10)], values=["old"]),
    ]
    slot = {socket: number for number, (socket, _, _) in enumerate(sockets)}
    links = [[1, 2, 1, 3, 0, "CLIP"], [2, 2, 1, 4, 0, "CLIP"], [4, 2, 0, 8, slot["model"], "MODEL"]]
    links += [[5, 3, 0, 8, slot["positive"], "CONDITIONING"], [6, 4, 0, 8, slot["negative"], "CONDITIONING"]]
    links += [[7, 5, 0, 8, slot["latent_image"], "LATENT"], [8, 8, 0, 6, 0, "LATENT"], [9, 2, 2, 6, 1, "VAE"]]
    links += [[10, 6, 0, 7, 0, "IMAGE"], *([[11, 9, 0, 8, slot["sampler"], "SAMPLER"]] if custom else [])]
    for number, origin, output, *_ in links:
        (part,) = (part for part in nodes if part["id"] == origin)
        part["outputs"][output]["links"].append(number)
    return {
        **{"last_node_id": 9, "last_link_id": 11, "nodes": nodes, "links": links, "groups": [], "version": 0.4},
        **{"config": {}, "extra": {}},
    }


def expected(name: str) -> dict:
    """The widgets of the new node."""
    values = {"steps": 8, "cfg": 3.5, "scheduler": "karras", "segments": LIST, "restart_scheduler": "normal"}
    if name in ("KRestartSamplerSimple", "KRestartSampler"):
        same = {"restart_scheduler": "same"} if name == "KRestartSamplerSimple" else {}
        return values | {"seed": 7, "sampler_name": "heun", "denoise": 0.9, **same}
    span = {"start_at_step": 0, "end_at_step": 10000, "return_with_leftover_noise": "disable"}
    sampler = "euler" if name == "KRestartSamplerCustom" else "heun"
    return values | span | {"add_noise": "enable", "noise_seed": 7, "sampler_name": sampler}


@pytest.mark.parametrize("name", OLD)
def test_an_old_node_is_exchanged_by_a_click_and_draws(page, server, exchanging, name):
    page.evaluate("graph => window.app.loadGraphData(graph)", old_workflow(name))
    page.get_by_role("button", name="View details").click()
    page.get_by_role("button", name="Replace All").click()
    page.wait_for_function("window.app.graph.getNodeById(8).type.startsWith('FewStep')")
    found = page.evaluate(WIDGETS)
    assert {word: found[word] for word in expected(name)} == expected(name)
    history = run(page, server)
    photograph(page, f"exchanged-{name}")
    assert "12 steps: 8 main, 4 in 2 restarts" in server.reports(history)
    assert len(server.pictures(history)) == 1
