"""What Tune leaves on its node: the figures as text, and the chart."""

from __future__ import annotations

import os
from pathlib import Path

from .test_examples import REPORTS, load, photograph, run

ROOT = Path(os.environ["FEWSTEP_ROOT"])
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


def test_the_chart_and_the_figures_stay_on_tune(page, server):
    load(page, ROOT / "example_workflows" / "tune.json")
    seed = {"classic": 31, "nodes2": 33}[page.canvas]  # no other test's, so that nothing is cached
    page.evaluate(f"{TUNE}.widgets.find(widget => widget.name === 'seed').value = {seed}")
    run(page, server)
    page.evaluate(CLOSER)
    (figures,) = (text for text in page.evaluate(REPORTS) if "quick: " in text)
    assert "now" in figures.partition("quick: ")[0]  # the sentence a person needs
    assert "model calls of one latent, cfg 5\n\n4 calls: error" in figures and "models/fewstep/tuning-flow-" in figures
    page.wait_for_function(f"({CHART})() > 500", timeout=30_000)
    photograph(page, "tune-closer")
    assert any("6 calls of Tuned Sampler" in text for text in page.evaluate(REPORTS)) and page.errors == []
