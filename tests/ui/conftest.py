"""A real browser in front of the real host. Skipped where no Chromium is installed.

The front end is the host's own; COMFYUI_ARGUMENTS="--front-end-root FOLDER" takes another (see tests/README.md).
"""

from __future__ import annotations

import json
import shutil

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ["chromium", "chromium-browser", "google-chrome"])), None)
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
QUIET += ["--disable-component-update", "--disable-sync"]
SETTINGS = {"Comfy.TutorialCompleted": True, "Comfy.VueNodes.AutoScaleLayout": False}
CANVASES = ["classic", "nodes2"]


@pytest.fixture(scope="session")
def browser():
    if CHROMIUM is None:
        pytest.skip("No Chromium on this machine: install the package chromium to run the browser's tests.")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)


@pytest.fixture(params=CANVASES)
def page(browser, server, request):
    """The front end, loaded, without its welcome dialog, on the classic canvas or with Nodes 2.0.

    `page.errors` has what the pack's files raised, `page.canvas` which canvas it is.
    """
    settings = server.base / "user" / "default" / "comfy.settings.json"
    settings.parent.mkdir(parents=True, exist_ok=True)
    settings.write_text(json.dumps(SETTINGS | {"Comfy.VueNodes.Enabled": request.param == "nodes2"}))
    page = browser.new_page(viewport={"width": 1600, "height": 900})
    page.errors, page.canvas = [], request.param
    page.on("console", lambda m: page.errors.append(m.text) if m.type == "error" and "fewstep" in m.text else None)
    page.goto(server.url)
    ready(page)
    yield page
    page.close()


def ready(page) -> None:
    page.wait_for_function("window.app?.graph && window.app.extensionManager", timeout=90_000)
