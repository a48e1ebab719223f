"""Plots and text that folds, on the nodes: drawn, pointed at, and still there after whatever a person does."""

from __future__ import annotations

import json
import os
import uuid
from itertools import pairwise
from pathlib import Path

import pytest

from .conftest import fresh, kept, ready, still
from .test_examples import REPORTS, photograph, run

ROOT = Path(os.environ["FEWSTEP_ROOT"])
NEEDED = ("FewStepDemoModel", "BasicScheduler", "FewStepInspectSchedule")
HERE = "window.app.canvas.graph.nodes.filter(node => node.type === 'FewStepInspectSchedule')"
NODE = f"{HERE}.at(-1)"
OUTER = "window.app.graph.nodes.find(node => node.subgraph)"
TRACKER = "window.app.extensionManager.workflow.activeWorkflow.changeTracker"
DRAWN = "[...document.querySelectorAll('.fewstep-plot canvas')].filter(canvas => canvas.width > 0).length"
VISIBLE = "document.querySelector('.fewstep-report').innerText"
TIP = "document.querySelector('.fewstep-tip')"
CLOSER = f"""scale => {{
    const canvas = window.app.canvas, node = {NODE};
    canvas.ds.scale = scale;
    canvas.ds.offset = [320 / scale - node.pos[0], 120 / scale - node.pos[1]];
    canvas.setDirty(true, true);
}}"""
AREA = """(() => {
    const {x, y, width, height} = document.querySelector('.fewstep-plot-area').getBoundingClientRect();
    return [x, y, width, height]; })()"""
ZOOM = f"{AREA}[2] / document.querySelector('.fewstep-plot-area').offsetWidth"
SHARP = f"Math.abs(document.querySelector('.fewstep-plot canvas').width / {AREA}[2] - 1) < 0.02"
INTO_VIEW = f"""() => {{
    const {{ ds }} = window.app.canvas;
    ds.offset[1] += (300 - {AREA}[1]) / ds.scale;
    window.app.canvas.setDirty(true, true); }}"""
PIXELS = """color => {
    const canvas = document.querySelector('.fewstep-plot canvas');
    const {data} = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
    let found = 0;
    for (let i = 0; i < data.length; i += 4)
        found += data[i + 3] > 200 && color.every((value, channel) => Math.abs(data[i + channel] - value) < 30);
    return found; }"""
COLORS = """(({ backgroundColor, color }, entries) => [backgroundColor, color, ...entries])(
    getComputedStyle(document.querySelector('.fewstep-plot')),
    [...document.querySelectorAll('.fewstep-legend span')].map(one => getComputedStyle(one, '::before').borderTopColor)
)"""
RESTARTED = """steps => {
    const { graph } = window.app, of = type => graph.nodes.find(node => node.type === type);
    const [model, scheduler, inspect] = ["FewStepDemoModel", "BasicScheduler", "FewStepInspectSchedule"].map(of);
    const [restart, loaded, flow] = ["FewStepRestartSchedule", "FewStepLoadSchedule", model.type].map((type, i) => {
        const node = window.LiteGraph.createNode(type);
        node.pos = [inspect.pos[0] + 500 * (i + 1), inspect.pos[1]];
        graph.add(node);
        return node; });
    const join = (from, to, name) => from.connect(0, to, to.inputs.findIndex(input => input.name === name));
    flow.widgets[0].value = "flow";
    loaded.widgets.find(({ name }) => name === "steps").value = steps;
    join(model, restart, "model");
    join(flow, loaded, "model");
    join(scheduler, restart, "sigmas");
    join(restart, inspect, "sigmas");
    join(loaded, inspect, "compare_with"); }"""
PLOTS = """Object.fromEntries(window.app.graph.nodes.filter(node => node.properties.fewstep_plot).map(node =>
    [node.type, JSON.parse(node.properties.fewstep_plot).series]))"""
AREA_OF = """window.app.graph.nodes.find(node => node.type === '{}').widgets
    .find(({{ name }}) => name === 'fewstep_plot_view').element.querySelector('.fewstep-plot-area')"""
INSIDE = """found => {
    const area = eval(found), parts = [area, ...[".fewstep-tip", ".fewstep-dot"].map(name => area.querySelector(name))];
    const [plot, tip, dot] = parts.map(part => part.getBoundingClientRect());
    const covers = tip.left < dot.right && dot.left < tip.right && tip.top < dot.bottom && dot.top < tip.bottom;
    return [tip.left >= plot.left - 1 && tip.right <= plot.right + 1, covers]; }"""
COUNTING = """() => {
    window.fewstepListening = 0;
    for (const [name, by] of [["addEventListener", 1], ["removeEventListener", -1]]) {
        const done = window[name];
        window[name] = function (kind) {
            if (kind === "dppxchange") window.fewstepListening += by;
            return done.apply(this, arguments); }; } }"""


def workflow(kind: str = "eps", steps: int = 12) -> dict:
    """Two schedules and the node that shows them, out of the example: nothing is sampled."""
    whole = json.loads((ROOT / "example_workflows" / "inspect.json").read_text(encoding="utf-8"))
    nodes = [node for node in whole["nodes"] if node["type"] in NEEDED]
    ids = {node["id"] for node in nodes}
    links = [link for link in whole["links"] if link[1] in ids and link[3] in ids]
    kept = {link[0] for link in links}
    for node in nodes:
        for output in node["outputs"]:
            output["links"] = [link for link in output["links"] or [] if link in kept]
        if node["type"] == "BasicScheduler":
            node["widgets_values"][1] = steps
        if node["type"] == "FewStepDemoModel":
            node["widgets_values"] = [kind]
    return whole | {"id": str(uuid.uuid4()), "nodes": nodes, "links": links}


@pytest.fixture
def shown(page, server):
    """The page, with a plot and a text on the node, near enough to be read."""
    load(page, workflow())
    run(page, server)
    drawn(page)
    return page


def load(page, graph: dict) -> None:
    page.evaluate("graph => window.app.loadGraphData(graph)", graph)


def drawn(page, count: int = 1, scale: float = 1.3) -> None:
    page.evaluate(CLOSER, scale)
    near = f"Math.abs({ZOOM} / {scale} - 1) < 0.02"
    page.wait_for_function(f"{DRAWN} === {count} && {near} && {SHARP}", timeout=30_000)
    page.evaluate(INTO_VIEW)
    still(page, AREA)


def pointed(page, across: float, down: float) -> list[str]:
    """Lines of what is told at a place of the plot, shares of its width and height.

    A plot that is laid out anew forgets the pointer until it moves again; on a busy machine that comes late.
    """
    from playwright.sync_api import TimeoutError as Waited

    for tries_left in reversed(range(5)):
        x, y, width, height = page.evaluate(AREA)
        page.mouse.move(x + across * width + 1, y + down * height)
        page.mouse.move(x + across * width, y + down * height)
        try:
            page.wait_for_function(f"!{TIP}.hidden", timeout=4_000)
        except Waited:
            if not tries_left:
                raise
        else:
            break
    return page.evaluate(f"{TIP}.textContent").split("\n")


def series_of(page) -> dict[str, dict]:
    """What Python sent, by label."""
    return {one["label"]: one for one in json.loads(page.evaluate(f"{NODE}.properties.fewstep_plot"))["series"]}


def test_a_plot_is_sharp_at_any_zoom_in_the_colours_of_the_theme_and_tells_what_is_pointed_at(shown):
    for scale, palette in ((0.6, "dark"), (1.0, "dark"), (1.8, "light")):
        shown.evaluate(f"window.app.extensionManager.setting.set('Comfy.ColorPalette', '{palette}')")
        drawn(shown, scale=scale)
        still(shown, COLORS)
        back, text, *lines = map(channels, shown.evaluate(COLORS))
        assert (luminance(back) > luminance(text)) == (palette == "light")
        assert contrast(back, text) > 7 and min(contrast(back, line) for line in lines) > 3 and len(lines) == 2
        shown.wait_for_function(f"{json.dumps(lines)}.every(color => ({PIXELS})(color) > 50)", timeout=10_000)
        check_pointing(shown)
        photograph(shown, f"plot-{palette}-{scale:g}")
    shown.evaluate("window.app.extensionManager.setting.set('Comfy.ColorPalette', 'dark')")
    shown.mouse.move(5, 500)
    shown.wait_for_function(f"{TIP}.hidden", timeout=10_000)


def check_pointing(page, calls: int = 12) -> None:
    """From left to right the steps rise, and each one's numbers are those that Python sent."""
    told = [pointed(page, across, down) for across, down in ((0.2, 0.1), (0.6, 0.45), (0.95, 0.7))]
    series, seen = series_of(page), []
    for label, place, sigma, ratio, _ in told:
        seen.append(int(place.split()[-2]))
        number = series[label]["calls"].index(seen[-1])
        assert place.startswith("end," if seen[-1] == calls else f"step {number + 1}, after {seen[-1]} call")
        assert float(sigma.split()[1]) == pytest.approx(series[label]["sigmas"][number], rel=1e-3)
        assert float(ratio.split()[1]) == pytest.approx(series[label]["ratios"][number], rel=1e-3)
    assert seen == sorted(set(seen)) and seen[-1] == calls


def channels(color: str) -> list[float]:
    """Of rgb(1, 2, 3)."""
    return [float(part) for part in color[color.index("(") + 1 : -1].split(",")[:3]]


def luminance(color: list[float]) -> float:
    """Relative, as WCAG has it."""
    red, green, blue = (one / 255 / 12.92 if one <= 10 else ((one / 255 + 0.055) / 1.055) ** 2.4 for one in color)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: list[float], other: list[float]) -> float:
    """1 to 21, as WCAG has it: text needs 4.5, lines 3."""
    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)


def test_keys_read_the_plot_and_buttons_change_and_fold_it(shown):
    shown.evaluate("document.querySelector('.fewstep-plot-area').focus()")
    for key, told in (
        ("ArrowRight", "sigmas, step 1"),
        ("ArrowRight", "sigmas, step 2"),
        ("ArrowDown", "compare_with"),
    ):
        shown.keyboard.press(key)
        assert ", ".join(shown.evaluate(f"{TIP}.textContent").split("\n")[:2]).startswith(told)
    shown.evaluate("document.querySelector('.fewstep-switch').click()")
    shown.wait_for_function(f"{DRAWN} === 1", timeout=10_000)
    assert "log-SNR over model calls" in shown.evaluate("document.querySelector('.fewstep-plot').innerText")
    assert "after 12 calls" in pointed(shown, 0.95, 0.1)[1]
    before = shown.evaluate(f"{NODE}.size[1]")
    shown.evaluate("document.querySelector('.fewstep-plot .fewstep-fold').click()")
    shown.wait_for_function(f"{DRAWN} === 0 && {NODE}.computeSize()[1] < {before}", timeout=10_000)
    kept = shown.evaluate(f"{NODE}.properties")
    assert kept["fewstep_plot_folded"] is True and kept["fewstep_plot_axis"] == "log-SNR"


def test_a_text_folds_to_what_is_unusual_and_a_key_unfolds_it(shown):
    folded = shown.evaluate(VISIBLE)
    assert folded.startswith("sigmas: 12 calls from sigma 14.61 to 0") and "noise/signal" not in folded
    assert "\ncompare_with: 12 calls" in folded and "on grain alone." in folded
    (whole,) = shown.evaluate(REPORTS)
    assert "\n\nsigmas\ncalls  sigma      noise/signal" in whole
    button = "document.querySelector('.fewstep-report button')"
    assert shown.evaluate(f"{button}.getAttribute('aria-expanded')") == "false"
    shown.evaluate(f"{button}.focus()")
    shown.keyboard.press("Enter")
    shown.wait_for_function(f"{VISIBLE}.includes('noise/signal')", timeout=10_000)
    assert shown.evaluate(f"{button}.getAttribute('aria-expanded')") == "true"
    assert shown.evaluate(f"document.activeElement === {button}")
    room = "(box => [box.clientHeight, box.scrollHeight])(document.querySelector('.fewstep-report'))"
    shown.wait_for_function(f"{room}[0] > 250 && {room}[1] > {room}[0]", timeout=10_000)  # 32 lines: it scrolls
    photograph(shown, "text-unfolded")
    load(shown, shown.evaluate("window.app.graph.serialize()"))
    shown.wait_for_function(f"{VISIBLE}.includes('noise/signal')", timeout=10_000)


def test_plots_are_no_value_and_survive_copies_and_undo(shown):
    (node,) = (n for n in shown.evaluate("window.app.graph.serialize()")["nodes"] if n["type"] == NEEDED[2])
    assert node["widgets_values"] == [5, 0] and len(json.dumps(node["properties"])) < 4000
    prompt = shown.evaluate("window.app.graphToPrompt()")["output"]
    assert set(prompt[str(node["id"])]["inputs"]) == {"sigmas", "model", "compare_with", "cfg", "seed"}
    shown.evaluate(f"{TRACKER}.checkState()")
    shown.evaluate(f"(c => {{ c.copyToClipboard([{NODE}]); c.pasteFromClipboard(); }})(window.app.canvas)")
    shown.evaluate(f"{TRACKER}.checkState()")
    drawn(shown, count=2, scale=0.6)
    for _ in range(3):  # front end 1.32 takes the rounding of a copy's place for a step of its own
        if shown.evaluate(f"{HERE}.length") == 2:
            shown.evaluate(f"{TRACKER}.undo()")
    drawn(shown)
    assert len(shown.evaluate(REPORTS)) == 1
    shown.evaluate(f"window.app.graph.remove({NODE}); {TRACKER}.checkState()")
    shown.wait_for_function(f"{DRAWN} === 0", timeout=10_000)
    shown.evaluate(f"{TRACKER}.undo()")
    drawn(shown)
    check_pointing(shown)


def test_a_plot_goes_into_a_new_subgraph_hears_of_jobs_there_and_survives_a_reload(shown, server):
    shown.evaluate(f"window.app.canvas.selectItems([{NODE}])")
    shown.evaluate("window.app.extensionManager.command.execute('Comfy.Graph.ConvertToSubgraph')")
    enter(shown)
    drawn(shown)
    check_pointing(shown)
    photograph(shown, "plot-in-new-subgraph")
    shown.evaluate("""for (const node of window.app.graph.nodes)
        if (node.type === 'BasicScheduler') node.widgets.find(({ name }) => name === 'steps').value = 9""")
    run(shown, server)
    shown.wait_for_function(f"{VISIBLE}.startsWith('sigmas: 9 calls')", timeout=10_000)
    drawn(shown)
    check_pointing(shown, calls=9)
    kept(shown, "sigmas: 9 calls")
    shown.reload()
    ready(shown)
    enter(shown, opened=True)
    drawn(shown)
    check_pointing(shown, calls=9)
    assert shown.evaluate(REPORTS)[0].startswith("sigmas: 9 calls")
    photograph(shown, "plot-in-subgraph-reloaded")


def enter(page, opened: bool = False) -> None:
    """The subgraph: with Nodes 2.0 by the button on its node. Newer front ends may have `opened` it by themselves."""
    page.wait_for_function(f"{OUTER} !== undefined", timeout=30_000)
    if opened or page.canvas == "classic":
        page.evaluate(f"(outer => window.app.canvas.openSubgraph(outer.subgraph, outer))({OUTER})")
    else:
        page.evaluate(CLOSER.replace(NODE, OUTER), 1)
        page.locator("[data-testid='subgraph-enter-button']").click()
    page.wait_for_function(f"{HERE}.length === 1", timeout=10_000)


def test_a_fresh_page_knows_the_last_job_where_it_ran_this_node_and_needs_no_plots_for_it(shown, browser, server):
    page = fresh(browser, server, shown.canvas)
    with page.expect_response("**/history?max_items=1") as asked:
        load(page, workflow(steps=13))
    asked.value.finished()
    still(page, REPORTS)
    assert page.evaluate(REPORTS) == []
    load(page, workflow())
    page.wait_for_function(f"{REPORTS}.length === 1", timeout=30_000)
    drawn(page)
    assert page.evaluate(REPORTS)[0].startswith("sigmas: 12 calls")
    page.route("**/uPlot.esm.js", lambda route: route.abort())
    page.reload()
    ready(page)
    load(page, workflow())
    page.wait_for_function(f"{REPORTS}.length === 1", timeout=30_000)
    assert page.evaluate(f"[{DRAWN}, document.querySelectorAll('.fewstep-plot').length]") == [0, 0]
    assert page.evaluate(REPORTS)[0].startswith("sigmas: 12 calls")
    assert any(text.startswith("FewStep draws no plots here") for text in page.errors)
    page.close()


def test_a_flow_schedule_is_linear_and_begins_without_signal(page, server):
    load(page, workflow("flow", steps=8))
    run(page, server)
    drawn(page)
    first, last = pointed(page, 0.15, 0.1), pointed(page, 0.97, 0.8)
    assert first[1:] == ["step 1, after 0 calls", "sigma 1", "noise/signal \N{INFINITY}", "log-SNR -\N{INFINITY}"]
    assert last[1:] == ["end, after 8 calls", "sigma 0", "noise/signal 0", "log-SNR \N{INFINITY}"]
    photograph(page, "plot-flow")


def test_restarts_and_a_loaded_schedule_are_plotted_on_their_own_nodes(page, server):
    steps, few = {"classic": (30, 8), "nodes2": (36, 9)}[page.canvas]  # the host is silent on what it has run already
    load(page, workflow(steps=steps))
    page.evaluate(RESTARTED, few)
    run(page, server)
    drawn(page, count=3, scale=0.6)
    plots = page.evaluate(PLOTS)
    assert [one["label"] for one in plots["FewStepInspectSchedule"]] == ["sigmas", "compare_with"]
    (loaded,), (restarted,) = plots["FewStepLoadSchedule"], plots["FewStepRestartSchedule"]
    assert loaded["calls"][-1] == few and restarted["calls"][-1] == steps
    jump = next(i for i, (calls, after) in enumerate(pairwise(restarted["calls"])) if calls == after)
    area = AREA_OF.format("FewStepRestartSchedule")
    page.evaluate(f"{area}.focus()")
    for _ in range(jump + 1):
        page.keyboard.press("ArrowRight")
    told = page.evaluate(f"{area}.querySelector('.fewstep-tip').textContent").split("\n")
    assert told[0] == f"back up from here, after {restarted['calls'][jump]} calls"
    assert page.evaluate(INSIDE, area) == [True, False]  # a narrow node
    photograph(page, "plots-of-three-nodes")


def test_what_is_not_in_the_page_keeps_nothing_that_listens(shown):
    """uPlot asks the window for changes of its pixels, until it is destroyed."""
    shown.evaluate(COUNTING)
    for _ in range(3):
        shown.evaluate("document.querySelector('.fewstep-switch').click()")
        shown.wait_for_function(f"{DRAWN} === 1", timeout=10_000)
    shown.evaluate("window.app.graph.clear()")
    shown.wait_for_function("window.fewstepListening === -1", timeout=10_000)  # what was there when counting began
