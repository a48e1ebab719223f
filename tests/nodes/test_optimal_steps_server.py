"""Optimal Stepsize in the running host: search, sample, save, load in a second workflow; cancelled half-way."""

from __future__ import annotations

import re

import pytest
from support.examples import mostly
from support.server import NOT_IN_LIST, Cancelled, HostError

from .test_demo_server import custom_graph, draw, graph, middle, node
from .test_dpm_solver_v3_server import estimate_node, files, run, v3_graph
from .test_guidance_server import guided_graph, spread_node

SMALL = {"teacher_steps": 24, "trajectories": 2, "polish": 1, "start": "auto", "denoise": 1.0}


def search_node(**changed) -> dict:
    given = {"cfg": 3.0, "seed": 0, "steps": 4, "solver": "dpmpp_2m"}
    linked = {"model": ["1", 0], "positive": ["2", 0], "negative": ["3", 0], "latent_image": ["4", 0]}
    return node("FewStepSearchSchedule", **(linked | given | SMALL | changed))


def load_node(name: str, **changed) -> dict:
    return node("FewStepLoadSchedule", **({"name": name, "model": ["1", 0], "steps": 4, "denoise": 1.0} | changed))


def schedule_graph(schedule: dict, variant: str = "flow", sampler: str = "dpmpp_2m") -> dict:
    """The demo graph with SamplerCustomAdvanced, whose sigmas come from `schedule`."""
    prompt = custom_graph(variant, "beta", 4, node("KSamplerSelect", sampler_name=sampler))
    (custom,) = (part for part in prompt.values() if part["class_type"] == "SamplerCustomAdvanced")
    custom["inputs"]["sigmas"] = ["50", 0]
    return prompt | {"50": schedule}


@pytest.fixture(scope="module")
def saved(server) -> str:
    """The name of a file that a search saved."""
    progress, text = run(server, schedule_graph(search_node(save_as="searched")))
    (total,) = {int(number) for number in re.findall(r"MB of latents\): (\d+) model calls of one latent", text)}
    assert (total, total) in progress
    assert re.search(rf"\d+ of {total} model calls of one latent at most, 0:\d\d left", text)
    assert "dpmpp_2m, 4 calls, cfg 3: " in text and text.endswith("models/fewstep/searched.safetensors")
    return "searched.safetensors"


def test_a_search_is_loaded_in_a_second_workflow(server, saved):
    assert saved in files(server)
    offered = server.get("/object_info/FewStepLoadSchedule").json()["FewStepLoadSchedule"]["input"]["required"]["name"]
    assert saved in offered[1]["options"] and "FLUX (published)" in offered[1]["options"]
    statistics = server.get("/object_info/FewStepLoadStatistics").json()["FewStepLoadStatistics"]["input"]["required"]
    assert saved not in statistics["name"][1]["options"]
    progress, text = run(server, schedule_graph(load_node(saved)))
    assert text.startswith("Searched for dpmpp_2m at cfg 3: use that sampler") and (4, 4) in progress
    assert "Made for 10 steps" in run(server, schedule_graph(load_node(saved, steps=12)))[1]


@pytest.mark.parametrize(
    "measures", mostly(spread_node(seed=8), search_node(seed=8, steps=1, polish=0), longer=(estimate_node(seed=8),))
)
def test_a_measurement_is_queued_alone_and_runs_once_where_it_is_used(server, measures):
    """At the end of a workflow; and in one that samples with it, which before was the only way."""
    inputs = {number: part for number, part in graph("flow").items() if number in ("1", "2", "3", "4")}
    progress, _ = run(server, inputs | {"50": measures})
    (total,) = {total for value, total in progress if value == total > 30}
    assert progress.count((total, total)) == 1

    def used(seed: int) -> dict:
        node_of = {"inputs": measures["inputs"] | {"seed": seed}, "class_type": measures["class_type"]}
        if measures["class_type"] == "FewStepMeasureSpread":
            return guided_graph(spread=node_of)
        if measures["class_type"] == "FewStepEstimateStatistics":
            return v3_graph(statistics=node_of)
        return schedule_graph(node_of)

    progress, _ = run(server, used(9))
    assert progress.count((total, total)) == 1 and sum(value == 1 and of == total for value, of in progress) <= 1


def test_the_same_search_costs_nothing_again(server, saved):
    """Another workflow, so that the host itself has nothing cached: the file is found by its content."""
    progress, text = run(server, schedule_graph(search_node(save_as=" searched "), sampler="euler"))
    assert "Searching" not in text and {total for _, total in progress} <= {1, 4}


@pytest.mark.parametrize("variant", mostly("v", longer=("eps", "flow", "gmflow")))
def test_every_variant_is_searched_and_drawn(server, variant):
    picture = draw(server, schedule_graph(search_node(steps=6, solver="dpmpp_2m"), variant))
    red, green, blue = middle(picture)
    assert red > 0.6 and green < 0.6 and blue < 0.5 and picture[0, 0].min() > 0.8


def test_the_chart_is_on_the_node(server):
    history = server.run(schedule_graph(search_node(steps=3, seed=2)))
    (chart,) = history["outputs"]["50"]["images"]
    assert chart["type"] == "temp"
    assert server.get("/view", **{key: chart[key] for key in ("filename", "subfolder", "type")}).content[1:4] == b"PNG"


def test_a_cancelled_search_leaves_no_file_and_goes_on_later(server):
    before = files(server)
    prompt = schedule_graph(search_node(save_as="stopped", seed=5))

    def stop(value: int, total: int) -> None:
        if total > 100 and value > total // 2:
            server.cancel()

    with pytest.raises(Cancelled):
        server.run(prompt, stop)
    assert files(server) == before
    assert draw(server, graph("eps", steps=4, seed=9)).shape == (64, 64, 3)
    run(server, prompt)
    assert files(server) == before | {"stopped.safetensors"}


@pytest.mark.parametrize(
    "schedule, words",
    [
        (search_node(solver="heun"), "solver is 'heun'; choose one of euler"),
        (search_node(start="late"), "start is 'late'; choose one of auto"),
        (search_node(steps=13), "for 13 steps it must be 26 or more"),
        (search_node(denoise=0.5), "the latent is empty"),
        (search_node(save_as="../../x"), "leads out of"),
        (load_node("elsewhere.safetensors"), "There is no 'elsewhere"),
    ],
    ids=["solver", "start", "teacher", "empty", "name", "no such file"],
)
def test_bad_input_is_said_on_the_node(server, schedule, words):
    with pytest.raises(HostError, match=f"FewStep(Search|Load)Schedule: (.*{words}|{NOT_IN_LIST})"):
        server.run(schedule_graph(schedule))


def test_a_published_table_wants_a_flow_model(server):
    with pytest.raises(HostError, match="FewStepLoadSchedule: FLUX .published. is for flow models"):
        server.run(schedule_graph(load_node("FLUX (published)"), "eps"))
    _, text = run(server, schedule_graph(load_node("FLUX (published)", steps=6)))
    assert "Made for FLUX.1 dev" in text and "Made at shift 3.158; carried over to your model's 1" in text


def test_a_broken_file_is_said_and_kept(server, saved):
    path = server.base / "models" / "fewstep" / "torn.safetensors"
    path.write_bytes(b"no tensors here")
    with pytest.raises(HostError, match="FewStepLoadSchedule: torn.safetensors cannot be read"):
        server.run(schedule_graph(load_node("torn.safetensors")))
    run(server, schedule_graph(search_node(save_as="torn", steps=2)))
    assert path.read_bytes() == b"no tensors here" and "torn-2.safetensors" in files(server)
