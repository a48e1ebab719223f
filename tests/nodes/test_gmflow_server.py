"""GMFlow in the running host: the bundled model, the tiny GM-DiT from models/diffusion_models, and what is refused."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from support.gmflow import weights
from support.goldens import FOLDER
from support.server import NOT_IN_LIST, PREVIEW, Cancelled, HostError
from support.transformers import adapter

from .test_demo_server import custom_graph, draw, middle, node


def sampler_node(
    mode: str = "ode", order: int = 2, substeps: int = 0, temperature: float = 1.0, spectral: bool = False
):
    given = {"mode": mode, "order": order, "substeps": substeps, "temperature": temperature, "spectral": spectral}
    return node("FewStepGMFlowSampler", **given)


def guider_node(strength: float = 0.45, **changed) -> dict:
    linked = {"model": ["1", 0], "positive": ["2", 0], "negative": ["3", 0]}
    rest = {"orthogonal": 1.0, "start_percent": 0.0, "end_percent": 1.0}
    return node("FewStepGMFlowGuider", strength=strength, **(linked | rest | changed))


def gmflow_graph(calls: int = 4, variant: str = "gmflow", seed: int = 1, guider: dict | None = None, **sampler) -> dict:
    """The demo graph with the GMFlow Guider and Sampler in SamplerCustomAdvanced."""
    prompt = custom_graph(variant, "simple", calls, sampler_node(**sampler), seed)
    return prompt | {"21": guider or guider_node()}


def is_a_red_apple(picture: np.ndarray) -> bool:
    red, green, blue = middle(picture)
    return red > 0.6 and green < 0.6 and blue < 0.5 and picture[0, 0].min() > 0.8


@pytest.mark.parametrize("calls", [4, 8])
@pytest.mark.parametrize("mode", ["ode", "sde"])
@pytest.mark.parametrize("order", [1, 2])
def test_the_bundled_model_draws_in_few_calls(server, calls, mode, order):
    progress: list[tuple[int, int]] = []
    previews: list[bytes] = []

    def on_bytes(kind: int, payload: bytes) -> None:
        if kind == PREVIEW:
            previews.append(payload)

    prompt = gmflow_graph(calls, mode=mode, order=order)
    history = server.run(prompt, lambda *step: progress.append(step), on_bytes)
    assert [step for step in progress if step[1] == calls][-1] == (calls, calls)
    assert len(previews) == calls
    assert len(server.pictures(history)) == 1
    assert is_a_red_apple(draw(server, prompt | {"0": prompt["4"]}))


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "uni_pc"])
def test_an_ordinary_sampler_with_our_guider(server, sampler):
    prompt = gmflow_graph(12) | {"22": node("KSamplerSelect", sampler_name=sampler)}
    assert is_a_red_apple(draw(server, prompt))


@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_our_sampler_with_the_hosts_guider(server, cfg):
    prompt = custom_graph("gmflow", "simple", 8, sampler_node())
    prompt["21"]["inputs"]["cfg"] = cfg
    assert is_a_red_apple(draw(server, prompt))


def test_the_same_seed_draws_the_same_picture_and_another_seed_another(server):
    one, two = (draw(server, gmflow_graph(mode="sde", seed=seed)) for seed in (5, 6))
    prompt = gmflow_graph(mode="sde", seed=5)
    np.testing.assert_array_equal(one, draw(server, prompt | {"0": prompt["4"]}))
    assert np.abs(one - two).mean() > 0.002


@pytest.mark.parametrize("mode", ["ode", "sde"])
def test_image_to_image_and_a_mask(server, mode):
    """A drawn apple: redrawn a little it stays an apple; a masked half becomes a heart, the other half stays."""
    first = gmflow_graph(6, mode=mode)
    start = draw(server, first)
    again = {k: v for k, v in first.items() if k not in ("6",)}
    linked = {"noise": ["30", 0], "guider": ["31", 0], "sampler": ["22", 0]}
    again |= {
        "6": node("VAEDecode", samples=["33", 0], vae=["1", 2]),
        "30": node("RandomNoise", noise_seed=3),
        "31": first["21"],
        "32": node("BasicScheduler", model=["1", 0], scheduler="simple", steps=4, denoise=0.3),
        "33": node("SamplerCustomAdvanced", sigmas=["32", 0], latent_image=["5", 0], **linked),
    }
    assert np.abs(draw(server, again) - start).mean() < 0.08
    again |= {
        "9": node("SolidMask", value=0.0, width=64, height=64),
        "10": node("SolidMask", value=1.0, width=32, height=64),
        "11": node("MaskComposite", destination=["9", 0], source=["10", 0], x=0, y=0, operation="add"),
        "12": node("SetLatentNoiseMask", samples=["5", 0], mask=["11", 0]),
        "13": node("CLIPTextEncode", clip=["1", 1], text="blue heart"),
        "31": guider_node(positive=["13", 0]),
        "32": node("BasicScheduler", model=["1", 0], scheduler="simple", steps=8, denoise=1.0),
        "33": node("SamplerCustomAdvanced", sigmas=["32", 0], latent_image=["12", 0], **linked),
    }
    change = np.abs(draw(server, again) - start).mean((0, 2))
    assert change[33:].max() < 0.01
    assert change[:32].mean() > 0.05


def test_cancelled_half_way_leaves_the_host_as_it_was(server):
    def stop(value: int, total: int) -> None:
        if total == 60 and value >= 20:
            server.cancel()

    with pytest.raises(Cancelled):
        server.run(gmflow_graph(60, seed=11), stop)
    assert is_a_red_apple(draw(server, gmflow_graph(4, seed=12)))


@pytest.mark.parametrize("variant", ["eps", "flow"])
def test_an_ordinary_model_is_told_what_is_missing(server, variant):
    with pytest.raises(HostError, match="GMFlow Sampler needs a model that predicts Gaussian mixtures.*Load GMFlow"):
        server.run(custom_graph(variant, "simple", 4, sampler_node()))
    with pytest.raises(HostError, match="FewStepGMFlowGuider: The GMFlow Guider needs a model.*use CFG Guider"):
        server.run(gmflow_graph(variant=variant))


@pytest.mark.parametrize(
    "prompt, words",
    [
        (lambda: gmflow_graph(guider=guider_node(1.0)), "FewStepGMFlowGuider: .*strength"),
        (lambda: gmflow_graph(mode="heun"), f"FewStepGMFlowSampler: (.*mode|{NOT_IN_LIST})"),
        (lambda: gmflow_graph(order=3), "FewStepGMFlowSampler: .*order"),
        (lambda: gmflow_graph(mode="sde", spectral=True), "no spectrum network came with this model"),
        (lambda: label_graph("absent.safetensors", "0"), f"FewStepLoadGMFlow: (.*absent.safetensors|{NOT_IN_LIST})"),
    ],
    ids=["strength", "mode", "order", "spectral", "file"],
)
def test_bad_input_is_said_on_the_node(server, prompt, words):
    with pytest.raises(HostError, match=words):
        server.run(prompt())


# ---------------------------------------------------------------------------------------------------------
# pi-Flow: the bundled model's mixtures are policies too, and no model that takes an adapter is small enough to fetch


def piflow_graph(steps: int = 4, seed: int = 1) -> dict:
    """The demo graph with the pi-Flow Sampler's two outputs."""
    given = {"denoise": 1.0, "noise": 0.0, "temperature": 1.0, "substeps": 128, "last_step": 0.5}
    sampler = node("FewStepPiFlowSampler", model=["1", 0], steps=steps, **given)
    prompt = custom_graph("gmflow", "simple", steps, sampler, seed)
    prompt["5"]["inputs"]["sigmas"] = ["22", 1]
    return prompt


def test_policies_draw_and_say_what_runs(server):
    progress: list[tuple[int, int]] = []
    prompt = piflow_graph(8)
    history = server.run(prompt, lambda *step: progress.append(step))
    assert [step for step in progress if step[1] == 8] == [(i, 8) for i in range(1, 9)]
    assert "8 calls. Mixture policy, temperature 1" in server.reports(history)
    assert is_a_red_apple(draw(server, prompt | {"0": prompt["4"]}))


def test_a_run_of_policies_is_cancelled_and_drawn_again(server):
    def stop(value: int, total: int) -> None:
        if total == 60 and value >= 20:
            server.cancel()

    with pytest.raises(Cancelled):
        server.run(piflow_graph(60, seed=11), stop)
    assert is_a_red_apple(draw(server, piflow_graph(8, seed=12)))


def test_an_adapter_is_offered_and_told_where_it_does_not_fit(server):
    folder = server.base / "models" / "loras"
    folder.mkdir(parents=True, exist_ok=True)
    adapter("flux").saved(folder / "made.safetensors")
    (offered,) = server.get("/object_info/FewStepLoadGMFlow").json()["FewStepLoadGMFlow"]["input"]["required"].values()
    assert "loras/made.safetensors" in offered[1]["options"]
    with pytest.raises(HostError, match="made.safetensors is a pi-Flow adapter.*Connect FLUX.1, FLUX.2 or Qwen-Image"):
        server.run(label_graph("loras/made.safetensors", "0"))
    prompt = piflow_graph() | {"40": node("FewStepLoadGMFlow", name="loras/made.safetensors", model=["1", 0])}
    prompt["21"]["inputs"]["model"] = ["40", 0]
    with pytest.raises(HostError, match="go on FLUX.1, FLUX.2, Qwen-Image; the connected model is a"):
        server.run(prompt)


# ---------------------------------------------------------------------------------------------------------
# A checkpoint


def label_graph(name: str, label: str, **sampler) -> dict:
    """Load GMFlow, a label, one step, the latent saved: the tiny model has no pictures to decode."""
    linked = {"noise": ["20", 0], "guider": ["21", 0], "sampler": ["22", 0], "sigmas": ["24", 0]}
    return {
        "1": node("FewStepLoadGMFlow", name=name),
        "2": node("FewStepGMFlowLabel", model=["1", 0], label=label),
        "4": node("EmptyLatentImage", width=64, height=72, batch_size=2),
        "5": node("SamplerCustomAdvanced", latent_image=["4", 0], **linked),
        "6": node("SaveLatent", samples=["5", 0], filename_prefix="gmflow"),
        "20": node("RandomNoise", noise_seed=1),
        "21": guider_node(positive=["2", 0], negative=["2", 1]),
        "22": sampler_node(**sampler),
        "24": node("BasicScheduler", model=["1", 0], scheduler="simple", steps=1, denoise=1.0),
    }


@pytest.fixture(scope="module")
def tiny(server) -> str:
    """The name of the tiny GM-DiT, with its config and spectrum, in the host's folder."""
    folder = server.base / "models" / "diffusion_models"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(FOLDER / "gmflow" / "tiny_gmdit.safetensors", folder / "tiny.safetensors")
    shutil.copy(FOLDER / "gmflow" / "tiny_spectrum.safetensors", folder / "tiny_spectrum.safetensors")
    (folder / "tiny.json").write_text(json.dumps(weights("tiny_gmdit")[1]))
    return "tiny.safetensors"


def test_a_checkpoint_of_the_models_folder_is_offered_and_draws(server, tiny):
    (offered,) = server.get("/object_info/FewStepLoadGMFlow").json()["FewStepLoadGMFlow"]["input"]["required"].values()
    assert tiny in offered[1]["options"]
    for sampler in ({}, {"mode": "sde", "spectral": True}):
        history = server.run(label_graph(tiny, "3", **sampler))
        assert history["status"]["status_str"] == "success" and history["outputs"]["6"]["latents"]


@pytest.mark.parametrize(
    "label, words", [("9999", "label is 9999; this model knows the numbers 0 to"), ("tench", "names are not known")]
)
def test_a_label_that_the_model_lacks_is_told(server, tiny, label, words):
    with pytest.raises(HostError, match=f"FewStepGMFlowLabel: {words}|FewStepGMFlowLabel: .*{words}"):
        server.run(label_graph(tiny, label))


def test_a_prompt_in_the_place_of_a_label_is_told(server, tiny):
    prompt = label_graph(tiny, "3") | {"40": node("FewStepDemoModel", variant="gmflow")}
    prompt |= {"41": node("CLIPTextEncode", clip=["40", 1], text="red apple")}
    prompt["21"] = guider_node(positive=["41", 0], negative=["2", 1])
    with pytest.raises(HostError, match="was given a text prompt. Connect the GMFlow Label node"):
        server.run(prompt)
