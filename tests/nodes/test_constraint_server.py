"""Manifold Constraint and Light Bridge in the running host: drawn, told, cancelled and refused."""

from __future__ import annotations

import numpy as np
import pytest
from support.server import Cancelled, HostError

from .test_demo_server import decoded, draw, graph, node

HALF = {  # white on the right
    "50": node("SolidMask", value=0.0, width=512, height=512),
    "51": node("SolidMask", value=1.0, width=256, height=512),
    "52": node("MaskComposite", destination=["50", 0], source=["51", 0], x=256, y=0, operation="add"),
}


def constrained(variant: str = "flow", steps: int = 6, seed: int = 9, cfg: float = 3.0, **changed) -> dict:
    """A red apple, and one drawn around the left half of it: the constraint is "40", its picture the first output."""
    prompt = graph(variant, scheduler="simple", steps=8) | HALF
    given = {"operator": "inpaint", "scale": 1.0, "project": True, "mask": ["52", 0]} | changed
    given = {name: value for name, value in given.items() if value is not None}
    prompt["40"] = node("FewStepManifoldConstraint", **({"model": ["1", 0], "measurement": ["5", 0]} | given))
    second = prompt["5"]["inputs"] | {"model": ["40", 0], "seed": seed, "steps": steps, "cfg": cfg}
    prompt["41"] = node("KSampler", **second)
    prompt["6"] = node("VAEDecode", samples=["41", 0], vae=["1", 2])
    return prompt


@pytest.mark.parametrize(
    "variant, gradient", [("eps", "differences"), ("v", "auto"), ("flow", "model"), ("gmflow", "differences")]
)
def test_it_draws_around_what_is_known(server, variant, gradient):
    history = server.run(constrained(variant, gradient=gradient))
    (png,) = server.pictures(history)
    whole, made = draw(server, graph(variant, scheduler="simple", steps=8)), decoded(png)
    left, right = (np.abs(made - whole)[:, side].max() for side in (slice(0, 30), slice(34, 64)))
    assert left < 0.02 < 0.05 < right
    said = server.reports(history)
    assert "inpaint: 50% of the measurement is known and held" in said
    assert ("for its gradient" in said) == (gradient != "differences") and "no gradient" not in said


def test_a_small_picture_becomes_a_large_one_that_has_it(server):
    prompt = constrained(operator="downsample 8", mask=None, measurement=["44", 0])
    prompt |= {
        "42": node("VAEDecode", samples=["5", 0], vae=["1", 2]),
        "43": node("ImageScale", image=["42", 0], upscale_method="area", width=8, height=8, crop="disabled"),
        "44": node("VAEEncode", pixels=["43", 0], vae=["1", 2]),
    }
    whole, made = draw(server, graph("flow", scheduler="simple", steps=8)), draw(server, prompt)
    small = [one.reshape(8, 8, 8, 8, 3).mean((1, 3)) for one in (whole, made)]
    assert np.abs(small[0] - small[1]).max() < 0.04 and np.abs(whole - made).max() > 0.05


def test_a_batch_and_the_mask_of_the_measurement(server):
    prompt = constrained(measurement=["45", 0], mask=None)
    prompt["45"] = node("SetLatentNoiseMask", samples=["5", 0], mask=["52", 0])
    prompt["46"] = node("EmptyLatentImage", width=512, height=512, batch_size=2)
    prompt["41"]["inputs"]["latent_image"] = ["46", 0]
    whole = draw(server, graph("flow", scheduler="simple", steps=8))
    both = [decoded(png) for png in server.pictures(server.run(prompt))]
    assert len(both) == 2 and np.abs(both[0] - both[1])[:, 34:].max() > 0.05
    assert all(np.abs(one - whole)[:, :30].max() < 0.02 for one in both)


@pytest.mark.parametrize("gradient", ["differences", "model"])
def test_cancelled_half_way_and_run_again(server, gradient):
    seen: list[int] = []

    def stop(value: int, total: int) -> None:
        if total == 20:
            seen.append(value)
            if value >= 3:
                server.cancel()

    prompt = constrained(steps=20, gradient=gradient)
    with pytest.raises(Cancelled):
        server.run(prompt, stop)
    assert 3 <= max(seen) < 20
    short = constrained(steps=3, gradient=gradient)
    first = draw(server, short)
    draw(server, graph("eps", steps=4))  # so that nothing is left in the host's cache
    np.testing.assert_array_equal(first, draw(server, short))


@pytest.mark.parametrize(
    "changed, words",
    [
        ({"mask": None}, "connect mask"),
        ({"operator": "downsample 3"}, "operator"),
        ({"operator": "blur"}, "disconnect mask"),
        ({"scale": 99.0}, "scale"),
    ],
)
def test_what_does_not_fit_is_refused(server, changed, words):
    with pytest.raises(HostError, match=words):
        server.run(constrained(**changed))


# ---------------------------------------------------------------------------------------------------------
# Light Bridge


def bridge(noise: float = 0.1, **changed) -> dict:
    """Two red apples that take over what two sunflowers are like."""
    prompt = graph("flow", scheduler="simple", steps=4)
    prompt["4"]["inputs"]["batch_size"] = 2
    prompt["60"] = node("CLIPTextEncode", clip=["1", 1], text="sunflower")
    prompt["61"] = node("KSampler", **(prompt["5"]["inputs"] | {"positive": ["60", 0], "seed": 2}))
    given = {"source": ["5", 0], "target": ["61", 0], "components": 2, "noise": noise, "seed": 0} | changed
    prompt["62"] = node("FewStepLightBridge", **given)
    prompt["6"] = node("VAEDecode", samples=["62", 0], vae=["1", 2])
    return prompt


def looks(pictures: list[np.ndarray]) -> np.ndarray:
    return np.mean([one.mean((0, 1)) for one in pictures], 0)


def test_a_bridge_gives_the_looks_of_another_set_and_says_how_near(server):
    history = server.run(bridge())
    moved = [decoded(png) for png in server.pictures(history)]
    apples, flowers = (
        [
            decoded(png)
            for png in server.pictures(server.run(bridge() | {"6": node("VAEDecode", samples=of, vae=["1", 2])}))
        ]
        for of in (["5", 0], ["61", 0])
    )
    assert len(moved) == 2
    before, after = (np.abs(looks(those) - looks(flowers)).max() for those in (apples, moved))
    assert after < 0.5 * before
    assert np.corrcoef(moved[0].mean(2).ravel(), apples[0].mean(2).ravel())[0, 1] > 0.9
    assert "2 -> 2 pictures, fitted in" in server.reports(history)


def test_a_fit_is_cancelled(server):
    def stop(value: int, total: int) -> None:
        if total == 800:
            server.cancel()

    with pytest.raises(Cancelled):
        server.run(bridge(0.17), stop)
    assert len(server.pictures(server.run(bridge(0.17)))) == 2


@pytest.mark.parametrize("changed, words", [({"components": 0}, "components"), ({"noise": 0.0}, "noise")])
def test_numbers_out_of_range_are_refused(server, changed, words):
    with pytest.raises(HostError, match=words):
        server.run(bridge(**({"noise": 0.1} | changed)))
