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
VIEWPORT = {"width": 1600, "height": 900}
CANVASES = ["classic", "nodes2"]


@pytest.fixture(scope="session")
def browser():
    if CHROMIUM is None:
        pytest.skip("No Chromium on this machine: install the package chromium to run the browser's tests.")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)


class Tabs(dict):
    """Pages by canvas, opened when first asked for."""

    def __init__(self, browser, server):
        super().__init__()
        self.browser, self.server = browser, server

    def __missing__(self, canvas: str):
        self[canvas] = fresh(self.browser, self.server, canvas)
        return self[canvas]


@pytest.fixture(scope="module")
def tabs(browser, server):
    """The front end, loaded once a file and canvas: that takes longer than most tests."""
    opened = Tabs(browser, server)
    yield opened
    for page in opened.values():
        page.close()


@pytest.fixture(params=CANVASES)
def page(tabs, server, request):
    """The front end, without its welcome dialog, on the classic canvas or with Nodes 2.0; earlier tests used it too.

    `page.canvas` is which canvas it is. `page.errors` has what the pack's files raised: a test that leaves some there
    fails.
    """
    page = tabs[request.param]
    use(server, page.canvas)  # a reload asks again
    page.set_viewport_size(VIEWPORT)
    page.mouse.move(5, 500)
    page.errors.clear()
    yield page
    assert page.errors == []


def use(server, canvas: str) -> None:
    """What pages that load from now on draw on."""
    settings = server.base / "user" / "default" / "comfy.settings.json"
    settings.parent.mkdir(parents=True, exist_ok=True)
    settings.write_text(json.dumps(SETTINGS | {"Comfy.VueNodes.Enabled": canvas == "nodes2"}))


def fresh(browser, server, canvas: str):
    """A page that knows nothing yet."""
    use(server, canvas)
    page = browser.new_page(viewport=VIEWPORT)
    page.errors, page.canvas = [], canvas
    page.on("console", lambda said: page.errors.append(said.text) if is_ours(said) else None)
    page.on("pageerror", lambda error: page.errors.append(error.stack) if "fewstep" in (error.stack or "") else None)
    page.goto(server.url)
    ready(page)
    return page


def is_ours(said) -> bool:
    """An error of the pack's files, or what report.js says where it cannot show something."""
    return (said.type == "error" and "fewstep" in said.text) or said.text.startswith("FewStep")


def ready(page) -> None:
    page.wait_for_function("window.app?.graph && window.app.extensionManager", timeout=90_000)


def still(page, seen: str) -> None:
    """Until what is seen, an expression, is the same for two fifths of a second: layouts settle over several frames."""
    page.wait_for_function(
        """seen => {
        const now = JSON.stringify(eval(seen)), before = window.fewstepSeen;
        window.fewstepSeen = { now, times: before?.now === now ? before.times + 1 : 0 };
        return window.fewstepSeen.times >= 4; }""",
        arg=seen,
        timeout=10_000,
        polling=100,
    )


def kept(page, text: str) -> None:
    """Until the front end has that text in its draft of the workflow, which a reload opens."""
    page.wait_for_function(
        "text => [localStorage, sessionStorage].some(kept => Object.values(kept).some(one => one.includes(text)))",
        arg=text,
        timeout=30_000,
    )
