"""The bundled model inside the host's own classes, in this process."""

from __future__ import annotations

import pytest
import torch
from support.nodes import executed

pytestmark = pytest.mark.usefixtures("host")


@pytest.fixture(scope="module")
def demo(host):
    from fewstep.nodes.models import demo as demo_model

    return demo_model


def denoised(demo, variant: str, ratio: float, y: torch.Tensor, prompt: str = "red apple") -> torch.Tensor:
    """One model call in float32 at noise-to-signal ratio `ratio`, in y = x / alpha."""
    import comfy.model_management

    patcher, clip = demo.load_model(variant), demo.load_clip()
    comfy.model_management.load_models_gpu([patcher])
    ((context, pooled),) = clip.encode_from_tokens_scheduled(clip.tokenize(prompt))
    flow = variant in ("flow", "gmflow")
    sigma = torch.full((len(y),), ratio / (1 + ratio) if flow else ratio)
    x = y / (1 + ratio) if flow else y
    with torch.no_grad():
        return patcher.model.apply_model(
            x,
            sigma,
            c_crossattn=context.expand(len(y), -1, -1),
            y=pooled["pooled_output"].expand(len(y), -1),
        )


@pytest.mark.parametrize("index", [20, 300, 600, 990])
def test_eps_v_and_flow_are_one_network(demo, index):
    """At the nodes of the discrete schedule the change of variables is exact."""
    import comfy.model_sampling

    ratio = comfy.model_sampling.ModelSamplingDiscrete().sigmas[index].item()
    y = ratio * torch.randn((1, 3, 64, 64), generator=torch.Generator().manual_seed(0))
    flow = denoised(demo, "flow", ratio, y)
    scale = max(flow.abs().max().item(), 1)
    for variant in ("eps", "v"):
        assert (denoised(demo, variant, ratio, y) - flow).abs().max() < 2e-3 * scale


def test_the_mixture_head_agrees_with_the_velocity_head(demo):
    """Two heads trained apart on the same posterior mean."""
    y = 2.0 * torch.randn((1, 3, 64, 64), generator=torch.Generator().manual_seed(0))
    flow, mean = (denoised(demo, variant, 2.0, y) for variant in ("flow", "gmflow"))
    assert (flow - mean).square().mean().sqrt() < 0.15


@pytest.mark.parametrize("height, width", [(64, 64), (37, 50), (96, 33)])
def test_any_size(demo, height, width):
    assert denoised(demo, "eps", 1.0, torch.randn(2, 3, height, width)).shape == (2, 3, height, width)


def test_weights_and_order_of_words(demo):
    tokenizer = demo.WordTokenizer()
    ((apple, weight), (red, plain), *padding) = tokenizer.tokenize_with_weights("(Apple:1.3), RED")["words"][0]
    assert (weight, plain) == (1.3, 1.0) and apple != red
    assert padding == [(0, 1.0)] * 6
    assert tokenizer.tokenize_with_weights("")["words"] == [[(0, 1.0)] * 8]


def test_a_long_prompt_has_more_chunks_and_still_runs(demo):
    prompt = "red apple green pear yellow banana orange cat dog heart"
    clip = demo.load_clip()
    ((context, _),) = clip.encode_from_tokens_scheduled(clip.tokenize(prompt))
    assert context.shape == (1, 16, 96)
    assert denoised(demo, "eps", 1.0, torch.randn(1, 3, 64, 64), prompt).isfinite().all()


def test_a_prompt_of_another_encoder_is_refused(demo):
    model = demo.load_model("eps").model
    with pytest.raises(ValueError, match="Connect the CLIP output of the Demo Model"):
        model.encode_adm(pooled_output=torch.zeros(1, 1280))


def test_a_clone_leaves_the_model_as_it_was(demo):
    model = demo.load_model("flow")
    clone = model.clone()
    clone.set_model_sampler_post_cfg_function(lambda args: args["denoised"] * 0)
    assert "sampler_post_cfg_function" not in model.model_options


def test_the_vae_returns_the_picture(demo):
    picture = torch.rand(1, 64, 64, 3)
    vae = demo.load_vae()
    torch.testing.assert_close(vae.decode(vae.encode(picture)).cpu(), picture, atol=1e-2, rtol=0)


def test_the_file_is_small_enough_to_be_cloned(demo):
    assert demo.WEIGHTS.stat().st_size <= 20e6


def test_an_unknown_variant_is_told(demo):
    from fewstep.nodes.demo import FewStepDemoModel

    with pytest.raises(ValueError, match="variant is 'sdxl'; choose one of eps, v, flow, gmflow"):
        FewStepDemoModel.execute("sdxl")


# ---------------------------------------------------------------------------------------------------------
# The host's nodes that patch a model: module, class, inputs, and whether the picture has to change

PATCHES = [
    ("freelunch", "FreeU", (1.1, 1.2, 0.9, 0.2), True),
    ("freelunch", "FreeU_V2", (1.3, 1.4, 0.9, 0.2), True),
    ("easycache", "EasyCacheNode", (0.3, 0.1, 0.95, False), False),
    ("easycache", "LazyCacheNode", (0.05, 0.1, 0.95, False), False),
    ("hypertile", "HyperTile", (32, 2, 2, False), False),
    ("tomesd", "TomePatchModel", (0.3,), False),
    ("pag", "PerturbedAttentionGuidance", (3.0,), True),
    ("sag", "SelfAttentionGuidance", (0.5, 2.0), True),
    ("nag", "NAGuidance", (5.0, 0.5, 2.5), True),
    ("slg", "SkipLayerGuidanceDiT", (3.0, 0.01, 0.15, "7, 8, 9", "7, 8, 9", 0.0), False),
    ("model_downscale", "PatchModelAddDownscale", (3, 2.0, 0.0, 0.35, True, "bicubic", "bicubic"), True),
    ("model_advanced", "RescaleCFG", (0.7,), True),
    ("model_advanced", "ModelComputeDtype", ("fp32",), False),
    ("lumina2", "RenormCFG", (100.0, 1.0), True),
    ("video_model", "VideoLinearCFGGuidance", (1.0,), True),
    ("video_model", "VideoTriangleCFGGuidance", (1.0,), True),
    ("differential_diffusion", "DifferentialDiffusion", (), False),
    ("tcfg", "TCFG", (), True),
    ("apg", "APG", (0.5, 5.0, -0.5), True),
    ("fresca", "FreSca", (1.0, 1.5, 20), True),
    ("cfg", "CFGNorm", (1.0,), True),
    ("cfg", "CFGZeroStar", (), True),
    ("mahiro", "Mahiro", (), True),
    ("eps", "EpsilonScaling", (1.005,), True),
    ("eps", "TemporalScoreRescaling", (0.95, 1.0), True),
    ("attention_multiply", "UNetSelfAttentionMultiply", (1.1, 1.0, 1.0, 1.0), True),
    ("attention_multiply", "UNetCrossAttentionMultiply", (1.1, 1.0, 1.0, 1.0), True),
    ("context_windows", "ContextWindowsManualNode", (32, 8, "standard_static", 1, False, "pyramid", 2), True),
]
SAMPLINGS = [
    ("eps", "ModelSamplingDiscrete", ("eps", False)),
    ("v", "ModelSamplingDiscrete", ("v_prediction", True)),
    ("flow", "ModelSamplingSD3", (3.0,)),
    ("gmflow", "ModelSamplingFlux", (1.15, 0.5, 1024, 1024)),
    ("gmflow", "ModelSamplingAuraFlow", (1.73,)),
]


def patched(model, module: str, name: str, given: tuple):
    """The model by one of the host's nodes; skips where this host has none."""
    import importlib

    try:
        node = getattr(importlib.import_module(f"comfy_extras.nodes_{module}"), name)
    except (ImportError, AttributeError):
        pytest.skip(f"this ComfyUI has no {name}")
    if hasattr(node, "execute"):
        return executed(node, model, *given)
    return getattr(node(), node.FUNCTION)(model, *given)[0]


def sampled(demo, model, steps: int = 6) -> torch.Tensor:
    """A latent of 64 x 64 by euler at cfg 4."""
    import comfy.sample
    import comfy.samplers

    clip = demo.load_clip()
    prompts = [clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in ("red apple", "")]
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", steps)
    noise = torch.randn((1, 3, 64, 64), generator=torch.Generator().manual_seed(0))
    sampler, latent = comfy.samplers.sampler_object("euler"), torch.zeros_like(noise)
    return comfy.sample.sample_custom(model, noise, 4.0, sampler, sigmas, *prompts, latent, disable_pbar=True, seed=0)


@pytest.fixture(scope="module")
def plain(demo) -> dict[str, torch.Tensor]:
    """The latent of every variant, without a node."""
    return {variant: sampled(demo, demo.load_model(variant)) for variant in demo.VARIANTS}


@pytest.mark.parametrize("variant", ["eps", "v", "flow", "gmflow"])
@pytest.mark.parametrize("module, name, given, changes", PATCHES, ids=[name for _, name, *_ in PATCHES])
def test_a_node_that_patches_models_patches_this_one(demo, plain, variant, module, name, given, changes):
    drawn = sampled(demo, patched(demo.load_model(variant), module, name, given))
    assert drawn.isfinite().all() and drawn.abs().max() < 20
    if changes:
        assert (drawn - plain[variant]).abs().max() > 1e-4
    else:
        assert (drawn - plain[variant]).square().mean() < 0.3 * plain[variant].var()


@pytest.mark.parametrize("variant, name, given", SAMPLINGS)
def test_a_node_that_changes_the_model_sampling(demo, plain, variant, name, given):
    drawn = sampled(demo, patched(demo.load_model(variant), "model_advanced", name, given))
    assert drawn.isfinite().all() and drawn.abs().max() < 20
    assert (drawn - plain[variant]).square().mean() < plain[variant].var()


def test_a_cache_saves_calls_and_leaves_the_latent_as_it_was(demo, plain):
    """EasyCache writes into the network's input, with which a flow model in float32 goes on computing."""
    model = patched(demo.load_model("flow"), "easycache", "EasyCacheNode", (0.3, 0.1, 0.95, False))
    network, calls = model.model.diffusion_model, []
    original = type(network).predict

    def predict(*given, **more):
        calls.append(1)
        return original(network, *given, **more)

    network.predict = predict
    drawn, exact = sampled(demo, model, 16), sampled(demo, demo.load_model("flow"), 16)
    assert 1 < len(calls) < 16
    assert (drawn - exact).square().mean() < 0.05 * exact.var()
