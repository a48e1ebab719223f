"""Compare in the running host: entries of the host, what cannot run, the files, cancel and a second queue."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from support.server import Cancelled, HostError

from .test_demo_server import decoded, node
from .test_dpm_solver_v3_server import run

ROOT = Path(__file__).parents[2]
CFG = 3.0
# Of the host: sampler, scheduler, steps. heun and dpm_2 make two calls a step; er_sde and euler_ancestral draw noise.
ENTRIES = [
    ("euler", "simple", 6),
    ("euler", "beta", 6),
    ("heun", "simple", 3),
    ("dpm_2", "normal", 3),
    ("lms", "simple", 6),
    ("dpmpp_2m", "beta", 6),
    ("ipndm", "simple", 6),
    ("uni_pc", "simple", 6),
    ("er_sde", "simple", 6),
    ("euler_ancestral", "simple", 6),
]
CALLS = {"heun": 5, "dpm_2": 5}
SDE = ("er_sde simple", "euler_ancestral simple")


def compare_node(**changed) -> dict:
    linked = {"model": ["1", 0], "positive": ["2", 0], "negative": ["3", 0], "latent_image": ["4", 0]}
    given = {"cfg": CFG, "seed": 5, "reference_steps": 30, "images": 2, "rivals": False}
    return node("FewStepCompare", **(linked | given | changed))


def compare_graph(entries=ENTRIES, **changed) -> dict:
    """The entries, each of three nodes, and one whose sampler wants mixtures, which this model does not predict."""
    linked = {f"entries.entry{number}": [str(100 + number), 0] for number in range(len(entries) + 1)}
    prompt = {
        "1": node("FewStepDemoModel", variant="flow"),
        "2": node("CLIPTextEncode", clip=["1", 1], text="red apple"),
        "3": node("CLIPTextEncode", clip=["1", 1], text=""),
        "4": node("EmptyLatentImage", width=128, height=128, batch_size=1),
        "5": compare_node(**(linked | {"vae": ["1", 2]} | changed)),
        "6": node("SaveLatent", samples=["5", 0], filename_prefix="compared/latents"),
        "7": node("SaveImage", images=["5", 3], filename_prefix="compared/grid_of_node"),
        "99": node(
            "FewStepGMFlowSampler", mode="ode", order=2, substeps=1, temperature=1.0, spectral=False
        ),
    }  # fmt: skip
    for number, (sampler, scheduler, steps) in enumerate(entries):
        prompt |= {
            str(200 + number): node("KSamplerSelect", sampler_name=sampler),
            str(300 + number): node("BasicScheduler", model=["1", 0], scheduler=scheduler, steps=steps, denoise=1.0),
            str(100 + number): entry_node(f"{sampler} {scheduler}", [str(200 + number), 0], [str(300 + number), 0]),
        }
    return prompt | {str(100 + len(entries)): entry_node("mixtures", ["99", 0], ["300", 0])}


def entry_node(label: str, sampler: list, sigmas: list) -> dict:
    return node("FewStepEntry", label=label, sampler=sampler, sigmas=sigmas)


def saved(server, name: str, end: str) -> bytes:
    """The latest of what was saved under a prefix."""
    return max((server.base / "output" / "compared").glob(f"{name}_*{end}")).read_bytes()


@pytest.fixture(scope="module")
def compared(server) -> dict:
    """What the first run left: the text, the document, the lines of the CSV, and the history."""
    history = server.run(compare_graph(filename_prefix="compared/first"))
    document = json.loads(saved(server, "first", ".json"))
    lines = list(csv.DictReader(io.StringIO(saved(server, "first", ".csv").decode())))
    return {"text": server.reports(history), "document": document, "lines": lines, "history": history}


def test_every_entry_is_there_and_what_cannot_run_is_said(compared):
    rows = {row["label"]: row for row in compared["document"]["rows"]}
    assert list(rows) == [*(f"{sampler} {scheduler}" for sampler, scheduler, _ in ENTRIES), "mixtures"]
    for sampler, scheduler, steps in ENTRIES:
        row = rows[f"{sampler} {scheduler}"]
        # uni_pc leaves the last sigma but one out only where KSampler makes its sigmas
        assert (row["calls"], row["steps"], row["refused"]) == (CALLS.get(sampler, steps), steps, None)
        assert row["seconds"] > 0 and row["kind"] == ("sde" if row["label"] in SDE else "ode")
        assert (row["error"] is None) == (row["label"] in SDE)
    assert "predicts" in rows["mixtures"]["refused"] and "mixtures at 6 steps was left out: " in compared["text"]
    assert (
        compared["text"].startswith("At 6 calls ")
        and "er_sde simple, euler_ancestral simple: drawing" in compared["text"]
    )
    assert "2 pictures, seeds 5 to 6, cfg 3. The converged picture is known to " in compared["text"]


def test_the_figures_are_those_of_the_benchmark(server, compared, host, monkeypatch):
    """On the bundled model: the same noise, to the same converged pictures, in this process."""
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    import error_per_call
    from fewstep.nodes.models.demo import load_model
    from problems import coded

    model = load_model("flow")
    latents = safetensors.torch.load(saved(server, "latents", ".latent"))["latent_tensor"]
    assert len(latents) == 2 + 2 * len(ENTRIES)
    end = model.model.process_latent_in(latents[:2])
    noise = torch.cat([torch.randn((1, 3, 16, 16), generator=torch.manual_seed(seed)) for seed in (5, 6)])
    problem = error_per_call.Problem("same", model, coded("red apple"), coded(""), CFG, noise, end, 0.0)
    rows = {row["label"]: row for row in compared["document"]["rows"]}
    for sampler, scheduler, _ in [one for one in ENTRIES if one[0] in ("euler", "heun", "dpmpp_2m", "ipndm")]:
        row = rows[f"{sampler} {scheduler}"]
        theirs = error_per_call.measure(problem, error_per_call.host_entry(sampler, scheduler), row["calls"])
        assert (theirs.calls, theirs.steps) == (row["calls"], row["steps"])
        errors = row["errors_of_pictures"]
        assert sum(errors) / 2 == pytest.approx(theirs.mean, rel=1e-3)


def test_csv_and_json_say_the_same(compared):
    for line, row in zip(compared["lines"], compared["document"]["rows"], strict=True):
        assert {name: None if value == "" else value for name, value in line.items()} == {
            name: None if row[name] is None else str(row[name]) for name in line
        }


def test_chart_and_grid_are_shown_on_the_node_and_saved(server, compared):
    (image,) = compared["history"]["outputs"]["5"]["images"]
    assert image["filename"].endswith("_chart.png") and image["type"] == "output"
    chart, as_image = (decoded(png) for png in server.pictures(compared["history"]))
    grid = decoded(saved(server, "first", "grid.png"))
    assert chart.shape[1] > 800 and grid.shape == as_image.shape and abs(grid - as_image).max() < 2 / 255
    assert chart.std() > 0.05


def test_what_did_not_change_is_not_drawn_again(server, compared):
    """Another name of the files, so that the host runs the node again; then an entry more."""
    progress, text = run(server, compare_graph(filename_prefix="compared/again"))
    tried = 3 * 6  # what could not run is tried again
    assert {total for _, total in progress} <= {tried} and f"Comparing: about {tried} model" in text
    again = json.loads(saved(server, "again", ".json"))["rows"]
    assert [row["errors_of_pictures"] for row in again] == [
        row["errors_of_pictures"] for row in compared["document"]["rows"]
    ]
    more = [*ENTRIES, ("deis", "simple", 6)]
    progress, _ = run(server, compare_graph(more, filename_prefix="compared/more"))
    assert max(total for _, total in progress) == tried + 3 * 6


def test_a_cancelled_comparison_goes_on(server):
    prompt = compare_graph(ENTRIES[:4], seed=77, filename_prefix="compared/stopped")
    seen: list[int] = []

    def stop(value: int, total: int) -> None:
        seen.append(total)
        if value > 0.75 * total:
            server.cancel()

    with pytest.raises(Cancelled):
        server.run(prompt, stop)
    assert not list((server.base / "output" / "compared").glob("stopped*"))
    progress, text = run(server, prompt)
    assert 0 < max(total for _, total in progress) < 0.7 * max(seen) and "left" in text
    assert len(json.loads(saved(server, "stopped", ".json"))["rows"]) == 5


def test_without_entries_what_people_use_runs(server):
    prompt = {number: part for number, part in compare_graph([]).items() if int(number) < 6}
    prompt["5"] = compare_node(rivals=True, calls="4", images=1, filename_prefix="compared/rivals", seed=3)
    progress, text = run(server, prompt)
    rows = json.loads(saved(server, "rivals", ".json"))["rows"]
    labels = [row["label"] for row in rows]
    used = "euler simple, uni_pc simple, dpmpp_2m karras, dpmpp_2m beta, res_multistep simple, er_sde simple".split(
        ", "
    )
    assert labels[:7] == ["Boost (FewStep)", *used] and {row["calls"] for row in rows} == {4}
    assert "The grid has rough colours" in text and max(total for _, total in progress) >= 45


@pytest.mark.parametrize(
    "changed, words",
    [
        ({"calls": "a few"}, "calls is 'a few'; it must be whole numbers from 1 to 200"),
        ({"filename_prefix": "../../x"}, "leads out of the output folder"),
        ({}, "There is nothing to compare. Connect an Entry, or switch rivals on."),
    ],
    ids=["calls", "prefix", "nothing"],
)
def test_bad_input_is_said_on_the_node(server, changed, words):
    prompt = {number: part for number, part in compare_graph([]).items() if int(number) < 6}
    prompt["5"] = compare_node(**changed)
    with pytest.raises(HostError, match=f"FewStepCompare: .*{words}"):
        server.run(prompt)
