"""A network that predicts the velocity of the flow form, as a model of the host: flow, eps or v.

The network has `velocity(x_t, t, context, y, ...)`: u = e - x0 at x_t = (1 - t) x0 + t e. The host's discrete models
give x = alpha x0 + sigma_vp e with alpha^2 + sigma_vp^2 = 1, so t = s / (1 + s) at s = sigma_vp / alpha, and
x_t = x (1 - t) / alpha. The derivations are one line each: e = x_t + (1 - t) u, x0 = x_t - t u.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.model_sampling
import torch
from comfy.model_base import BaseModel, ModelType
from torch import Tensor, nn

from .wrapped import HostNetwork

# ---------------------------------------------------------------------------------------------------------
# Changes of variables


def flow_point(x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """A variance-preserving x (B, ...) at noise-to-signal ratio sigma (B,) -> x_t and t of the flow form."""
    t = sigma / (1 + sigma)
    return x * spread(torch.sqrt(1 + sigma**2) * (1 - t), x), t


def eps_from_velocity(u: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """e = x_t + (1 - t) u."""
    return x_t + (1 - spread(t, x_t)) * u


def v_from_velocity(u: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """v = alpha e - sigma_vp x0, with alpha = (1 - t) / n, sigma_vp = t / n, n^2 = t^2 + (1 - t)^2."""
    at = spread(t, x_t)
    norm = torch.sqrt(at**2 + (1 - at) ** 2)
    return ((1 - at) * eps_from_velocity(u, x_t, t) - at * (x_t - at * u)) / norm


def spread(values: Tensor, like: Tensor) -> Tensor:
    """(B,) -> (B, 1, 1, 1), in the other tensor's dtype."""
    return values.to(like.dtype).reshape(-1, *[1] * (like.ndim - 1))


# ---------------------------------------------------------------------------------------------------------
# What the host calls with (input, timestep, context, y), and more. Each stands before the network among the bases.


class FlowForm(HostNetwork):
    """Predicts u for the host's CONST; its timestep is 1000 t."""

    velocity: Callable[..., Tensor]

    def predict(self, x: Tensor, timesteps: Tensor, context, y, *given, **host) -> Tensor:
        return self.velocity(x, timesteps / 1000, context, y, *given, **host)


class DiscreteForm(HostNetwork):
    """Base of eps and v: the timestep is an index of the SD noise schedule."""

    velocity: Callable[..., Tensor]
    convert: Callable[[Tensor, Tensor, Tensor], Tensor]

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.schedule = comfy.model_sampling.ModelSamplingDiscrete()
        for name in ("sigmas", "log_sigmas"):
            self.schedule.register_buffer(name, getattr(self.schedule, name), persistent=False)

    def predict(self, x: Tensor, timesteps: Tensor, context, y, *given, **host) -> Tensor:
        x_t, t = flow_point(x, self.schedule.sigma(timesteps).to(x.device))
        return type(self).convert(self.velocity(x_t, t, context, y, *given, **host), x_t, t)


class EpsForm(DiscreteForm):
    convert = staticmethod(eps_from_velocity)


class VForm(DiscreteForm):
    convert = staticmethod(v_from_velocity)


# ---------------------------------------------------------------------------------------------------------


def patched_model(
    kind: type[BaseModel], config: Any, model_type: ModelType, network: type[nn.Module], weights: dict[str, Tensor]
) -> comfy.model_patcher.ModelPatcher:
    """A fresh MODEL of the host with these weights, on the host's devices and in the dtype the host chooses."""
    device, offload = comfy.model_management.get_torch_device(), comfy.model_management.unet_offload_device()
    dtype = comfy.model_management.unet_dtype(device, model_params=10_000_000)
    config.set_inference_dtype(dtype, comfy.model_management.unet_manual_cast(dtype, device))
    model = kind(config, model_type, device=offload, unet_model=network)
    model.diffusion_model.load_state_dict(weights)
    model.eval()
    return comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=offload)
