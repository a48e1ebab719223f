"""Two Experts in the running host: drawn, as two samplers by hand, from a start below the boundary; what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from support.server import PREVIEW, Cancelled, HostError

from .test_demo_server import custom_graph, draw, middle, node

STEPS = 8


def experts_graph(
    high: str = "flow", low: str = "flow", sampler: str = "euler", scheduler: str = "simple", **changed
) -> dict:
    """The demo graph with the guider of two models in SamplerCustomAdvanced, on the high one's schedule."""
    given = {"cfg_high": 4.0, "cfg_low": 1.5, "boundary": 0.6} | changed
    linked = {"model_high": ["1", 0], "model_low": ["30", 0], "positive": ["2", 0], "negative": ["3", 0]}
    return custom_graph(high, scheduler, STEPS, node("KSamplerSelect", sampler_name=sampler)) | {
        "21": node("FewStepTwoExperts", **linked, **given),
        "30": node("FewStepDemoModel", variant=low),
    }


def by_hand(split: int) -> dict:
    """The same with SplitSigmas and two samplers."""
    prompt = experts_graph()
    guider = {"positive": ["2", 0], "negative": ["3", 0]}
    return prompt | {
        "21": node("CFGGuider", model=["1", 0], cfg=4.0, **guider),
        "31": node("CFGGuider", model=["30", 0], cfg=1.5, **guider),
        "32": node("SplitSigmas", sigmas=["24", 0], step=split),
        "33": node("DisableNoise"),
        "34": prompt["5"] | {"inputs": prompt["5"]["inputs"] | {"sigmas": ["32", 0]}},
        "5": node(
            "SamplerCustomAdvanced",
            noise=["33", 0],
            guider=["31", 0],
            sampler=["22", 0],
            sigmas=["32", 1],
            latent_image=["34", 0],
        ),
    }


def is_a_red_apple(picture: np.ndarray) -> bool:
    red, green, blue = middle(picture)
    return red > 0.6 and green < 0.6 and blue < 0.5 and picture[0, 0].min() > 0.8


@pytest.mark.parametrize("high, low", [("eps", "v"), ("v", "eps"), ("flow", "gmflow")])
def test_a_pair_draws_with_previews_and_true_progress(server, high, low):
    progress: list[tuple[int, int]] = []
    previews: list[bytes] = []

    def on_bytes(kind: int, payload: bytes) -> None:
        if kind == PREVIEW:
            previews.append(payload)

    prompt = experts_graph(high, low, "dpmpp_2m", "simple" if high == "flow" else "karras", cfg_low=3.0)
    server.run(prompt, lambda *step: progress.append(step), on_bytes)
    assert [step for step in progress if step[1] == STEPS][-1] == (STEPS, STEPS)
    assert len(previews) == STEPS
    assert is_a_red_apple(draw(server, prompt | {"0": prompt["4"]}))


def test_it_is_two_samplers_by_hand(server):
    """simple at shift 1: sigmas 1, .875, .75, .625, .5 ...; the fifth is the first below the boundary."""
    apart = draw(server, experts_graph()) - draw(server, by_hand(4))
    elsewhere = draw(server, experts_graph()) - draw(server, by_hand(2))
    assert np.abs(apart).max() <= 1.5 / 255 < np.abs(elsewhere).max()


def test_image_to_image_below_the_boundary_keeps_the_picture(server):
    first = experts_graph()
    start = draw(server, first)
    again = first | {
        "40": first["24"] | {"inputs": first["24"]["inputs"] | {"denoise": 0.3}},
        "41": first["5"] | {"inputs": first["5"]["inputs"] | {"latent_image": ["5", 0], "sigmas": ["40", 0]}},
    }
    again["6"] = node("VAEDecode", samples=["41", 0], vae=["1", 2])
    assert 0 < np.abs(draw(server, again) - start).mean() < 0.08


def test_a_cancelled_run_leaves_the_next_as_it_was(server):
    prompt = experts_graph(cfg_low=1.7)
    expected = draw(server, prompt)

    def cancel(value: int, total: int) -> None:
        if (value, total) == (6, 40):
            server.cancel()

    long = experts_graph(cfg_low=1.7)
    long["24"]["inputs"]["steps"] = 40
    with pytest.raises(Cancelled, match="SamplerCustomAdvanced"):
        server.run(long, cancel)
    np.testing.assert_array_equal(draw(server, prompt | {"0": prompt["4"]}), expected)


@pytest.mark.parametrize(
    "graph, words",
    [
        (lambda: experts_graph(boundary=0.0), "FewStepTwoExperts: (Value 0.0 smaller than min|.*above 0 and below 1)"),
        (lambda: experts_graph(boundary=1.0), "FewStepTwoExperts: (Value 1.0 bigger than max|.*above 0 and below 1)"),
        (lambda: experts_graph(low="eps"), "FewStepTwoExperts: .*add noise in different ways"),
    ],
    ids=["zero", "one", "noise"],
)
def test_what_is_no_pair_is_refused(server, graph, words):
    with pytest.raises(HostError, match=words):
        server.run(graph())
