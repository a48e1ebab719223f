"""Bridge and Dataset Model in the running host: drawn, cancelled, a batch, masks, image to image, told and refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from support.server import PREVIEW, Cancelled, HostError
from support.workflow import to_prompt

from .test_demo_server import decoded, draw, graph, middle, node

EXAMPLES = Path(__file__).parents[2] / "example_workflows"
STEPS = 8


def bridge_graph(variant: str = "eps", latent=("5", 0), steps: int = STEPS, **changed) -> dict:
    """A red apple is drawn ("5"), and becomes a green one ("30"); `changed`: inputs of the bridge."""
    models = {"model_from": ["1", 0], "positive_from": ["2", 0], "model_to": ["1", 0], "positive_to": ["31", 0]}
    numbers = {"steps": steps, "cfg_from": 1.0, "cfg_to": 3.0, "strength": 1.0, "negative_to": ["3", 0]}
    scheduler = "karras" if variant in ("eps", "v") else "simple"
    return graph(variant, scheduler=scheduler) | {
        "30": node("FewStepBridge", latent_image=list(latent), **models | numbers | changed),
        "31": node("CLIPTextEncode", clip=["1", 1], text="green apple"),
        "6": node("VAEDecode", samples=["30", 0], vae=["1", 2]),
    }


@pytest.mark.parametrize("variant", ["eps", "flow"])
def test_an_apple_becomes_a_green_one_with_a_preview_a_step(server, variant):
    progress: list[tuple[int, int]] = []
    previews: list[bytes] = []
    prompt = bridge_graph(variant)
    history = server.run(
        prompt,
        lambda *step: progress.append(step),
        lambda kind, payload: previews.append(payload) if kind == PREVIEW else None,
    )
    whole = 2 * STEPS - 1
    assert [step for step in progress if step[1] == whole] == [(i, whole) for i in range(1, whole + 1)]
    assert len(previews) == whole + 12  # of the bridge, and of the apple
    assert f"{whole} model calls: up to sigma" in server.reports(history)
    red, green, _ = middle(decoded(server.pictures(history)[0]))
    before = middle(draw(server, graph(variant, scheduler=prompt["5"]["inputs"]["scheduler"])))
    assert green - red > before[1] - before[0] + 0.3


def test_a_batch_and_a_mask(server):
    """Both pictures of a batch are translated, and the upper half that the mask leaves out stays."""
    prompt = bridge_graph("flow", latent=("35", 0))
    prompt["4"]["inputs"]["batch_size"] = 2
    prompt |= {
        "32": node("SolidMask", value=0.0, width=64, height=64),
        "33": node("SolidMask", value=1.0, width=64, height=32),
        "34": node("MaskComposite", destination=["32", 0], source=["33", 0], x=0, y=32, operation="add"),
        "35": node("SetLatentNoiseMask", samples=["5", 0], mask=["34", 0]),
        "36": node("VAEDecode", samples=["5", 0], vae=["1", 2]),
        "37": node("SaveImage", images=["36", 0], filename_prefix="before"),
    }
    history = server.run(prompt)
    kept = {key: server.pictures({"outputs": {key: history["outputs"][key]}}) for key in ("7", "37")}
    after, before = (np.stack([decoded(png) for png in kept[key]]) for key in ("7", "37"))
    assert after.shape == (2, 64, 64, 3)
    assert np.abs(after - before)[:, :30].max() < 0.01
    assert all(np.abs(item).mean() > 0.02 for item in (after - before)[:, 34:])


def test_cancelled_half_way_and_run_again(server):
    seen: list[int] = []

    def stop(value: int, total: int) -> None:
        if total == 79:
            seen.append(value)
            if value == 3:
                server.cancel()

    with pytest.raises(Cancelled):
        server.run(bridge_graph("flow", steps=40), stop)
    assert 3 <= max(seen) < 40
    short = bridge_graph("flow", steps=4)
    first = draw(server, short)
    draw(server, graph("eps", steps=4))  # so that nothing is left in the host's cache
    np.testing.assert_array_equal(first, draw(server, short))


def test_the_way_back_is_told(server):
    said = server.reports(server.run(bridge_graph("flow", measure_cycle=True, strength=0.5)))
    assert "There and back again the picture is off by" in said and f"{4 * STEPS - 2} model calls" in said


@pytest.mark.parametrize(
    "prompt, words",
    [
        (bridge_graph(latent=("4", 0)), "latent_image is empty"),
        (bridge_graph(cfg_from=3.0), "negative_from is missing"),
        (bridge_graph(steps=2), "steps"),
        (bridge_graph(strength=1.5), "strength"),
    ],
)
def test_what_does_not_fit_is_refused(server, prompt, words):
    with pytest.raises(HostError, match=words):
        server.run(prompt)


# ---------------------------------------------------------------------------------------------------------
# Dataset Model


def dataset_graph(variant: str = "eps", seed: int = 1, batch: int = 3, **changed) -> dict:
    """A model ("40") of a red and a blue picture with a bright edge, and pictures drawn with it."""
    prompt = graph(variant, sampler="dpmpp_2m", scheduler="simple" if variant == "flow" else "karras", seed=seed)
    prompt["4"]["inputs"] |= {"width": 256, "height": 256, "batch_size": batch}
    given = {"smoothing": 0.0, "neighbours": 0, "variant": variant} | changed
    for one in prompt.values():
        for name, value in one["inputs"].items():
            if isinstance(value, list) and value[0] == "1":
                one["inputs"][name] = ["40", value[1]]
    del prompt["1"]
    return prompt | {
        "40": node("FewStepDatasetModel", images=["43", 0], **given),
        "41": node("EmptyImage", width=32, height=32, batch_size=1, color=0xE02010),
        "42": node("EmptyImage", width=32, height=32, batch_size=1, color=0x1020E0),
        "43": node("ImageBatch", image1=["41", 0], image2=["42", 0]),
    }


def colours(server, prompt: dict) -> list[np.ndarray]:
    return [middle(decoded(png)) for png in server.pictures(server.run(prompt))]


RED, BLUE = np.array([0xE0, 0x20, 0x10]) / 255, np.array([0x10, 0x20, 0xE0]) / 255


@pytest.mark.parametrize("variant", ["eps", "v", "flow"])
def test_a_batch_is_drawn_of_the_pictures(server, variant):
    drawn = [colour for seed in (1, 2, 3) for colour in colours(server, dataset_graph(variant, seed))]
    near = [min((np.abs(colour - one).max(), name) for one, name in ((RED, "red"), (BLUE, "blue"))) for colour in drawn]
    assert len(drawn) == 9 and all(distance < 0.02 for distance, _ in near)
    assert {name for _, name in near} == {"red", "blue"}


def test_it_says_what_it_is_and_takes_a_picture_to_the_nearest(server):
    """Image to image: from a dull red to the red one."""
    prompt = dataset_graph(batch=1)
    prompt |= {
        "44": node("EmptyImage", width=32, height=32, batch_size=1, color=0xA04030),
        "45": node("VAEEncode", pixels=["44", 0], vae=["40", 2]),
    }
    prompt["5"]["inputs"] |= {"latent_image": ["45", 0], "denoise": 0.4}
    history = server.run(prompt)
    assert "2 pictures of 32 x 32 pixels: Empty Latent Image of 256 x 256." in server.reports(history)
    assert np.abs(middle(decoded(server.pictures(history)[0])) - RED).max() < 0.02


def test_smoothed_it_mixes(server):
    drawn = colours(server, dataset_graph(smoothing=3.0))
    assert all(min(np.abs(colour - RED).max(), np.abs(colour - BLUE).max()) > 0.1 for colour in drawn)


def test_what_makes_no_model_is_refused(server):
    for changed, words in (({"smoothing": 9.0}, "smoothing"), ({"neighbours": -1}, "neighbours")):
        with pytest.raises(HostError, match=words):
            server.run(dataset_graph(**changed))


@pytest.mark.parametrize("name", ["bridge", "dataset"])
def test_the_example_draws(server, name):
    prompt = to_prompt(json.loads((EXAMPLES / f"{name}.json").read_text()), server.get("/object_info").json())
    pictures = [decoded(png) for png in server.pictures(server.run(prompt))]
    assert pictures and all(picture.std() > 0.05 for picture in pictures)
