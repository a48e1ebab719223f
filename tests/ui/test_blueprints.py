"""The blueprints in the host's node library: each is put into a workflow with the demo model, loads, and draws."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from .test_examples import photograph, run

ROOT = Path(os.environ["FEWSTEP_ROOT"])
BLUEPRINTS = sorted((ROOT / "subgraphs").glob("*.json"))
SOURCES = {  # by type or name of an input: number and output of the node that it is linked to
    "MODEL": (2, 0),
    "positive": (3, 0),
    "negative": (4, 0),
    "LATENT": (5, 0),
}


def node(number: int, kind: str, place: tuple[int, int], inputs=(), outputs=(), values=()) -> dict:
    """inputs: (name, type, link). outputs: types."""
    return {
        **{"id": number, "type": kind, "pos": list(place), "size": [300, 120], "flags": {}, "order": number, "mode": 0},
        "inputs": [{"name": name, "type": type_, "link": link} for name, type_, link in inputs],
        "outputs": [{"name": type_, "type": type_, "links": []} for type_ in outputs],
        "properties": {},
        "widgets_values": list(values),
    }


def made_small(blueprint: dict) -> dict:
    """A search, or a tuning, of seconds instead of minutes."""
    for part in (part for graph in blueprint["definitions"]["subgraphs"] for part in graph["nodes"]):
        if part["type"] == "FewStepSearchSchedule":
            assert part["widgets_values"][4:8] == [100, 8, "auto", 4]
            part["widgets_values"][4:8] = [20, 2, "auto", 0]
    (outside,) = blueprint["nodes"]
    outside["widgets_values"] = ["quick" if value == "normal" else value for value in outside["widgets_values"]]
    return blueprint


def workflow_around(blueprint: dict) -> dict:
    """A workflow whose only unusual node is the blueprint's, which the files number 1."""
    nodes = {
        1: json.loads(json.dumps(blueprint["nodes"][0])) | {"pos": [900, 60]},
        2: node(2, "FewStepDemoModel", (0, 0), outputs=("MODEL", "CLIP", "VAE"), values=["flow"]),
        3: node(3, "CLIPTextEncode", (400, 0), [("clip", "CLIP", None)], ["CONDITIONING"], ["red apple"]),
        4: node(4, "CLIPTextEncode", (400, 250), [("clip", "CLIP", None)], ["CONDITIONING"], [""]),
        5: node(5, "EmptyLatentImage", (400, 500), outputs=["LATENT"], values=[512, 512, 1]),
        6: node(6, "VAEDecode", (1800, 60), [("samples", "LATENT", None), ("vae", "VAE", None)], ["IMAGE"]),
        7: node(7, "SaveImage", (2100, 60), [("images", "IMAGE", None)], values=["blueprint"]),
    }
    if blueprint["nodes"][0]["outputs"][0]["type"] == "MODEL":
        sockets = [
            ("model", "MODEL"),
            ("positive", "CONDITIONING"),
            ("negative", "CONDITIONING"),
            ("latent_image", "LATENT"),
        ]
        values = [1, "fixed", 8, 3.0, "euler", "simple", 1.0]
        nodes[8] = node(8, "KSampler", (1400, 60), [(*s, None) for s in sockets], ["LATENT"], values)
    links: list[list] = []

    def link(origin: int, output: int, target: int, name: str) -> None:
        slot = next(i for i, socket in enumerate(nodes[target]["inputs"]) if socket["name"] == name)
        kind = nodes[target]["inputs"][slot]["type"]
        links.append([len(links) + 1, origin, output, target, slot, kind])
        nodes[target]["inputs"][slot]["link"] = len(links)
        outputs = nodes[origin]["outputs"][output]
        outputs["links"] = [*(outputs["links"] or []), len(links)]

    for number, part in list(nodes.items()):
        for socket in part["inputs"]:
            source = SOURCES.get(socket["name"], SOURCES.get(socket["type"]))
            if source and number in (1, 8) and "widget" not in socket:
                link(*((1, 0) if (number, socket["type"]) == (8, "MODEL") else source), number, socket["name"])
    for number in (3, 4):
        link(2, 1, number, "clip")
    link(8 if 8 in nodes else 1, 0, 6, "samples")
    link(2, 2, 6, "vae")
    link(6, 0, 7, "images")
    return {
        **{"last_node_id": 9, "last_link_id": len(links), "nodes": list(nodes.values()), "links": links, "groups": []},
        **{"version": 0.4, "definitions": blueprint["definitions"], "config": {}, "extra": {}},
    }


def test_the_library_offers_them(server):
    offered = server.get("/global_subgraphs").json().values()
    names = {entry["name"] for entry in offered if entry["info"]["node_pack"] == "custom_nodes.fewstep"}
    assert names == {path.stem for path in BLUEPRINTS} and len(names) >= 3


@pytest.mark.parametrize("path", BLUEPRINTS, ids=lambda path: path.stem)
def test_a_blueprint_loads_and_draws(page, server, path):
    workflow = workflow_around(made_small(json.loads(path.read_text(encoding="utf-8"))))
    page.evaluate("graph => window.app.loadGraphData(graph)", workflow)
    shown = page.evaluate("(window.app.graph.getNodeById(1).widgets ?? []).map(widget => widget.name)")
    wanted = [socket["name"] for socket in workflow["nodes"][0]["inputs"] if "widget" in socket]
    assert [name for name in wanted if name not in shown] == []
    history = run(page, server)
    photograph(page, f"blueprint-{path.stem}")
    assert history["status"]["status_str"] == "success" and len(server.pictures(history)) == 1
