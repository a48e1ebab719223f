"""The bundled model as the host's own objects: BaseModel in a ModelPatcher, CLIP, VAE."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.model_sampling
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models_base
import safetensors
import torch
from comfy.model_base import ModelType
from torch import Tensor, nn

from ...samplers.choices import check_choice
from ...samplers.gmflow import Mixture
from ..host.mixtures import MixtureNetwork
from .demo_network import CONTEXT_WORDS, PIXEL_MEAN, PIXEL_SCALE, TEXT_WIDTH, UNET, DemoNetwork

WEIGHTS = Path(__file__).parents[2] / "demo" / "emoji.safetensors"
log = logging.getLogger(__name__)


# ---------------------------------------------------------------------------------------------------------
# Changes of variables. The network knows x_t = (1 - t) x0 + t e; the host's discrete models give
# x = alpha x0 + sigma_vp e with alpha^2 + sigma_vp^2 = 1, so t = s / (1 + s) at s = sigma_vp / alpha, and
# x_t = x (1 - t) / alpha. The derivations are one line each: e = x_t + (1 - t) u, x0 = x_t - t u.


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
# The diffusion models: what the host calls with (input, timestep, context, y), and more that goes to the UNet.


class DemoFlow(DemoNetwork):
    """Predicts u for the host's CONST; its timestep is 1000 t."""

    def predict(self, x: Tensor, timesteps: Tensor, context, y, *given, **host) -> Tensor:
        return self.velocity(x, timesteps / 1000, context, y, *given, **host)


class DemoDiscrete(DemoNetwork):
    """Base of eps and v: the timestep is an index of the SD noise schedule."""

    convert: Callable[[Tensor, Tensor, Tensor], Tensor]

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.schedule = comfy.model_sampling.ModelSamplingDiscrete()
        for name in ("sigmas", "log_sigmas"):
            self.schedule.register_buffer(name, getattr(self.schedule, name), persistent=False)

    def predict(self, x: Tensor, timesteps: Tensor, context, y, *given, **host) -> Tensor:
        x_t, t = flow_point(x, self.schedule.sigma(timesteps).to(x.device))
        return type(self).convert(self.velocity(x_t, t, context, y, *given, **host), x_t, t)


class DemoEps(DemoDiscrete):
    convert = staticmethod(eps_from_velocity)


class DemoV(DemoDiscrete):
    convert = staticmethod(v_from_velocity)


class DemoMixture(DemoNetwork, MixtureNetwork):
    """GMFlow in the host's terms: the mixture's mean for every sampler, the mixture itself for those who listen."""

    def predict(self, x: Tensor, timesteps: Tensor, context, y, control, transformer_options, **host) -> Tensor:
        mixture = self.mixture(x, timesteps / 1000, context, y, control, transformer_options, **host)
        return self.answer(Mixture(**mixture), transformer_options)


VARIANTS: dict[str, tuple[ModelType, type[DemoNetwork]]] = {
    "eps": (ModelType.EPS, DemoEps),
    "v": (ModelType.V_PREDICTION, DemoV),
    "flow": (ModelType.FLOW, DemoFlow),
    "gmflow": (ModelType.FLOW, DemoMixture),
}


# ---------------------------------------------------------------------------------------------------------
# MODEL


class EmojiLatent(comfy.latent_formats.LatentFormat):
    """Pixels in [-1, 1] <-> latents of mean 0 and variance 1. Also what the live preview shows."""

    latent_channels = 3

    def __init__(self):
        self.latent_rgb_factors = (torch.eye(3) / PIXEL_SCALE).tolist()
        self.latent_rgb_factors_bias = list(PIXEL_MEAN)

    def process_in(self, latent: Tensor) -> Tensor:
        return (latent - self.mean(latent)) * PIXEL_SCALE

    def process_out(self, latent: Tensor) -> Tensor:
        return latent / PIXEL_SCALE + self.mean(latent)

    @staticmethod
    def mean(like: Tensor) -> Tensor:
        return torch.tensor(PIXEL_MEAN, dtype=like.dtype, device=like.device)[:, None, None]


class EmojiConfig(comfy.supported_models_base.BASE):
    unet_extra_config: dict = {}
    latent_format = EmojiLatent
    memory_usage_factor = 1.0
    sampling_settings = {"shift": 1.0}

    def inpaint_model(self) -> bool:
        return False


class EmojiModel(comfy.model_base.BaseModel):
    """BaseModel whose pooled words condition the UNet as SDXL's size vector does."""

    def encode_adm(self, **kwargs) -> Tensor:
        pooled = kwargs.get("pooled_output")
        if pooled is None or pooled.shape[-1] != TEXT_WIDTH:
            raise ValueError(
                "The demo model was given a prompt that another text encoder wrote. "
                "Connect the CLIP output of the Demo Model node to your CLIP Text Encode nodes."
            )
        return pooled


@cache
def stored() -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The file, read once: tensors by name, and the words in the order of their vectors."""
    with safetensors.safe_open(WEIGHTS, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, tuple(json.loads(file.metadata()["words"]))


def load_model(variant: str) -> comfy.model_patcher.ModelPatcher:
    """A fresh MODEL of the variant, on the host's devices and in the dtype the host chooses.

    Raises ValueError for a variant that there is not.
    """
    check_choice("variant", variant, tuple(VARIANTS))
    model_type, network = VARIANTS[variant]
    device = comfy.model_management.get_torch_device()
    config = EmojiConfig(UNET)
    dtype = comfy.model_management.unet_dtype(device, model_params=10_000_000)
    config.set_inference_dtype(dtype, comfy.model_management.unet_manual_cast(dtype, device))
    model = EmojiModel(config, model_type, device=comfy.model_management.unet_offload_device(), unet_model=network)
    tensors, _ = stored()
    prefix = "network."
    weights = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    model.diffusion_model.load_state_dict(weights)
    model.eval()
    return comfy.model_patcher.ModelPatcher(
        model, load_device=device, offload_device=comfy.model_management.unet_offload_device()
    )


# ---------------------------------------------------------------------------------------------------------
# CLIP


class WordTokenizer:
    """Prompt -> chunks of (word number, weight). (red:1.2) weighs as in any ComfyUI prompt."""

    def __init__(self, embedding_directory=None, tokenizer_data=None):
        self.numbers = {word: 1 + i for i, word in enumerate(stored()[1])}

    def tokenize_with_weights(self, text: str, return_word_ids: bool = False, **kwargs) -> dict[str, list]:
        found: dict[str, float] = {}
        unknown: list[str] = []
        escaped = comfy.sd1_clip.escape_important(text)
        for part, weight in comfy.sd1_clip.token_weights(escaped, 1.0):
            for word in prompt_words(comfy.sd1_clip.unescape_important(part)):
                if word in self.numbers:
                    found.setdefault(word, weight)
                else:
                    unknown.append(word)
        if unknown:
            log.warning("The demo model does not know these words and ignores them: %s.", ", ".join(unknown))
        pairs = [(self.numbers[word], weight) for word, weight in found.items()]
        pairs += [(0, 1.0)] * (-len(pairs) % CONTEXT_WORDS or CONTEXT_WORDS * (not pairs))
        return {"words": [pairs[i : i + CONTEXT_WORDS] for i in range(0, len(pairs), CONTEXT_WORDS)]}

    def state_dict(self) -> dict:
        return {}


def prompt_words(text: str) -> list[str]:
    """Lower-case words; an apostrophe joins, as in the training captions."""
    return re.findall(r"[a-z0-9]+", text.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "").replace("'", ""))


class WordEncoder(nn.Module):
    """The words' vectors: context (1, 8 n, 96) and pooled (1, 96), their weighted mean."""

    def __init__(self, dtype=None, device=None, model_options=None):
        super().__init__()
        self.dtypes = {torch.float32}
        self.words = nn.Embedding(len(stored()[1]) + 1, TEXT_WIDTH, dtype=torch.float32, device=device)

    def encode_token_weights(self, tokens: dict[str, list]) -> tuple[Tensor, Tensor]:
        pairs = [pair for chunk in tokens["words"] for pair in chunk]
        device = self.words.weight.device
        numbers = torch.tensor([number for number, _ in pairs], device=device)
        weights = torch.tensor([weight for _, weight in pairs], device=device)[:, None]
        padding = self.words.weight[0]
        context = padding + (self.words(numbers) - padding) * weights
        real = numbers > 0
        pooled = context[real].mean(0) if bool(real.any()) else padding
        out = comfy.model_management.intermediate_device()
        return context[None].to(out), pooled[None].to(out)

    def reset_clip_options(self) -> None: ...

    def set_clip_options(self, options: dict) -> None: ...


def load_clip() -> comfy.sd.CLIP:
    """A fresh CLIP of the bundled model."""
    clip = comfy.sd.CLIP(SimpleNamespace(params={}, clip=WordEncoder, tokenizer=WordTokenizer))
    clip.cond_stage_model.words.load_state_dict({"weight": stored()[0]["words.weight"].float()})
    return clip


# ---------------------------------------------------------------------------------------------------------
# VAE


def load_vae() -> comfy.sd.VAE:
    """The host's pixel-space VAE: pictures in, the same pictures in [-1, 1] out."""
    return comfy.sd.VAE(sd={"pixel_space_vae": torch.tensor(1.0)})
