"""Flow maps as the host's SAMPLER: where a step goes to reaches the network through transformer_options.

`transformer_options["flow_map_r"]` is a float32 tensor without axes, on the latent's device: sigma r, the end of the
step that is asked for. A network that knows flow maps reads it; any other does not look, and that is noticed.
"""

from __future__ import annotations

from typing import Any

import comfy.samplers
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ...samplers.flow_map import FlowMap, MapDenoiser, share_of
from ...samplers.sigmas import checked_sigmas, without_repeats
from .noise import ItemNoise
from .noise_law import noise_law
from .progress import Report, complain
from .sampler import Reporter, denoiser, model_sampling_of

KEY = "flow_map_r"
WHO = "Flow Map Sampler"


class Noticed(Tensor):
    """A tensor that notes whether anything was made of it."""

    was_read: bool

    @classmethod
    def of(cls, value: float, device: torch.device) -> Noticed:
        made = torch.full((), value, dtype=torch.float32, device=device).as_subclass(cls)
        made.was_read = False
        return made

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        for one in tree_leaves((args, kwargs)):
            if isinstance(one, cls):
                one.was_read = True
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **(kwargs or {}))
        return result.as_subclass(Tensor) if isinstance(result, cls) else result


class Asked:
    """A MapDenoiser of the host's model; `was_read`: whether the network looked where to go."""

    def __init__(self, model, extra_args: dict[str, Any]):
        self.model, self.extra_args, self.was_read = model, extra_args, False

    def __call__(self, x: Tensor, sigma: float, r: float) -> Tensor:
        told = Noticed.of(r, x.device)
        options = self.extra_args.get("model_options", {})
        transformer = options.get("transformer_options", {}) | {KEY: told}
        given = self.extra_args | {"model_options": options | {"transformer_options": transformer}}
        denoised = denoiser(self.model, given)(x, sigma)
        self.was_read |= told.was_read
        return denoised


@torch.no_grad()
def sample_flow_map(
    model,
    x: Tensor,
    sigmas: Tensor,
    extra_args=None,
    callback=None,
    disable=None,
    *,
    method: str,
    gamma: float,
    report: Report | None = None,
) -> Tensor:
    """The host's sampler function. Raises ValueError for sigmas that do not fall."""
    extra_args = dict(extra_args or {})
    law = noise_law(model_sampling_of(model))
    nodes = torch.tensor(without_repeats(checked_sigmas(sigmas, law)), dtype=torch.float64)
    if len(nodes) < 2:
        return x
    noise = ItemNoise(extra_args.get("seed") or 0, getattr(model, "noise", x), round(float(nodes[0]) * 2**20))
    watch, asked = Reporter(callback, nodes, disable), Asked(model, extra_args)
    denoise: MapDenoiser = asked
    end = FlowMap(law, share_of(method, gamma))(denoise, x, nodes, noise=noise, on_step=watch)
    if not asked.was_read:
        complain(report, WHO, unread(method))
    watch.complain(end, report, WHO)
    return end


def unread(method: str) -> str:
    steps = "plain Euler" if method == "euler" else "Euler steps with noise put back"
    return f"This model is no flow map: it does not look where a step goes, so what was sampled is {steps}."


def flow_map_sampler(method: str, gamma: float, report: Report | None = None) -> comfy.samplers.KSAMPLER:
    """The SAMPLER. Raises ValueError for what is no method or gamma."""
    share_of(method, gamma)
    return comfy.samplers.KSAMPLER(sample_flow_map, {"method": method, "gamma": gamma, "report": report})
