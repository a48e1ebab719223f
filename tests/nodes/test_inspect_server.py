"""Inspect Schedule in the running host: measured along a schedule with the bundled model, and cancelled."""

from __future__ import annotations

import re

import pytest
from support.server import Cancelled

from .test_demo_server import graph, node

LINKED = {"model": ["1", 0], "positive": ["2", 0], "negative": ["3", 0], "latent_image": ["4", 0]}


def inspected(**linked) -> dict:
    """Queued alone: it draws no picture."""
    parts = {key: graph("flow")[key] for key in ("1", "2", "3")}
    return parts | {
        "4": node("EmptyLatentImage", width=128, height=128, batch_size=2),
        "24": node("BasicScheduler", model=["1", 0], scheduler="simple", steps=4, denoise=1.0),
        "30": node("FewStepInspectSchedule", sigmas=["24", 0], **linked),
    }


def test_it_measures_where_the_steps_err(server):
    progress: list[tuple[int, int]] = []
    text = server.reports(server.run(inspected(**LINKED, cfg=3.0, seed=1), lambda *step: progress.append(step)))
    total = 2 * (48 + 2 * 4)
    assert (total, total) in progress
    assert re.search(r"Measured on 2 latents.*curvature of \d.*euler ends with an error of.*turn", text, re.DOTALL)


def test_without_a_prompt_it_asks_the_model_nothing(server):
    progress: list[tuple[int, int]] = []
    text = server.reports(server.run(inspected(model=["1", 0]), lambda *step: progress.append(step)))
    assert "4 calls from sigma 1 to 0" in text and "Measured" not in text and progress == []


def test_cancelled_half_way_and_measured_again(server):
    def stop(value: int, total: int) -> None:
        if value >= 20:
            server.cancel()

    with pytest.raises(Cancelled):
        server.run(inspected(**LINKED, cfg=3.0, seed=2), stop)
    assert "Measured on 2 latents" in server.reports(server.run(inspected(**LINKED, cfg=3.0, seed=2)))
