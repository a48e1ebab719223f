"""What identifies a model: the host's real nodes on it, its weights, and what hangs on a conditioning."""

from __future__ import annotations

import functools
import importlib
import json
import os
import subprocess
import sys
import threading
from typing import Any

import pytest
import torch
from support.mixture import picture_like

pytestmark = pytest.mark.usefixtures("host")


def model(kind: str = "eps", shift: float = 3.0):
    """With a few weights, as every network has."""
    from support.host_mixture import mixture_model

    patcher = mixture_model(picture_like(), kind, shift)
    generator = torch.Generator().manual_seed(0)
    layers = [torch.nn.Linear(16, 16) for _ in range(121)]
    for layer in layers:
        for value in layer.parameters():
            value.data = torch.randn(value.shape, generator=generator)
    patcher.model.diffusion_model.layers = torch.nn.ModuleList(layers)
    patcher.model.model_config.unet_config = {"model_channels": 320}
    return patcher


def used(node: str, patcher, **inputs):
    """The MODEL that a node of the host makes, called as the host calls it, with its defaults for newer inputs."""
    module, _, name = node.partition(".")
    kind = getattr(importlib.import_module(f"comfy_extras.{module}"), name)
    if not hasattr(kind, "define_schema"):
        return getattr(kind(), kind.FUNCTION)(patcher, **inputs)[0]
    defaults = {one.id: getattr(one, "default", None) for one in kind.define_schema().inputs if one.id != "model"}
    given = {name: value for name, value in defaults.items() if value is not None} | inputs
    made = kind.execute(patcher, **given)
    return made[0] if isinstance(made, tuple) else made.args[0]


def identify(patcher) -> dict[str, Any]:
    from fewstep.nodes.host.identity import identify

    return identify(patcher)


# A node, its inputs, and the same with one changed.
FREE_U = {"b1": 1.1, "b2": 1.2, "s1": 0.9, "s2": 0.2}
CACHE = {"reuse_threshold": 0.2, "start_percent": 0.1, "end_percent": 0.9, "verbose": False}
LAYERS = {"start_percent": 0.0, "end_percent": 1.0, "double_layers": "7", "single_layers": "7"}
DOWN = {
    "block_number": 3, "downscale_factor": 2.0, "start_percent": 0.0, "end_percent": 0.35,
    "downscale_after_skip": True, "downscale_method": "bicubic", "upscale_method": "bicubic",
}  # fmt: skip
WINDOWS = {
    "context_length": 8, "context_overlap": 4, "context_schedule": "standard_static", "context_stride": 1,
    "closed_loop": False, "fuse_method": "pyramid", "dim": 0,
}  # fmt: skip
NODES: dict[str, tuple[dict, dict]] = {
    "nodes_model_advanced.RescaleCFG": ({"multiplier": 0.7}, {"multiplier": 0.5}),
    "nodes_cfg.CFGZeroStar": ({}, {}),
    "nodes_cfg.CFGNorm": ({"strength": 1.0}, {"strength": 0.5}),
    "nodes_apg.APG": (
        {"eta": 1.0, "norm_threshold": 5.0, "momentum": 0.0},
        {"eta": 1.0, "norm_threshold": 5.0, "momentum": 0.5},
    ),
    "nodes_tcfg.TCFG": ({}, {}),
    "nodes_mahiro.Mahiro": ({}, {}),
    "nodes_pag.PerturbedAttentionGuidance": ({"scale": 3.0}, {"scale": 2.0}),
    "nodes_sag.SelfAttentionGuidance": (
        {"scale": 0.5, "blur_sigma": 2.0},
        {"scale": 0.5, "blur_sigma": 1.0},
    ),
    "nodes_easycache.EasyCacheNode": (CACHE, CACHE | {"reuse_threshold": 0.3}),
    "nodes_easycache.LazyCacheNode": (CACHE, CACHE | {"reuse_threshold": 0.3}),
    "nodes_hypertile.HyperTile": (
        {"tile_size": 256, "swap_size": 2, "max_depth": 0, "scale_depth": False},
        {"tile_size": 256, "swap_size": 2, "max_depth": 0, "scale_depth": True},
    ),
    "nodes_tomesd.TomePatchModel": ({"ratio": 0.3}, {"ratio": 0.4}),
    "nodes_freelunch.FreeU": (FREE_U, FREE_U | {"s2": 0.3}),
    "nodes_freelunch.FreeU_V2": (FREE_U, FREE_U | {"b2": 1.3}),
    "nodes_fresca.FreSca": (
        {"scale_low": 1.0, "scale_high": 1.25, "freq_cutoff": 20},
        {"scale_low": 1.0, "scale_high": 1.25, "freq_cutoff": 21},
    ),
    "nodes_model_downscale.PatchModelAddDownscale": (DOWN, DOWN | {"end_percent": 0.4}),
    "nodes_context_windows.ContextWindowsManualNode": (WINDOWS, WINDOWS | {"context_overlap": 2}),
    "nodes_slg.SkipLayerGuidanceDiTSimple": (LAYERS, LAYERS | {"double_layers": "7, 8"}),
    "nodes_model_advanced.ModelSamplingDiscrete": (
        {"sampling": "v_prediction", "zsnr": False},
        {"sampling": "v_prediction", "zsnr": True},
    ),
    "nodes_model_advanced.ModelSamplingContinuousEDM": (
        {"sampling": "v_prediction", "sigma_max": 120.0, "sigma_min": 0.002},
        {"sampling": "eps", "sigma_max": 120.0, "sigma_min": 0.002},
    ),
    "nodes_model_advanced.ModelSamplingSD3": ({"shift": 3.0}, {"shift": 3.001}),
    "nodes_model_advanced.ModelSamplingStableCascade": ({"shift": 2.0}, {"shift": 3.0}),
}


def all_nodes(patcher) -> dict[str, dict[str, Any]]:
    return {
        f"{node} {inputs}": identify(used(node, patcher, **inputs)) for node, both in NODES.items() for inputs in both
    }


def test_every_node_on_the_model_is_another_model():
    """Measured with one and asked with another: the host's guidance, caches, attention patches and samplings."""
    patcher = model()
    plain, found = identify(patcher), all_nodes(patcher)
    keys = [str(facts) for facts in (plain, *found.values())]
    assert len(set(keys)) == len(keys)
    assert not [name for name, facts in found.items() if "unknown" in str(facts)]
    assert all_nodes(patcher) == found and identify(patcher) == plain
    assert found["nodes_model_advanced.RescaleCFG {'multiplier': 0.7}"]["functions"].startswith("RescaleCFG ")
    assert found["nodes_sag.SelfAttentionGuidance {'scale': 0.5, 'blur_sigma': 2.0}"]["functions"] != ""


def test_all_predictions_are_told_apart():
    patcher, name = model(), "nodes_model_advanced.ModelSamplingDiscrete"
    kinds = ("eps", "v_prediction", "lcm", "x0", "img_to_img")
    found = [identify(used(name, patcher, sampling=kind, zsnr=False))["sampling"] for kind in kinds]
    assert len(set(found)) == len(kinds)
    assert [text.split()[0] for text in found[:2]] == ["EPS", "V_PREDICTION"]


def test_what_an_older_fewstep_kept_is_compared_as_far_as_it_goes():
    from fewstep.nodes.host.identity import differences

    here = identify(model("flow")) | {"cfg": 5.0}
    names = ("latent_format", "channels", "prediction", "shift", "sigma_max", "sigma_min", "cfg")
    older = {name: here[name] for name in names} | {"model": "0" * 12, "patches": ""}
    (only,) = differences(older, here, "Measure again.")
    assert "older FewStep" in only and "measure again" in only
    said = differences(older | {"cfg": 4.0, "shift": 2.0}, here, "Measure again.")
    assert said[:2] == ["at shift 2.0, not 3.0", "at cfg 4.0, not 5.0"] and len(said) == 3
    assert differences(here, here, "Measure again.") == [] == differences({}, here, "Measure again.")
    with pytest.raises(ValueError, match="Measure again"):
        differences(older | {"channels": 16}, here, "Measure again.")


def test_another_sampling_or_function_is_said_once():
    from fewstep.nodes.host.identity import differences

    patcher = model()
    here = identify(patcher)
    node = "nodes_model_advanced.ModelSamplingDiscrete"
    there = identify(used(node, patcher, sampling="v_prediction", zsnr=False))
    assert differences(there, here, "") == ["with a model sampling: V_PREDICTION, not EPS"]
    there = identify(used(node, patcher, sampling="eps", zsnr=True))
    assert differences(there, here, "") == ["with a model sampling: EPS of other settings"]
    rescaled = [identify(used("nodes_model_advanced.RescaleCFG", patcher, multiplier=m)) for m in (0.5, 0.7)]
    assert differences(rescaled[0], here, "") == ["with functions on the model: RescaleCFG, not nothing"]
    assert differences(rescaled[0], rescaled[1], "") == ["with functions on the model: RescaleCFG of other settings"]
    flow = [identify(model("flow", shift)) for shift in (3.0, 2.0)]
    assert differences(flow[0], flow[1], "") == ["at shift 3.0, not 2.0"]


def test_order_and_our_own_guidance_count():
    from fewstep.nodes.host.guidance import guided_model
    from fewstep.samplers.guidance import ProbabilisticGuidance

    patcher = model()
    rescaled = used("nodes_model_advanced.RescaleCFG", patcher, multiplier=0.7)

    def ours(on, strength=0.5):
        return guided_model(on, ProbabilisticGuidance(strength, "cap", 1.0), 0.0, 1.0, None)[0]

    both = [
        used("nodes_mahiro.Mahiro", ours(patcher)),
        ours(used("nodes_mahiro.Mahiro", patcher)),
        ours(patcher),
        ours(patcher, 0.6),
        ours(rescaled),
        rescaled,
    ]
    assert len({identify(one)["functions"] for one in both}) == len(both)


def test_the_key_is_the_same_in_another_process():
    """No address and no order of a set is in it."""
    code = (
        "import json; from support.host import start_host; start_host()\n"
        "import test_identity as t; print(json.dumps(t.all_nodes(t.model())))"
    )
    environment = os.environ | {"PYTHONHASHSEED": "77", "PYTHONPATH": os.pathsep.join(sys.path)}
    here = os.path.dirname(__file__)
    answered = subprocess.run([sys.executable, "-c", code], env=environment, cwd=here, capture_output=True, text=True)
    assert answered.returncode == 0, answered.stderr
    assert json.loads(answered.stdout.splitlines()[-1]) == all_nodes(model())


def test_what_a_run_leaves_behind_is_no_other_model():
    """A variable that the functions write, as Self-Attention Guidance's scores and APG's running average, is state."""
    patcher = model()
    guided = used("nodes_sag.SelfAttentionGuidance", patcher, scale=0.5, blur_sigma=2.0)
    before = identify(guided)
    function = guided.model_options["sampler_post_cfg_function"][0]
    cells = dict(zip(function.__code__.co_freevars, function.__closure__, strict=True))
    cells["attn_scores"].cell_contents = torch.ones(3)
    assert identify(guided) == before
    cells["scale"].cell_contents = 0.7
    assert identify(guided) != before


@pytest.mark.parametrize("lora", [False, True])
def test_inside_a_run_the_model_is_the_same(lora):
    """DPM-Solver-v3 asks in the run, when LoRAs are merged and other objects stand in the model."""
    import comfy.sample
    import comfy.samplers
    from support.host_mixture import label_conditioning

    patcher = used("nodes_model_advanced.RescaleCFG", model(), multiplier=0.7)
    patcher = used("nodes_easycache.LazyCacheNode", patcher, **CACHE)
    patcher = used("nodes_model_advanced.ModelSamplingDiscrete", patcher, sampling="v_prediction", zsnr=False)
    if lora:
        patcher.add_patches({"diffusion_model.layers.3.weight": ("diff", (torch.ones(16, 16),))}, 0.5)
    before, inside = identify(patcher), []

    def sampler_function(model, x, sigmas, extra_args=None, callback=None, disable=None):
        for sigma in sigmas[:-1]:
            model(x, sigma.expand(len(x)), **extra_args)
            inside.append(identify(model.inner_model.model_patcher))
        return x

    sampler = comfy.samplers.KSAMPLER(sampler_function)
    sigmas = comfy.samplers.calculate_sigmas(patcher.get_model_object("model_sampling"), "normal", 4)
    noise, labels = torch.zeros(1, 4, 16, 16), label_conditioning([0])
    comfy.sample.sample_custom(patcher, noise, 5.0, sampler, sigmas, labels, labels, noise, disable_pbar=True)
    assert inside == [before] * 4 and identify(patcher) == before


# ---------------------------------------------------------------------------------------------------------
# What is told of any value


def told(value: Any) -> str:
    from fewstep.nodes.host.walk import Told

    return Told(value).text


def adder(amount, *, default=1, state=None):
    calls = 0

    def add(x, by=default):
        nonlocal calls
        calls += 1
        return x + amount + by

    return add


class Scaled:
    def __init__(self, scale):
        self.scale = scale

    def __call__(self, x):
        return x * self.scale

    @functools.cached_property
    def square(self):
        return self.scale**2


class Slotted:
    __slots__ = ("scale",)

    def __init__(self, scale):
        self.scale = scale


def test_values_are_told_by_what_they_hold():
    ones, linear = torch.ones(3), torch.nn.Linear(2, 2)
    different = [
        adder(1), adder(2), adder(1, default=2), functools.partial(adder, 1), functools.partial(adder, 2),
        functools.partial(adder, amount=1), Scaled(1), Scaled(2), Scaled(1).__call__, Scaled(2).__call__,
        Slotted(1), Slotted(2), {"a": 1}, {"a": 2}, [1, 2], [2, 1], [[1], 2], {1, 2}, {1, 3}, None, True, 1, 1.0,
        "1", b"1", ones, ones[:2], ones.double(), ones * 2, ones.numpy(), linear, range(3), range(4), slice(3),
        lambda x: x + 1, lambda x: x - 1, torch.float16, len, torch.relu, Scaled, torch.Generator().manual_seed(3),
    ]  # fmt: skip
    keys = list(map(told, different))
    assert len(set(keys)) == len(keys) and not [key for key in keys if "unknown" in key]
    assert told(adder(1)) == told(adder(1)) and told(Scaled(1)) == told(Scaled(1))
    assert told({"b", "a"}) == told({"a", "b"})


def test_state_and_kept_results_are_not_told():
    add, scaled, cyclic = adder(1), Scaled(2), Scaled(None)
    before = told([add, scaled])
    assert add(1) == 3 and scaled.square == 4
    assert told([add, scaled]) == before
    cyclic.scale = [cyclic]
    assert "unknown" not in told(cyclic) and told(threading.Lock()) == told(threading.Lock())


def deep(levels: int) -> list:
    value: list = []
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize("value", [(x for x in [1]), open(os.devnull), torch.empty(3, device="meta"), deep(500)])  # noqa: SIM115
def test_what_cannot_be_told_equals_nothing(value):
    first, second = told([value]), told([value])
    assert first.startswith("unknown") and first != second
    patcher = model()
    patcher.set_model_sampler_cfg_function(lambda args, held=value: args["cond"])
    facts = identify(patcher)
    assert facts["functions"].startswith("unknown") and facts != identify(patcher)
    from fewstep.nodes.host.identity import differences

    assert "cannot be told" in " ".join(differences(facts, identify(patcher), "Measure again."))


# ---------------------------------------------------------------------------------------------------------
# Weights


def test_one_tensor_of_many_is_another_checkpoint():
    patcher = model()
    before = identify(patcher)["model"]
    seen = {before}
    for layer in patcher.model.diffusion_model.layers:
        with torch.no_grad():
            layer.weight[3, 5] += 1e-3
        seen.add(identify(patcher)["model"])
        with torch.no_grad():
            layer.weight[3, 5] -= 1e-3
    assert len(seen) == 122


@pytest.mark.parametrize("name", ["float8_e4m3fn", "bfloat16", "float16", "float64", "int8", "bool", "complex64"])
def test_every_type_of_weight_is_read(name):
    from fewstep.nodes.host.tensors import digest_of

    values = (torch.arange(60).reshape(5, 12) % 7).to(getattr(torch, name))
    other = values.clone()
    other[4, 11] = 0
    for quick in (False, True):
        assert digest_of(values, quick) == digest_of(values.clone(), quick) != digest_of(other, quick)
        assert digest_of(values.T, quick) == digest_of(values.T.contiguous(), quick) != digest_of(values, quick)


def test_a_digest_is_kept_as_long_as_the_tensor_and_not_longer(monkeypatch):
    from fewstep.nodes.host import tensors

    kept, read, known = tensors.Remembered(), [], tensors.digest_of

    def counted(tensor, quick):
        read.append(tensor.shape)
        return known(tensor, quick)

    monkeypatch.setattr(tensors, "digest_of", counted)
    weight = torch.nn.Parameter(torch.randn(1000, 70))
    first = kept.digest(weight)
    assert kept.digest(weight) == first and kept.digest(torch.nn.Parameter(weight)) == first and len(read) == 1
    weight.data = weight.data.clone()  # as moved to another device and back
    assert kept.digest(weight) == first and len(read) == 1
    with torch.no_grad():
        weight[7, 7] += 1
    assert kept.digest(weight) != first and len(read) == 2
    with torch.inference_mode():
        uncounted = torch.randn(1000, 70)
        second = kept.digest(uncounted)
        uncounted *= 2
        assert kept.digest(uncounted) != second
    del weight, uncounted
    assert not [entry for entry in kept.by_object.values() if entry[0]() is not None]
    assert all(entry[0].expired() for entry in kept.by_storage.values())


def test_another_tensor_in_freed_memory_is_not_taken_for_the_first():
    from fewstep.nodes.host.tensors import Remembered

    kept, seen = Remembered(), set()
    for number in range(200):
        seen.add(kept.digest(torch.full((64, 64), float(number))))
    assert len(seen) == 200 and len(kept.by_object) <= 1


def test_known_weights_are_not_read_again(monkeypatch):
    from fewstep.nodes.host import tensors

    patcher, read = model(), []
    original = tensors.digest_of

    def watched(tensor, **how):
        read.append(tensor.numel())
        return original(tensor, **how)

    monkeypatch.setattr(tensors, "digest_of", watched)
    patcher.model.diffusion_model.large = torch.nn.Linear(512, 512, bias=False)
    first = identify(patcher)
    assert 512 * 512 in read
    read.clear()
    assert identify(patcher) == first and 512 * 512 not in read


def test_a_weight_in_pieces_and_in_a_wrapper_is_read():
    """Quantised tensors of the host hold others."""
    from comfy.quant_ops import QuantizedTensor, TensorCoreFP8Layout

    keys = [
        told(QuantizedTensor.from_float(torch.eye(8) * size, "TensorCoreFP8Layout", scale=scale))
        for size, scale in ((1.0, 1.0), (2.0, 1.0), (1.0, 2.0))
    ]
    assert TensorCoreFP8Layout and len(set(keys)) == 3 and not any("unknown" in key for key in keys)


class Quantised(torch.Tensor):
    """Bytes of a block-quantised weight that says it has the weight's shape, as ComfyUI-GGUF's do."""

    @staticmethod
    def __new__(cls, data, kind, shape):
        return torch.Tensor._make_subclass(cls, data, False)

    def __init__(self, data, kind, shape):
        self.tensor_type, self.tensor_shape, self.patches = kind, torch.Size(shape), []

    @property
    def shape(self):  # type: ignore[override]
        return self.tensor_shape

    def to(self, *args, **kwargs):
        return Quantised(super().to(*args, **kwargs), self.tensor_type, self.tensor_shape)

    def clone(self, *args, **kwargs):
        return self

    def detach(self):
        return self


class QuantisedLinear(torch.nn.Module):
    """Its state dict is there to estimate memory: it has no data."""

    def __init__(self, data, kind="Q8_0"):
        super().__init__()
        self.weight = torch.nn.Parameter(Quantised(data, kind, (16, 32)), requires_grad=False)
        self.bias = None

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        destination[prefix + "weight"] = torch.empty(16, 32, device="meta")
        destination[prefix + "temp.weight"] = torch.empty(16, 32, device="meta")


def quantised_model(data, kind="Q8_0"):
    import comfy.model_patcher

    class Patcher(comfy.model_patcher.ModelPatcher):
        """LoRAs are hung on the weights themselves: nothing is kept aside."""

        def patch_weight_to_device(self, key, device_to=None, inplace_update=False):
            weight = self.model.get_parameter(key)
            weight.patches = [(self.patches[key], key)]

    patcher = model()
    patcher.model.diffusion_model.layers = torch.nn.ModuleList([QuantisedLinear(data, kind)])
    own = Patcher(patcher.model, patcher.load_device, patcher.offload_device)
    del own.backup
    return own


def test_quantised_models_with_a_patcher_of_their_own_are_told_apart():
    data = torch.arange(16 * 34, dtype=torch.int64).to(torch.uint8).reshape(16, 34)
    changed = data.clone()
    changed[9, 20] += 1
    patcher = quantised_model(data)
    facts = identify(patcher)
    assert "unknown" not in str(facts) and identify(quantised_model(data.clone())) == facts
    assert identify(quantised_model(changed))["model"] != facts["model"]
    assert identify(quantised_model(data, "Q4_0"))["model"] != facts["model"]
    key = "diffusion_model.layers.0.weight"
    patcher.patches = {key: [(0.5, ("diff", (torch.ones(16, 32),)), 1.0, None, None)]}
    with_lora = identify(patcher)
    assert with_lora["model"] == facts["model"] and with_lora["patches"]
    patcher.patch_weight_to_device(key)
    assert identify(patcher) == with_lora


def test_weights_that_lie_nowhere_are_unknown_and_nothing_dies():
    patcher = model()
    patcher.model.diffusion_model.layers[3] = torch.nn.Linear(4, 4, device="meta")
    facts = identify(patcher)
    assert facts["model"].startswith("unknown") and facts != identify(patcher)


# ---------------------------------------------------------------------------------------------------------
# Conditioning


def prompt(**options) -> list:
    return [[torch.ones(1, 8, 4), options]]


def digest(**options) -> str:
    from fewstep.nodes.host.identity import conditioning_digest

    return conditioning_digest(prompt(**options))


def control(strength=1.0, weights=0.0, hint=1.0, end=1.0, before=None):
    import comfy.controlnet

    net = torch.nn.Conv2d(4, 4, 1)
    for value in net.parameters():
        torch.nn.init.constant_(value, weights)
    made = comfy.controlnet.ControlNet(net, load_device="cpu")
    made.set_cond_hint(torch.full((1, 3, 512, 512), hint), strength, (0.0, end))
    return made.set_previous_controlnet(before)


def test_controlnets_are_told_by_strength_weights_hint_and_range():
    import comfy.controlnet

    linear = control()
    linear.strength_type = comfy.controlnet.StrengthType.LINEAR_UP
    half = torch.ones(1, 3, 512, 512)
    half[0, 0, 200, 300] = 0.5
    pixel = control().set_cond_hint(half)
    others = [
        control(0.5), control(weights=1.0), control(hint=0.5), control(end=0.5), control(before=control()),
        control(before=control(0.5)), linear, pixel,
    ]  # fmt: skip
    keys = [digest(control=one) for one in (control(), *others)]
    assert len(set(keys)) == len(keys) and not any("unknown" in key for key in keys)
    ran = control()
    ran.pre_run(model().model, lambda percent: percent)
    ran.cond_hint = torch.ones(3)
    assert digest(control=ran) == digest(control=control()) == keys[0]


def lora_hook(strength=1.0, weight=1.0, keyframe=None):
    import comfy.hooks

    group = comfy.hooks.create_hook_lora({"a": torch.full((4, 4), weight)}, strength, 1.0)
    if keyframe is not None:
        frames = comfy.hooks.HookKeyframeGroup()
        frames.add(comfy.hooks.HookKeyframe(keyframe, start_percent=0.0))
        frames.add(comfy.hooks.HookKeyframe(1.0, start_percent=0.5))
        group.set_keyframes_on_hooks(frames)
    return group


def test_lora_hooks_are_told_by_strength_weights_and_keyframes():
    hooks = [lora_hook(), lora_hook(0.5), lora_hook(weight=2.0), lora_hook(keyframe=0.1), lora_hook(keyframe=0.2)]
    keys = [digest(hooks=group) for group in hooks]
    assert len(set(keys)) == len(keys) and not any("unknown" in key for key in keys)
    assert [digest(hooks=group.clone()) for group in hooks] == keys
    assert digest(hooks=lora_hook(keyframe=0.1)) == keys[3]
    for hook in hooks[3].hooks:
        hook.initialize_timesteps(model().model)
        hook.hook_keyframe._current_keyframe = hook.hook_keyframe.keyframes[1]
    assert digest(hooks=hooks[3]) == keys[3]


def test_masks_and_references_are_read_whole():
    from fewstep.nodes.host.identity import conditioning_digest

    mask = torch.zeros(1, 512, 512)
    other = mask.clone()
    other[0, 100:400, 100:400] = 1
    assert digest(mask=mask) != digest(mask=other)
    latents = torch.randn(4, 4, 64, 64, generator=torch.Generator().manual_seed(0))
    inside = latents.clone()
    inside[:, :, 8:-8, 8:-8] += 1
    assert conditioning_digest([latents]) != conditioning_digest([inside])


@pytest.mark.parametrize("elsewhere", ["/home/a/ComfyUI/custom_nodes/pack.nets", r"C:\ComfyUI\custom_nodes\pack.nets"])
def test_a_network_of_a_packs_own_class_is_the_same_wherever_comfyui_lies(elsewhere):
    """The host names a pack's modules by the path of its folder."""

    def of_module(name: str) -> str:
        patcher = model()
        network = patcher.model.diffusion_model
        network.__class__ = type("Network", (type(network),), {"__module__": name})
        return identify(patcher)["model"]

    here = of_module("/opt/ComfyUI/custom_nodes/pack.nets")
    assert of_module(elsewhere) == here
    assert of_module("/opt/ComfyUI/custom_nodes/another.nets") != here != of_module("pack.other")
