"""What an artist sees: every example loads, is drawn, comes back as it was saved, and its nodes say what they do."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

ROOT = Path(os.environ["FEWSTEP_ROOT"])
EXAMPLES = sorted((ROOT / "example_workflows").glob("*.json"))
EVERY = pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)


def load(page, path: Path) -> dict:
    workflow = json.loads(path.read_text(encoding="utf-8"))
    page.evaluate("graph => window.app.loadGraphData(graph)", workflow)
    return workflow


def photograph(page, name: str) -> None:
    """For the eye of a person: FEWSTEP_SCREENSHOTS names a folder."""
    if folder := os.environ.get("FEWSTEP_SCREENSHOTS"):
        page.wait_for_timeout(1000)
        page.screenshot(path=Path(folder) / f"{name}.png")


@EVERY
def test_an_example_is_drawn_in_the_browser(page, path):
    workflow = load(page, path)
    kinds = page.evaluate("window.app.graph.nodes.map(node => [node.type, node.has_errors ?? false])")
    assert sorted(kinds) == sorted([node["type"], False] for node in workflow["nodes"])
    page.evaluate("window.app.queuePrompt(0)")
    page.wait_for_function(
        "window.app.graph.nodes.some(n => n.type === 'SaveImage' && n.imgs?.[0]?.naturalWidth)", timeout=240_000
    )
    photograph(page, path.stem)
    assert page.errors == []


@EVERY
def test_the_browser_saves_what_it_loaded(page, path):
    """Node ids, widget values and links survive a round trip: a shared workflow stays what it is."""
    workflow = load(page, path)
    saved = page.evaluate("window.app.graph.serialize()")
    values = {node["id"]: node.get("widgets_values") for node in workflow["nodes"]}
    assert {node["id"]: node.get("widgets_values") for node in saved["nodes"]} == values
    assert sorted(link[:5] for link in saved["links"]) == sorted(link[:5] for link in workflow["links"])


def test_the_restart_schedule_prints_its_total_on_the_node(page):
    load(page, ROOT / "example_workflows" / "restart.json")
    find = "window.app.graph.nodes.find(n => n.type === '{}').widgets"
    page.evaluate(find.format("BasicScheduler") + ".find(w => w.name === 'steps').value = 31")  # nothing is cached
    page.evaluate("window.app.queuePrompt(0)")
    texts = find.format("FewStepRestartSchedule") + ".map(w => String(w.value))"
    page.wait_for_function(f"{texts}.some(text => text.startsWith('31 steps: 22 main, 9 in 1 restart'))")
