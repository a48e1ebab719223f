"""GMFlow inside the host, in this process: loader, labels, guider and sampler, on the bundled and on a tiny GM-DiT."""

from __future__ import annotations

import gc
import json
import logging
import os
import shutil
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from fewstep.samplers.gmflow import GMDiT, GMDiTConfig, GMFlow
from fewstep.samplers.gmflow.mixture import Mixture, mean
from safetensors.torch import load_file, save_file
from support.gmflow import Guided, normal, tiny_gmdit, weights
from support.goldens import FOLDER
from support.mixture import picture_like
from support.nodes import executed
from torch import Tensor

if TYPE_CHECKING:
    from fewstep.nodes.host.mixtures import Recorder

pytestmark = pytest.mark.usefixtures("host")
TINY = FOLDER / "gmflow" / "tiny_gmdit.safetensors"
log = logging.getLogger(__name__)
SPECTRUM = FOLDER / "gmflow" / "tiny_spectrum.safetensors"


# ---------------------------------------------------------------------------------------------------------
# What the tests run


@pytest.fixture
def models(tmp_path, host) -> Iterator[Path]:
    """A folder that the host searches for diffusion models, with the tiny GM-DiT, its config and its spectrum."""
    import folder_paths

    known = folder_paths.folder_names_and_paths["diffusion_models"]
    folder_paths.folder_names_and_paths["diffusion_models"] = ([str(tmp_path)], known[1])
    shutil.copy(TINY, tmp_path / "tiny.safetensors")
    shutil.copy(SPECTRUM, tmp_path / "tiny_spectrum.safetensors")
    (tmp_path / "tiny.json").write_text(json.dumps(weights("tiny_gmdit")[1]))
    yield tmp_path
    folder_paths.folder_names_and_paths["diffusion_models"] = known


def load(name: str = "tiny.safetensors"):
    from fewstep.nodes.models.gmflow import load_gmflow

    return load_gmflow(name)


def labels(model, label: str = "3") -> tuple[list, list]:
    from fewstep.nodes.models.gmflow import label_conditioning

    return label_conditioning(model, label)


def demo(positive: str = "red apple", negative: str = ""):
    """The bundled gmflow model and its two prompts."""
    from fewstep.nodes.models.demo import load_clip, load_model

    clip = load_clip()
    prompts = (clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in (positive, negative))
    return load_model("gmflow"), *prompts


def guider(model, positive: list, negative: list, *, strength: float = 0.45, **rest):
    from fewstep.nodes.host.gmflow import Guidance, gmflow_guider

    return gmflow_guider(model, positive, negative, Guidance(strength, **rest))


def cfg_guider(model, positive: list, negative: list, *, cfg: float):
    from fewstep.nodes.host.guiders import guider_for

    return guider_for(model, positive, negative, cfg)


def sampler(mode: str = "ode", order: int = 2, substeps: int = 8, temperature: float = 1.0, spectral: bool = False):
    from fewstep.nodes.host.gmflow import Choice, gmflow_sampler

    return gmflow_sampler(Choice(mode, order, substeps, temperature, spectral))


def euler():
    import comfy.samplers

    return comfy.samplers.sampler_object("euler")


def sigmas(calls: int) -> Tensor:
    return torch.linspace(1, 0, calls + 1)


def run(used, how, x: Tensor, calls: int = 4, latent: Tensor | None = None, **given) -> Tensor:
    latent = torch.zeros_like(x) if latent is None else latent
    return used.sample(x, latent, how, sigmas(calls), disable_pbar=True, seed=7, **given)


def counted(model) -> list[int]:
    """The batch sizes of the network's calls from now on."""
    network, seen = model.model.diffusion_model, []
    original = type(network).mixture

    def mixture(x, *args, **kwargs):
        seen.append(len(x))
        return original(network, x, *args, **kwargs)

    network.mixture = mixture
    return seen


# ---------------------------------------------------------------------------------------------------------
# The guider and the sampler do what the pure functions do


def test_the_host_runs_the_solver_on_the_guided_mixture_of_the_network(models):
    """The same as the solver on the network itself, with the host's noise scaling and latent scale around it."""
    model = load()
    x = normal((2, 4, 9, 11), 0, torch.float32)
    pure = Guided(tiny_gmdit(), torch.full((2,), 3), 0.3)
    expected = GMFlow("ode", 2, 8)(pure, x, sigmas(4).double()) / 0.18215
    drawn = run(guider(model, *labels(model), strength=0.3), sampler(), x)
    torch.testing.assert_close(drawn, expected, rtol=1e-4, atol=1e-4)


def test_an_ordinary_sampler_gets_the_guided_mean(models):
    """One Euler step from pure noise to 0 ends on the denoised that the guider gives."""
    model = load()
    x = normal((1, 4, 8, 8), 1, torch.float32)
    expected = mean(Guided(tiny_gmdit(), torch.full((1,), 3), 0.3)(x, 1.0).mixture) / 0.18215
    drawn = run(guider(model, *labels(model), strength=0.3), euler(), x, calls=1)
    torch.testing.assert_close(drawn, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("strength, batches", [(0.0, 2), (0.45, 4)])
def test_without_strength_there_is_no_unconditional_call(strength, batches):
    model, *prompts = demo()
    seen = counted(model)
    run(guider(model, *prompts, strength=strength), sampler(), torch.randn(2, 3, 16, 16), calls=3)
    assert sum(seen) == 3 * batches


def test_guidance_only_in_its_part_of_the_run():
    model, *prompts = demo()
    seen = counted(model)
    run(guider(model, *prompts, start=0.3, end=0.6), sampler(), torch.randn(1, 3, 16, 16), calls=10)
    assert sum(seen) == 10 + 4  # at sigma 0.7, 0.6, 0.5, 0.4


def test_cfg_1_is_the_conditional_mixture_and_cfg_moves_its_mean():
    model, *prompts = demo()
    x = torch.randn(2, 3, 16, 16)
    ours = run(guider(model, *prompts, strength=0.0), sampler(), x)
    torch.testing.assert_close(run(cfg_guider(model, *prompts, cfg=1.0), sampler(), x), ours, rtol=1e-4, atol=1e-4)
    one_step, expected = (
        run(cfg_guider(model, *prompts, cfg=3.0), how, x, calls=1) for how in (sampler("sde", order=1), euler())
    )
    torch.testing.assert_close(one_step, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("mode, order", [("ode", 1), ("ode", 2), ("sde", 1), ("sde", 2)])
def test_a_picture_is_the_same_alone_and_in_a_batch(mode, order):
    model, *prompts = demo()
    x = torch.randn(3, 3, 20, 24, generator=torch.Generator().manual_seed(3))
    together = run(guider(model, *prompts), sampler(mode, order), x)
    alone = run(guider(model, *prompts), sampler(mode, order), x[1:2])
    torch.testing.assert_close(together[1:2], alone, rtol=1e-3, atol=1e-3)


def test_the_sde_has_other_noise_with_another_seed():
    model, *prompts = demo()
    x = torch.randn(1, 3, 16, 16)
    first, again = (run(guider(model, *prompts), sampler("sde"), x) for _ in range(2))
    assert torch.equal(first, again)
    other = guider(model, *prompts).sample(x, torch.zeros_like(x), sampler("sde"), sigmas(4), disable_pbar=True, seed=8)
    assert (other - first).abs().mean() > 0.01


# ---------------------------------------------------------------------------------------------------------
# The host's conditioning machinery


def area(conditioning: list, height: int, width: int, y: int, x: int, strength: float = 1.0) -> list:
    return [[c, {**extra, "area": (height, width, y, x), "strength": strength}] for c, extra in conditioning]


def recorded(model, positive: list, negative: list, x: Tensor, sigma: float) -> tuple[Recorder, list[Tensor]]:
    """What one call tells, and the host's blended means of both sides."""
    import comfy.samplers
    from fewstep.nodes.host.gmflow import GMFlowGuider
    from fewstep.nodes.host.mixtures import Recorder

    recorder, blended = Recorder(x.shape), []

    class Once(GMFlowGuider):
        def predict_noise(self, x, timestep, model_options=None, seed=None):
            options = recorder.on(model_options)
            conds = [self.conds["positive"], self.conds["negative"]]
            blended.extend(comfy.samplers.calc_cond_batch(self.inner_model, conds, x, timestep, options))
            return blended[0]

    from fewstep.nodes.host.gmflow import Guidance

    used = Once(model, Guidance(0.0))
    used.set_conds(positive, negative)
    used.sample(x, torch.zeros_like(x), euler(), torch.tensor([sigma, 0.0]), disable_pbar=True, seed=0)
    return recorder, blended


@pytest.mark.parametrize(
    "positive",
    [
        lambda p, q: p,
        lambda p, q: p + q,
        lambda p, q: area(p, 16, 12, 0, 0) + area(q, 16, 12, 0, 12, 0.6),
        lambda p, q: area(p, 16, 16, 0, 4) + q,
        lambda p, q: [[p[0][0], {**p[0][1], "mask": torch.linspace(0.1, 1, 24).expand(1, 16, 24)}], *q],
    ],
    ids=["one prompt", "two prompts", "two areas", "an area in the whole", "a mask"],
)
def test_the_mixture_of_several_prompts_has_the_mean_that_the_host_blends(positive):
    model, one, two = demo("red apple", "blue heart")
    x = torch.randn(2, 3, 16, 24)
    recorder, blended = recorded(model, positive(one, two), two, x, 0.8)
    for side, expected in zip(recorder.sides, blended, strict=True):
        assert isinstance(side, Mixture)
        torch.testing.assert_close(mean(side), expected, rtol=1e-4, atol=2e-4)


def test_prompts_that_do_not_fit_in_memory_together_give_the_same(monkeypatch):
    model, *prompts = demo()
    x = torch.randn(1, 3, 16, 16)
    together = run(guider(model, *prompts), sampler(), x)
    seen = counted(model)
    monkeypatch.setattr(model.model, "memory_required", lambda *given, **more: 1e15)
    apart = run(guider(model, *prompts), sampler(), x)
    assert set(seen) == {1} and len(seen) == 8
    torch.testing.assert_close(apart, together, rtol=1e-3, atol=1e-3)


def test_no_side_without_a_prompt_is_guessed():
    model, positive, negative = demo()
    late = [[c, {**extra, "start_percent": 0.5}] for c, extra in positive]
    with pytest.raises(ValueError, match="No positive prompt is active at some step"):
        run(guider(model, late, negative), sampler(), torch.randn(1, 3, 16, 16))


def test_a_mask_keeps_the_picture_and_the_rest_changes():
    model, *prompts = demo()
    x, latent = torch.randn(1, 3, 16, 16), torch.full((1, 3, 16, 16), 0.3)
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., :8] = 1
    for mode in ("ode", "sde"):
        drawn = run(guider(model, *prompts), sampler(mode), x, latent=latent, denoise_mask=mask)
        torch.testing.assert_close(drawn[..., 8:], latent[..., 8:], atol=1e-5, rtol=0)
        assert (drawn[..., :8] - latent[..., :8]).abs().mean() > 0.05


def test_a_patch_of_the_result_counts():
    """What a node like RescaleCFG's successors hang on the model moves the mixture too."""
    model, *prompts = demo()
    model.set_model_sampler_post_cfg_function(lambda args: args["denoised"] * 0 + 0.25)
    drawn = run(guider(model, *prompts), sampler("sde", order=1), torch.randn(1, 3, 16, 16), calls=3)
    torch.testing.assert_close(drawn, model.model.process_latent_out(torch.full_like(drawn, 0.25)), atol=1e-5, rtol=0)


def test_a_patch_that_calls_the_model_again_does_not_change_the_mixture():
    """As self-attention guidance does."""
    import comfy.samplers

    def again(args):
        conds, options = [args["cond"], args["cond"]], args["model_options"]
        comfy.samplers.calc_cond_batch(args["model"], conds, args["input"] * 0.1, args["sigma"], options)
        return args["denoised"]

    model, *prompts = demo()
    x = torch.randn(1, 3, 16, 16)
    used = (cfg_guider(model, *prompts, cfg=1.0), guider(model, *prompts))
    alone = [run(one, sampler("sde"), x) for one in used]
    model.set_model_sampler_post_cfg_function(again)
    used = (cfg_guider(model, *prompts, cfg=1.0), guider(model, *prompts))
    for one, expected in zip(used, alone, strict=True):
        torch.testing.assert_close(run(one, sampler("sde"), x), expected, rtol=1e-3, atol=1e-3)


def test_nothing_is_left_on_the_model_after_a_run():
    from fewstep.nodes.host import mixtures

    model, *prompts = demo()
    kept: list[weakref.ref] = []
    original = mixtures.Recorder.__init__

    def watched(self, *given):
        original(self, *given)
        kept.append(weakref.ref(self))

    options = repr(model.model_options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mixtures.Recorder, "__init__", watched)
        run(guider(model, *prompts), sampler(), torch.randn(1, 3, 16, 16))
    gc.collect()
    assert len(kept) == 4 and not any(ref() for ref in kept)
    assert repr(model.model_options) == options


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("mode", ["ode", "sde"])
def test_a_soft_mask_counts_once(mode, share):
    """As in the host's own step to 0: one Euler sub-step is that step."""
    model, *prompts = demo()
    x, latent = torch.randn(1, 3, 16, 16), torch.full((1, 3, 16, 16), 0.3)
    mask = torch.full((1, 1, 16, 16), share)
    ours, expected = (
        run(guider(model, *prompts), how, x, calls=1, latent=latent, denoise_mask=mask)
        for how in (sampler(mode, order=1, substeps=1), euler())
    )
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)


def inside(how, keep: tuple[str, ...] = ("inner_model", "sigmas"), whole: bool = False):
    """A SAMPLER around another, as Detail Daemon is: its model is a function with a few attributes of the host's.

    whole: the host's object itself as the function's inner_model.
    """
    import comfy.samplers

    def around(model, x, sigmas, **given):
        def lying(x, sigma, **extra):
            return model(x, sigma * 0.98, **extra)

        for name in keep:
            setattr(lying, name, getattr(model, name))
        if whole:
            setattr(lying, "inner_model", model)  # noqa: B010
        return how.sampler_function(lying, x, sigmas, **given, **how.extra_options)

    return comfy.samplers.KSAMPLER(around)


@pytest.mark.parametrize("mode", ["ode", "sde"])
@pytest.mark.parametrize(
    "shape",
    [{}, {"keep": ("inner_model",)}, {"keep": (), "whole": True}],
    ids=["Detail Daemon", "inner_model only", "the whole model inside"],
)
@pytest.mark.parametrize("differential", [False, True])
def test_inside_a_sampler_that_wraps_the_model_a_mask_works(mode, shape, differential):
    from comfy_extras.nodes_differential_diffusion import DifferentialDiffusion

    model, *prompts = demo()
    if differential:
        model = DifferentialDiffusion.execute(model).args[0]
    x, latent = torch.randn(1, 3, 16, 16), torch.full((1, 3, 16, 16), 0.3)
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., :8] = 1
    drawn = run(guider(model, *prompts), inside(sampler(mode), **shape), x, latent=latent, denoise_mask=mask)
    torch.testing.assert_close(drawn[..., 8:], latent[..., 8:], atol=1e-5, rtol=0)
    assert drawn.isfinite().all() and (drawn[..., :8] - latent[..., :8]).abs().mean() > 0.05


def test_a_sampler_that_hides_the_model_is_told():
    model, *prompts = demo()
    with pytest.raises(ValueError, match="sampler around the GMFlow Sampler hides the model"):
        run(guider(model, *prompts), inside(sampler(), keep=()), torch.randn(1, 3, 16, 16))


# ---------------------------------------------------------------------------------------------------------
# The host's nodes on the model


def cached(model, kind: str):
    import comfy_extras.nodes_easycache as nodes

    threshold = {"LazyCache": 0.1, "EasyCache": 0.4}[kind]
    return getattr(nodes, f"{kind}Node").execute(model, threshold, 0.1, 0.95, False).args[0]


@pytest.mark.parametrize("kind", ["LazyCache", "EasyCache"])
@pytest.mark.parametrize("mode, order", [("ode", 2), ("sde", 1), ("sde", 2)])
@pytest.mark.parametrize("how", ["ours", "cfg"])
def test_a_cache_that_answers_in_the_networks_place(kind, mode, order, how):
    """Fewer calls of the network, and nearly the picture without the cache."""
    model, *prompts = demo()
    x = torch.randn((1, 3, 32, 32), generator=torch.Generator().manual_seed(1))

    def used(model):
        return guider(model, *prompts) if how == "ours" else cfg_guider(model, *prompts, cfg=2.0)

    plain = run(used(model), sampler(mode, order), x, calls=16)
    seen = counted(model)
    drawn = run(used(cached(model, kind)), sampler(mode, order), x, calls=16)
    assert 1 < len(seen) < 16
    assert (drawn - plain).square().mean() < 0.15 * plain.var()


def test_a_cache_under_an_ordinary_sampler():
    """LazyCache is around all of it; EasyCache is below the guidance, which has no mixture then and says so."""
    model, *prompts = demo()
    x = torch.randn(1, 3, 32, 32)
    assert run(guider(cached(model, "LazyCache"), *prompts), euler(), x, calls=16).isfinite().all()
    with pytest.raises(ValueError, match="EasyCache.*GMFlow Guider needs the network's mixture at every call"):
        run(guider(cached(model, "EasyCache"), *prompts), euler(), x, calls=16)


@pytest.mark.parametrize("dim, shape", [(3, (1, 3, 16, 48)), (2, (1, 3, 32, 16))])
@pytest.mark.parametrize("how", ["ours", "euler"])
def test_context_windows_are_told(dim, shape, how):
    from comfy_extras.nodes_context_windows import ContextWindowsManualNode

    model, *prompts = demo()
    length = shape[dim] // 2
    windows = executed(ContextWindowsManualNode, model, length, 0, "standard_static", 1, False, "pyramid", dim)
    with pytest.raises(ValueError, match="how the picture is cut up here"):
        run(guider(windows, *prompts), sampler() if how == "ours" else euler(), torch.randn(shape))
    assert run(cfg_guider(windows, *prompts, cfg=2.0), euler(), torch.randn(shape)).isfinite().all()


def test_nodes_that_change_the_predictions_before_guidance_count_in_the_guider():
    """What FreSca or TCFG make of both predictions is what the guider takes the difference of."""
    from comfy_extras.nodes_fresca import FreSca
    from comfy_extras.nodes_tcfg import TCFG

    model, *prompts = demo()
    x = torch.randn(1, 3, 16, 16)
    plain = run(guider(model, *prompts), euler(), x, calls=1)
    for patched in (TCFG.execute(model).args[0], FreSca.execute(model, 0.2, 3.0, 2).args[0]):
        for how in (euler(), sampler("sde", order=1)):
            drawn = run(guider(patched, *prompts), how, x, calls=1)
            assert drawn.isfinite().all() and (drawn - plain).abs().max() > 1e-3

    def nothing(args):
        return args["conds_out"]

    idle = model.clone()
    idle.set_model_sampler_pre_cfg_function(nothing)
    torch.testing.assert_close(run(guider(idle, *prompts), euler(), x, calls=1), plain, rtol=1e-4, atol=1e-4)


def test_guidance_in_the_place_of_the_guiders_own_is_refused():
    from comfy_extras.nodes_model_advanced import RescaleCFG

    model, *prompts = demo()
    with pytest.raises(ValueError, match="RescaleCFG.*Take that node out, or use CFG Guider"):
        guider(RescaleCFG().patch(model, 0.7)[0], *prompts)


def test_cfg_override_is_refused_or_means_no_guidance():
    import comfy_extras.nodes_custom_sampler as nodes

    if not hasattr(nodes, "CFGOverride"):
        pytest.skip("this ComfyUI has no CFG Override")
    model, *prompts = demo()
    x = torch.randn(1, 3, 16, 16)
    with pytest.raises(ValueError, match="CFG Override sets a cfg of 4.*strength, which is no cfg"):
        run(guider(nodes.CFGOverride.execute(model, 4.0, 0.0, 1.0).args[0], *prompts), sampler(), x)
    off = run(guider(nodes.CFGOverride.execute(model, 1.0, 0.0, 1.0).args[0], *prompts), sampler(), x)
    torch.testing.assert_close(off, run(guider(model, *prompts, strength=0.0), sampler(), x))


# ---------------------------------------------------------------------------------------------------------
# Schedules


def steps_over(nodes: list[float], how, x: Tensor | None = None, strength: float = 0.45) -> Tensor:
    model, *prompts = demo()
    x = torch.randn((1, 3, 16, 16), generator=torch.Generator().manual_seed(5)) if x is None else x
    schedule = torch.tensor(nodes)
    return guider(model, *prompts, strength=strength).sample(
        x, torch.zeros_like(x), how, schedule, disable_pbar=True, seed=7
    )


@pytest.mark.parametrize("nodes", [[0.0], [0.3], []])
def test_fewer_than_two_sigmas_pass_the_latent_on_as_every_sampler_does(nodes):
    for mode in ("ode", "sde"):
        torch.testing.assert_close(steps_over(nodes, sampler(mode)), steps_over(nodes, euler()))


@pytest.mark.parametrize("how", ["ours", "euler"])
def test_sigmas_that_are_no_numbers_are_told(how):
    for nodes in ([1.0, float("nan"), 0.0], [float("nan"), 0.5, 0.0]):
        with pytest.raises(ValueError, match="each must be a number from 0 to 1|sigma of this run is no number"):
            steps_over(nodes, sampler() if how == "ours" else euler())


def test_equal_sigmas_that_end_in_noise_are_told():
    with pytest.raises(ValueError, match="All sigmas are 1, which is noise alone"):
        steps_over([1.0, 1.0], sampler("ode"))
    assert bool(steps_over([0.5, 0.5], sampler("ode")).isfinite().all())


def test_equal_sigmas_cost_nothing():
    how = sampler("ode")
    torch.testing.assert_close(steps_over([1.0, 1.0, 0.5, 0.5, 0.0, 0.0], how), steps_over([1.0, 0.5, 0.0], how))


@pytest.mark.parametrize("how", ["ours", "euler"])
def test_a_sigma_max_that_is_rounded_above_1_is_1(how):
    """2.14 is one of the shifts where the host's float32 says 1.0000001; guidance begins there all the same."""
    used = sampler("sde") if how == "ours" else euler()
    above = float(torch.tensor(1.0).nextafter(torch.tensor(2.0)))
    for strength in (0.0, 0.45):
        drawn, expected = (steps_over([first, 0.6, 0.0], used, strength=strength) for first in (above, 1.0))
        torch.testing.assert_close(drawn, expected, rtol=1e-3, atol=1e-3)


def test_our_sampler_inside_the_restart_sampler():
    from fewstep.nodes.host.sampler import restart_sampler

    model, *prompts = demo()
    x = torch.randn(1, 3, 16, 16)
    schedule = torch.tensor([1.0, 0.6, 0.3, 0.6, 0.3, 0.0])
    inner = restart_sampler(sampler("sde"), 1.0)
    drawn = guider(model, *prompts).sample(x, torch.zeros_like(x), inner, schedule, disable_pbar=True, seed=1)
    assert drawn.isfinite().all()


# ---------------------------------------------------------------------------------------------------------
# The loader


def test_the_tiny_checkpoint_is_a_model_of_the_host(models):
    model = load()
    assert type(model).__name__ == "ModelPatcher"
    assert model.get_model_object("latent_format").scale_factor == 0.18215
    assert float(model.get_model_object("model_sampling").shift) == 1
    assert model.model.spectrum is not None
    state = load_file(TINY)
    assert {k.removeprefix("diffusion_model.") for k in model.model_state_dict("diffusion_model.")} == set(state)


def test_half_precision_weights_are_cast_by_the_host(models, monkeypatch):
    """bfloat16 weights where the device computes in float32: the host's operations cast every layer."""
    import comfy.model_management

    x = normal((1, 4, 8, 8), 2, torch.float32)
    exact = load()
    expected = run(guider(exact, *labels(exact)), sampler(), x, calls=1)
    monkeypatch.setattr(comfy.model_management, "unet_dtype", lambda *given, **more: torch.bfloat16)
    half = load()
    assert half.model.manual_cast_dtype == torch.float32
    assert {v.dtype for v in half.model.diffusion_model.state_dict().values()} == {torch.bfloat16}
    drawn = run(guider(half, *labels(half)), sampler(), x, calls=1)
    assert (drawn - expected).abs().max() < 0.05 * expected.abs().max()
    assert not torch.equal(drawn, expected)


def test_a_config_json_of_another_model_is_left_alone(models):
    (models / "tiny.json").rename(models / "config.json")
    assert load().model.diffusion_model.config == GMDiTConfig.of_json(weights("tiny_gmdit")[1])
    (models / "config.json").write_text('{"hidden_size": 4096}')
    with pytest.raises(ValueError, match="If a config.json came with it, put that beside the file"):
        load()


@pytest.mark.parametrize("mode, spectral", [("ode", False), ("sde", False), ("sde", True)])
def test_the_tiny_checkpoint_draws_with_and_without_its_spectrum(models, mode, spectral):
    model = load()
    for size in ((8, 8), (9, 11), (12, 6)):
        drawn = run(guider(model, *labels(model)), sampler(mode, spectral=spectral), torch.randn(2, 4, *size), calls=1)
        assert drawn.shape == (2, 4, *size) and drawn.isfinite().all()


def test_spectral_without_a_spectrum_network_says_so(models):
    (models / "tiny_spectrum.safetensors").unlink()
    model = load()
    with pytest.raises(ValueError, match="no spectrum network came with this model.*NAME_spectrum.safetensors"):
        run(guider(model, *labels(model)), sampler("sde", spectral=True), torch.randn(1, 4, 8, 8))


def lose(state: dict[str, Tensor]) -> None:
    del state["proj_out_1.bias"]


def add(state: dict[str, Tensor]) -> None:
    state["surplus.weight"] = torch.zeros(2)


def bend(state: dict[str, Tensor]) -> None:
    state["proj_out_1.bias"] = torch.zeros(3)


def spoil(state: dict[str, Tensor]) -> None:
    state["proj_out_1.bias"][0] = float("nan")


@pytest.mark.parametrize(
    "change, words",
    [
        (lose, "1 missing: proj_out_1.bias"),
        (add, "1 unknown: surplus.weight"),
        (bend, r"1 of another shape: proj_out_1.bias \(3 instead of"),
        (spoil, "is damaged: proj_out_1.bias holds values that are no numbers"),
    ],
)
def test_a_checkpoint_with_a_fault_names_it(models, change, words):
    state = load_file(models / "tiny.safetensors")
    change(state)
    save_file(state, models / "tiny.safetensors")
    with pytest.raises(ValueError, match=words):
        load()


def test_files_that_cannot_be_used_are_told(models):
    with pytest.raises(ValueError, match="There is no 'absent.safetensors' in"):
        load("absent.safetensors")
    (models / "broken.safetensors").write_bytes(b"no tensors here")
    with pytest.raises(ValueError, match="broken.safetensors cannot be read"):
        load("broken.safetensors")
    (models / "tiny.json").write_text("{")
    with pytest.raises(ValueError, match="tiny.json beside tiny.safetensors is no JSON"):
        load()


@pytest.mark.parametrize("name", ["a\0b.safetensors", "x" * 5000, "../" * 40 + "etc/passwd", ""])
def test_names_that_no_file_can_have_are_told(models, name):
    from fewstep.nodes.gmflow import FewStepLoadGMFlow

    with pytest.raises(ValueError, match="There is no '.{0,200}' in|cannot be read") as told:
        load(name)
    assert len(str(told.value)) < 600
    assert isinstance(FewStepLoadGMFlow.validate_inputs(name), str)


def test_what_lies_beside_a_model_broken_is_told(models):
    (models / "tiny.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="tiny.json beside tiny.safetensors is no JSON"):
        load()
    config = weights("tiny_gmdit")[1]
    for wrong in ({"num_layers": 10**9}, {"attention_head_dim": 10**7}, {"sample_size": 10**8}, {"patch_size": 10**6}):
        (models / "tiny.json").write_text(json.dumps(config | wrong))
        with pytest.raises(ValueError, match="is of a larger one"):
            load()
    (models / "tiny.json").write_text(json.dumps(config))
    (models / "tiny.txt").write_bytes(b"\xff\xfe\n")
    assert load().model.names


def test_a_checkpoint_of_other_things_than_tensors_is_told(models):
    torch.save({"state": [1, 2], "step": 3}, models / "other.ckpt")
    with pytest.raises(ValueError, match="other.ckpt (holds other things than tensors|cannot be read)"):
        load("other.ckpt")


def test_a_file_cut_anywhere_is_told(models):
    whole = (models / "tiny.safetensors").read_bytes()
    for length in [*range(0, 64), *range(64, len(whole), max(1, len(whole) // 40))]:
        (models / "tiny.safetensors").write_bytes(whole[:length])
        with pytest.raises(ValueError, match="tiny.safetensors|GMFlow"):
            load()


# ---------------------------------------------------------------------------------------------------------
# Labels


def number(label: str, names: tuple[str, ...] = (), classes: int = 1000) -> int:
    from fewstep.nodes.models.gmflow import number_of

    return number_of(label, names, classes)


def test_a_label_is_a_number_or_a_name():
    from fewstep.nodes.models.gmflow import imagenet_names

    names = imagenet_names()
    assert len(names) == 1000
    assert (number("207", names), number(" 0 "), number("999")) == (207, 0, 999)
    assert number("Golden Retriever", names) == 207
    assert names[number("Cardigan", names)] == "Cardigan" and names[number("cardigan", names)] == "cardigan"


@pytest.mark.parametrize("label", ["1000", "-1"])
def test_a_label_out_of_range_is_told(label):
    with pytest.raises(ValueError, match=f"label is {label}; this model knows the numbers 0 to 999"):
        number(label)


def test_a_name_that_is_not_known_is_told():
    names = ("tench", "golden retriever", "crane", "crane")
    with pytest.raises(ValueError, match=r"no such class. Near to it: golden retriever \(1\)"):
        number("retriever", names)
    with pytest.raises(ValueError, match=r"several classes; give one of the numbers \[2, 3\]"):
        number("Crane", names)
    with pytest.raises(ValueError, match="names are not known. Give a number from 0 to 999"):
        number("tench")
    with pytest.raises(ValueError, match="no such class. Give a name of ImageNet, or a number from 0 to 3"):
        number("", names)


def test_names_may_lie_beside_the_model(models):
    classes = GMDiTConfig.of_json(weights("tiny_gmdit")[1]).num_embeds_ada_norm
    (models / "tiny.txt").write_text("\n".join(f"kind {i}" for i in range(classes)))
    model = load()
    (positive,), (negative,) = labels(model, "Kind 3")
    assert positive[1]["gmflow_label"].item() == 3 and negative[1]["gmflow_label"].item() == classes


def test_text_and_labels_do_not_mix(models):
    model = load()
    demo_model, text, _ = demo()
    with pytest.raises(ValueError, match="was given a text prompt. Connect the GMFlow Label node"):
        run(guider(model, text, text), sampler(), torch.randn(1, 4, 8, 8))
    with pytest.raises(ValueError, match="this model takes no class.*use CLIP Text Encode"):
        labels(demo_model)


# ---------------------------------------------------------------------------------------------------------
# Bad input


@pytest.mark.parametrize(
    "given, words",
    [
        ({"strength": 1.0}, "strength is 1; it must be at least 0"),
        ({"strength": -0.1}, "strength is -0.1"),
        ({"orthogonal": 1.5}, "orthogonal is 1.5; it must be between 0"),
        ({"start": 0.6, "end": 0.4}, "start_percent is 0.6 and end_percent 0.4"),
    ],
)
def test_guidance_out_of_range_is_told(given, words):
    with pytest.raises(ValueError, match=words):
        guider(*demo(), **given)


@pytest.mark.parametrize(
    "given, words",
    [
        ({"mode": "heun"}, "mode is 'heun'; choose one of ode, sde"),
        ({"mode": "mean_wide"}, "mode is 'mean_wide'; choose one of ode, sde"),
        ({"order": 3}, "The order of GMFlow cannot be 3"),
        ({"substeps": -1}, "The number of sub-steps of GMFlow cannot be -1"),
        ({"temperature": 0.0}, "The temperature of GMFlow cannot be 0"),
    ],
)
def test_choices_out_of_range_are_told_before_anything_runs(given, words):
    with pytest.raises(ValueError, match=words):
        sampler(**given)


def test_an_ordinary_model_is_told_what_is_missing():
    from support.host_mixture import label_conditioning, mixture_model

    model, prompt = mixture_model(picture_like(), "flow"), label_conditioning([0])
    with pytest.raises(ValueError, match="GMFlow Sampler needs a model that predicts Gaussian mixtures.*Load GMFlow"):
        run(cfg_guider(model, prompt, prompt, cfg=1.0), sampler(), torch.randn(1, 4, 16, 16))
    with pytest.raises(ValueError, match="GMFlow Guider needs a model.*For this model use CFG Guider"):
        guider(model, prompt, prompt)


def test_a_guider_of_another_kind_is_told():
    import comfy.samplers

    class Other(comfy.samplers.CFGGuider):
        def predict_noise(self, x, timestep, model_options=None, seed=None):
            return super().predict_noise(x, timestep, model_options or {}, seed)

    model, positive, negative = demo()
    other = Other(model)
    other.set_conds(positive, negative)
    with pytest.raises(ValueError, match="cannot tell which mixture the guider Other means. Use the GMFlow Guider"):
        run(other, sampler(), torch.randn(1, 3, 16, 16))


@pytest.mark.parametrize("strength", [0.0, 0.45])
@pytest.mark.parametrize("how", ["ours", "euler"])
def test_numbers_that_cannot_be_used_are_never_a_grey_picture(how, strength):
    model, *prompts = demo()
    x = torch.full((1, 3, 16, 16), float("nan"))
    with pytest.raises(ValueError, match="are not numbers"):
        run(guider(model, *prompts, strength=strength), sampler() if how == "ours" else euler(), x)
    with pytest.raises(ValueError, match="are not numbers"):
        run(cfg_guider(model, *prompts, cfg=3.0), sampler() if how == "ours" else euler(), x)


def test_a_model_that_breaks_is_named_with_the_call():
    model, *prompts = demo()
    network = model.model.diffusion_model
    original, calls = type(network).mixture, []

    def mixture(*args, **kwargs):
        calls.append(1)
        told = original(network, *args, **kwargs)
        return told | {"means": told["means"] * (float("inf") if len(calls) == 3 else 1)}

    network.mixture = mixture
    for used in (guider(model, *prompts), cfg_guider(model, *prompts, cfg=2.0)):
        calls.clear()
        with pytest.raises(ValueError, match="means.* are not numbers .at sigma 0.5"):
            run(used, sampler(), torch.randn(1, 3, 16, 16))


def test_one_component_and_odd_sizes(models):
    """K = 1: the mixture is a Gaussian; the guided one is exactly the Gaussian that guidance aims at."""
    config = GMDiTConfig(**{**weights("tiny_gmdit")[1], "num_gaussians": 1})
    torch.manual_seed(0)
    network = GMDiT(config)
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, models / "one.safetensors")
    (models / "one.json").write_text(json.dumps(weights("tiny_gmdit")[1] | {"num_gaussians": 1}))
    model = load("one.safetensors")
    for mode in ("ode", "sde"):
        drawn = run(guider(model, *labels(model)), sampler(mode), torch.randn(1, 4, 7, 13))
        assert drawn.shape == (1, 4, 7, 13) and drawn.isfinite().all()


# ---------------------------------------------------------------------------------------------------------
# Full size: FEWSTEP_FULL_SIZE=1, 8 GB of memory


@pytest.mark.skipif("FEWSTEP_FULL_SIZE" not in os.environ, reason="takes 8 GB; FEWSTEP_FULL_SIZE=1 runs it")
def test_a_full_size_checkpoint_loads_and_runs_a_step(models):
    with torch.device("meta"):
        shapes = {k: v.shape for k, v in GMDiT(GMDiTConfig()).state_dict().items()}
    torch.manual_seed(0)
    state = {k: (0.02 * torch.randn(shape)).to(torch.bfloat16) for k, shape in shapes.items()}
    assert sum(v.numel() for v in state.values()) == 676_164_001
    save_file(state, models / "full.safetensors")
    del state
    began = time.monotonic()
    model = load("full.safetensors")
    loaded = time.monotonic()
    x = torch.randn(1, 4, 32, 32)
    drawn = run(guider(model, *labels(model, "golden retriever"), strength=0.0), sampler(), x, calls=1)
    ended = time.monotonic()
    assert drawn.shape == x.shape and drawn.isfinite().all()
    log.warning(
        "%.2f GB, in %s: loaded in %.1f s, a step in %.1f s",
        (models / "full.safetensors").stat().st_size / 1e9,
        model.model_dtype(),
        loaded - began,
        ended - loaded,
    )
