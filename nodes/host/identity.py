"""What a calibration was measured on, and whether a model is the same."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

SAMPLED_TENSORS, SAMPLED_VALUES = 24, 64


def identify(model: ModelPatcher) -> dict[str, Any]:
    """Facts about a MODEL, as JSON values."""
    sampling, latent = model.get_model_object("model_sampling"), model.get_model_object("latent_format")
    shift = getattr(sampling, "shift", None)
    return {
        "model": weights_digest(model),
        "patches": patches_digest(model),
        "latent_format": type(latent).__name__,
        "channels": latent.latent_channels,
        "prediction": model.model.model_type.name,
        "shift": None if shift is None else float(shift),
        "sigma_max": float(sampling.sigma_max),
        "sigma_min": float(sampling.sigma_min),
    }


def differences(facts: dict[str, Any], here: dict[str, Any], remedy: str) -> list[str]:
    """What differs from the model `here`, in the person's words. Raises ValueError where the use would be nonsense."""
    if "channels" in facts and facts["channels"] != here["channels"]:
        raise ValueError(
            f"This was made on {facts['latent_format']} latents of {facts['channels']} channels; this model has "
            f"{here['latent_format']} latents of {here['channels']}. {remedy}"
        )
    sentences = {
        "model": "on another checkpoint",
        "patches": "with other LoRAs or patches",
        "latent_format": f"on {facts.get('latent_format')} latents, not {here['latent_format']}",
        "prediction": f"on a model of type {facts.get('prediction')}, not {here['prediction']}",
        "shift": f"at shift {facts.get('shift')}, not {here['shift']}",
        "cfg": f"at cfg {facts.get('cfg')}, not {here.get('cfg')}",
    }
    return [text for name, text in sentences.items() if name in facts and name in here and facts[name] != here[name]]


def digest(tensors: Iterator[Tensor], *texts: str) -> str:
    """Twelve hexadecimal digits of some values of each tensor, its shape, and the texts."""
    found = hashlib.sha256("\n".join(texts).encode())
    for tensor in tensors:
        found.update(repr(tuple(tensor.shape)).encode())
        flat = tensor.detach().flatten()
        step = max(flat.numel() // SAMPLED_VALUES, 1)
        found.update(flat[::step][:SAMPLED_VALUES].to("cpu", torch.float32).numpy().tobytes())
    return found.hexdigest()[:12]


def weights_digest(model: ModelPatcher) -> str:
    """Of the checkpoint's own weights: where a LoRA is merged into them, the host keeps the originals aside."""
    weights = model.model.diffusion_model.state_dict()
    names = sorted(name for name, value in weights.items() if torch.is_tensor(value) and value.is_floating_point())
    chosen = names[:: max(len(names) // SAMPLED_TENSORS, 1)]
    aside = (model.backup.get(f"diffusion_model.{name}") for name in chosen)
    originals = (weights[n] if kept is None else kept.weight for n, kept in zip(chosen, aside, strict=True))
    return digest(originals, str(len(weights)))


def patches_digest(model: ModelPatcher) -> str:
    """Of the LoRAs and other weight patches; empty where there are none."""
    if not model.patches:
        return ""
    strengths = [f"{key} {[(p[0], p[2]) for p in model.patches[key]]}" for key in sorted(model.patches)]
    some = sorted(model.patches)[:: max(len(model.patches) // SAMPLED_TENSORS, 1)]
    return digest(tensors_in([model.patches[key] for key in some]), *strengths)


def conditioning_digest(*conditionings: list) -> str:
    """Of prompts and what hangs on them: tensors, and the numbers and words of areas, strengths and time ranges."""
    return digest(tensors_in(conditionings), *words_in(conditionings))


def words_in(value: Any) -> Iterator[str]:
    """All numbers and texts of nested lists, tuples and dictionaries, with their keys; a bracket where one ends."""
    if isinstance(value, dict):
        for key in sorted(value, key=str):
            yield str(key)
            yield from words_in(value[key])
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from words_in(part)
        yield "]"
    elif isinstance(value, (str, int, float)):
        yield str(value)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors of nested lists, tuples, dictionaries and the host's weight adapters."""
    if torch.is_tensor(value):
        yield value
    elif isinstance(value, dict):
        for key in sorted(value, key=str):
            yield from tensors_in(value[key])
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from tensors_in(part)
    elif hasattr(value, "weights"):
        yield from tensors_in(value.weights)
