"""Probabilistic guidance in the running host: measure, guide, chain with the host's APG; what is refused."""

from __future__ import annotations

import pytest
from support.server import NOT_IN_LIST, HostError

from .test_demo_server import draw, graph, middle, node
from .test_dpm_solver_v3_server import files, run


def spread_node(**changed) -> dict:
    given = {"cfg": 3.0, "seed": 0, "images": 4, "levels": 8, "estimator": "residual"}
    linked = {"model": ["1", 0], "positive": ["2", 0], "negative": ["3", 0], "latent_image": ["4", 0]}
    return node("FewStepMeasureSpread", **(linked | given | changed))


def guided_graph(variant: str = "flow", cfg: float = 7.0, spread: dict | None = None, apg: str = "", **changed) -> dict:
    """The demo graph whose model goes through our node; apg: the host's, "before" or "after" it."""
    given = {"strength": 0.7, "mode": "cap", "orthogonal": 1.0, "start_percent": 0.0, "end_percent": 1.0}
    linked = {"spread": ["60", 0]} if spread else {}
    prompt = graph(variant, steps=8)
    source = ["62", 0] if apg == "before" else ["1", 0]
    prompt["61"] = node("FewStepProbabilisticGuidance", model=source, **(given | linked | changed))
    if spread:
        prompt["60"] = spread
    if apg:
        prompt["62"] = node(
            "APG", model=["1", 0] if apg == "before" else ["61", 0], eta=0.5, norm_threshold=15.0, momentum=0.0
        )
    (sampler,) = (part for part in prompt.values() if part["class_type"] == "KSampler")
    sampler["inputs"] |= {"model": ["62", 0] if apg == "after" else ["61", 0], "cfg": cfg}
    return prompt


@pytest.mark.parametrize("variant", ["eps", "v", "flow", "gmflow"])
def test_every_variant_is_drawn_with_a_measured_spread(server, variant):
    picture = draw(server, guided_graph(variant, spread=spread_node()))
    red, green, blue = middle(picture)
    assert red > 0.6 and green < 0.6 and blue < 0.5 and picture[0, 0].min() > 0.8


def test_a_spread_is_measured_once(server):
    _, text = run(server, guided_graph(spread=spread_node(save_as="wide", seed=3)))
    assert "Measuring the spread: 112 model calls" in text and "models/fewstep/wide.safetensors" in text
    assert "the two halves of the images differ by" in text
    _, text = run(server, guided_graph(cfg=5.0, spread=spread_node(save_as="wide", seed=3)))
    assert "Measuring" not in text and "wide.safetensors" in files(server)


@pytest.mark.parametrize("apg", ["before", "after"])
def test_it_chains_with_the_hosts_apg(server, apg):
    red, green, blue = middle(draw(server, guided_graph(apg=apg)))
    assert red > 0.6 and green < 0.6 and blue < 0.5


@pytest.mark.parametrize(
    "changed, words",
    [
        ({"mode": "hard"}, "mode is 'hard'; choose one of cap"),
        ({"mode": "fixed", "strength": 1.5}, "below 1 in the mode fixed"),
        ({"spread": spread_node(estimator="guess")}, "estimator is 'guess'"),
        ({"spread": spread_node(save_as="../../x")}, "leads out of"),
    ],
    ids=["mode", "strength", "estimator", "name"],
)
def test_bad_input_is_said_on_the_node(server, changed, words):
    nodes = "FewStep(ProbabilisticGuidance|MeasureSpread)"
    with pytest.raises(HostError, match=f"{nodes}: (.*{words}|{NOT_IN_LIST})"):
        server.run(guided_graph(**changed))
