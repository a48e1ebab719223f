"""What nodes send to the browser's plots, and where."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.usefixtures("host")


def sent(output) -> dict[str, Any]:
    (entry,) = output.ui["fewstep"]
    return json.loads(json.dumps(entry, allow_nan=False))


def node(name: str) -> Any:
    from support.nodes import of_the_pack

    hidden = SimpleNamespace(unique_id=None, prompt=None, extra_pnginfo=None)
    return type(name, (of_the_pack()[name],), {"hidden": hidden})


def model(kind: str):
    from fewstep.nodes.models.demo import load_model

    return load_model(kind)


def test_a_flow_schedule_is_sent_with_its_ratios_and_as_json():
    from fewstep.nodes.host.plots import schedule_plot
    from fewstep.samplers.noise_law import FLOW

    plot = schedule_plot({"mine": (1.0, 0.5, 0.0)}, FLOW, (0.0, 1.0))
    series = {"label": "mine", "steps": [1, 2, 3], "calls": [0, 1, 2], "sigmas": [1.0, 0.5, 0.0]}
    assert plot == {
        "kind": "schedule",
        "series": [series | {"ratios": [None, 1.0, 0.0]}],
        "flow": True,
        "span": [0.0, 1.0],
        "span_ratios": [0.0, None],
    }
    assert schedule_plot({"mine": (1.0, 0.5, 0.0)}) == {"kind": "schedule", "series": [series]}  # no model: no ratios
    assert schedule_plot({"one": [1.0]}, FLOW) is None and schedule_plot({}, FLOW) is None


def test_a_long_schedule_is_thinned_but_keeps_its_end_and_its_jumps():
    from fewstep.nodes.host.plots import MOST_POINTS, schedule_plot

    sigmas = [float(sigma) for sigma in range(2000, 1000, -1)] + [1500.0] + [*map(float, range(1499, -1, -1))]
    plot = schedule_plot({"long": sigmas})
    assert plot is not None
    (series,) = plot["series"]
    assert len(series["sigmas"]) <= MOST_POINTS + 3 and series["sigmas"][-1] == 0 and series["steps"][-1] == 2501
    jump = series["sigmas"].index(1001.0)
    assert series["sigmas"][jump + 1] == 1500.0 and series["calls"][jump : jump + 2] == [999, 999]
    assert series["calls"][-1] == 2499


def test_inspect_passes_on_what_it_looks_at_and_sends_all_curves():
    sigmas, other = torch.tensor([1.0, 0.6, 0.6, 0.0]), torch.tensor([1.0, 0.5, 0.0])
    output = node("FewStepInspectSchedule").execute(sigmas, model("flow"), other)
    assert output.args[0] is sigmas and output.args[1].ndim == 4 and output.args[1].std() > 0
    entry = sent(output)
    assert [one["label"] for one in entry["plot"]["series"]] == ["sigmas", "compare_with"]
    assert entry["plot"]["flow"] and entry["plot"]["span"][1] == 1.0
    assert "Step 2 goes nowhere" in entry["text"] and "\ncompare_with: 2 calls" in entry["text"].split("\n\n")[0]


@pytest.mark.parametrize("sigmas", [torch.tensor([]), torch.tensor([1.0, math.nan, math.inf, 0.0]), torch.zeros(1)])
def test_inspect_takes_what_no_sampler_would(sigmas):
    output = node("FewStepInspectSchedule").execute(sigmas)
    assert output.args[0] is sigmas and output.args[1].shape[-1] == 3 and sent(output)["text"]


@pytest.mark.parametrize("given", [None, torch.zeros(2, 2), torch.ones(20_000), "karras"])
def test_inspect_says_what_is_no_schedule(given):
    with pytest.raises(ValueError, match="sigmas is .* it must be SIGMAS.*Connect a scheduler node"):
        node("FewStepInspectSchedule").execute(given)


def test_a_restart_schedule_and_a_loaded_one_are_plotted():
    from support.nodes import executed

    demo = model("eps")
    sigmas = torch.cat([torch.logspace(1, -1.5, 30), torch.zeros(1)])
    plot = sent(node("FewStepRestartSchedule").execute(demo, sigmas, "a1111", "keep_steps"))["plot"]
    (curve,) = plot["series"]
    expanded = executed(node("FewStepRestartSchedule"), demo, sigmas, "a1111", "keep_steps")
    assert curve["sigmas"] == pytest.approx(expanded.tolist(), rel=1e-4) and not plot["flow"]
    jumps = [i for i, (sigma, later) in enumerate(pairwise(curve["sigmas"])) if later > sigma]
    assert jumps == [i for i, (calls, later) in enumerate(pairwise(curve["calls"])) if later == calls] != []
    names = node("FewStepLoadSchedule").define_schema().inputs[0].options
    loaded = node("FewStepLoadSchedule").execute(names[0], model("flow"), 6, 1.0)
    assert sent(loaded)["plot"]["series"][0]["sigmas"] == pytest.approx(loaded.args[0].tolist(), rel=1e-4)


def test_boost_plots_what_came_in_and_what_ran():
    import comfy.sample
    import comfy.samplers
    from fewstep.nodes.models.demo import load_clip

    clip = load_clip()
    prompts = [clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in ("red apple", "")]
    output = node("FewStepBoost").execute(model("flow"), True)
    boosted, noise = output.args[0], torch.randn(1, 3, 16, 16)
    sigmas = comfy.samplers.calculate_sigmas(boosted.get_model_object("model_sampling"), "simple", 4)
    euler = comfy.samplers.sampler_object("euler")
    comfy.sample.sample_custom(boosted, noise, 1.0, euler, sigmas, *prompts, torch.zeros_like(noise), seed=0)
    given, ran = sent(output)["plot"]["series"]
    assert given["label"] == "given" and given["sigmas"] == pytest.approx(sigmas.tolist(), rel=1e-4)
    assert ran["label"] == "Boost" and len(ran["sigmas"]) == 5 and ran["sigmas"] != given["sigmas"]
