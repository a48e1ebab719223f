"""Two experts: a model for high noise and one for low in a single run, such as Wan 2.2's."""

from __future__ import annotations

from comfy_api.latest import io

from . import inputs
from .models.two_experts import two_experts_guider


class FewStepTwoExperts(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FewStepTwoExperts",
            display_name="Two Experts (FewStep)",
            category="FewStep/guidance",
            description="A high noise and a low noise model as one guider: one sampler runs through both and changes "
            "from one to the other at the boundary. For Wan 2.2 14B and other such pairs.",
            inputs=[
                io.Model.Input("model_high", tooltip="The high noise model, with its LoRAs and shift."),
                io.Model.Input("model_low", tooltip="The low noise model, with its LoRAs and shift."),
                io.Conditioning.Input("positive", tooltip="What to draw. Both models are given it."),
                io.Conditioning.Input("negative", tooltip="What to avoid. A model at cfg 1 does not look at it."),
                inputs.cfg(3.5, "Guidance of the high noise model, 0 to 100. 1: none, at half the time.", "cfg_high"),
                inputs.cfg(
                    3.5, "Guidance of the low noise model, 0 to 100. 1: none, as Lightning LoRAs want it.", "cfg_low"
                ),
                io.Float.Input(
                    "boundary",
                    default=0.875,
                    min=0.001,
                    max=0.999,
                    step=0.005,
                    round=0.0001,
                    tooltip="Down to where the high noise model works, as a share of the model's timesteps, above 0 "
                    "and below 1. Wan 2.2: 0.875 for text to video, 0.9 for image to video. The shift does not move "
                    "it.",
                ),
            ],
            outputs=[io.Guider.Output()],
            **inputs.searched_as(
                "wan 2.2", "wan moe", "moe", "high noise low noise", "dual model", "split steps", "base refiner"
            ),
        )

    @classmethod
    def execute(cls, model_high, model_low, positive, negative, cfg_high, cfg_low, boundary) -> io.NodeOutput:
        return io.NodeOutput(two_experts_guider(model_high, model_low, positive, negative, cfg_high, cfg_low, boundary))
