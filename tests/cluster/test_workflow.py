"""Which workflows many workers run, and what of them."""

from __future__ import annotations

import json

import pytest
from fewstep.cluster.workflow import CARRIED, PREFIX, prefixes, read


def node(kind: str, **inputs) -> dict:
    return {"class_type": kind, "inputs": inputs}


GRAPH = {
    "1": node("FewStepDemoModel", variant="flow"),
    "2": node("CLIPTextEncode", clip=["1", 1], text="red apple"),
    "4": node("FewStepMeasureSpread", model=["1", 0], positive=["2", 0], images=4),
    "5": node("KSampler", model=["1", 0], positive=["2", 0]),
    "6": node("SaveImage", images=["5", 0]),
}


def written(folder, content) -> object:
    path = folder / "workflow.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return read(path)


def test_what_measures_and_what_it_stands_on_is_run_and_nothing_else(tmp_path):
    assert written(tmp_path, GRAPH) == {number: GRAPH[number] for number in ("1", "2", "4")}


def test_a_workflow_that_measures_nothing_is_told_what_would(tmp_path):
    with pytest.raises(
        ValueError,
        match="no node that measures.*Estimate Statistics, Measure Spread, Search Schedule, Tune and Compare",
    ):
        written(tmp_path, {"1": GRAPH["1"]})


@pytest.mark.parametrize(
    "content, words",
    [
        ("{", "is not a workflow: "),
        ({"nodes": [], "links": []}, "as the browser saves it. Save it anew"),
        ([], "of the API's format"),
        ({}, "of the API's format"),
        ({"1": {"class_type": "KSampler"}}, "of the API's format"),
    ],
)
def test_files_that_are_none(tmp_path, content, words):
    with pytest.raises(ValueError, match=words):
        written(tmp_path, content)


@pytest.mark.parametrize(
    "given, begins",
    [({}, PREFIX), ({"filename_prefix": " mine "}, "mine"), ({"filename_prefix": "a\\%date%_b"}, "a/")],
)
def test_what_compare_saves_is_known_by_its_name(host, given, begins):
    from fewstep.nodes import compare

    assert PREFIX == compare.PREFIX
    assert prefixes({"7": node("FewStepCompare", **given)}) == (begins,)


def test_every_node_that_is_kept_in_parts_is_listed(host):
    """Those that a cancel does not set back to the beginning, and Compare."""
    from fewstep.nodes import dpm_solver_v3, guidance, optimal_steps, tune

    kinds = {module.interrupted.kind for module in (dpm_solver_v3, guidance, optimal_steps, tune)}
    assert kinds == {"statistics", "spread", "schedule", "tuning"}
    assert len(CARRIED) == len(kinds) + 1
