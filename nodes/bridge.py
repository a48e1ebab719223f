"""Dual Diffusion Implicit Bridges (arXiv 2203.08382)."""

from __future__ import annotations

from typing import Any

import comfy.model_management
from comfy_api.latest import io
from torch import Tensor

from ..samplers.bridge import LEAST_STEPS
from . import inputs
from .host.bridge import Prompted, check_climbs, cross, sides
from .host.progress import Report
from .host.streams import is_nested
from .measuring.asked import Range, check_cfg, check_conditioning, check_latent, check_model, latent_for

STEPS = Range(LEAST_STEPS, 1000)


class FewStepBridge(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FewStepBridge",
            display_name="Bridge (FewStep)",
            category="FewStep/sampling",
            description="Translates a picture: up to its own noise under one prompt or model, down again under "
            "another. No noise is drawn, so what the two share stays where it is.",
            inputs=[
                io.Model.Input("model_from", tooltip="The model that knows the picture as it is."),
                io.Conditioning.Input("positive_from", tooltip="What is in the picture."),
                io.Model.Input("model_to", tooltip="The model that draws the result; it may be the same."),
                io.Conditioning.Input("positive_to", tooltip="What it is to become."),
                io.Latent.Input(
                    "latent_image", tooltip="The encoded picture, or a batch. Where a mask is on it, the rest stays."
                ),
                io.Int.Input(
                    "steps",
                    default=20,
                    min=STEPS.least,
                    max=STEPS.most,
                    tooltip="Each way, 4 to 1000; a model call a step. 20 go there and back nearly without a loss.",
                ),
                inputs.cfg(1.0, "Guidance on the way up, 0 to 100. Above 1 the way back is lost.", "cfg_from"),
                inputs.cfg(
                    3.0, "Guidance on the way down, 0 to 100. 1 keeps most of the picture; more draws more.", "cfg_to"
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    round=0.001,
                    tooltip="How far up it goes, 0.01 to 1, as a share of the model's time. 1: to pure noise. Less "
                    "keeps more of the picture.",
                ),
                io.Conditioning.Input(
                    "negative_from", optional=True, tooltip="Needed where cfg_from is not 1: an empty prompt will do."
                ),
                io.Conditioning.Input(
                    "negative_to", optional=True, tooltip="Needed where cfg_to is not 1: what to avoid, or nothing."
                ),
                io.Boolean.Input(
                    "measure_cycle",
                    default=False,
                    optional=True,
                    tooltip="Goes the whole way back as well, at twice the calls, and says how far from the picture "
                    "it ends: whether the steps are enough.",
                    **inputs.ADVANCED,
                ),
            ],
            outputs=[io.Latent.Output(display_name="latent"), io.Latent.Output(display_name="latent_noise")],
            hidden=[io.Hidden.unique_id],
            **inputs.searched_as(
                *["ddib", "image to image", "translation", "inversion", "ddim inversion", "unsampler", "style transfer"]
            ),
            **inputs.REPORTING,
        )

    @classmethod
    def execute(
        cls,
        model_from,
        positive_from,
        model_to,
        positive_to,
        latent_image,
        steps,
        cfg_from,
        cfg_to,
        strength,
        negative_from=None,
        negative_to=None,
        measure_cycle=False,
    ) -> io.NodeOutput:
        first = prompted("from", model_from, positive_from, negative_from, cfg_from)
        second = prompted("to", model_to, positive_to, negative_to, cfg_to)
        STEPS.check("steps", steps)
        latent, latent_to = picture_for(first, second, latent_image)
        check_climbs(model_from, "model_from")
        if measure_cycle:
            check_climbs(model_to, "model_to")
        pair = sides(first, second, steps, strength)
        mask = latent_image.get("noise_mask")
        crossed = cross(*pair, latent, latent_to, mask, measure_cycle, cls.hidden.unique_id)
        report = Report(cls.hidden.unique_id).say(crossed.said)
        kept = {name: value for name, value in latent_image.items() if not name.startswith("downscale_ratio")}
        device = comfy.model_management.intermediate_device()
        drawn, noise = crossed.samples.to(device), crossed.noise.to(device)
        return io.NodeOutput(kept | {"samples": drawn}, {"samples": noise}, ui=report.ui)


def prompted(which: str, model: Any, positive: Any, negative: Any, cfg: Any) -> Prompted:
    """One side, looked at. Raises ValueError, in words, for what does not fit."""
    check_model(model)
    check_cfg(f"cfg_{which}", cfg)
    check_conditioning(f"positive_{which}", positive)
    if cfg != 1:
        check_conditioning(f"negative_{which}", negative)
    return Prompted(model, positive, negative or [], cfg)


def picture_for(first: Prompted, second: Prompted, latent: Any) -> tuple[Tensor, Tensor]:
    """The picture as either model has it. Raises ValueError, in words, where one of them has no such latents."""
    given = latent_for(first.model, latent)
    if is_nested(given):
        raise ValueError(
            "latent_image has several streams, such as picture and sound; a bridge carries one. Split it first."
        )
    check_latent(first.model, given)
    if not given.count_nonzero():
        raise ValueError("latent_image is empty; there is nothing to translate. Connect an encoded picture.")
    formats = [side.model.get_model_object("latent_format") for side in (first, second)]
    if formats[0].latent_channels != formats[1].latent_channels:
        raise ValueError(
            f"model_from has latents of {formats[0].latent_channels} channels and model_to of "
            f"{formats[1].latent_channels}: no bridge goes from one to the other. Take two models with the same VAE."
        )
    if "noise_mask" in latent and type(formats[0]) is not type(formats[1]):
        raise ValueError(
            "The mask keeps a part of the latent, and the two models write latents in two ways. Remove the mask, or "
            "take two models with the same VAE."
        )
    given_to = latent_for(second.model, {"samples": given})
    check_latent(second.model, given_to)
    return given, given_to
