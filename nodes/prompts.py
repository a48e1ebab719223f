"""Prompts beside the first, on which the measuring nodes measure as well."""

from __future__ import annotations

from comfy_api.latest import io

from . import inputs
from .inputs import Prompts
from .measuring.asked import check_conditioning


class FewStepPromptList(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FewStepPromptList",
            display_name="Further Prompt (FewStep)",
            category="FewStep",
            description="A prompt more for Tune, Estimate Statistics, Search Schedule and Measure Spread: what they "
            "find is for all prompts that they were given. One node a prompt, each connected to the next.",
            inputs=[
                io.Conditioning.Input("positive", tooltip="A typical prompt, unlike the others."),
                io.Conditioning.Input(
                    "negative",
                    optional=True,
                    tooltip="The negative prompt that goes with it. At cfg 1 it may be left out.",
                ),
                Prompts.Input("previous", optional=True, tooltip="Further prompts; they are measured on as well."),
            ],
            outputs=[Prompts.Output(display_name="prompts")],
            **inputs.searched_as("prompt list", "more prompts", "several prompts"),
        )

    @classmethod
    def execute(cls, positive, negative=None, previous=()) -> io.NodeOutput:
        check_conditioning("positive", positive)
        return io.NodeOutput((*previous, (positive, negative or [])))
