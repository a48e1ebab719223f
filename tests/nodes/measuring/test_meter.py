"""Inspect Schedule's measuring inside the host, in this process: on exact mixtures, whose figures are known."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fewstep.samplers.noise_law import FLOW, VARIANCE_EXPLODING
from fewstep.schedulers.meters import STUDENTS, Meter, finer
from support.mixture import GuidedMixture
from support.nodes import executed, of_the_pack

from . import test_requests as small

pytestmark = pytest.mark.usefixtures("host")
KINDS = pytest.mark.parametrize("kind", ["EPS", "FLOW"])
SIGMAS = {"EPS": [14.6146, 5.0, 1.5, 0.3, 0.0292, 0.0], "FLOW": [1.0, 0.8, 0.5, 0.2, 0.0]}
CFG = 3.0


def request(kind: str, patcher=None, **changed):
    from fewstep.nodes.measuring.meter import Request

    given = small.given(patcher or small.model(kind), cfg=CFG) | {"schedule": tuple(SIGMAS[kind])} | changed
    return Request(**given)


def measured(*given, **changed):
    from fewstep.nodes.measuring.meter import measured as run

    return run(request(*given, **changed), None)


def executed_on(patcher, kind: str, sigmas=None, **changed) -> Any:
    """The node's output."""
    given = small.given(patcher, cfg=CFG)
    linked = {"latent_image": {"samples": given.pop("latent")}} | given | changed
    node = of_the_pack()["FewStepInspectSchedule"]
    asked: Any = type("Asked", (node,), {"hidden": SimpleNamespace(unique_id=None)})
    return asked.execute(torch.tensor(SIGMAS[kind] if sigmas is None else sigmas), **linked)


def watched(patcher) -> list[tuple[float, list[float], int]]:
    """Of every call: its sigma, the schedule that the host was told, and how many latents it had."""
    seen: list[tuple[float, list[float], int]] = []

    def wrapper(apply, args):
        told = args["c"]["transformer_options"]["sample_sigmas"].tolist()
        seen.append((float(args["timestep"][0]), told, len(args["input"]) // len(args["cond_or_uncond"])))
        return apply(args["input"], args["timestep"], **args["c"])

    patcher.set_model_unet_function_wrapper(wrapper)
    return seen


@KINDS
def test_the_host_gives_what_the_exact_mixture_gives(kind):
    """The same meter without the host, from the same noise: eps models are asked at their own levels of noise."""
    from fewstep.nodes.measuring.trajectories import begun, own_noise

    asked, count = request(kind, latent=torch.zeros(2, 4, small.SIZE, small.SIZE)), 2
    law = FLOW if kind == "FLOW" else VARIANCE_EXPLODING
    denoise = GuidedMixture(small.mixture(), law, torch.zeros(count, dtype=torch.long), CFG)
    noise = torch.stack([own_noise(asked, number) for number in range(count)])
    x = begun(asked, SIGMAS[kind][0], noise, torch.zeros_like(noise)).double()
    exact = Meter(denoise, law, finer(SIGMAS[kind], law, 0.0 if kind == "FLOW" else 0.0292), lambda jump: x)(x)
    found = measured(kind, latent=asked.latent)
    assert found.curvature == pytest.approx(exact.curvature, rel=0.02)
    assert found.whole == pytest.approx(exact.whole, rel=0.02)
    for one, other in zip(found.steps, exact.steps, strict=True):
        assert one.errors == pytest.approx(other.errors, rel=0.05, abs=1e-6) and one.begin == pytest.approx(other.begin)
        assert one.turn == pytest.approx(other.turn, rel=0.05, abs=1e-4)


@KINDS
def test_every_call_is_announced_counted_and_finds_its_step(kind):
    from fewstep.schedulers.meters import calls_of

    patcher = small.model(kind)
    calls, asked = watched(patcher), request(kind, patcher, latent=torch.zeros(3, 4, small.SIZE, small.SIZE))
    shown: list[str] = []
    from fewstep.nodes.measuring import running

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "show_text", lambda node_id, text: shown.append(text))
        from fewstep.nodes.measuring.meter import measured as run

        run(asked, None)
    total = 3 * calls_of(asked.fine)
    assert sum(latents for *_, latents in calls) == total
    assert shown[0] == f"Measuring the schedule: {total} model calls of one latent at most"
    assert shown[-1].startswith(f"Measuring the schedule: {total} of {total} ")
    for sigma, told, _ in calls:
        assert min(abs(sigma - one) for one in told) < 1e-4 * max(sigma, 1e-3)


@KINDS
def test_with_nothing_connected_no_call_is_made_and_nothing_is_new(kind):
    patcher = small.model(kind)
    calls = watched(patcher)
    node = of_the_pack()["FewStepInspectSchedule"]
    asked: Any = type("Asked", (node,), {"hidden": SimpleNamespace(unique_id=None)})
    output = asked.execute(torch.tensor(SIGMAS[kind]), patcher)
    assert calls == [] and "Measured" not in output.ui["fewstep"][0]["text"]
    assert output.args[1].shape[2] < 1000


def test_what_the_node_says_and_draws():
    output = executed_on(small.model("FLOW"), "FLOW")
    text = output.ui["fewstep"][0]["text"]
    first, table, numbers = text.split("\n\n")
    assert "Measured on 1 latent" in first and "has a curvature of 0." in first
    assert all(f"{name} ends with an error of " in first for name in STUDENTS)
    assert table.splitlines()[0].split() == ["step", "from", "to", "euler", "dpmpp_2m", "turn"]
    assert len(table.splitlines()) == len(SIGMAS["FLOW"]) and numbers.startswith("calls")
    assert output.args[1].shape[2] > 1500 and output.args[1].std() > 0


def test_the_step_that_errs_most_is_named():
    """Small steps and one large one."""
    output = executed_on(small.model("FLOW"), "FLOW", [1.0, 0.98, 0.96, 0.94, 0.3, 0.2, 0.1, 0.05, 0.0])
    text = output.ui["fewstep"][0]["text"]
    assert text.count("is made in step 4 of 8, from 0.94 to 0.3.") == 2


def test_a_guider_is_the_four_sockets():
    from comfy_extras.nodes_custom_sampler import CFGGuider

    patcher = small.model("FLOW")
    given = small.given(patcher)
    guider = executed(CFGGuider, patcher, given["positive"], given["negative"], CFG)
    through = executed_on(None, "FLOW", model=None, positive=None, negative=None, cfg=99.0, guider=guider)
    assert through.ui["fewstep"][0]["text"] == executed_on(patcher, "FLOW").ui["fewstep"][0]["text"]


@KINDS
def test_pictures_are_begun_from(kind):
    """Below the highest sigma the noise is put on the pictures: they are nearly kept at little noise."""
    pictures = small.PICTURES.clone()
    sigmas = (0.2, 0.1, 0.05, 0.0)
    found = measured(kind, latent=pictures, schedule=sigmas)
    assert float((found.end - pictures).square().mean()) < 0.15
    empty = measured(kind, schedule=sigmas)
    assert float((empty.end - pictures[:1]).square().mean()) > 0.3


def test_a_jump_is_measured_with_noise_of_the_seed():
    once, again, other = (measured("FLOW", schedule=(1.0, 0.5, 0.2, 0.6, 0.3, 0.0), seed=seed) for seed in (5, 5, 6))
    assert len(once.steps) == 4
    assert torch.equal(once.end, again.end) and not torch.equal(once.end, other.end)


def test_streams_are_measured():
    from . import test_streams as streams

    patcher = streams.model("flow")
    found = measured("FLOW", patcher, latent=streams.empty(1))
    assert found.curvature > 0 and len(found.steps) == 4


def test_cancel_stops_it_and_a_model_of_nan_is_told():
    import comfy.model_management
    from support.host_mixture import fail

    patcher = small.model("FLOW")
    fail(patcher, 7, comfy.model_management.InterruptProcessingException())
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        executed_on(patcher, "FLOW")
    patcher = small.model("FLOW")
    fail(patcher, 7)
    with pytest.raises(ValueError, match="NaN or infinite numbers at model call"):
        executed_on(patcher, "FLOW")


@pytest.mark.parametrize(
    "changed, words",
    [
        ({"positive": None}, "positive is missing"),
        ({"latent_image": None}, "latent_image is missing"),
        ({"model": None}, "model is missing"),
        ({"negative": None}, "negative is missing"),
        ({"latent_image": {"samples": torch.zeros(65, 4, 4, 4)}}, "latents in latent_image is 65"),
        ({"sigmas": [0.0, 0.5, 1.0]}, "no step that falls"),
        ({"sigmas": [1.0]}, "no step that falls"),
        ({"sigmas": [1.0, 2.0, 0.0]}, "Number 2 of the 3 sigmas is 2"),
        ({"sigmas": [n / 300 for n in range(300, -1, -1)]}, "number of steps in sigmas is 300"),
        ({"cfg": float("nan")}, "cfg is nan"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_what_cannot_be_measured_is_told(changed, words):
    with pytest.raises(ValueError, match=words):
        executed_on(small.model("FLOW"), "FLOW", **changed)
