"""The bundled model: every workflow of the pack runs with it, without a download."""

from __future__ import annotations

from comfy_api.latest import io

from . import inputs
from .models.demo import VARIANTS, load_clip, load_model, load_vae


class FewStepDemoModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FewStepDemoModel",
            display_name="Demo Model (FewStep)",
            category="FewStep",
            description="A small model that draws emoji of 64x64 pixels, inside the pack: nothing to download. "
            "Replace this one node by your checkpoint loader when the workflow does what you want.",
            inputs=[
                io.Combo.Input(
                    "variant",
                    options=list(VARIANTS),
                    default="eps",
                    tooltip="How the model states its prediction. eps: like SD 1.5 and SDXL. v: like SD 2.1 768. "
                    "flow: like SD3 and FLUX. gmflow: a Gaussian mixture for every pixel; an ordinary sampler uses "
                    "its mean.",
                )
            ],
            outputs=[io.Model.Output(), io.Clip.Output(), io.Vae.Output()],
            **inputs.searched_as("test model", "tiny model", "emoji", "example model", "no download"),
        )

    @classmethod
    def validate_inputs(cls, variant: str = "eps") -> bool | str:  # a linked input is not there yet
        return variant in VARIANTS or f"variant is {variant!r}; choose one of {', '.join(VARIANTS)}."

    @classmethod
    def execute(cls, variant: str) -> io.NodeOutput:
        return io.NodeOutput(load_model(variant), load_clip(), load_vae())
