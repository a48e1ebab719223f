"""Boost in the running host: every node that samples, with and without it, over the demo model."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import numpy as np
import pytest
from support.examples import mostly
from support.server import PREVIEW, Cancelled

from .test_demo_server import custom_graph, decoded, graph, node

SEEDS = 16
SOURCE = "41"  # of the picture that is painted over, which stays the same
CFGS = [1.0, 5.0]
VARIANTS = ["eps", "flow"]


def boosted(prompt: dict, **linked) -> dict:
    """The same graph with Boost behind the model, for every node that samples it."""
    changed = {name: part | {"inputs": dict(part["inputs"])} for name, part in prompt.items()}
    for number, part in changed.items():
        for name, value in part["inputs"].items():
            if value == ["1", 0] and part["class_type"] != "BasicScheduler" and number != SOURCE:
                part["inputs"][name] = ["90", 0]
    return changed | {"90": node("FewStepBoost", model=["1", 0], **({"enabled": True} | linked))}


def pictures(server, prompt: dict, *watchers) -> np.ndarray:
    """(N, H, W, 3) in [0, 1]."""
    shown = server.pictures(server.run(prompt, *watchers))
    return np.stack([decoded(png) for png in shown])


def followed(server, prompt: dict) -> tuple[np.ndarray, list[tuple[int, int]], int, str]:
    """The pictures, the progress, the number of previews and what the nodes say."""
    progress: list[tuple[int, int]] = []
    previews: list[int] = []
    history = server.run(
        prompt,
        lambda *step: progress.append(step),
        lambda kind, payload: previews.append(1) if kind == PREVIEW else None,
    )
    (png, *_) = server.pictures(history)
    return decoded(png), progress, len(previews), server.reports(history)


# ---------------------------------------------------------------------------------------------------------
# The nodes that sample


def ksampler(variant: str, **given) -> dict:
    return graph(variant, **({"scheduler": "simple", "steps": 8} | given))


def advanced(variant: str, cut: int, leftover: str, steps: int = 8) -> dict:
    """Two KSamplerAdvanced, as base and refiner; without leftover noise the second adds its own."""
    prompt = ksampler(variant)
    linked = {"positive": ["2", 0], "negative": ["3", 0], "cfg": 3.0, "steps": steps, "noise_seed": 1}
    sampling = {"model": ["1", 0], "sampler_name": "euler", "scheduler": "simple"}
    first = {"add_noise": "enable", "start_at_step": 0, "end_at_step": cut, "return_with_leftover_noise": leftover}
    adds = "disable" if leftover == "enable" else "enable"
    second = {"add_noise": adds, "start_at_step": cut, "end_at_step": 10000, "return_with_leftover_noise": "disable"}
    return prompt | {
        "50": node("KSamplerAdvanced", latent_image=["4", 0], **linked, **sampling, **first),
        "5": node("KSamplerAdvanced", latent_image=["50", 0], **linked, **sampling, **second),
    }


def sampler_custom(variant: str) -> dict:
    linked = {"positive": ["2", 0], "negative": ["3", 0], "sampler": ["22", 0], "sigmas": ["24", 0]}
    given = {"add_noise": True, "noise_seed": 1, "cfg": 3.0}
    prompt = custom_graph(variant, "simple", 8, node("KSamplerSelect", sampler_name="euler"))
    unused = {name: part for name, part in prompt.items() if name not in ("20", "21")}
    return unused | {"5": node("SamplerCustom", model=["1", 0], latent_image=["4", 0], **given, **linked)}


def sampler_custom_advanced(variant: str) -> dict:
    return custom_graph(variant, "simple", 8, node("KSamplerSelect", sampler_name="euler"))


def inpaint(variant: str) -> dict:
    """The left half of another picture is painted anew."""
    prompt = ksampler(variant, latent=["40", 0], denoise=0.8)
    mask = {"mask": ["42", 0], "source": ["43", 0], "x": 0, "y": 0, "operation": "add"}
    return prompt | {
        "40": node("SetLatentNoiseMask", samples=["41", 0], mask=["44", 0]),
        "41": {**graph(variant, "blue heart", seed=3)["5"]},
        "42": node("SolidMask", value=0.0, width=64, height=64),
        "43": node("SolidMask", value=1.0, width=32, height=64),
        "44": node("MaskComposite", destination=["42", 0], **{k: v for k, v in mask.items() if k != "mask"}),
    }


def image_to_image(variant: str, denoise: float) -> dict:
    prompt = ksampler(variant, latent=["41", 0], denoise=denoise)
    return prompt | {"41": graph(variant, "blue heart", seed=3)["5"]}


def tiled_upscale(variant: str) -> dict:
    """Twice the size, in four tiles that are painted over one after another."""
    prompt = ksampler(variant)
    prompt["40"] = node(
        "LatentUpscale", samples=["5", 0], upscale_method="bicubic", width=1024, height=1024, crop="disabled"
    )
    last = ["40", 0]
    for number, (x, y) in enumerate([(0, 0), (512, 0), (0, 512), (512, 512)]):
        crop, sampler, paste = (str(base + number) for base in (50, 60, 70))
        prompt[crop] = node("LatentCrop", samples=last, width=512, height=512, x=x, y=y)
        prompt[sampler] = ksampler(variant, latent=[crop, 0], denoise=0.4)["5"]
        prompt[paste] = node("LatentComposite", samples_to=last, samples_from=[sampler, 0], x=x, y=y, feather=0)
        last = [paste, 0]
    prompt["6"] = node("VAEDecode", samples=last, vae=["1", 2])
    return prompt


GRAPHS: dict[str, Callable[[str], dict]] = {
    "KSampler": ksampler,
    **{
        f"KSamplerAdvanced cut {cut}, leftover {leftover}": partial(advanced, cut=cut, leftover=leftover)
        for cut in (2, 4, 6)
        for leftover in ("enable", "disable")
    },
    "SamplerCustom": sampler_custom,
    "SamplerCustomAdvanced": sampler_custom_advanced,
    "inpaint": inpaint,
    **{f"image to image {d}": partial(image_to_image, denoise=d) for d in (0.3, 0.6, 0.9)},
    "tiled upscale": tiled_upscale,
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", GRAPHS)
def test_every_node_that_samples_makes_the_same_calls_and_another_picture(server, name, variant):
    prompt = GRAPHS[name](variant)
    plain, steps, shown, _ = followed(server, prompt)
    picture, boosted_steps, boosted_shown, text = followed(server, boosted(prompt))
    of_source = len(steps) - len(boosted_steps)  # which is cached in the second run
    assert boosted_steps == steps[of_source:] and boosted_shown == shown - of_source
    assert of_source == (0 if SOURCE not in prompt else prompt[SOURCE]["inputs"]["steps"])
    assert picture.shape == plain.shape and 0 < np.abs(picture - plain).mean() < 0.3
    assert "steps of euler" in text and "calls of FewStep's DEIS, sigmas" in text
    if name == "inpaint":
        np.testing.assert_allclose(picture[:, 34:], plain[:, 34:], atol=0.02)


def test_off_is_no_node_to_the_bit(server):
    prompt = ksampler("flow")
    off = boosted(prompt, enabled=False)
    np.testing.assert_array_equal(pictures(server, off), pictures(server, prompt))


def test_cancelled_within_a_call_and_run_again(server):
    prompt = boosted(ksampler("flow", steps=20, seed=12))

    def stop(value: int, total: int) -> None:
        if value >= 5:
            server.cancel()

    with pytest.raises(Cancelled):
        server.run(prompt, stop)
    first = pictures(server, prompt)
    pictures(server, graph("eps", steps=4))
    np.testing.assert_array_equal(first, pictures(server, prompt | {"0": graph()["4"]}))


def test_a_sampler_and_a_schedule_are_connected(server):
    sigmas = {"80": node("BasicScheduler", model=["1", 0], scheduler="beta", steps=12, denoise=1.0)}
    sampler = {"81": node("KSamplerSelect", sampler_name="dpmpp_2m")}
    prompt = (
        boosted(ksampler("flow", sampler="euler_ancestral"), sampler=["81", 0], sigmas=["80", 0]) | sigmas | sampler
    )
    text = server.reports(server.run(prompt))
    assert "KSampler: 8 steps of euler_ancestral simple -> 8 calls of dpmpp_2m, sigmas 1 " in text


# ---------------------------------------------------------------------------------------------------------
# The gain


@cache
def converged(server, variant: str, cfg: float) -> np.ndarray:
    sampler = {"sampler": "dpmpp_2m", "scheduler": "karras" if variant == "eps" else "simple"}
    return pictures(server, batch(ksampler(variant, steps=60, cfg=cfg, **sampler)))


def batch(prompt: dict) -> dict:
    prompt["4"]["inputs"]["batch_size"] = SEEDS
    return prompt


@pytest.mark.parametrize("variant, cfg", mostly(("flow", 5.0), ("eps", 1.0), longer=(("flow", 1.0), ("eps", 5.0))))
def test_the_picture_is_nearer_to_the_converged_one(server, variant, cfg):
    """The median over 16 seeds of the mean squared error."""
    end = converged(server, variant, cfg)
    for steps in (6, 8, 10):
        prompt = batch(ksampler(variant, steps=steps, cfg=cfg))
        before, after = (
            np.median(np.square(pictures(server, one) - end).mean((1, 2, 3))) for one in (prompt, boosted(prompt))
        )
        assert after < 0.6 * before, f"{steps} calls: {before:.2g} without, {after:.2g} with"
