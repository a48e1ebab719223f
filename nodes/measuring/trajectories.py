"""The latents that schedules and tables are found on: their noise, how many at a time, and where they are kept."""

from __future__ import annotations

import math

import comfy.model_management
import torch
from torch import Tensor

from ...samplers.contract import Denoiser
from ..host.noise import seeded
from .asked import Asked

OF_FREE_MEMORY = 0.8
SHARE_OF_DEVICE = 4  # of what is free there, one part at most is for latents that are kept


def own_noise(request: Asked, number: int) -> Tensor:
    """Of one trajectory: it does not depend on how many there are."""
    return torch.randn(request.latent.shape[1:], generator=seeded(request.seed, number))


def begun(request: Asked, sigma: float, noise: Tensor, latent: Tensor) -> Tensor:
    """Latents as the host begins to sample them at a sigma. latent: in the model's own scale."""
    sampling = request.sampling
    highest = float(sampling.sigma_max)
    most = math.isclose(sigma, highest, rel_tol=1e-5) or sigma > highest
    # The host's noise_scaling may work in place.
    return sampling.noise_scaling(torch.tensor([sigma]).to(noise), noise.clone(), latent.clone(), most)


def batch_of(request: Asked, most: int) -> int:
    """How many latents the model can take at a time, by the host's own estimate of its memory."""
    model, device = request.model, request.model.load_device
    if "context_handler" in model.model_options:
        return 1  # the context windows of ComfyUI 0.3 take one latent
    if comfy.model_management.is_device_cpu(device):
        return most
    to_load = sum(max(one.model_size() - one.loaded_size(), 0) for one in request.models)
    free = comfy.model_management.get_free_memory(device) - to_load
    needs = model.model.memory_required([2, *request.latent.shape[1:]])
    return max(1, min(most, int(free * OF_FREE_MEMORY / needs)))


def split(denoise: Denoiser, batch: int) -> Denoiser:
    """The model asked about so many latents at a time."""

    def in_parts(x: Tensor, sigma: float) -> Tensor:
        return torch.cat([denoise(part, sigma) for part in x.split(batch)])

    return in_parts


def store_for(latents: int, x: Tensor) -> torch.device:
    """Where so many latents are kept: beside the model where they need little of what is free there."""
    needs = latents * x[0].numel() * x.element_size()
    fits = needs < comfy.model_management.get_free_memory(x.device) / SHARE_OF_DEVICE
    return x.device if fits else torch.device("cpu")
