"""The bridge as the host runs it: exact mixtures as its MODELs, whole and half way, masks and batches."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.mixture import exact_of_one, picture_like
from support.nodes import of_the_pack

pytestmark = pytest.mark.usefixtures("host")
ONE, OTHER = (picture_like(size=4, components=1, classes=1, seed=seed) for seed in (0, 1))
MANY = picture_like(size=4, components=6, classes=2)


def model(mixture, kind: str = "eps", **given):
    from support.host_mixture import mixture_model

    return mixture_model(mixture, kind, **given)


def prompt(label: int, items: int = 3) -> list:
    from support.host_mixture import label_conditioning

    return label_conditioning([label] * items)


def bridge(model_from, model_to, latent, steps=30, labels=(0, 0), cfg_to=1.0, strength=1.0, **given) -> tuple:
    """The node's two latents and what it says."""
    node = of_the_pack()["FewStepBridge"]
    ready: Any = type("FewStepBridge", (node,), {"hidden": SimpleNamespace(unique_id=None)})
    first, second = (prompt(label, len(latent["samples"])) for label in labels)
    output = ready.execute(model_from, first, model_to, second, latent, steps, 1.0, cfg_to, strength, **given)
    drawn, noise = output.args
    return drawn, noise, output.ui["fewstep"][0]["text"]


def pictures(mixture=ONE, items: int = 3) -> dict:
    return {"samples": mixture.sample(items, seed=5, label=0).float()}


def rmse(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one.double() - other.double()).square().mean().sqrt())


@pytest.mark.parametrize("kind", ["eps", "v", "edm", "flow"])
@pytest.mark.parametrize("kind_to", ["eps", "flow"])
def test_it_ends_where_the_optimal_map_of_two_gaussians_does(kind, kind_to):
    """A flow's sigma 1, where the host itself divides by 0, is an end like any other."""
    latent = pictures()
    drawn, noise, said = bridge(model(ONE, kind), model(OTHER, kind_to), latent)
    exact = exact_of_one(OTHER, exact_of_one(ONE, latent["samples"].double(), 0.0, 1e6), 1e6, 0.0)
    assert rmse(drawn["samples"], exact) < 0.12 < rmse(drawn["samples"], latent["samples"])
    assert said.startswith("59 model calls: up to sigma ") and "spread" not in said
    assert noise["samples"].shape == drawn["samples"].shape and float(noise["samples"].std()) == pytest.approx(1, 0.2)


@pytest.mark.parametrize("kind", ["eps", "flow"])
def test_the_noise_in_between_draws_the_picture_again(kind):
    """By the host's own sampler, where it is taken for the noise."""
    import comfy.sample
    import comfy.samplers

    patcher, latent = model(MANY, kind), pictures(MANY)
    _, noise, _ = bridge(patcher, patcher, latent, 60)
    sigmas = comfy.samplers.calculate_sigmas(patcher.get_model_object("model_sampling"), "simple", 60)
    given = [noise["samples"], 1.0, comfy.samplers.sampler_object("heun"), sigmas, prompt(0), prompt(-1)]
    drawn = comfy.sample.sample_custom(patcher, *given, torch.zeros_like(noise["samples"]), disable_pbar=True, seed=0)
    assert rmse(drawn, latent["samples"]) < 0.1


def test_the_way_back_is_told_and_is_nearer_with_more_steps():
    def lost(steps: int, **given) -> float:
        _, _, said = bridge(model(MANY, "flow"), model(OTHER, "flow"), pictures(MANY), steps, **given)
        assert f"{2 * (2 * steps - 1)} model calls" in said
        return float(said.split("off by ")[1].split(" ")[0])

    few, more = lost(10, measure_cycle=True), lost(30, measure_cycle=True)
    assert more < 0.02 and more < few / 3
    assert "There and back" not in bridge(model(MANY, "flow"), model(OTHER, "flow"), pictures(MANY), 10)[2]


def test_half_way_up_more_of_the_picture_is_kept():
    """And under its own prompt it comes back as it was."""
    latent, patcher, other = pictures(MANY), model(MANY), model(OTHER, "flow")
    moved = [rmse(bridge(patcher, other, latent, strength=s)[0]["samples"], latent["samples"]) for s in (0.2, 0.5, 1)]
    assert moved[0] < 0.5 * moved[1] < 0.5 * moved[2]
    _, _, said = bridge(patcher, other, latent, strength=0.5)
    up, down = (float(part.split(" ")[0]) for part in said.split("sigma ")[1:])
    assert down / (1 - down) == pytest.approx(up, rel=1e-3) and up < 2  # the same noise on either
    assert rmse(bridge(patcher, patcher, latent, strength=0.5)[0]["samples"], latent["samples"]) < 0.02


@pytest.mark.parametrize("kind", ["eps", "flow"])
@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_what_a_mask_keeps_stays_to_the_bit_and_the_rest_is_translated(kind, strength):
    latent = pictures()
    mask = torch.zeros(1, 4, 4)
    mask[:, :, 2:] = 1
    drawn, _, said = bridge(
        model(ONE, kind), model(OTHER, kind), latent | {"noise_mask": mask}, strength=strength, measure_cycle=True
    )
    moved = (drawn["samples"] - latent["samples"]).abs()
    assert moved[..., :2].max() < 1e-5 and moved[..., 2:].mean() > 0.05
    assert "not measured under a mask" in said and torch.equal(drawn["noise_mask"], mask)


def test_a_picture_of_a_batch_is_what_it_is_alone():
    latent, pair = pictures(MANY), (model(MANY), model(OTHER))
    together = bridge(*pair, latent, 8)[0]["samples"]
    alone = bridge(*pair, {"samples": latent["samples"][1:2]}, 8)[0]["samples"]
    torch.testing.assert_close(together[1:2], alone, rtol=0, atol=1e-5)


def test_a_latent_format_is_gone_in_and_out_of():
    """Of FLUX and SD3: their latents are not around 0."""
    latent = pictures()
    pair = model(ONE, "flow"), model(OTHER, "flow")
    plain = bridge(*pair, latent, 10)[0]["samples"]
    for patcher in pair:
        patcher.model.latent_format.middle = 0.4
    drawn = bridge(*pair, {"samples": latent["samples"] + 0.4}, 10)[0]["samples"]
    torch.testing.assert_close(drawn, plain + 0.4, rtol=0, atol=1e-4)


def test_guidance_on_the_way_down_draws_more_and_asks_for_a_negative_prompt():
    latent, patcher = pictures(MANY), model(MANY)
    ends = [
        bridge(patcher, patcher, latent, labels=(0, 1), cfg_to=cfg, negative_to=prompt(-1))[0]["samples"]
        for cfg in (1.0, 2.0)
    ]
    assert rmse(*ends) > 0.05 and all(end.isfinite().all() for end in ends)
    with pytest.raises(ValueError, match="negative_to is missing"):
        bridge(patcher, patcher, latent, cfg_to=2.0)


def test_boost_on_a_model_does_not_take_the_way_over():
    from fewstep.nodes.boost import FewStepBoost
    from support.nodes import executed

    plain = bridge(model(ONE), model(OTHER), pictures(), 8)[0]["samples"]
    boosted = executed(
        type("Boost", (FewStepBoost,), {"hidden": SimpleNamespace(unique_id=None, prompt={})}), model(OTHER), True
    )
    torch.testing.assert_close(bridge(model(ONE), boosted, pictures(), 8)[0]["samples"], plain)


def test_a_cache_of_steps_is_refused_where_it_climbs():
    from comfy_extras.nodes_easycache import EasyCacheNode
    from support.nodes import executed

    cached = executed(EasyCacheNode, model(ONE), 0.2, 0.15, 0.95, False)
    with pytest.raises(ValueError, match="EasyCache is on model_from.*Take the model from before it"):
        bridge(cached, model(OTHER), pictures())
    with pytest.raises(ValueError, match="EasyCache is on model_to"):
        bridge(model(ONE), cached, pictures(), measure_cycle=True)
    assert bridge(model(ONE), cached, pictures())[0]["samples"].isfinite().all()


def test_a_model_that_breaks_off_is_told():
    from support.host_mixture import fail

    broken = model(OTHER)
    fail(broken, at=3)
    with pytest.raises(ValueError, match="The model answered with NaN or infinity at step 4"):
        bridge(model(ONE), broken, pictures(), 10)


def test_two_kinds_of_latents_are_refused_in_words():
    from support.host_mixture import MixtureLatent

    wide = model(OTHER)
    wide.model.latent_format = type("Wide", (MixtureLatent,), {"latent_channels": 16})()
    with pytest.raises(ValueError, match="model_from has latents of 4 channels and model_to of 16"):
        bridge(model(ONE), wide, pictures())
    other = model(OTHER)
    other.model.latent_format = type("Other", (MixtureLatent,), {})()
    with pytest.raises(ValueError, match="Remove the mask"):
        bridge(model(ONE), other, pictures() | {"noise_mask": torch.ones(1, 4, 4)})
    assert bridge(model(ONE), other, pictures(), 4)[0]["samples"].isfinite().all()


@pytest.mark.parametrize(
    "changed, words",
    [
        ({"latent": {"samples": torch.zeros(1, 4, 4, 4)}}, "latent_image is empty"),
        ({"latent": {"samples": torch.ones(1, 7, 4, 4)}}, "this model's latents"),
        ({"steps": 3}, "steps is 3; it must be a whole number from 4 to 1000"),
        ({"strength": 0.0}, "above 0"),
        ({"cfg_to": -1.0}, "cfg_to is -1.0"),
        ({"model_to": None}, "model is missing"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(changed, words):
    given = {"model_from": model(ONE), "model_to": model(OTHER), "latent": pictures()} | changed
    with pytest.raises(ValueError, match=words):
        bridge(**given)
