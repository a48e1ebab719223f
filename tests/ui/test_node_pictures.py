"""Every node on the canvas, alone and in the examples. FEWSTEP_KEEP=1 keeps the pictures of help pages and README."""

from __future__ import annotations

import os
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from .conftest import still
from .test_examples import EXAMPLES, load, run

ROOT = Path(os.environ["FEWSTEP_ROOT"])
KEEPING = pytest.mark.skipif("FEWSTEP_KEEP" not in os.environ, reason="FEWSTEP_KEEP=1 makes the pictures anew.")
ADD = """async type => {
    const node = window.LiteGraph.createNode(type);
    node.pos = [80, 80];
    window.app.graph.clear();
    // else Nodes 2.0 takes the last node's element, and its height, for one with the same id
    await new Promise(gone => requestAnimationFrame(() => requestAnimationFrame(gone)));
    window.app.graph.add(node);
    window.app.canvas.ds.scale = 1;
    window.app.canvas.ds.offset = [200, 100];
    window.app.canvas.setDirty(true, true);
    return [node.id, node.size[0], node.size[1]]; }"""
SHOW = """id => {
    const node = window.app.graph.getNodeById(id);
    window.app.canvas.ds.scale = 1;
    window.app.canvas.ds.offset = [400 - node.pos[0], 200 - node.pos[1]];
    window.app.canvas.setDirty(true, true); }"""

DRAWN = "id => window.app.canvas.visible_nodes?.includes(window.app.graph.getNodeById(id))"  # by its last frame
FITS = """id => {
    const element = document.querySelector(`[data-node-id="${id}"]`), node = window.app.graph.getNodeById(id);
    return element && Math.abs(element.offsetHeight - node.size[1] - 30) < 3; }"""  # the title is 30 high
LOADED = "[...document.images].every(image => image.complete)"


def ours(server) -> list[str]:
    info = server.get("/object_info").json()
    return sorted(name for name, node in info.items() if node["python_module"] == "custom_nodes.fewstep")


def photographed(page, clip: dict[str, float]) -> Image.Image:
    """That part of the page, once its images are there and three pictures in a row are the same."""
    page.wait_for_function(LOADED, timeout=30_000)
    seen: list[bytes] = []
    for _ in range(60):
        seen.append(page.screenshot(clip=clip))
        if len(seen) > 2 and len(set(seen[-3:])) == 1:
            return Image.open(BytesIO(seen[-1])).convert("RGB")
        page.wait_for_timeout(100)
    raise AssertionError("the page does not come to rest")


def kept(page, number: int, path: Path) -> None:
    """The node, as a person sees it at 100 %, with nothing of the host's over it."""
    page.set_viewport_size({"width": 1700, "height": 1700})
    page.evaluate(SHOW, number)
    page.mouse.move(300, 1500)  # over nothing
    still(page, f"""document.querySelector('[data-node-id="{number}"]').getBoundingClientRect()""")
    picture = photographed(page, page.locator(f'[data-node-id="{number}"]').first.bounding_box())
    picture.save(path, quality=82, optimize=True)


def test_every_node_is_drawn_alone(page, server):
    for name in ours(server):
        number, width, height = page.evaluate(ADD, name)
        assert width >= 140 and height >= 30, name
        page.wait_for_function(DRAWN, arg=number, timeout=10_000)
        if page.canvas == "nodes2":
            page.wait_for_function(FITS, arg=number, timeout=10_000)


@KEEPING
@pytest.mark.parametrize("page", ["nodes2"], indirect=True)
def test_pictures_of_the_help_pages(page, server):
    """After a run of the first example that a node is in; alone where it is in none."""
    missing = set(ours(server))
    for example in EXAMPLES:
        workflow = load(page, example)
        found = {node["type"]: node["id"] for node in workflow["nodes"] if node["type"] in missing}
        if not found:
            continue
        run(page, server)
        for name, number in found.items():
            kept(page, number, ROOT / "web" / "docs" / f"{name}.jpg")
        missing -= set(found)
    for name in sorted(missing):
        number, *_ = page.evaluate(ADD, name)
        kept(page, number, ROOT / "web" / "docs" / f"{name}.jpg")


@KEEPING
@pytest.mark.parametrize("page", ["nodes2"], indirect=True)
@pytest.mark.parametrize("name, most", [("boost", (1940, 740)), ("compare", (2400, 1380))])
def test_pictures_of_the_readme(page, server, name, most):
    """The graph after its run, so much of it."""
    page.set_viewport_size({"width": 2600, "height": 1500})
    load(page, ROOT / "example_workflows" / f"{name}.json")
    run(page, server)
    page.evaluate("window.app.canvas.ds.scale = 1")
    left, top, right, bottom = page.evaluate("""() => {
        const boxes = window.app.graph.nodes.map(({ pos: [x, y], size: [w, h] }) => [x, y - 30, x + w, y + h]);
        const of = (i, best) => best(...boxes.map(box => box[i]));
        const found = [of(0, Math.min), of(1, Math.min), of(2, Math.max), of(3, Math.max)];
        window.app.canvas.ds.offset = [140 - found[0], 120 - found[1]];
        window.app.canvas.setDirty(true, true);
        return found; }""")
    still(page, "[...document.querySelectorAll('[data-node-id]')].map(node => node.getBoundingClientRect())")
    clip = {"x": 120, "y": 100, "width": min(right - left + 40, most[0]), "height": min(bottom - top + 40, most[1])}
    picture = photographed(page, clip)
    picture.thumbnail((1500, 1500), Image.Resampling.LANCZOS)
    picture.save(ROOT / "benchmarks" / f"graph_{name}.jpg", quality=85, optimize=True)
