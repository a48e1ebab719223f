"""Plots on the nodes, in the browser: drawn, hovered, and there again after whatever a person does with a node."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from .conftest import ready
from .test_examples import REPORTS, load, photograph, run

ROOT = Path(os.environ["FEWSTEP_ROOT"])
WORKFLOW = ROOT / "example_workflows" / "inspect.json"
INSPECT = "window.app.graph.nodes.find(node => node.type === 'FewStepInspectSchedule')"
PLOTS = "document.querySelectorAll('.fewstep-plot canvas').length"
# Whether a plot has been drawn: pixels that are not transparent.
INKED = """() => [...document.querySelectorAll('.fewstep-plot canvas')].map(canvas => {
    const pixels = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
    let inked = 0;
    for (let i = 3; i < pixels.length; i += 4) inked += pixels[i] > 0;
    return inked; })"""
READINGS = "[...document.querySelectorAll('.fewstep-plot-reading')].map(row => row.textContent)"


def closer(page, node: str = INSPECT, scale: float = 1.0) -> None:
    page.evaluate(
        f"""scale => {{
        const canvas = window.app.canvas, node = {node};
        canvas.ds.scale = scale;
        canvas.ds.offset = [300 / scale - node.pos[0], 80 / scale - node.pos[1]];
        canvas.setDirty(true, true); }}""",
        scale,
    )
    page.wait_for_timeout(400)


def drawn(page, count: int = 1) -> None:
    page.wait_for_function(f"{PLOTS} >= {count}", timeout=30_000)
    page.wait_for_timeout(400)
    assert all(inked > 500 for inked in page.evaluate(INKED))


def hovered(page, share: float) -> str:
    """What the plot says where the pointer is at a share of its width."""
    box = page.locator(".fewstep-plot .u-over").first.bounding_box()
    page.mouse.move(box["x"] + share * box["width"], box["y"] + box["height"] / 2, steps=5)
    page.wait_for_timeout(150)
    return page.evaluate(READINGS)[0]


@pytest.fixture
def inspected(page, server):
    """A page on which the two schedules of the example were looked at."""
    load(page, WORKFLOW)
    run(page, server)
    drawn(page)
    return page


def test_it_is_read_by_hovering_at_any_zoom(inspected):
    for scale in (1.0, 0.6, 1.8):
        closer(inspected, scale=scale)
        first, last = hovered(inspected, 0.01), hovered(inspected, 0.99)
        step = "step 1: sigma 1, noise/signal infinite"
        assert first.strip() == f"0 calls ● {step} ● {step}" and last.startswith(
            "8 calls ● end: sigma 0, noise/signal 0"
        )
        if scale != 0.6:
            hovered(inspected, 0.5)
            photograph(inspected, f"inspect-{scale:g}")
    assert inspected.errors == []


def test_it_is_no_widget_of_the_saved_workflow(inspected):
    (node,) = (n for n in inspected.evaluate("window.app.graph.serialize()")["nodes"] if n["type"].endswith("Schedule"))
    assert node["widgets_values"] == [5, 0]  # cfg and seed
    prompt = inspected.evaluate("window.app.graphToPrompt()")["output"]
    assert set(prompt[str(node["id"])]["inputs"]) == {"sigmas", "model", "compare_with", "cfg", "seed"}


def test_it_is_there_again_after_a_reload(inspected):
    inspected.wait_for_timeout(1500)
    inspected.reload()
    ready(inspected)
    drawn(inspected)
    closer(inspected)
    assert "sigma" in hovered(inspected, 0.4)


def test_it_is_copied_with_its_node_and_comes_back_by_undo(inspected):
    inspected.evaluate(f"""() => {{
        const canvas = window.app.canvas, node = {INSPECT};
        canvas.selectItems([node]);
        canvas.copyToClipboard();
        canvas.pasteFromClipboard(); }}""")
    drawn(inspected, 2)
    inspected.wait_for_timeout(500)
    inspected.evaluate(f"window.app.graph.remove({INSPECT})")
    inspected.wait_for_timeout(1000)
    assert inspected.evaluate(PLOTS) == 1
    inspected.evaluate("window.app.extensionManager.workflow.activeWorkflow.changeTracker.undo()")
    drawn(inspected, 1)


def test_it_goes_with_its_node_into_a_subgraph(inspected):
    inspected.evaluate(f"""() => {{
        const canvas = window.app.canvas, node = {INSPECT};
        window.app.graph.convertToSubgraph(new Set([node]));
        const outer = window.app.graph.nodes.find(node => node.subgraph);
        canvas.openSubgraph(outer.subgraph, outer); }}""")
    inspected.wait_for_timeout(1000)
    closer(inspected, INSPECT.replace("app.graph", "app.canvas.graph"))  # Nodes 2.0 draws what is in view
    drawn(inspected)
    photograph(inspected, "inspect-subgraph")
    assert inspected.errors == []


def test_a_fresh_page_knows_the_last_job_where_it_ran_this_node_and_needs_no_plots_for_it(inspected, browser, server):
    page = browser.new_page(viewport={"width": 1600, "height": 900})
    page.goto(server.url)
    ready(page)
    other = json.loads(WORKFLOW.read_text(encoding="utf-8")) | {"id": "another"}
    (scheduler,) = (node for node in other["nodes"] if node.get("title") == "Another")
    scheduler["widgets_values"][1] = 13
    page.evaluate("graph => window.app.loadGraphData(graph)", other)
    page.wait_for_timeout(2500)
    assert page.evaluate(REPORTS) == []
    page.route("**/uPlot.esm.js", lambda route: route.abort())
    page.reload()
    ready(page)
    load(page, WORKFLOW)
    page.wait_for_function(f"{REPORTS}.length === 1", timeout=30_000)
    assert "compare_with: 8 calls" in page.evaluate(REPORTS)[0] and page.evaluate(PLOTS) == 0
    page.close()
