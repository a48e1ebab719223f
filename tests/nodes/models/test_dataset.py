"""A set of pictures as a MODEL, CLIP and VAE of the host, in this process."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fewstep.samplers.closed_form import resized
from support.nodes import executed, of_the_pack

pytestmark = pytest.mark.usefixtures("host")
VARIANTS = ["eps", "v", "flow"]


def images(count: int = 6, height: int = 24, width: int = 16, seed: int = 0) -> torch.Tensor:
    """Smooth ones of different contrast."""
    coarse = torch.rand((count, 3, 4, 4), generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear").movedim(1, -1)


def made(pictures=None, smoothing=0.0, neighbours=0, variant="eps") -> tuple:
    """MODEL, CLIP, VAE and what the node says."""
    node = of_the_pack()["FewStepDatasetModel"]
    ready: Any = type("FewStepDatasetModel", (node,), {"hidden": SimpleNamespace(unique_id=None)})
    output = ready.execute(images() if pictures is None else pictures, smoothing, neighbours, variant)
    return *output.args, output.ui["fewstep"][0]["text"]


def drawn(parts, latent=(4, 3, 24, 16), steps=12, cfg=1.0, sampler="dpmpp_2m", seed=0, start=None, **given):
    """Pictures (B, H, W, 3), by the host."""
    import comfy.sample
    import comfy.samplers

    model, clip, vae, _ = parts
    flow = model.get_model_object("model_sampling").sigma_max <= 1
    prompts = [clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in ("anything (at all:1.2)", "")]
    noise = torch.randn(latent, generator=torch.Generator().manual_seed(seed))
    name = "simple" if flow else "karras"
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), name, steps)[
        given.pop("cut", 0) :
    ]
    start = torch.zeros(latent) if start is None else start
    ends = comfy.sample.sample_custom(
        model, noise, cfg, comfy.samplers.sampler_object(sampler), sigmas, *prompts, start, disable_pbar=True,
        seed=seed, **given,
    )  # fmt: skip
    return vae.decode(ends).cpu()


def nearest(pictures: torch.Tensor, to: torch.Tensor) -> tuple[list[int], float]:
    """Which of `to` each is, and how far the worst is from it, rms of [0, 1]."""
    distances = (pictures[:, None] - to[None]).square().flatten(2).mean(2).sqrt()
    return distances.argmin(1).tolist(), float(distances.min(1).values.max())


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "dpmpp_2m_sde"])
def test_without_smoothing_it_draws_the_pictures_and_all_of_them(variant, sampler):
    seen, worst = nearest(drawn(made(variant=variant), (24, 3, 24, 16), sampler=sampler), images())
    assert worst < 0.01 and set(seen) == set(range(6))


def test_with_smoothing_it_draws_some_that_were_not_there():
    """Between them, so never outside of their range."""
    parts = made(smoothing=1.0)
    ends = drawn(parts, (8, 3, 24, 16))
    _, worst = nearest(ends, images())
    assert worst > 0.05 and ends.min() > images().min() - 0.01 and ends.max() < images().max() + 0.01
    assert "of their spread" in parts[3] and "no smoothing" not in parts[3] and "no smoothing" in made()[3]


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_hosts_own_arithmetic_gives_back_the_exact_denoiser(variant):
    import comfy.model_management
    from fewstep.nodes.host.noise_law import noise_law
    from fewstep.samplers.closed_form import ClosedForm

    model = made(variant=variant)[0]
    comfy.model_management.load_models_gpu([model])
    pictures, law = model.model.diffusion_model.pictures, noise_law(model.get_model_object("model_sampling"))
    for ratio in (0.05, 0.7, 5.0, 13.0):
        sigma = torch.full((6,), law.sigma(ratio))
        noise = torch.randn(pictures.shape, generator=torch.Generator().manual_seed(1))
        x = law.noised(pictures.detach(), float(sigma[0]), noise)
        found = model.model.apply_model(x, sigma, c_crossattn=torch.zeros(6, 1, 8))
        exact = ClosedForm(pictures.detach())(x, law.alpha(sigma), law.deviation(sigma))
        assert (found - exact).abs().max() < 1e-4 * pictures.abs().max()


@pytest.mark.parametrize("size", [(24, 16), (12, 8)])
def test_it_has_gradients_though_the_host_makes_it_in_inference_mode(size):
    """For what asks in which direction an answer goes, such as constraints: after it has been sampled, too."""
    with torch.inference_mode():
        parts = made(images(), 0.5)
        drawn(parts, (1, 3, *size), steps=2)
    x = torch.randn((1, 3, *size), generator=torch.Generator().manual_seed(0)).requires_grad_()
    answer = parts[0].model.apply_model(x, torch.full((1,), 3.0), c_crossattn=torch.zeros(1, 1, 8))
    (slope,) = torch.autograd.grad(answer.square().sum(), x)
    assert slope.isfinite().all() and slope.abs().max() > 0


def test_a_prompt_says_nothing_and_no_cfg_changes_anything():
    parts = made()
    torch.testing.assert_close(drawn(parts, cfg=7.0), drawn(parts), atol=1e-3, rtol=0)
    context, extra = parts[1].encode_from_tokens_scheduled(parts[1].tokenize("a cat"))[0]
    assert context.shape == (1, 1, 8) and extra["pooled_output"].shape == (1, 8) and not context.any()


def test_from_a_picture_it_comes_back_to_the_one_that_is_nearest():
    """Image to image; and under a mask it completes what is left."""
    parts, pictures = made(), images()
    start = parts[2].encode(pictures[2:3] + 0.02)
    assert nearest(drawn(parts, (1, 3, 24, 16), start=start, cut=6), pictures)[0] == [2]
    mask = torch.zeros(1, 24, 16)
    mask[:, 18:] = 1
    spoiled = parts[2].encode(torch.where(mask[..., None] > 0, 0.5, pictures[2:3]))
    (end,) = drawn(parts, (1, 3, 24, 16), start=spoiled, noise_mask=mask)
    assert (end[:18] - pictures[2, :18]).abs().max() < 1e-4
    assert nearest(end[None, 18:], pictures[:, 18:]) == ([2], pytest.approx(0, abs=0.01))


def test_another_size_draws_them_in_that_size():
    for size in ((12, 8), (12, 12), (48, 32), (1, 1)):
        ends = drawn(made(), (6, 3, *size))
        expected = resized(images().movedim(-1, 1), *size).movedim(1, -1)
        assert nearest(ends, expected)[1] < 0.02


def test_resized_is_the_middle():
    wide = torch.arange(8.0).expand(1, 1, 4, 8)
    torch.testing.assert_close(resized(wide, 4, 4), wide[..., 2:6])
    assert resized(wide, 2, 2).shape == (1, 1, 2, 2) and float(resized(wide, 1, 1)) == pytest.approx(3.5)
    assert resized(wide, 1, 50).shape == (1, 1, 1, 50)


def test_what_it_measured_is_not_what_it_is_known_by_and_its_pictures_are():
    from fewstep.nodes.host.identity import identify

    parts = made(smoothing=0.5)
    before = identify(parts[0])
    drawn(parts)
    drawn(parts, (1, 3, 12, 8))
    assert identify(parts[0]) == before == identify(made(smoothing=0.5)[0])
    others = [made(smoothing=0.6), made(smoothing=0.5, neighbours=2), made(images(seed=1), 0.5)]
    assert all(identify(other[0]) != before for other in others)


@pytest.mark.parametrize(
    "module, name, given",
    [
        ("model_advanced", "ModelSamplingDiscrete", ("v_prediction", True)),
        ("model_advanced", "ModelSamplingContinuousEDM", ("edm", 80.0, 0.002)),
        ("model_advanced", "ModelSamplingSD3", (3.0,)),
        ("model_advanced", "RescaleCFG", (0.7,)),
        ("easycache", "EasyCacheNode", (0.01, 0.1, 0.95, False)),
        ("differential_diffusion", "DifferentialDiffusion", ()),
    ],
)
def test_a_node_that_patches_models_patches_this_one(module, name, given):
    """Whatever it then samples as, it stays the same set of pictures."""
    from importlib import import_module

    node = getattr(import_module(f"comfy_extras.nodes_{module}"), name)
    model, *rest = made()
    patched = (
        executed(node, model, *given) if hasattr(node, "execute") else getattr(node(), node.FUNCTION)(model, *given)[0]
    )
    assert nearest(drawn((patched, *rest), steps=20), images())[1] < 0.02


def test_boost_and_a_half_precision_run_it():
    from comfy_extras.nodes_model_advanced import ModelComputeDtype
    from fewstep.nodes.boost import FewStepBoost

    model, *rest = made()
    ready = type("Boost", (FewStepBoost,), {"hidden": SimpleNamespace(unique_id=None, prompt={})})
    half = ModelComputeDtype().patch(model, "fp16")[0]
    for patched in (executed(ready, model, True), half):
        assert nearest(drawn((patched, *rest), steps=10, sampler="euler"), images())[1] < 0.02


@pytest.mark.parametrize("count, words", [(1, "every seed draws the same"), (6, "6 pictures of 16 x 24 pixels")])
def test_it_says_what_it_was_made_of(count, words):
    parts = made(images(count), 0.5)
    assert words in parts[3] and "Empty Latent Image of 128 x 192" in parts[3]
    assert drawn(parts).isfinite().all()


def test_grey_pictures_and_those_with_alpha():
    for channels in (1, 4):
        pictures = images(3)[..., [0, 1, 2, 0][:channels]]
        assert nearest(drawn(made(pictures)), pictures[..., [0, 0, 0] if channels == 1 else [0, 1, 2]])[1] < 0.01


@pytest.mark.parametrize(
    "pictures, changed, words",
    [
        (torch.zeros(0, 8, 8, 3), {}, "batch of pictures"),
        (torch.zeros(8, 8, 3), {}, "images is 8 x 8 x 3"),
        ("a.png", {}, "images is str"),
        (torch.full((1, 8, 8, 3), torch.nan), {}, "NaN"),
        (images(), {"smoothing": -1.0}, "smoothing is -1.0; it must be a number from 0 to 4"),
        (images(), {"neighbours": -1}, "neighbours is -1"),
        (images(), {"variant": "edm"}, "choose one of eps, v, flow"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(pictures, changed, words):
    with pytest.raises(ValueError, match=words):
        made(pictures, **changed)
