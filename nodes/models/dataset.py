"""A set of pictures as the host's own objects: a BaseModel in a ModelPatcher, a CLIP that knows nothing, a VAE."""

from __future__ import annotations

import weakref
from types import SimpleNamespace
from typing import Any

import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.supported_models_base
import torch
from comfy.model_base import ModelType
from torch import Tensor, nn

from ...samplers.choices import check_choice
from ...samplers.closed_form import ClosedForm, PictureSet, latent_scale, resized
from ..host.noise_law import noise_law
from ..host.schedules import SD_SIGMA_MAX
from .wrapped import HostNetwork

VARIANTS = {"eps": ModelType.EPS, "v": ModelType.V_PREDICTION, "flow": ModelType.FLOW}
NOTHING = 8  # numbers, all 0, that stand for whatever a prompt says


class PictureLatent(comfy.latent_formats.LatentFormat):
    """Pixels in [-1, 1] <-> latents around 0, at the scale at which the model's highest sigma is enough."""

    latent_channels = 3

    def __init__(self, mean: list[float] | None = None, scale: float = 1.0):
        self.mean, self.scale = mean or [0.0] * 3, scale
        self.latent_rgb_factors = (torch.eye(3) / scale).tolist()
        self.latent_rgb_factors_bias = list(self.mean)

    def process_in(self, latent: Tensor) -> Tensor:
        return (latent - self.middle(latent)) * self.scale

    def process_out(self, latent: Tensor) -> Tensor:
        return latent / self.scale + self.middle(latent)

    def middle(self, like: Tensor) -> Tensor:
        return torch.tensor(self.mean, dtype=like.dtype, device=like.device)[:, None, None]


class DatasetNetwork(HostNetwork):
    """Answers what makes the host's `calculate_denoised` return D, whatever kind of model it samples as.

    In float32 always: the logarithms of the weights are beyond half precision.
    """

    dtype = torch.float32

    def __init__(self, pictures: Tensor, smoothing: float, neighbours: int):
        super().__init__()
        self.pictures = nn.Parameter(pictures, requires_grad=False)
        self.smoothing, self.neighbours = smoothing, neighbours
        self.register_buffer("settings", torch.tensor([smoothing, neighbours]))  # a model is known by its tensors

    def predict(
        self, x: Tensor, timesteps: Tensor, context, y, control, transformer_options, place=None, **host
    ) -> Tensor:
        sigma, sampling = place
        sigma = sigma.float()
        law, one = noise_law(sampling), torch.ones_like(sigma).view(-1, *[1] * (x.ndim - 1))
        at = x.float() / sampling.calculate_input(sigma, one)
        denoised = self.closed_form(at)(at, law.alpha(sigma), law.deviation(sigma))
        # calculate_denoised is a + b * output: solve it for the output
        a = sampling.calculate_denoised(sigma, torch.zeros_like(at), at)
        b = sampling.calculate_denoised(sigma, torch.ones_like(at), at) - a
        return ((denoised - a) / b).to(x.dtype)

    def closed_form(self, x: Tensor) -> ClosedForm:
        size, shifts, others = self.measured(x)
        pictures = self.pictures if others is None else others
        return ClosedForm(pictures.detach().to(x.device), shifts, self.neighbours)

    def measured(self, x: Tensor) -> tuple[tuple, Tensor | None, Tensor | None]:
        """Of the latest size: that, the shifts, and the pictures in it where it is not their own."""
        size = (*x.shape[-2:], x.device)
        known = MEASURED.get(self)
        if known is None or known[0] != size:
            own = x.shape[-2:] == self.pictures.shape[-2:]
            pictures = self.pictures.detach() if own else resized(self.pictures.detach().cpu(), *x.shape[-2:])
            pictures = pictures.to(x.device)
            known = size, PictureSet(pictures).shifts(self.smoothing), None if own else pictures
            MEASURED[self] = known
        return known


# Beside the network, which is known again by all that it holds.
MEASURED: weakref.WeakKeyDictionary[DatasetNetwork, tuple] = weakref.WeakKeyDictionary()


class DatasetModel(comfy.model_base.BaseModel):
    """The network is told the exact sigma: the host rounds the timestep of eps and v models to a whole number."""

    def _apply_model(self, x, t, *args, **kwargs):
        return super()._apply_model(x, t, *args, place=(t, self.model_sampling), **kwargs)


class DatasetConfig(comfy.supported_models_base.BASE):
    unet_extra_config: dict = {}
    latent_format = PictureLatent
    memory_usage_factor = 1.0
    sampling_settings = {"shift": 1.0}

    def inpaint_model(self) -> bool:
        return False


def load_model(
    images: Tensor, smoothing: float, neighbours: int, variant: str
) -> tuple[comfy.model_patcher.ModelPatcher, PictureSet]:
    """A MODEL of pictures (N, H, W, 3) in [0, 1], and what was measured on them, in its latents.

    Raises ValueError for a variant that there is not.
    """
    check_choice("variant", variant, tuple(VARIANTS))
    pixels = images.detach().to("cpu", torch.float32).movedim(-1, 1) * 2 - 1
    mean = pixels.mean((0, 2, 3))
    centred = pixels - mean[:, None, None]
    scale = latent_scale(PictureSet(centred).farthest, SD_SIGMA_MAX)
    config = DatasetConfig({"disable_unet_model_creation": True, "in_channels": 3})
    config.latent_format = PictureLatent(mean.tolist(), scale)
    device, offload = comfy.model_management.get_torch_device(), comfy.model_management.unet_offload_device()
    model = DatasetModel(config, VARIANTS[variant], device=offload)
    model.diffusion_model = DatasetNetwork(centred * scale, smoothing, neighbours).to(offload)
    model.eval()
    patcher = comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=offload)
    return patcher, PictureSet(centred * scale)


# ---------------------------------------------------------------------------------------------------------
# CLIP


class NoTokens:
    """Any text is the same to this model."""

    def __init__(self, embedding_directory=None, tokenizer_data=None): ...

    def tokenize_with_weights(self, text: str, return_word_ids: bool = False, **kwargs) -> dict[str, list]:
        return {"nothing": [[(0, 1.0)]]}

    def state_dict(self) -> dict:
        return {}


class NoText(nn.Module):
    """One word of zeros for every prompt, so that nodes that join prompts have something to join."""

    def __init__(self, dtype=None, device=None, model_options=None):
        super().__init__()
        self.dtypes = {torch.float32}
        self.nothing = nn.Parameter(torch.zeros(1, 1, NOTHING, device=device), requires_grad=False)

    def encode_token_weights(self, tokens: dict[str, list]) -> tuple[Tensor, Tensor]:
        out = self.nothing.detach().to(comfy.model_management.intermediate_device(), torch.float32).clone()
        return out, out[:, 0].clone()

    def reset_clip_options(self) -> None: ...

    def set_clip_options(self, options: dict[str, Any]) -> None: ...


def load_clip() -> comfy.sd.CLIP:
    """A fresh CLIP that takes every prompt for the same."""
    return comfy.sd.CLIP(SimpleNamespace(params={}, clip=NoText, tokenizer=NoTokens))
