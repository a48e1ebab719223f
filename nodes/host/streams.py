"""Latents of several streams, as the host carries them: nested for the person, one packed row of numbers in a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.utils
import torch
from comfy.model_base import BaseModel
from comfy.nested_tensor import NestedTensor
from torch import Tensor

from ...samplers.streams import ALONE, Streams

SHAPES = "latent_shapes"  # what the host calls them, and the condition by which a model asks for its streams


def is_nested(latent: Any) -> bool:
    return bool(getattr(latent, "is_nested", False))


def packed(latent: Tensor | NestedTensor) -> Tensor:
    """(B, 1, N) of nested latents, as the host packs them; any other as it is."""
    return comfy.utils.pack_latents(latent.unbind())[0] if is_nested(latent) else latent


def nested(latent: Tensor, streams: Streams) -> Tensor | NestedTensor:
    """The inverse of `packed`: what the host is handed to sample."""
    return NestedTensor(streams.apart(latent)) if streams.is_pack else latent


def streams_of(latent: Tensor | NestedTensor, sampling) -> Streams:
    """Those of a latent. sampling: the model's, which may carry the sound at another scale (ModelSamplingAV)."""
    if not is_nested(latent):
        return Streams((tuple(latent.shape[1:]),))
    shapes = tuple(tuple(part.shape[1:]) for part in latent.unbind())
    scale = float(getattr(sampling, "audio_scale", 1.0))
    return Streams(shapes, () if scale == 1 else (1.0, scale, *[1.0] * (len(shapes) - 2)))


def in_models_scale(model: BaseModel, latent: Tensor, streams: Streams) -> Tensor:
    """The host's process_latent_in of a pack, outside of a run: the model is told what it is told in one."""
    return told_of_streams(model, latent, streams, model.process_latent_in)


def in_hosts_scale(model: BaseModel, latent: Tensor, streams: Streams) -> Tensor:
    """The inverse, by the host's process_latent_out."""
    return told_of_streams(model, latent, streams, model.process_latent_out)


def told_of_streams(model: BaseModel, latent: Tensor, streams: Streams, process: Callable[[Tensor], Tensor]) -> Tensor:
    before = getattr(model, SHAPES, None)
    own = [torch.Size((len(latent), *shape)) for shape in streams.shapes] if streams.is_pack else [latent.shape]
    setattr(model, SHAPES, own)
    try:
        return process(latent)
    finally:
        setattr(model, SHAPES, before)


def shapes_asked(guider) -> list[torch.Size]:
    """In a run: the shapes of the streams as the model asked for them; empty where it asked for none."""
    for conds in getattr(guider, "conds", {}).values():
        for one in conds:
            asked = one.get("model_conds", {}).get(SHAPES)
            if asked is not None:
                return list(asked.cond)
    return []


def streams_in_run(guider, x: Tensor) -> Streams:
    """Those of a latent that the host is sampling."""
    streams = Streams(tuple(tuple(shape[1:]) for shape in shapes_asked(guider)))
    return streams if streams.is_pack and sum(streams.sizes) == x[0].numel() else ALONE


def check_takes_streams(guider, streams: Streams) -> None:
    """Raises ValueError, in a run, for a model of one stream that was given several."""
    if streams.is_pack and getattr(guider, "conds", None) and not shapes_asked(guider):
        raise ValueError(
            f"latent_image has several streams ({', '.join(streams.names)}), and this model takes one. Connect an "
            "empty latent of the kind that you sample with this model, or load the model that these latents are for."
        )
