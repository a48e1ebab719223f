"""The second network as the host's MODEL, with its conditioning and its autoencoder."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import comfy.latent_formats
import comfy.model_base
import comfy.supported_models_base
import icons
import safetensors
import torch
from comfy.model_base import ModelType
from comfy.model_patcher import ModelPatcher
from fewstep.nodes.models.velocity import EpsForm, FlowForm, VForm, patched_model
from fewstep.nodes.models.wrapped import HostNetwork
from icon_network import CONTEXT_WORDS, LATENT_CHANNELS, Autoencoder, IconTransformer
from torch import Tensor, nn

WEIGHTS = Path(__file__).with_name("icons.safetensors")
MISSING = f"{WEIGHTS.name} is not there: train it with benchmarks/second/train.py."


class IconNetwork(HostNetwork):
    """What the host calls: the transformer, whose context is the words and whose y is the class."""

    def __init__(self, dtype=None, device=None, operations=nn, **unet):
        super().__init__()
        self.dtype = dtype
        self.in_channels = self.out_channels = LATENT_CHANNELS
        self.transformer = IconTransformer(dtype, device, operations)

    def velocity(self, x: Tensor, t: Tensor, context: Tensor, y: Tensor, *given, **host) -> Tensor:
        return self.transformer.velocity(x, t, context, y)


class IconFlow(FlowForm, IconNetwork): ...


class IconEps(EpsForm, IconNetwork): ...


class IconV(VForm, IconNetwork): ...


VARIANTS: dict[str, tuple[ModelType, type[IconNetwork]]] = {
    "eps": (ModelType.EPS, IconEps),
    "v": (ModelType.V_PREDICTION, IconV),
    "flow": (ModelType.FLOW, IconFlow),
}


class IconConfig(comfy.supported_models_base.BASE):
    """The autoencoder's latents have mean 0 and variance 1 already, so the host's latent format is the plain one."""

    unet_extra_config: dict = {}
    latent_format = comfy.latent_formats.LatentFormat
    memory_usage_factor = 1.0
    sampling_settings = {"shift": 1.0}

    def inpaint_model(self) -> bool:
        return False


class IconModel(comfy.model_base.BaseModel):
    def encode_adm(self, **kwargs) -> Tensor:
        return kwargs["pooled_output"]


@cache
def stored() -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The file, read once: tensors by name, and the words in the order of their vectors. Raises FileNotFoundError."""
    if not WEIGHTS.exists():
        raise FileNotFoundError(MISSING)
    with safetensors.safe_open(WEIGHTS, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, tuple(json.loads(file.metadata()["words"]))


def part(name: str) -> dict[str, Tensor]:
    """The tensors of one part, without its name."""
    return {k.removeprefix(f"{name}."): v for k, v in stored()[0].items() if k.startswith(f"{name}.")}


def load_model(variant: str) -> ModelPatcher:
    """A fresh MODEL of the variant. Raises KeyError for a variant that there is not."""
    model_type, network = VARIANTS[variant]
    weights = {f"transformer.{k}": v for k, v in part("network").items()}
    return patched_model(IconModel, IconConfig({}), model_type, network, weights)


@cache
def load_autoencoder() -> Autoencoder:
    """Latents (B, 4, H, W) of the model <-> pictures (B, 3, 4 H, 4 W) in [-1, 1], in float32 on the CPU."""
    model = Autoencoder()
    model.load_state_dict({k: v.float() for k, v in part("autoencoder").items()})
    return model.eval().requires_grad_(False)


def conditioning(prompts: list[tuple[str, str]]) -> list:
    """CONDITIONING of one (class, words) a batch item; "" is no class, or no words.

    Raises ValueError for a class or a word that the network does not know.
    """
    numbers = {word: 1 + i for i, word in enumerate(stored()[1])}
    rows = torch.zeros((len(prompts), CONTEXT_WORDS), dtype=torch.long)
    labels = torch.zeros(len(prompts), dtype=torch.long)
    for i, (label, text) in enumerate(prompts):
        unknown = [word for word in text.split() if word not in numbers]
        if unknown or (label and label not in icons.CATEGORIES):
            raise ValueError(f"The second network does not know {[label, *unknown]}; icons.npz has what it knows.")
        known = [numbers[word] for word in text.split()][:CONTEXT_WORDS]
        rows[i, : len(known)] = torch.tensor(known, dtype=torch.long)
        labels[i] = 1 + icons.CATEGORIES.index(label) if label else 0
    words, classes = (stored()[0][f"{name}.weight"].float() for name in ("words", "classes"))
    return [[words[rows], {"pooled_output": classes[labels]}]]
