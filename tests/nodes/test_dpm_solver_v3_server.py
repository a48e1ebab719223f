"""DPM-Solver-v3 in the running host: estimate, save, load in a second workflow, sample; cancelled half-way."""

from __future__ import annotations

import pytest
from support.server import NOT_IN_LIST, TEXT, Cancelled, HostError

from .test_demo_server import custom_graph, draw, graph, middle, node


def estimate_node(**changed) -> dict:
    given = {"cfg": 3.0, "seed": 0, "images": 2, "levels": 8, "pooling": "global", "derivative": "differences"}
    linked = {"model": ["1", 0], "positive": ["2", 0], "negative": ["3", 0], "latent_image": ["4", 0]}
    return node("FewStepEstimateStatistics", **(linked | given | changed))


def v3_graph(variant="flow", steps=8, statistics=None, scheduler="beta", **changed) -> dict:
    """The demo graph with SamplerCustomAdvanced and DPM-Solver-v3; `statistics` is the node that gives them."""
    choices = {"order": 2, "corrector": "everywhere", "pseudo_predictor": False, "pseudo_corrector": False}
    linked = {"statistics": ["40", 0]} if statistics else {}
    sampler = node("FewStepDPMSolverV3", **(choices | {"lower_order_final": False} | linked | changed))
    prompt = custom_graph(variant, scheduler, steps, sampler)
    return prompt | ({"40": statistics} if statistics else {})


def files(server) -> set[str]:
    folder = server.base / "models" / "fewstep"
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


def run(server, prompt: dict) -> tuple[list[tuple[int, int]], str]:
    """The progress of a workflow, and all that its nodes said: while they worked, and what stays on them."""
    progress, texts = [], []

    def on_bytes(kind: int, payload: bytes) -> None:
        if kind == TEXT:
            texts.append(payload[4 + int.from_bytes(payload[:4], "big") :].decode())

    said: list[str] = []
    history = server.run(prompt, lambda *step: progress.append(step), on_bytes, said.append)
    kept = server.reports(history)
    return progress, "\n".join([*texts, kept, *(text for text in said if text not in kept)])


CALLS = 2 * (2 * 8 + 1) + 2 * 3 * 43  # two images of eight levels and the start; the check


@pytest.fixture(scope="module")
def saved(server) -> str:
    """The name of a file that an estimate saved."""
    progress, text = run(server, v3_graph(statistics=estimate_node(save_as="mine")))
    assert f"Measuring: {CALLS} model calls\n" in text
    assert f"{CALLS // 2} of {CALLS} model calls, 0:" in text
    assert "models/fewstep/mine.safetensors\n2 images, 8 levels, cfg 3" in text
    assert (CALLS, CALLS) in progress
    return "mine.safetensors"


def test_an_estimate_is_saved_and_loaded_in_a_second_workflow(server, saved):
    assert saved in files(server)
    assert (
        saved
        in server.get("/object_info/FewStepLoadStatistics").json()["FewStepLoadStatistics"]["input"]["required"][
            "name"
        ][1]["options"]
    )
    _, text = run(server, v3_graph(statistics=node("FewStepLoadStatistics", name=saved), use="always"))
    assert "2 images, 8 levels, cfg 3" in text and "8 calls with statistics." in text
    assert "measured" not in text.split("8 calls with statistics.")[1]


def test_the_same_estimate_costs_nothing_again(server, saved):
    """Another workflow, so that the host itself has nothing cached: the file is found by its content."""
    prompt = v3_graph(statistics=estimate_node(save_as=" mine "), steps=6)
    progress, text = run(server, prompt)
    assert "Measuring" not in text and {total for _, total in progress} <= {1, 6}


def test_another_cfg_is_another_measurement_and_is_said(server, saved):
    prompt = v3_graph(statistics=node("FewStepLoadStatistics", name=saved), use="always")
    prompt["21"]["inputs"]["cfg"] = 6.0
    assert "measured at cfg 3.0, not 6.0" in run(server, prompt)[1]
    prompt["1"]["inputs"]["variant"] = "v"
    assert "on a model of type FLOW, not V_PREDICTION" in run(server, prompt)[1]


def test_a_cancelled_estimate_leaves_no_file_and_goes_on_later(server):
    before = files(server)
    seen = []

    def stop(value: int, total: int) -> None:
        seen.append((value, total))
        if total == CALLS and value >= 25:
            server.cancel()

    prompt = v3_graph(statistics=estimate_node(save_as="cancelled", seed=5))
    with pytest.raises(Cancelled):
        server.run(prompt, stop)
    assert files(server) == before
    assert draw(server, graph("eps", steps=4, seed=9)).shape == (64, 64, 3)
    progress, text = run(server, prompt)
    rest = CALLS - (2 * 8 + 1)  # one image was finished
    assert f"Measuring: {rest} model calls\n" in text and (rest, rest) in progress
    assert files(server) == before | {"cancelled.safetensors"}


@pytest.mark.parametrize("variant", ["eps", "v", "flow", "gmflow"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_every_variant_draws_without_statistics(server, variant, order):
    picture = draw(server, v3_graph(variant, steps=12, order=order, corrector="off"))
    red, green, blue = middle(picture)
    assert red > 0.6 and green < 0.6 and blue < 0.5
    assert picture[0, 0].min() > 0.8


@pytest.mark.parametrize(
    "change, words",
    [
        ({"corrector": "sometimes"}, "corrector is 'sometimes'; choose one of everywhere"),
        ({"prediction": "velocity"}, "prediction is 'velocity'; choose one of data, noise"),
        ({"statistics": node("FewStepLoadStatistics", name="elsewhere.safetensors")}, "There is no 'elsewhere"),
        ({"statistics": estimate_node(pooling="all")}, "pooling is 'all'; choose one of global"),
        ({"statistics": estimate_node(save_as="../../x")}, "leads out of"),
    ],
    ids=["corrector", "prediction", "no such file", "pooling", "name"],
)
def test_bad_input_is_said_on_the_node(server, change, words):
    nodes = "FewStep(DPMSolverV3|EstimateStatistics|LoadStatistics)"
    with pytest.raises(HostError, match=f"{nodes}: (.*{words}|{NOT_IN_LIST})"):
        server.run(v3_graph(**change))


def test_a_broken_file_is_said_and_kept(server, saved):
    path = server.base / "models" / "fewstep" / "broken.safetensors"
    path.write_bytes(b"no tensors here")
    with pytest.raises(HostError, match="FewStepLoadStatistics: broken.safetensors cannot be read"):
        server.run(v3_graph(statistics=node("FewStepLoadStatistics", name="broken.safetensors")))
    run(server, v3_graph(statistics=estimate_node(save_as="broken", images=2, levels=6)))
    assert path.read_bytes() == b"no tensors here" and "broken-2.safetensors" in files(server)
