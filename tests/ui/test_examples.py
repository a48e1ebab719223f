"""What an artist sees: every example loads, is drawn, comes back as it was saved, and its nodes say what they do.

pictures/ has what the examples drew when they were made: a shared workflow draws the same years later. FEWSTEP_KEEP=1
keeps today's there instead of comparing.
"""

from __future__ import annotations

import base64
import io
import json
import os
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from .conftest import CANVASES, kept, ready, still

ROOT = Path(os.environ["FEWSTEP_ROOT"])
EXAMPLES = sorted((ROOT / "example_workflows").glob("*.json"))
PICTURES = Path(__file__).with_name("pictures")
SAME = 4  # of 255, in the mean: other processors round otherwise
REPORTS = "[...document.querySelectorAll('.fewstep-report')].map(element => element.textContent)"
PLOTTED = """Object.fromEntries(window.app.graph.nodes.map(node => [node.type,
    node.widgets?.find(widget => widget.name === 'fewstep_plot_view')?.element.textContent ?? ""]))"""
PLOTS = {  # what a plot says of itself, by node
    "FewStepBoost": "givenBoost",
    "FewStepInspectSchedule": "sigmascompare_with",
    "FewStepRestartSchedule": "with restarts",
    "FewStepSearchSchedule": "over model calls",
    "FewStepTune": "error over model calls",
}
TUNE = "window.app.graph.nodes.find(node => node.type === 'FewStepTune')"
CLOSER = f"""() => {{
    const canvas = window.app.canvas, node = {TUNE};
    canvas.ds.scale = 0.9;
    canvas.ds.offset = [400 - node.pos[0], 60 - node.pos[1]];
    canvas.setDirty(true, true);
}}"""
CHART = f"""() => {{
    const node = {TUNE};
    const drawn = node.imgs?.length ? node.imgs[0].naturalWidth : 0;
    const element = document.querySelector(`[data-node-id="${{node.id}}"] img`);
    return drawn || (element?.naturalWidth ?? 0);
}}"""
# The host says that nothing is executed any more when the job, all of whose news came before, is in its history.
QUEUE = """() => {
    const { api } = window.comfyAPI.api;
    window.fewstepEnded = false;
    const heard = ({ detail }) => {
        if (detail) return;
        window.fewstepEnded = true;
        api.removeEventListener("executing", heard); };
    api.addEventListener("executing", heard);
    window.app.queuePrompt(0); }"""
BOXES = {
    "classic": "window.app.graph.nodes.map(n => [n.type, n.pos[0], n.pos[1] - 30, n.size[0], n.size[1] + 30])",
    "nodes2": """[...document.querySelectorAll('[data-node-id]')].map(element => {
        const box = element.getBoundingClientRect(), node = window.app.graph.getNodeById(element.dataset.nodeId);
        return [node?.type, box.x, box.y, box.width, box.height]; })""",
}


@pytest.fixture(autouse=True)
def alone_with_nodes2(page, tabs):
    """There, front end 1.32 moves the nodes of a workflow together that is opened after another one."""
    yield
    if page.canvas == "nodes2":
        tabs.pop("nodes2").close()


def load(page, path: Path) -> dict:
    workflow = json.loads(path.read_text(encoding="utf-8"))
    page.evaluate("graph => window.app.loadGraphData(graph)", workflow)
    return workflow


def run(page, server) -> dict:
    """Queue what is loaded, and wait until the page has heard that it has ended, and shows it. The history."""
    done = set(server.get("/history").json())
    page.evaluate(QUEUE)
    page.wait_for_function("window.fewstepEnded", timeout=600_000)
    page.evaluate("new Promise(shown => requestAnimationFrame(() => requestAnimationFrame(shown)))")
    (number,) = server.get("/history").json().keys() - done
    return server.get(f"/history/{number}").json()[number]


def sheet(drawn: list[bytes]) -> Image.Image:
    """All of a workflow's pictures beside each other, small."""
    pictures = [Image.open(io.BytesIO(one)).convert("RGB") for one in drawn]
    side = 64 if len(pictures) > 1 else 256
    made = Image.new("RGB", (side * len(pictures), side))
    for number, one in enumerate(pictures):
        made.paste(one.resize((side, side), Image.Resampling.BOX), (side * number, 0))
    return made


def check_same(drawn: list[bytes], stem: str) -> None:
    """As what the example drew when it was made."""
    kept, now = PICTURES / f"{stem}.png", sheet(drawn)
    if os.environ.get("FEWSTEP_KEEP"):
        kept.parent.mkdir(exist_ok=True)
        now.save(kept)
    then = Image.open(kept)
    assert now.size == then.size
    assert np.abs(np.asarray(now, float) - np.asarray(then, float)).mean() < SAME


def drop(page, picture: bytes) -> None:
    """A picture on the canvas, as from a file manager: the workflow that drew it opens."""
    page.evaluate("window.app.graph.clear()")
    page.evaluate(
        """async text => {
        const bytes = Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
        await window.app.handleFile(new File([bytes], "dropped.png", { type: "image/png" })); }""",
        base64.b64encode(picture).decode(),
    )


def overlapping(boxes: list[list]) -> list[tuple[str, str]]:
    """Nodes that cover a part of each other, more than a line of pixels."""
    return [
        (a[0], b[0])
        for a, b in combinations(boxes, 2)
        if min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1]) > 1 and min(a[2] + a[4], b[2] + b[4]) - max(a[2], b[2]) > 1
    ]


def photograph(page, name: str) -> None:
    """For the eye of a person: FEWSTEP_SCREENSHOTS names a folder."""
    if folder := os.environ.get("FEWSTEP_SCREENSHOTS"):
        page.wait_for_timeout(1000)
        page.screenshot(path=Path(folder) / f"{name}-{page.canvas}.png")


def check_loaded(page, workflow: dict) -> None:
    """Every node is there and known."""
    kinds = page.evaluate("window.app.graph.nodes.map(node => [node.type, node.has_errors ?? false])")
    assert sorted(kinds) == sorted([node["type"], False] for node in workflow["nodes"])


def check_saved(page, workflow: dict) -> None:
    """Node ids, widget values and links survive a round trip: a shared workflow stays what it is."""
    saved = page.evaluate("window.app.graph.serialize()")
    values = {node["id"]: node.get("widgets_values") or [] for node in workflow["nodes"]}
    assert {node["id"]: node.get("widgets_values") or [] for node in saved["nodes"]} == values
    assert sorted(by_name(saved)) == sorted(by_name(workflow))


def by_name(workflow: dict) -> list[tuple]:
    """The links, each with its socket's name: before what grows, older front ends count more sockets."""
    sockets = {node["id"]: [socket["name"] for socket in node.get("inputs", [])] for node in workflow["nodes"]}
    return [(number, *source, to, sockets[to][slot]) for number, *source, to, slot, _ in workflow["links"]]


def check_plots(page) -> None:
    """Nodes that make or pass a schedule, or tune, show it."""
    plotted = page.evaluate(PLOTTED)
    assert [(kind, plotted[kind]) for kind, told in PLOTS.items() if told not in plotted.get(kind, told)] == []


def what_a_node_said_stays_on_it(page, server) -> None:
    """When the job is over, in the saved workflow and after a reload; and it is no widget value of the node."""
    told = "30 steps: 21 main, 9 in 1 restart\nat sigma"
    (report,) = page.evaluate(REPORTS)
    assert report.startswith(told)
    saved = page.evaluate("window.app.graph.serialize()")
    (node,) = (node for node in saved["nodes"] if node["type"] == "FewStepRestartSchedule")
    assert node["widgets_values"] == ["a1111", "keep_steps"]
    kept(page, told.split("\n")[0])
    page.reload()
    ready(page)
    page.wait_for_function(f"{REPORTS}.length", timeout=30_000)
    assert page.evaluate(REPORTS)[0].startswith(told)
    page.evaluate("graph => window.app.loadGraphData(graph)", saved)
    page.wait_for_function(f"{REPORTS}.some(text => text.startsWith('30 steps'))", timeout=30_000)


def what_a_sampler_finds_out_stays_on_its_node(page, server) -> None:
    """DPM-Solver-v3 knows what it does when another node samples with it; a second run is told above the first."""
    page.evaluate("window.app.graph.nodes.find(n => n.type === 'BasicScheduler').widgets[1].value = 6")
    run(page, server)
    assert any(text.startswith("6 calls with") and "\n8 calls with" in text for text in page.evaluate(REPORTS))


def the_chart_and_the_figures_stay_on_tune(page, server) -> None:
    page.evaluate(CLOSER)
    (figures,) = (text for text in page.evaluate(REPORTS) if "quick: " in text)
    assert "now" in figures.partition("quick: ")[0]  # the sentence a person needs
    assert "model calls of one latent, cfg 5\n\n4 calls: error" in figures and "models/fewstep/tuning-flow-" in figures
    page.wait_for_function(f"({CHART})() > 500", timeout=30_000)
    photograph(page, "tune-closer")
    assert any("6 calls of Tuned Sampler" in text for text in page.evaluate(REPORTS))


AFTERWARDS = {  # what else is looked at when an example has run
    "restart": what_a_node_said_stays_on_it,
    "dpm_solver_v3": what_a_sampler_finds_out_stays_on_its_node,
    "tune": the_chart_and_the_figures_stay_on_tune,
}


@pytest.mark.parametrize("page", CANVASES, indirect=True)  # one after the other: the host keeps the last job's results
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_drawn_in_the_browser(page, server, path):
    workflow = load(page, path)
    check_loaded(page, workflow)
    check_saved(page, workflow)
    history = run(page, server)
    saved = "window.app.graph.nodes.find(n => n.type === 'SaveImage')"
    page.wait_for_function(f"window.app.nodeOutputs[{saved}.id]?.images?.length", timeout=30_000)
    check_plots(page)
    photograph(page, path.stem)
    still(page, BOXES[page.canvas])
    boxes = page.evaluate(BOXES[page.canvas])
    assert len(boxes) == len(workflow["nodes"]) and overlapping(boxes) == []
    savers = sorted(node["id"] for node in workflow["nodes"] if node["type"] == "SaveImage")
    # The host runs savers in an order of its own, another one each time.
    drawn = server.pictures({"outputs": {str(number): history["outputs"][str(number)] for number in savers}})
    check_same(drawn, path.stem)
    AFTERWARDS.get(path.stem, lambda *_: None)(page, server)
    drop(page, drawn[0])
    page.wait_for_function(f"window.app.graph.nodes.length === {len(workflow['nodes'])}", timeout=30_000)
    check_loaded(page, workflow)
