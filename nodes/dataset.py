"""A model made of a few pictures, without training (closed-form diffusion, arXiv 2310.12395)."""

from __future__ import annotations

import math
from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..samplers.closed_form import PictureSet
from . import inputs
from .host.progress import Report
from .measuring.asked import Range
from .models.dataset import VARIANTS, load_clip, load_model
from .models.demo import load_vae

NEIGHBOURS = Range(0, 100_000)
SMOOTHEST = 4.0
EIGHTH = 8  # of its pixels is what Empty Latent Image takes a latent for


class FewStepDatasetModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FewStepDatasetModel",
            display_name="Dataset Model (FewStep)",
            category="FewStep",
            description="A model made of your pictures, at once and without training: it draws them again, or blends "
            "of those that are near each other. For every node that takes a MODEL, CLIP and VAE.",
            inputs=[
                io.Image.Input("images", tooltip="The pictures, as a batch of one size."),
                io.Float.Input(
                    "smoothing",
                    default=0.5,
                    min=0.0,
                    max=SMOOTHEST,
                    step=0.05,
                    round=0.001,
                    tooltip="0 to 4, in distances from a picture to the nearest other. 0: exactly your pictures. "
                    "0.5: now and then a blend of two. 1 and more: blends of many.",
                ),
                io.Int.Input(
                    "neighbours",
                    default=0,
                    min=NEIGHBOURS.least,
                    max=NEIGHBOURS.most,
                    tooltip="How many of the nearest pictures count at every call, 0 to 100000. 0: all. Fewer are "
                    "faster, and blend no more than that many.",
                    **inputs.ADVANCED,
                ),
                io.Combo.Input(
                    "variant",
                    options=list(VARIANTS),
                    default="eps",
                    optional=True,
                    tooltip="As what the model samples. eps: like SD 1.5 and SDXL. v: like SD 2.1 768. flow: like SD3 "
                    "and FLUX.",
                    **inputs.ADVANCED,
                ),
            ],
            outputs=[io.Model.Output(), io.Clip.Output(), io.Vae.Output()],
            hidden=[io.Hidden.unique_id],
            **inputs.searched_as("closed form", "cfdm", "no training", "train on my pictures", "memorize", "toy model"),
            **inputs.REPORTING,
        )

    @classmethod
    def execute(cls, images, smoothing, neighbours, variant="eps") -> io.NodeOutput:
        pictures = checked_pictures(images)
        if not isinstance(smoothing, (int, float)) or not 0 <= smoothing <= SMOOTHEST:
            raise ValueError(f"smoothing is {smoothing!r}; it must be a number from 0 to {SMOOTHEST:g}.")
        NEIGHBOURS.check("neighbours", neighbours)
        model, measured = load_model(pictures, smoothing, neighbours, variant)
        report = Report(cls.hidden.unique_id).say(told(measured, smoothing))
        return io.NodeOutput(model, load_clip(), load_vae(), ui=report.ui)


def checked_pictures(images: Any) -> Tensor:
    """(N, H, W, 3). Raises ValueError, in words, for what are no pictures."""
    if not torch.is_tensor(images) or images.ndim != 4 or not images.numel() or images.shape[-1] not in (1, 3, 4):
        shape = " x ".join(map(str, images.shape)) if torch.is_tensor(images) else type(images).__name__
        raise ValueError(f"images is {shape}; it must be a batch of pictures. Connect Load Image or Batch Images.")
    if not images.isfinite().all():
        raise ValueError("images holds NaN or infinite numbers. Load the pictures again.")
    return images[..., :1].expand(*images.shape[:3], 3) if images.shape[-1] == 1 else images[..., :3]


def told(measured: PictureSet, smoothing: float) -> str:
    """How many, of what size, how near to each other, and what to draw them with."""
    count, _, height, width = measured.pictures.shape
    said = f"{count} pictures of {width} x {height} pixels: Empty Latent Image of {width * EIGHTH} x {height * EIGHTH}."
    if count < 2 or not measured.nearest:
        return f"{said} No two of them differ, so every seed draws the same."
    spread = float(measured.pictures.std())
    nearest = measured.nearest / math.sqrt(measured.flat.shape[1]) / max(spread, 1e-12)
    exact = "" if smoothing else " Exactly these are drawn: there is no smoothing."
    return f"{said} From one to the nearest other it is {nearest:.2g} of their spread.{exact}"
