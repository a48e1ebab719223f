"""The bundled model as the host's own objects: BaseModel in a ModelPatcher, CLIP, VAE."""

from __future__ import annotations

import json
import logging
import re
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
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
from .velocity import EpsForm, FlowForm, VForm, patched_model

WEIGHTS = Path(__file__).parents[2] / "demo" / "emoji.safetensors"
log = logging.getLogger(__name__)


# ---------------------------------------------------------------------------------------------------------
# The diffusion models: what the host calls with (input, timestep, context, y), and more that goes to the UNet.


class DemoFlow(FlowForm, DemoNetwork): ...


class DemoEps(EpsForm, DemoNetwork): ...


class DemoV(VForm, DemoNetwork): ...


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
    """A fresh MODEL of the variant. Raises ValueError for a variant that there is not."""
    check_choice("variant", variant, tuple(VARIANTS))
    model_type, network = VARIANTS[variant]
    prefix = "network."
    weights = {k.removeprefix(prefix): v for k, v in stored()[0].items() if k.startswith(prefix)}
    return patched_model(EmojiModel, EmojiConfig(UNET), model_type, network, weights)


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
        vectors = torch.zeros(len(stored()[1]) + 1, TEXT_WIDTH, dtype=torch.float32, device=device)
        self.words = nn.Parameter(vectors, requires_grad=False)

    def encode_token_weights(self, tokens: dict[str, list]) -> tuple[Tensor, Tensor]:
        pairs = [pair for chunk in tokens["words"] for pair in chunk]
        device = self.words.device
        numbers = torch.tensor([number for number, _ in pairs], device=device)
        weights = torch.tensor([weight for _, weight in pairs], device=device)[:, None]
        padding = self.words[0]
        context = padding + (self.words[numbers] - padding) * weights
        real = numbers > 0
        pooled = context[real].mean(0) if bool(real.any()) else padding
        out = comfy.model_management.intermediate_device()
        return context[None].to(out), pooled[None].to(out)

    def reset_clip_options(self) -> None: ...

    def set_clip_options(self, options: dict) -> None: ...


def load_clip() -> comfy.sd.CLIP:
    """A fresh CLIP of the bundled model."""
    clip = comfy.sd.CLIP(SimpleNamespace(params={}, clip=WordEncoder, tokenizer=WordTokenizer))
    clip.cond_stage_model.words.copy_(stored()[0]["words.weight"])
    return clip


# ---------------------------------------------------------------------------------------------------------
# VAE


def load_vae() -> comfy.sd.VAE:
    """The host's pixel-space VAE: pictures in, the same pictures in [-1, 1] out."""
    return comfy.sd.VAE(sd={"pixel_space_vae": torch.tensor(1.0)})
