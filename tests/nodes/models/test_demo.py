"""The bundled model inside the host's own classes, in this process."""

from __future__ import annotations

import pytest
import torch

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
