"""The real host over HTTP: the pack loads, its workflow draws what the prompt says, with every variant."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.server import HostError
from support.workflow import to_prompt

ROOT = Path(__file__).parents[2]
WORKFLOW = ROOT / "example_workflows" / "first_picture.json"


def graph(variant="eps", prompt="red apple", sampler="euler", scheduler="karras", seed=1, steps=12, **sampling) -> dict:
    """Text to picture; `latent` replaces the empty latent."""
    latent = sampling.pop("latent", ["4", 0])
    return {
        "1": {"class_type": "FewStepDemoModel", "inputs": {"variant": variant}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": prompt}},
        "3": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": ""}},
        "4": {"class_type": "EmptyLatentImage", "inputs": {"width": 512, "height": 512, "batch_size": 1}},
        "5": {
            "class_type": "KSampler",
            "inputs": {
                **{"model": ["1", 0], "positive": ["2", 0], "negative": ["3", 0], "latent_image": latent},
                **{"seed": seed, "steps": steps, "cfg": 3.0, "sampler_name": sampler, "scheduler": scheduler},
                **{"denoise": 1.0, **sampling},
            },
        },
        "6": {"class_type": "VAEDecode", "inputs": {"samples": ["5", 0], "vae": ["1", 2]}},
        "7": {"class_type": "SaveImage", "inputs": {"images": ["6", 0], "filename_prefix": "test"}},
    }


def node(kind: str, **inputs) -> dict:
    return {"class_type": kind, "inputs": inputs}


def custom_graph(variant: str, scheduler: str, steps: int, sampler: dict, seed: int = 1) -> dict:
    """The same with SamplerCustomAdvanced: the node `sampler` ("22") on the schedule of "24"."""
    linked = {"noise": ["20", 0], "guider": ["21", 0], "sampler": ["22", 0], "sigmas": ["24", 0]}
    return graph(variant) | {
        "5": node("SamplerCustomAdvanced", latent_image=["4", 0], **linked),
        "20": node("RandomNoise", noise_seed=seed),
        "21": node("CFGGuider", model=["1", 0], positive=["2", 0], negative=["3", 0], cfg=3.0),
        "22": sampler,
        "24": node("BasicScheduler", model=["1", 0], scheduler=scheduler, steps=steps, denoise=1.0),
    }


def draw(server, prompt: dict) -> np.ndarray:
    """The first picture, (H, W, 3) in [0, 1]."""
    (png, *_) = server.pictures(server.run(prompt))
    return decoded(png)


def decoded(png: bytes) -> np.ndarray:
    """(H, W, 3) in [0, 1]."""
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), np.float64) / 255


def middle(picture: np.ndarray) -> np.ndarray:
    """Mean colour of the central half."""
    h, w, _ = picture.shape
    return picture[h // 4 : -h // 4, w // 4 : -w // 4].mean((0, 1))


def test_the_variants_keep_their_names(server):
    info = server.get("/object_info/FewStepDemoModel").json()["FewStepDemoModel"]
    assert info["input"]["required"]["variant"][1]["options"] == ["eps", "v", "flow", "gmflow"]


def test_the_example_workflow_draws_a_red_apple_on_white(server):
    picture = draw(server, to_prompt(json.loads(WORKFLOW.read_text()), server.get("/object_info").json()))
    assert picture.shape == (512, 512, 3)
    red, green, blue = middle(picture)
    assert red > 0.7 and green < 0.55 and blue < 0.45
    corners = picture[[0, 0, -1, -1], [0, -1, 0, -1]]
    assert corners.min() > 0.8


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m"])
@pytest.mark.parametrize("variant", ["eps", "v", "flow", "gmflow"])
def test_every_variant_draws_with_the_hosts_samplers(server, variant, sampler):
    scheduler = "karras" if variant in ("eps", "v") else "simple"
    picture = draw(server, graph(variant, "blue heart", sampler, scheduler, steps=20))
    assert picture.shape == (64, 64, 3)
    red, _, blue = middle(picture)
    assert blue > red + 0.2
    assert picture[0, 0].min() > 0.8


@pytest.mark.parametrize("variant", ["eps", "v", "flow", "gmflow"])
def test_image_to_image_and_inpainting(server, variant):
    """A drawn apple: redrawn a little it stays an apple; a masked half changes, the other half stays."""
    scheduler = "karras" if variant in ("eps", "v") else "simple"
    first = graph(variant, scheduler=scheduler)
    start = draw(server, first)

    gentle = {**first, "8": {**first["5"], "inputs": {**first["5"]["inputs"], "latent_image": ["5", 0], "seed": 2}}}
    gentle["8"]["inputs"]["denoise"] = 0.3
    gentle["6"] = {"class_type": "VAEDecode", "inputs": {"samples": ["8", 0], "vae": ["1", 2]}}
    assert np.abs(draw(server, gentle) - start).mean() < 0.08

    masked = json.loads(json.dumps(first))
    masked["8"] = json.loads(json.dumps(first["5"]))
    masked["9"] = {"class_type": "SolidMask", "inputs": {"value": 0.0, "width": 64, "height": 64}}
    masked["10"] = {"class_type": "SolidMask", "inputs": {"value": 1.0, "width": 32, "height": 64}}
    masked["11"] = {
        "class_type": "MaskComposite",
        "inputs": {"destination": ["9", 0], "source": ["10", 0], "x": 0, "y": 0, "operation": "add"},
    }
    masked["12"] = {"class_type": "SetLatentNoiseMask", "inputs": {"samples": ["5", 0], "mask": ["11", 0]}}
    masked["13"] = {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": "blue heart"}}
    masked["8"]["inputs"] |= {"latent_image": ["12", 0], "positive": ["13", 0], "seed": 3}
    masked["6"] = {"class_type": "VAEDecode", "inputs": {"samples": ["8", 0], "vae": ["1", 2]}}
    inpainted = draw(server, masked)
    change = np.abs(inpainted - start).mean((0, 2))
    assert change[34:].max() < 0.01
    assert change[:32].mean() > 0.05


def test_the_same_seed_draws_the_same_picture_and_another_seed_another(server):
    one, two = draw(server, graph(seed=5, steps=6)), draw(server, graph(seed=6, steps=6))
    again = draw(server, graph(seed=5, steps=6, sampler="euler", cfg=3.0, denoise=1.0) | {"0": graph()["4"]})
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - two).mean() > 0.002


def test_unknown_words_are_named_in_the_log(server):
    draw(server, graph(prompt="red zeppelinish apple", steps=2))
    assert "ignores them: zeppelinish." in server.log()


def test_a_bad_value_is_refused_in_words(server):
    with pytest.raises(HostError, match="FewStepDemoModel.*variant"):
        server.run(graph(variant="karras"))
