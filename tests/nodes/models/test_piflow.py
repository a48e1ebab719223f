"""pi-Flow adapters on the host's own FLUX.1, FLUX.2 and Qwen-Image: what they add, how they draw, what is refused."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fewstep.samplers.gmflow.mixture import Mixture, mean
from fewstep.samplers.gmflow.policy import Answer, PiFlow, Points, policy_sigmas, value_of, x0_of
from support.goldens import FOLDER
from support.nodes import executed, of_the_pack
from support.transformers import FAMILIES, LATENTS, PLACES, WIDTH, Adapter, adapter, prompt, same_head, tiny
from torch import Tensor

pytestmark = pytest.mark.usefixtures("host")
POLICIES = ("GMFlow", "grid", "polynomial")


def on(model, made: Adapter, strength: float = 1.0):
    from fewstep.nodes.models.piflow import with_adapter

    return with_adapter(model, made.state, made.policy, Path("made.safetensors"), strength)


def noise_for(family: str, batch: int = 1) -> Tensor:
    return torch.randn((batch, *LATENTS[family][1:]), generator=torch.Generator().manual_seed(9))


def chosen(model, steps: int = 4, **changed):
    """The pi-Flow Sampler's outputs."""
    given = {"denoise": 1.0, "noise": 0.0, "temperature": 0.0, "substeps": 32, "last_step": 0.5} | changed
    node = of_the_pack()["FewStepPiFlowSampler"]
    asked = type("Asked", (node,), {"hidden": SimpleNamespace(unique_id=None)})
    return asked.execute(model=model, steps=steps, **given).args  # type: ignore[attr-defined]


def head_on(model):
    """The last layer of the adapter on a MODEL."""
    from fewstep.nodes.host.mixtures import head_of_model

    head = head_of_model(model)
    assert head
    return head


def handed(family: str) -> dict:
    """What the host hands a network for `prompt()`, by its own rules."""
    text, rest = prompt()[0]
    if family == "qwen_image":
        return {"context": text}
    if family == "flux2":  # whose prompts the host makes 512 long
        text = torch.nn.functional.pad(text, (0, 0, 512 - text.shape[1], 0))
    return {"context": text, "y": rest["pooled_output"], "guidance": torch.tensor([3.5])}


def style_of(model, family: str) -> dict[str, Tensor]:
    """A LoRA of random numbers on one of the layers that adapters change too."""
    place, generator = next(iter(PLACES[family].values()))[0], torch.Generator().manual_seed(4)
    rows, columns = model.model.state_dict()[f"diffusion_model.{place}.weight"].shape
    return {
        f"diffusion_model.{place}.lora_A.weight": torch.randn(2, columns, generator=generator),
        f"diffusion_model.{place}.lora_B.weight": torch.randn(rows, 2, generator=generator),
    }


def basic(model, positive: list):
    from comfy_extras.nodes_custom_sampler import BasicGuider

    return executed(BasicGuider, model, positive)


def draw(
    model, family: str, positive: list | None = None, batch: int = 1, latent: dict | None = None, **changed
) -> Tensor:
    """SamplerCustomAdvanced with Basic Guider and the pi-Flow Sampler."""
    from comfy_extras.nodes_custom_sampler import Noise_RandomNoise, SamplerCustomAdvanced

    sampler, sigmas = chosen(model, **changed)
    latent = latent or {"samples": torch.zeros(batch, *LATENTS[family][1:])}
    out = executed(
        SamplerCustomAdvanced, Noise_RandomNoise(5), basic(model, positive or prompt()), sampler, sigmas, latent
    )
    return out["samples"]


def plain(model, family: str, calls: int = 3, x: Tensor | None = None) -> Tensor:
    """An ordinary sampler's picture."""
    import comfy.samplers

    x = noise_for(family) if x is None else x
    euler = comfy.samplers.sampler_object("euler")
    return basic(model, prompt()).sample(
        x, torch.zeros_like(x), euler, torch.linspace(1, 0, calls + 1), disable_pbar=True, seed=1
    )


# ---------------------------------------------------------------------------------------------------------
# What an adapter adds


@pytest.mark.parametrize("family", FAMILIES)
def test_a_head_of_the_models_own_last_layer_is_the_model(family):
    model = tiny(family)
    same = on(model, same_head(family, model))
    torch.testing.assert_close(plain(same, family), plain(model, family), rtol=0, atol=2e-4)
    assert plain(model, family).std() > 0.1


@pytest.mark.parametrize("family", FAMILIES)
def test_the_recorded_mixture_has_the_mean_that_the_host_hears(family):
    from fewstep.nodes.host.mixtures import Recorder

    model, seen = on(tiny(family), adapter(family)), []
    guider, x = basic(model, prompt()), noise_for(family, 2)

    def sample(wrap, x, sigmas, extra_args=None, **rest):
        recorder = Recorder(x.shape)
        options = recorder.on(extra_args["model_options"])
        denoised = wrap(x, x.new_full((2,), 0.7), **(extra_args | {"model_options": options}))
        seen.append((denoised, recorder.sides[0]))
        return denoised

    import comfy.samplers

    guider.sample(
        x, torch.zeros_like(x), comfy.samplers.KSAMPLER(sample), torch.tensor([0.7, 0.0]), disable_pbar=True, seed=1
    )
    denoised, mixture = seen[0]
    assert isinstance(mixture, Mixture)
    assert mixture.components == 4
    assert mixture.means.std(1).mean() > 0.01
    torch.testing.assert_close(mean(mixture).reshape(denoised.shape), denoised, rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_lora_parts_go_where_the_published_names_say(family, strength):
    model, made = tiny(family), adapter(family)
    before = {key: value.clone() for key, value in model.model.diffusion_model.state_dict().items()}
    patched = on(model, made, strength)
    after = patched.patch_model(torch.device("cpu")).diffusion_model.state_dict()
    for name, (place, first, last) in PLACES[family].items():
        key = f"{place}.weight"
        expected = before[key].clone()
        expected[first:last] += strength * made.state[f"{name}.lora_B.weight"] @ made.state[f"{name}.lora_A.weight"]
        torch.testing.assert_close(after[key], expected)
    untouched = set(before) - {f"{place}.weight" for place, _, _ in PLACES[family].values()}
    untouched = {key for key in untouched if key in after and before[key].shape == after[key].shape}
    assert len(untouched) > 10
    assert all(torch.equal(before[key], after[key]) for key in untouched)
    patched.unpatch_model(torch.device("cpu"))
    assert all(torch.equal(before[key], value) for key, value in model.model.diffusion_model.state_dict().items())


# ---------------------------------------------------------------------------------------------------------
# Drawing


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("policy", POLICIES)
def test_four_calls_draw(family, policy):
    model = on(tiny(family), adapter(family, policy))
    seen: list[float] = []

    def watched(apply, args):
        seen.append(float(args["timestep"][0]))
        return apply(args["input"], args["timestep"], **args["c"])

    model.set_model_unet_function_wrapper(watched)
    picture = draw(model, family)
    assert picture.shape == LATENTS[family]
    assert bool(picture.isfinite().all())
    assert picture.std() > 0.05
    assert seen == pytest.approx([1.0, 0.888889, 0.705882, 0.347826], abs=1e-5)
    torch.testing.assert_close(draw(model, family), picture)
    assert (draw(model, family, prompt(8)) - picture).abs().max() > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("policy", ["GMFlow", "polynomial"])
def test_a_run_is_the_policies_of_the_networks_answers(family, policy):
    """The sampler in the host against the pure one, over a network called by hand."""
    from fewstep.nodes.host.mixtures import framed, own_frame, patch_of

    model = on(tiny(family), adapter(family, policy))
    x, own = noise_for(family), LATENTS[family]
    hosted = basic(model, prompt()).sample(x, torch.zeros_like(x), *chosen(model), disable_pbar=True, seed=1)
    network = model.patch_model(torch.device("cpu")).diffusion_model
    head = head_on(model)
    given = handed(family)

    def predict(at: Tensor, sigma: float) -> Answer:
        network(at.reshape(own), torch.tensor([sigma]), transformer_options={}, **given)
        velocity = head.answer(head.told, torch.Size(own), patch_of(network))
        return x0_of(velocity, framed(at.reshape(own), velocity), sigma)

    nodes = torch.tensor(policy_sigmas(4), dtype=torch.float64).float()
    pure = PiFlow(32)(predict, x.reshape(own_frame(network, own)), nodes).reshape(own)
    inside = model.model.process_latent_out(pure)
    torch.testing.assert_close(hosted, inside, rtol=0, atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("policy", ["GMFlow", "grid"])
def test_a_picture_is_the_same_alone_and_in_a_batch(family, policy):
    model, x = on(tiny(family), adapter(family, policy)), noise_for(family, 2)

    def run(noise: Tensor) -> Tensor:
        return basic(model, prompt()).sample(noise, torch.zeros_like(noise), *chosen(model), disable_pbar=True, seed=1)

    torch.testing.assert_close(run(x)[:1], run(x[:1]), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_other_samplers_and_the_gmflow_sampler_draw_too(family):
    from fewstep.nodes.host.gmflow import Choice, gmflow_sampler

    model, x = on(tiny(family), adapter(family)), noise_for(family)
    assert bool(plain(model, family).isfinite().all())
    for mode, order in (("ode", 2), ("sde", 1), ("sde", 2)):
        how = gmflow_sampler(Choice(mode, order, 8, 1.0, False))
        end = basic(model, prompt()).sample(
            x, torch.zeros_like(x), how, torch.linspace(1, 0, 5), disable_pbar=True, seed=1
        )
        assert end.shape == x.shape
        assert bool(end.isfinite().all())


def test_the_gmflow_guider_works_on_a_mixture_adapter():
    from fewstep.nodes.host.gmflow import Guidance, gmflow_guider

    model, x = on(tiny("flux2"), adapter("flux2")), noise_for("flux2")
    ends = []
    for strength in (0.0, 0.45):
        guider = gmflow_guider(model, prompt(), prompt(8), Guidance(strength))
        ends.append(guider.sample(x, torch.zeros_like(x), *chosen(model), disable_pbar=True, seed=1))
    assert bool(torch.stack(ends).isfinite().all())
    assert (ends[0] - ends[1]).abs().max() > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("policy", ["GMFlow", "grid"])
def test_a_mask_keeps_the_picture(family, policy):
    model = on(tiny(family), adapter(family, policy))
    picture = torch.rand(LATENTS[family], generator=torch.Generator().manual_seed(2))
    mask = torch.zeros(1, 1, *LATENTS[family][-2:])
    mask[..., 2:] = 1
    end = draw(model, family, latent={"samples": picture, "noise_mask": mask})
    torch.testing.assert_close(end[..., :2], picture[..., :2], rtol=0, atol=1e-4)
    assert (end[..., 2:] - picture[..., 2:]).abs().mean() > 0.05


@pytest.mark.parametrize("family", ["flux", "flux2"])
@pytest.mark.parametrize("policy", ["GMFlow", "grid"])
def test_prompts_of_areas_are_blended_as_the_host_blends(family, policy, monkeypatch):
    from fewstep.nodes.host.policies import PolicyCall

    model, calls, ask = on(tiny(family), adapter(family, policy)), [], PolicyCall.ask

    def watched(self, x, sigma):
        denoised, answer = ask(self, x, sigma)
        calls.append((denoised, answer))
        return denoised, answer

    monkeypatch.setattr(PolicyCall, "ask", watched)
    rows = LATENTS[family][-2]
    draw(model, family, [*prompt(), *prompt(8, area=(rows // 2, LATENTS[family][-1], 0, 0), strength=0.7)])
    assert len(calls) == 4
    for denoised, answer in calls:
        assert isinstance(answer, (Mixture, Points))
        torch.testing.assert_close(value_of(answer).reshape(denoised.shape), denoised, rtol=0, atol=1e-3)


# ---------------------------------------------------------------------------------------------------------
# Among the host's other doings


@pytest.mark.parametrize("family", FAMILIES)
def test_the_model_without_the_adapter_stays_as_it_was(family):
    model = tiny(family)
    before = plain(model, family)
    patched = on(model, adapter(family))
    with_it = plain(patched, family)
    assert (with_it - before).abs().max() > 1e-3
    torch.testing.assert_close(plain(model, family), before)
    torch.testing.assert_close(plain(patched, family), with_it)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_lora_on_top_counts(family):
    import comfy.sd

    model = on(tiny(family), adapter(family))
    style = style_of(model, family)
    styled, _ = comfy.sd.load_lora_for_models(model, None, style, 0.5, 0.0)
    before = draw(model, family)
    assert (draw(styled, family) - before).abs().max() > 1e-3
    torch.testing.assert_close(draw(model, family), before)
    over, _ = comfy.sd.load_lora_for_models(tiny(family), None, style, 0.5, 0.0)
    torch.testing.assert_close(draw(on(over, adapter(family)), family), draw(styled, family), rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_unloaded_and_partly_loaded_models_draw_the_same(family):
    import comfy.model_management

    model = on(tiny(family), adapter(family))
    before = draw(model, family)
    comfy.model_management.unload_all_models()
    torch.testing.assert_close(draw(model, family), before)
    comfy.model_management.unload_all_models()
    original = model.model_size()
    model.patch_model(torch.device("cpu"), lowvram_model_memory=original // 3)
    assert model.model.model_lowvram
    partly = model.model.diffusion_model
    whole = on(tiny(family), adapter(family)).patch_model(torch.device("cpu")).diffusion_model
    given = {"transformer_options": {}} | handed(family)
    answers = [network(noise_for(family), torch.tensor([0.7]), **given) for network in (partly, whole)]
    torch.testing.assert_close(*answers, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "family, policy", [("flux", "GMFlow"), ("flux", "grid"), ("flux2", "GMFlow"), ("qwen_image", "GMFlow")]
)
def test_a_cancelled_run_leaves_nothing_behind(family, policy):
    import comfy.model_management

    model = on(tiny(family), adapter(family, policy))
    before, calls = draw(model, family), []

    def interrupted(apply, args):
        calls.append(1)
        answer = apply(args["input"], args["timestep"], **args["c"])
        if len(calls) == 3:
            raise comfy.model_management.InterruptProcessingException()
        return answer

    broken = model.clone()
    broken.set_model_unet_function_wrapper(interrupted)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        draw(broken, family)
    assert head_on(model).told is None
    torch.testing.assert_close(draw(model, family), before)


def test_a_network_that_fails_leaves_no_answer_in_the_head(monkeypatch):
    def broken(*given):
        raise RuntimeError("broken")

    model = on(tiny("qwen_image"), adapter("qwen_image"))
    draw(model, "qwen_image")
    head = head_on(model)
    assert head.told is None
    monkeypatch.setattr(head, "answer", broken)
    with pytest.raises(RuntimeError, match="broken"):
        draw(model, "qwen_image")
    assert head.told is None


def test_half_precision_files_are_cast_and_stay_close():
    made = adapter("flux")
    small = Adapter({key: value.bfloat16() for key, value in made.state.items()}, made.metadata)
    ends = [draw(on(tiny("flux"), one), "flux") for one in (made, small)]
    assert (ends[0] - ends[1]).abs().mean() < 0.05 * ends[0].std()


# ---------------------------------------------------------------------------------------------------------
# The loader


@pytest.fixture
def folders(tmp_path, host):
    import folder_paths

    known = folder_paths.folder_names_and_paths["loras"]
    folder_paths.folder_names_and_paths["loras"] = ([str(tmp_path)], known[1])
    yield tmp_path
    folder_paths.folder_names_and_paths["loras"] = known


def load(name: str, model=None, strength: float = 1.0):
    return executed(of_the_pack()["FewStepLoadGMFlow"], name, model, strength)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("policy", POLICIES)
def test_a_file_in_the_folder_of_loras_is_listed_and_loaded(folders, family, policy):
    from fewstep.nodes.models.gmflow import model_names

    made = adapter(family, policy)
    made.saved(folders / "made.safetensors")
    assert "loras/made.safetensors" in model_names()
    torch.testing.assert_close(
        draw(load("loras/made.safetensors", tiny(family)), family), draw(on(tiny(family), made), family)
    )


@pytest.mark.parametrize("family", ["flux", "qwen_image"])
def test_files_of_an_adapter_and_a_style_draw_through_an_offload_and_a_cancel(folders, family):
    """As in a workflow: Load GMFlow, a LoRA of the host's on top, Sampler Custom Advanced."""
    import comfy.model_management
    import comfy.sd
    import comfy.utils

    base = tiny(family)
    adapter(family).saved(folders / "made.safetensors")
    style = Adapter(style_of(base, family)).saved(folders / "style.safetensors")
    plainly, model = plain(base, family), load("loras/made.safetensors", base)
    styled, _ = comfy.sd.load_lora_for_models(model, None, comfy.utils.load_torch_file(str(style)), 0.5, 0.0)
    before = draw(styled, family)
    assert (before - draw(model, family)).abs().max() > 1e-3

    def cancelled(apply, args):
        raise comfy.model_management.InterruptProcessingException()

    broken = styled.clone()
    broken.set_model_unet_function_wrapper(cancelled)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        draw(broken, family)
    comfy.model_management.unload_all_models()
    torch.testing.assert_close(draw(styled, family), before)
    torch.testing.assert_close(plain(base, family), plainly)


def test_an_old_file_without_a_policy_config_is_a_mixture(folders):
    made = adapter("flux")
    Adapter(made.state).saved(folders / "old.safetensors")
    assert bool(draw(load("loras/old.safetensors", tiny("flux")), "flux").isfinite().all())


def test_an_adapter_without_a_model_and_a_model_with_a_model_are_told(folders):
    import shutil

    import folder_paths

    adapter("flux").saved(folders / "made.safetensors")
    known = folder_paths.folder_names_and_paths["diffusion_models"]
    folder_paths.folder_names_and_paths["diffusion_models"] = ([str(folders)], known[1])
    try:
        shutil.copy(FOLDER / "gmflow" / "tiny_gmdit.safetensors", folders / "whole.safetensors")
        with pytest.raises(ValueError, match="whole.safetensors is no pi-Flow adapter"):
            load("whole.safetensors", tiny("flux"))
    finally:
        folder_paths.folder_names_and_paths["diffusion_models"] = known
    with pytest.raises(
        ValueError, match=r"made.safetensors is a pi-Flow adapter.*Connect FLUX.1, FLUX.2 or Qwen-Image"
    ):
        load("loras/made.safetensors")


@pytest.mark.parametrize(
    "family, policy, key",
    [
        ("flux", "GMFlow", "norm_out.linear.weight"),
        ("flux", "GMFlow", "proj_out_logweights.weight"),
        ("flux2", "GMFlow", "proj_out_means.bias"),
        ("qwen_image", "GMFlow", "proj_out_logstds.3.bias"),
        ("qwen_image", "grid", "proj_out.bias"),
        ("flux", "GMFlow", "proj_out_means.weight"),
        ("flux", "GMFlow", "transformer_blocks.1.ff.net.0.proj.lora_A.weight"),
    ],
)
def test_a_missing_key_is_named_with_what_is_supported(folders, family, policy, key):
    made = adapter(family, policy)
    del made.state[key]
    made.saved(folders / "made.safetensors")
    partner = key.replace("lora_A", "lora_B")
    with pytest.raises(ValueError, match=f"({key}|{partner}).*gmflux_k8, dxflux_n10.*gmflux2_k8.*gmqwen_k8"):
        load("loras/made.safetensors", tiny(family))


@pytest.mark.parametrize(
    "made, model", [("flux", "qwen_image"), ("qwen_image", "flux"), ("flux2", "flux"), ("flux", "flux2")]
)
def test_an_adapter_of_another_model_is_told(made, model):
    with pytest.raises(ValueError, match="Connect the model that the adapter was made for"):
        on(tiny(model), adapter(made))


def test_models_that_take_no_adapter_are_told():
    from fewstep.nodes.models.demo import load_model

    with pytest.raises(ValueError, match=r"go on FLUX.1, FLUX.2, Qwen-Image; the connected model is a"):
        on(load_model("flow"), adapter("flux"))


@pytest.mark.parametrize(
    "metadata, words",
    [
        ({}, "does not say which policy it holds"),
        ({"policy_config": "{"}, "does not say which policy it holds"),
        ({"policy_config": json.dumps({"type": "GMFlow2"})}, "does not say which policy it holds"),
        ({"policy_config": json.dumps({"type": "DX", "mode": "spline"})}, "mode of a DX policy"),
    ],
)
def test_a_dx_file_must_say_what_it_is(metadata, words):
    with pytest.raises(ValueError, match=words):
        on(tiny("flux"), Adapter(adapter("flux", "grid").state, metadata))


def test_a_lora_of_another_size_and_another_width_are_told():
    made = adapter("flux")
    name = "transformer_blocks.0.ff.net.2.lora_A.weight"
    with pytest.raises(ValueError, match="is of another size than this FLUX.1: transformer_blocks.0.ff.net.2"):
        on(tiny("flux"), Adapter(made.state | {name: torch.zeros(4, WIDTH)}, made.metadata))
    wide = {
        key: torch.zeros(value.shape[0] * (2 if "norm_out" in key else 1), *(2 * n for n in value.shape[1:]))
        for key, value in made.state.items()
        if "lora" not in key
    }
    wide["proj_out_logstds.3.weight"] = made.state["proj_out_logstds.3.weight"]
    with pytest.raises(ValueError, match=f"tokens have {2 * WIDTH} numbers; this FLUX.1 has {WIDTH}"):
        on(tiny("flux"), Adapter(wide, made.metadata))


def test_a_second_adapter_is_told():
    with pytest.raises(ValueError, match="has a pi-Flow adapter already"):
        on(on(tiny("flux"), adapter("flux")), adapter("flux", "grid"))


def test_a_style_lora_in_the_place_of_an_adapter_is_told(folders):
    state = {"lora_unet_x.lora_up.weight": torch.zeros(2, 2), "lora_unet_x.lora_down.weight": torch.zeros(2, 2)}
    Adapter(state).saved(folders / "style.safetensors")
    with pytest.raises(ValueError, match="does not say which policy it holds: proj_out_means.weight is missing"):
        load("loras/style.safetensors", tiny("flux"))


def test_a_strength_that_is_no_number_is_told():
    with pytest.raises(ValueError, match="strength is nan"):
        on(tiny("flux"), adapter("flux"), float("nan"))


# ---------------------------------------------------------------------------------------------------------
# The sampler's node


def test_a_model_without_policies_is_told_before_anything_runs():
    with pytest.raises(ValueError, match="needs a model whose calls decide policies"):
        chosen(tiny("flux"))


def test_a_dx_policy_is_no_mixture_for_the_gmflow_nodes():
    from fewstep.nodes.host.gmflow import Choice, Guidance, gmflow_guider, gmflow_sampler

    model, x = on(tiny("flux"), adapter("flux", "grid")), noise_for("flux")
    with pytest.raises(ValueError, match="needs a model that predicts Gaussian mixtures"):
        gmflow_guider(model, prompt(), prompt(8), Guidance(0.45))
    how = gmflow_sampler(Choice("ode", 2, 8, 1.0, False))
    with pytest.raises(ValueError, match="has a DX policy.*Use the pi-Flow Sampler"):
        basic(model, prompt()).sample(x, torch.zeros_like(x), how, torch.linspace(1, 0, 5), disable_pbar=True, seed=1)


@pytest.mark.parametrize("guidance, told", [(None, False), (3.5, False), (2.0, True)])
def test_another_flux_guidance_is_told(guidance, told, caplog):
    model = on(tiny("flux"), adapter("flux"))
    with caplog.at_level(logging.WARNING):
        draw(model, "flux", prompt() if guidance is None else prompt(guidance=guidance))
    assert ("Flux Guidance is 2" in caplog.text) == told


@pytest.mark.parametrize(
    "policy, steps, words",
    [("GMFlow", 4, "temperature 0.3"), ("grid", 4, "grid of 4 points"), ("grid", 2, "Take 4 steps or more")],
)
def test_the_node_says_what_runs(policy, steps, words):
    from fewstep.nodes.host.policies import PolicyChoice, policy_remarks

    model = on(tiny("flux"), adapter("flux", policy))
    text = policy_remarks(model, steps, 0.5, 1.0, PolicyChoice())
    assert words in text
    assert ("Take" in text) == (steps == 2)


def test_the_bundled_gmflow_model_takes_the_sampler_as_well():
    from fewstep.nodes.models.demo import load_clip, load_model

    clip, model = load_clip(), load_model("gmflow")
    positive = clip.encode_from_tokens_scheduled(clip.tokenize("red apple"))
    x = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(9))
    end = basic(model, positive).sample(
        x, torch.zeros_like(x), *chosen(model, temperature=1.0), disable_pbar=True, seed=1
    )
    assert bool(end.isfinite().all())
    assert end.std() > 0.1
