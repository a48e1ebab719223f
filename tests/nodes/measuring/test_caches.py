"""Caches of steps on the model: refused where something is measured, made to forget where Restart jumps."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.nodes import executed

from .test_requests import NODES, given, model, request, run

pytestmark = pytest.mark.usefixtures("host")


def node(name: str) -> Any:
    """One of the host's, wherever it stands."""
    for module in ("easycache", "custom_sampler", "flux"):
        try:
            found = getattr(importlib.import_module(f"comfy_extras.nodes_{module}"), name, None)
        except ImportError:
            continue
        if found is not None:
            return found
    return pytest.skip(f"this ComfyUI has no {name}")


def easy(patcher, threshold: float = 0.2):
    return executed(node("EasyCacheNode"), patcher, threshold, 0.0, 1.0, False)


def lazy(patcher, threshold: float = 0.2):
    return executed(node("LazyCacheNode"), patcher, threshold, 0.0, 1.0, False)


# As other packs do it.


class TeaCache:
    def apply_teacache(self, patcher):
        def unet_wrapper_function(model_function, args):
            return model_function(args["input"], args["timestep"], **args["c"])

        changed = patcher.clone()
        changed.set_model_unet_function_wrapper(unet_wrapper_function)
        return changed


def magcache_forward(self, *args):
    return self.forward(*args)


def by_object_patch(patcher):
    changed = patcher.clone()
    changed.add_object_patch("diffusion_model.forward_orig", magcache_forward.__get__(patcher.model.diffusion_model))
    return changed


def by_wrapper(patcher):
    from comfy.patcher_extension import WrappersMP

    changed = patcher.clone()
    changed.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "first_block_cache", lambda executor, *a: executor(*a))
    return changed


def on_the_network(patcher):
    patcher.model.diffusion_model.forward_orig = magcache_forward.__get__(patcher.model.diffusion_model)
    return patcher


class TaylorSeer:
    def __call__(self, apply_model, args):
        return apply_model(args["input"], args["timestep"], **args["c"])


def by_object(patcher):
    changed = patcher.clone()
    changed.set_model_unet_function_wrapper(TaylorSeer())
    return changed


CACHES: dict[str, tuple[Callable, str]] = {
    "easy": (easy, "EasyCache is on the model"),
    "lazy": (lazy, "LazyCache is on the model"),
    "both": (lambda patcher: lazy(easy(patcher)), "LazyCache is on the model"),
    "function": (TeaCache().apply_teacache, "TeaCache is on the model"),
    "object patch": (by_object_patch, "magcache_forward is on the model"),
    "wrapper": (by_wrapper, "first_block_cache is on the model"),
    "network": (on_the_network, "magcache_forward is on the model"),
    "object": (by_object, "TaylorSeer is on the model"),
    "two": (lambda patcher: easy(TeaCache().apply_teacache(patcher)), "EasyCache and TeaCache are on the model"),
}


@pytest.mark.parametrize("kind", CACHES)
@pytest.mark.parametrize("name", NODES)
def test_nothing_is_measured_through_a_cache(name, kind):
    put, words = CACHES[kind]
    with pytest.raises(ValueError, match=f"{words}: measured through it .*Take the model from before it"):
        run(name, put(model("FLOW")))


def test_nor_through_one_in_a_guider():
    from fewstep.nodes.host.guiders import guider_for

    parts = given(model("FLOW"))
    cached = guider_for(easy(model("FLOW")), parts["positive"], parts["negative"], 2.0)
    with pytest.raises(ValueError, match="EasyCache is on the model"):
        run("search", None, guider=cached)
    second = lazy(model("FLOW"))
    both = executed(node("DualModelGuider"), model("FLOW"), parts["positive"], 2.0, second, parts["negative"])
    with pytest.raises(ValueError, match="LazyCache is on the model"):
        run("search", None, guider=both)


# ---------------------------------------------------------------------------------------------------------
# What is measured through, and kept in the facts


class Sparse:
    """A cache of keys and values in the attention, and other things whose name has the word in it."""

    cache: dict = {}

    def __call__(self, q, k, v, **options):
        return {"q": q, "k": k, "v": v}


def attention_with_cache(patcher):
    class KVCache(Sparse):
        pass

    changed = patcher.clone()
    changed.set_model_attn1_patch(KVCache())
    changed.model_options["transformer_options"]["animate2_cache"] = {"pose": torch.ones(2)}
    return changed


def context_windows(patcher):
    import comfy.context_windows as windows

    changed = patcher.clone()
    changed.model_options["context_handler"] = windows.IndexListContextHandler(
        windows.get_matching_context_schedule("standard_static"),
        windows.get_matching_fuse_method("pyramid"),
        context_length=6,
        context_overlap=2,
        dim=2,
    )
    return changed


def cfg_override(patcher, cfg: float = 2.0):
    return executed(node("CFGOverride"), patcher, cfg, 0.0, 0.5)


def flux_kv_cache(patcher):
    return executed(node("FluxKVCache"), patcher)


@pytest.mark.parametrize("put", [attention_with_cache, context_windows, cfg_override, flux_kv_cache])
def test_what_changes_the_answer_otherwise_is_in_the_facts(put):
    patcher = model("FLOW")
    facts = request("search", put(patcher)).facts
    assert facts["functions"] and "unknown" not in facts["functions"]
    assert facts == request("search", put(patcher)).facts != request("search", patcher).facts


def test_the_numbers_of_a_cfg_override_are_in_the_facts():
    patcher = model("FLOW")
    found = {request("search", cfg_override(patcher, cfg)).facts["functions"] for cfg in (1.0, 2.0, 2.0)}
    assert len(found) == 2


def test_sparse_attention_is_in_the_facts():
    """As the host's own and other packs' do it: a function that stands for the attention."""
    patcher = model("FLOW")

    def sparse(share: float):
        changed = patcher.clone()
        options = changed.model_options["transformer_options"]
        options["optimized_attention_override"] = lambda attention, q, k, v, **rest: attention(q * share, k, v, **rest)
        return request("search", changed).facts["functions"]

    assert sparse(0.5) == sparse(0.5) != sparse(0.25)


# ---------------------------------------------------------------------------------------------------------
# Restart

FALL = [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3]
JUMPS = torch.tensor([*FALL, 0.7, 0.6, 0.5, 0.4, 0.3, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.0])


def drawn(patcher, sigmas, report=None, inner: str | None = "euler") -> list[float]:
    """The sigmas at which the network itself was asked."""
    import comfy.samplers
    from fewstep.nodes.host.guiders import guider_for
    from fewstep.nodes.host.sampler import restart_sampler
    from fewstep.nodes.models.demo import load_clip

    clip = load_clip()
    positive, negative = (clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in ("red apple", ""))
    network, asked = patcher.model.diffusion_model, []
    original = type(network).predict

    def predict(x, timesteps, *args, **named):
        asked.append(round(float(timesteps[0]) / 1000, 3))
        return original(network, x, timesteps, *args, **named)

    network.predict = predict
    try:
        sampler = restart_sampler(inner and comfy.samplers.sampler_object(inner), 1.0, report)
        noise = torch.randn((1, 3, 16, 16), generator=torch.Generator().manual_seed(0))
        guider = guider_for(patcher, positive, negative, 1.0)
        end = guider.sample(noise, torch.zeros_like(noise), sampler, sigmas, disable_pbar=True, seed=1)
    finally:
        del network.predict
    assert end.isfinite().all()
    return asked


def demo():
    from fewstep.nodes.models.demo import load_model

    return load_model("flow")


@pytest.mark.parametrize("put", [easy, lazy])
def test_a_cache_of_the_hosts_begins_anew_after_every_jump(put):
    """The first calls of each falling run are the network's: nothing is answered with what was before the jump."""
    asked = drawn(put(demo(), 3.0), JUMPS)
    begun = [pair for pair in itertools.pairwise(asked) if pair[0] in (1.0, 0.7)]
    assert begun == [(1.0, 0.9), (0.7, 0.6), (0.7, 0.6)]
    assert len(asked) < len(JUMPS) - 4  # and it does save calls in between


@pytest.mark.parametrize("put", [easy, lazy])
def test_without_a_jump_a_cache_does_what_it_does_without_restart(put):
    falling = torch.tensor([*FALL, 0.0])
    with_ours = drawn(put(demo(), 0.3), falling)
    assert with_ours == drawn(put(demo(), 0.3), falling) and with_ours[0] == 1.0


def test_a_cache_that_cannot_forget_is_named_on_the_node_once():
    from fewstep.nodes.host.progress import Report

    report = Report(None)
    for _ in range(2):
        drawn(TeaCache().apply_teacache(demo()), JUMPS, report)
    assert report.entry["text"].count("TeaCache on the model remembers across the jumps") == 1
    quiet = Report(None)
    drawn(TeaCache().apply_teacache(demo()), torch.tensor([*FALL, 0.0]), quiet)
    drawn(easy(demo()), JUMPS, quiet)
    drawn(demo(), JUMPS, quiet)
    assert quiet.entry["text"] == ""
