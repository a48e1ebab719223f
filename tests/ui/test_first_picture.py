"""What an artist sees: the example loads, shows its widgets, and the queued picture appears in the graph."""

import json
import os
from pathlib import Path

ROOT = Path(os.environ["FEWSTEP_ROOT"])
WORKFLOW = json.loads((ROOT / "example_workflows" / "first_picture.json").read_text())


def test_the_example_is_drawn_in_the_browser(page):
    page.evaluate("graph => window.app.loadGraphData(graph)", WORKFLOW)
    kinds = page.evaluate("window.app.graph.nodes.map(node => [node.type, node.has_errors ?? false])")
    assert sorted(kinds) == sorted([node["type"], False] for node in WORKFLOW["nodes"])
    variant = page.evaluate(
        "window.app.graph.nodes.find(n => n.type === 'FewStepDemoModel').widgets.map(w => [w.name, w.value])"
    )
    assert variant == [["variant", "eps"]]
    page.evaluate("window.app.queuePrompt(0)")
    page.wait_for_function("window.app.graph.nodes.some(n => n.imgs?.length && n.imgs[0].naturalWidth === 512)")
    if folder := os.environ.get("FEWSTEP_SCREENSHOTS"):
        page.wait_for_timeout(1000)
        page.screenshot(path=Path(folder) / "first_picture.png")
    assert page.errors == []


def test_the_browser_saves_what_it_loaded(page):
    """Node ids, widget values and links survive a round trip: a shared workflow stays what it is."""
    page.evaluate("graph => window.app.loadGraphData(graph)", WORKFLOW)
    saved = page.evaluate("window.app.graph.serialize()")
    values = {node["id"]: node.get("widgets_values") for node in WORKFLOW["nodes"]}
    assert {node["id"]: node.get("widgets_values") for node in saved["nodes"]} == values
    assert sorted(link[:5] for link in saved["links"]) == sorted(link[:5] for link in WORKFLOW["links"])
