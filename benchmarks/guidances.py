"""The kinds of guidance that the benchmarks compare, each as a MODEL with the host's own node, or ours; and draws."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from error_per_call import comfy
from fewstep.samplers.guidance import MODES
from fewstep.samplers.rivals import RIVALS
from torch import Tensor


def node(path: str):
    """One of the host's own nodes."""
    module, name = path.split(".")
    return getattr(importlib.import_module(f"comfy_extras.{module}"), name)


def within(model, low: float, high: float):
    """Guidance only where noise-to-signal lies between."""
    from fewstep.nodes.host.noise_law import noise_law

    def chosen(args: dict) -> Tensor:
        law, sigma = noise_law(args["model"].model_sampling), float(args["sigma"].max())
        inside = law.alpha(sigma) > 0 and low <= law.ratio(sigma) <= high
        return args["denoised"] if inside else args["cond_denoised"]

    model = model.clone()
    model.set_model_sampler_post_cfg_function(chosen)
    return model


def ours(
    model, mode: str, spread, strength: float, orthogonal: float = 1.0, prompt_cfg: float = 1.0, start: float = 0.0
):
    from fewstep.nodes.host.guidance import guided_model
    from fewstep.samplers.guidance import ProbabilisticGuidance

    return guided_model(model, ProbabilisticGuidance(strength, mode, orthogonal, prompt_cfg), start, 1.0, spread)[0]


def rival(model, mode: str, strength: float):
    """Other guidance of ours."""
    from fewstep.nodes.host.guidance import guided_model
    from fewstep.samplers.rivals import Rival

    return guided_model(model, Rival(mode, strength), 0.0, 1.0, None)[0]


def ours_within(model, spread, strength: float, low: float, high: float):
    return within(ours(model, "soft", spread, strength), low, high)


def applied(kind: str, model, spread, setting: dict[str, Any]):
    """The MODEL with a kind of guidance at a setting."""
    made: dict[str, Callable] = {
        "cfg": lambda: model,
        **{f"ours {mode}": partial(ours, model, mode, spread) for mode in MODES},
        "ours in an interval": partial(ours_within, model, spread),
        "APG": lambda eta, threshold: node("nodes_apg.APG").execute(model, eta, threshold, 0.0).args[0],
        "RescaleCFG": lambda multiplier: node("nodes_model_advanced.RescaleCFG")().patch(model, multiplier)[0],
        "CFGNorm": lambda strength: node("nodes_cfg.CFGNorm").execute(model, strength).args[0],
        "CFG-Zero*": lambda: node("nodes_cfg.CFGZeroStar").execute(model).args[0],
        "TCFG": lambda: node("nodes_tcfg.TCFG").execute(model).args[0],
        "interval": partial(within, model),
        **{mode: partial(rival, model, mode) for mode in RIVALS},
    }
    return made[kind](**setting)


def spread_of(model, conditioning: tuple[list, list], shape, bands: str = "1"):
    """As the node measures it at its defaults, on latents of a shape (C, H, W)."""
    from fewstep.nodes.measuring.spread import Request, measure_spread

    asked = Request(model, *conditioning, 4.0, torch.zeros(8, *shape), 5, images=8, levels=12, bands=bands)
    return measure_spread(asked, None)


def drawn(model, conditioning: tuple[list, list], shape, cfg: float, scheduler: str, steps: int) -> Tensor:
    """By dpmpp_2m, latents of a shape (B, C, H, W); the same noise whatever the guidance."""
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), scheduler, steps)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    sampler, latent = comfy.samplers.sampler_object("dpmpp_2m"), torch.zeros(shape)
    return comfy.sample.sample_custom(
        model, noise, cfg, sampler, sigmas, *conditioning, latent, disable_pbar=True, seed=0
    )
