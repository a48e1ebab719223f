"""The exact mixture sampled as the host does it, and the samplers of the field's other methods by name.

Call `support.host.start_host()` before anything here is called.
"""

from __future__ import annotations

from functools import lru_cache

import torch

from .mixture import picture_like

LABELS = [0, 3, 5, 1]
EVERY = slice(None)
SCHEDULES = {"flow": "simple"}


@lru_cache(maxsize=2)
def model(kind: str = "eps"):
    from .host_mixture import mixture_model

    return mixture_model(picture_like(), kind, 3.0 if kind == "flow" else 1.0)


def schedule(patcher, steps: int = 8, name: str = "") -> torch.Tensor:
    import comfy.samplers

    sampling = patcher.get_model_object("model_sampling")
    kind = patcher.model.model_type.name.lower()
    return comfy.samplers.calculate_sigmas(sampling, name or SCHEDULES.get(kind, "karras"), steps)


def start_noise(count: int = 4, seed: int = 0) -> torch.Tensor:
    return torch.randn((count, 4, 16, 16), generator=torch.Generator().manual_seed(seed))


def sample(sampler, kind: str = "eps", cfg: float = 1.0, seed: int = 7, items: slice = EVERY, **given):
    """The host's own way; `items` of the batch of four, `given` for what a test changes."""
    import comfy.sample

    from .host_mixture import label_conditioning

    patcher = given.pop("patcher", model(kind))
    noise = given.pop("noise", start_noise())[items]
    latent = given.pop("latent", torch.zeros_like(start_noise()))[items]
    sigmas = given.pop("sigmas", None)
    sigmas = schedule(patcher) if sigmas is None else sigmas
    conditioning = [label_conditioning(part[items]) for part in (LABELS, [-1] * 4)]
    return comfy.sample.sample_custom(
        patcher, noise, cfg, sampler, sigmas, *conditioning, latent, disable_pbar=True, seed=seed, **given
    )


def hosts(name: str, **options):
    import comfy.samplers

    made = comfy.samplers.sampler_object(name)
    made.extra_options = {**made.extra_options, **options}
    return made


def deis(*given):
    from fewstep.nodes.host.deis import deis_method_sampler

    return deis_method_sampler(*given)


def dual_fast(name, *given):
    from fewstep.nodes.host.dual_fast import dual_fast_sampler

    return dual_fast_sampler(hosts(name) if isinstance(name, str) else name, *given)


def flow_map(*given):
    from fewstep.nodes.host.flow_map import flow_map_sampler

    return flow_map_sampler(*given)


def ours():
    """One of every kind."""
    return {
        "deis tab": deis("tab", 3, "model"),
        "deis rhork": deis("rhork", 3, "model"),
        "deis ipndm": deis("ipndm", 4, "log_snr"),
        "dual fast": dual_fast("euler", 0.5, "linear"),
        "flow map": flow_map("euler", 0.9),
        "flow map ctm": flow_map("ctm", 0.9),
    }
