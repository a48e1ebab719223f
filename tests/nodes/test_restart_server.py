"""Restart in the running host: the three nodes over the demo model, previews, cancel, and errors on the node."""

from __future__ import annotations

import numpy as np
import pytest
from support.server import PREVIEW, Cancelled, HostError

from .test_demo_server import custom_graph, draw, graph, middle, node


def restart_graph(variant="eps", steps=20, preset="a1111", budget="keep_steps", seed=1, intervals=(), **more) -> dict:
    """The demo graph with SamplerCustomAdvanced and Restart instead of KSampler. `more`: inputs of single nodes."""
    scheduler = "karras" if variant in ("eps", "v") else "simple"
    sampler = node("FewStepRestartSampler", s_noise=1.0, **more.get("sampler", {}))
    prompt = custom_graph(variant, scheduler, steps, sampler, seed)
    prompt["5"]["inputs"]["sigmas"] = ["23", 0]
    prompt["23"] = node("FewStepRestartSchedule", model=["1", 0], sigmas=["24", 0], preset=preset, budget=budget)
    previous: list | None = None
    for number, interval in enumerate(intervals):
        linked: dict[str, object] = {"previous": previous} if previous else {}
        prompt[str(30 + number)] = node("FewStepRestartInterval", **interval, **linked)
        previous = [str(30 + number), 0]
    if previous:
        prompt["23"]["inputs"]["intervals"] = previous
    return prompt


def interval(sigma_min=0.1, sigma_max=2.0, steps=4, repeats=1, unit="noise_to_signal") -> dict:
    return {"sigma_min": sigma_min, "sigma_max": sigma_max, "steps": steps, "repeats": repeats, "unit": unit}


@pytest.mark.parametrize("variant", ["eps", "v", "flow", "gmflow"])
def test_restart_draws_with_a_preview_a_step_and_a_true_total(server, variant):
    progress: list[tuple[int, int]] = []
    previews: list[bytes] = []

    def on_bytes(kind: int, payload: bytes) -> None:
        if kind == PREVIEW:
            previews.append(payload)

    history = server.run(restart_graph(variant), lambda *step: progress.append(step), on_bytes)
    assert len(server.pictures(history)) == 1
    assert [step for step in progress if step[1] == 20] == [(i, 20) for i in range(1, 21)]
    assert len(previews) == 20
    assert "20 steps: 11 main, 9 in 1 restart\n" in server.reports(history)


@pytest.mark.parametrize("variant", ["eps", "flow"])
def test_the_picture_is_what_the_prompt_says(server, variant):
    picture = draw(server, restart_graph(variant, steps=30))
    red, green, blue = middle(picture)
    assert red > 0.6 and green < 0.6 and blue < 0.5
    assert picture[0, 0].min() > 0.8


def test_cancelled_half_way_and_run_again(server):
    seen = []

    def stop(value: int, total: int) -> None:
        seen.append(value)
        if value >= 10:
            server.cancel()

    with pytest.raises(Cancelled):
        server.run(restart_graph("flow", steps=40, seed=11), stop)
    assert 10 <= max(seen) < 40
    first = draw(server, restart_graph("flow", steps=40, seed=11))
    draw(server, graph("eps", steps=4))
    again = draw(server, restart_graph("flow", steps=40, seed=11) | {"0": graph()["4"]})
    np.testing.assert_array_equal(first, again)


def test_an_inner_sampler_and_chained_intervals(server):
    chain = [interval(0.1, 0.6), interval(1.0, 2.0, repeats=2)]
    prompt = restart_graph("flow", steps=24, budget="add_steps", intervals=chain, sampler={"sampler": ["25", 0]})
    prompt["25"] = node("KSamplerSelect", sampler_name="dpmpp_2m")
    totals = []
    server.run(prompt, lambda value, total: totals.append(total))
    assert max(totals) == 24 + 3 + 2 * 3


def test_the_step_unit_on_a_flow_model(server):
    prompt = restart_graph("flow", steps=20, budget="add_steps", intervals=[interval(12, 3, 4, 2, "step")])
    totals = []
    server.run(prompt, lambda value, total: totals.append(total))
    assert max(totals) == 26


def test_a_schedule_split_inside_a_restart_still_runs(server):
    prompt = restart_graph("eps", steps=20, budget="add_steps", intervals=[interval(repeats=2)])
    prompt["26"] = node("SplitSigmas", sigmas=["23", 0], step=17)
    prompt["5"]["inputs"]["sigmas"] = ["26", 0]
    prompt["27"] = {**prompt["5"], "inputs": {**prompt["5"]["inputs"], "noise": ["28", 0], "latent_image": ["5", 0]}}
    prompt["27"]["inputs"]["sigmas"] = ["26", 1]
    prompt["28"] = node("DisableNoise")
    prompt["6"]["inputs"]["samples"] = ["27", 0]
    picture = draw(server, prompt)
    red, green, blue = middle(picture)
    assert red > 0.6 and green < 0.6 and blue < 0.5


def test_a_schedule_too_short_for_the_default_preset_draws_with_its_own_steps(server):
    totals = []
    server.run(restart_graph("eps", steps=12), lambda value, total: totals.append(total))
    assert max(totals) == 12


@pytest.mark.parametrize(
    "change, words",
    [
        ({"intervals": [interval(2.0, 0.1)]}, "given: 2 to 0.1.*larger"),
        ({"intervals": [interval(0.1, 90.0)]}, "above the first sigma of the schedule"),
        ({"intervals": [interval(0.1, 1.0), interval(0.5, 2.0)]}, "overlap"),
        ({"intervals": [interval(30, 3, 4, 1, "step")]}, "beyond the schedule of 20 steps"),
        ({"intervals": [interval(steps=40)]}, "Give the scheduler"),
    ],
    ids=["upside down", "too high", "overlap", "no such step", "no room"],
)
def test_bad_input_is_said_on_the_node(server, change, words):
    with pytest.raises(HostError, match=f"FewStepRestart(Interval|Schedule): .*{words}"):
        server.run(restart_graph(**change))
