"""The help page of a node, opened as a person does, in every language that we have pages in."""

from __future__ import annotations

import json
import os
from pathlib import Path

from .conftest import ready
from .test_examples import load, photograph

ROOT = Path(os.environ["FEWSTEP_ROOT"])
LANGUAGES = sorted(path.name for path in (ROOT / "locales").iterdir())
NODE = "window.app.graph.nodes.find(node => node.type === 'FewStepTune')"
SETTING = "window.app.extensionManager.setting"
OFFERED = f"{SETTING}.settings['Comfy.Locale'].options.map(option => option.value ?? option)"
SELECT = f"""() => {{
    const canvas = window.app.canvas, node = {NODE};
    canvas.ds.scale = 0.9;
    canvas.ds.offset = [600 - node.pos[0], 400 - node.pos[1]];
    canvas.selectNode(node, false);
    canvas.setDirty(true, true);
}}"""


def test_help_opens_in_the_language_of_the_front_end(page, server):
    """1.58 has no German yet and shows English then; older ones take any language that a browser has.

    Every language on the classic canvas, one of them with Nodes 2.0, which opens the same pages.
    """
    for language in LANGUAGES if page.canvas == "classic" else LANGUAGES[-1:]:
        with page.expect_response("**/settings/Comfy.Locale"):  # it is saved to the host
            page.evaluate(f"{SETTING}.set('Comfy.Locale', '{language}')")
        page.reload()
        ready(page)
        load(page, ROOT / "example_workflows" / "tune.json")
        page.evaluate(SELECT)
        page.get_by_test_id("info-button").first.click()
        page.wait_for_selector(".node-help-content h1", timeout=20_000)
        names = json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text("utf-8"))
        allowed = {names["FewStepTune"]["display_name"]}
        allowed |= set() if language in page.evaluate(OFFERED) else {"Tune (FewStep)"}
        assert page.locator(".node-help-content h1").first.inner_text() in allowed
        assert page.locator(".node-help-content table").count() == 2  # its tables are drawn as tables
        photograph(page, f"help-{language}")
