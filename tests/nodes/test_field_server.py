"""DEIS, DualFast, TrigFlow, flow maps and heavy tails in the running host: drawn, cancelled, told and refused."""

from __future__ import annotations

import numpy as np
import pytest
from support.server import PREVIEW, Cancelled, HostError

from .test_demo_server import custom_graph, draw, graph, middle, node

EULER = node("KSamplerSelect", sampler_name="euler")
SAMPLERS = {
    "deis": node("FewStepDEIS", method="tab", order=2, clock="log_snr"),
    "rhork": node("FewStepDEIS", method="rhork", order=2, clock="model"),
    "dual fast": node("FewStepDualFast", sampler=["30", 0], strength=0.5, ramp="constant"),
    "flow map": node("FewStepFlowMapSampler", method="euler", gamma=0.9),
}


def field_graph(name: str, variant: str = "eps", steps: int = 12, **changed) -> dict:
    """The demo graph with one of the samplers; `changed`: inputs of its node."""
    sampler = SAMPLERS[name] | {"inputs": SAMPLERS[name]["inputs"] | changed}
    schedule = "simple" if variant in ("flow", "gmflow") else "karras"
    return custom_graph(variant, schedule, steps, sampler) | ({"30": EULER} if name == "dual fast" else {})


def is_a_red_apple(picture: np.ndarray) -> bool:
    red, green, blue = middle(picture)
    return red > 0.6 and green < 0.6 and blue < 0.5 and picture[0, 0].min() > 0.8


@pytest.mark.parametrize("variant", ["eps", "flow"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_draws_with_a_preview_a_step(server, name, variant):
    progress: list[tuple[int, int]] = []
    previews: list[bytes] = []

    def on_bytes(kind: int, payload: bytes) -> None:
        if kind == PREVIEW:
            previews.append(payload)

    prompt = field_graph(name, variant)
    server.run(prompt, lambda *step: progress.append(step), on_bytes)
    assert [step for step in progress if step[1] == 12] == [(i, 12) for i in range(1, 13)]
    assert len(previews) == 12
    assert is_a_red_apple(draw(server, prompt | {"0": prompt["4"]}))


@pytest.mark.parametrize("name", SAMPLERS)
def test_cancelled_half_way_and_run_again(server, name):
    seen: list[int] = []

    def stop(value: int, total: int) -> None:
        seen.append(value)
        if value >= 5:
            server.cancel()

    prompt = field_graph(name, "flow", 30)
    with pytest.raises(Cancelled):
        server.run(prompt, stop)
    assert 5 <= max(seen) < 30
    first = draw(server, prompt)
    draw(server, graph("eps", steps=4))  # so that nothing is left in the host's cache
    np.testing.assert_array_equal(first, draw(server, prompt))


def test_the_flow_map_sampler_says_that_the_bundled_model_is_none(server):
    said = server.reports(server.run(field_graph("flow map", "flow", 5, gamma=0.7)))
    assert "is no flow map" in said and "plain Euler" in said


def test_dual_fast_says_who_has_nothing_to_gain(server):
    prompt = field_graph("dual fast", steps=5) | {"30": node("KSamplerSelect", sampler_name="dpmpp_2m")}
    assert "dpmpp_2m looks back" in server.reports(server.run(prompt))


@pytest.mark.parametrize("variant, first", [("flow", "0.9877"), ("eps", "14.61")])
def test_a_trig_flow_schedule_runs_lcm(server, variant, first):
    prompt = custom_graph(variant, "simple", 4, node("KSamplerSelect", sampler_name="lcm"))
    prompt["24"] = node("FewStepTrigFlowSchedule", model=["1", 0], steps=4, times="rcm_wan")
    history = server.run(prompt)
    assert f"sigmas {first}" in server.reports(history) and len(server.pictures(history)) == 1


def test_a_trig_flow_model_runs(server):
    """The bundled model is none, so its picture is nonsense: that it is drawn, in two calls, is all."""
    prompt = custom_graph("eps", "simple", 2, node("KSamplerSelect", sampler_name="lcm"))
    prompt["31"] = node("FewStepTrigFlow", model=["1", 0], sigma_data=0.5)
    prompt["24"] = node("FewStepTrigFlowSchedule", model=["31", 0], steps=2, times="scm")
    for one in prompt.values():
        if one["class_type"] == "CFGGuider":
            one["inputs"]["model"] = ["31", 0]
    history = server.run(prompt)
    assert "sigmas 80 0.9824 0" in server.reports(history) and len(server.pictures(history)) == 1


def test_heavy_tails_draw_and_at_a_high_dimension_what_random_noise_draws(server):
    def with_noise(noise: dict) -> dict:
        prompt = custom_graph("eps", "karras", 8, EULER)
        (place,) = (key for key, one in prompt.items() if one["class_type"] == "RandomNoise")
        seed = prompt[place]["inputs"]["noise_seed"]
        return prompt | ({place: noise | {"inputs": noise["inputs"] | {"noise_seed": seed}}} if noise else {})

    ordinary = draw(server, with_noise({}))
    history = server.run(with_noise(node("FewStepHeavyTailNoise", dimension=2048)))
    assert "At dimension 2048" in server.reports(history) and len(server.pictures(history)) == 1
    far = draw(server, with_noise(node("FewStepHeavyTailNoise", dimension=10**9)))
    assert np.abs(far - ordinary).max() <= 2 / 255


@pytest.mark.parametrize(
    "prompt, words",
    [
        (field_graph("deis", method="heun"), "method"),
        (field_graph("deis", order=9), "order"),
        (field_graph("dual fast", strength=5.0), "strength"),
        (field_graph("flow map", gamma=2.0), "gamma"),
        (field_graph("flow map", method="leap"), "method"),
    ],
)
def test_what_does_not_fit_is_refused(server, prompt, words):
    with pytest.raises(HostError, match=words):
        server.run(prompt)


@pytest.mark.parametrize("own_times, words", [("1.5; 1.4", "write angles"), ("1.2", "3 steps need 2 times")])
def test_times_that_are_none_are_refused_in_words(server, own_times, words):
    prompt = custom_graph("flow", "simple", 3, node("KSamplerSelect", sampler_name="lcm"))
    given = {"steps": 3, "times": "scm", "own_times": own_times}
    prompt["24"] = node("FewStepTrigFlowSchedule", model=["1", 0], **given)
    with pytest.raises(HostError, match=words):
        server.run(prompt)
