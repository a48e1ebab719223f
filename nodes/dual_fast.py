"""DualFast (arXiv 2506.13058): any sampler, with an earlier estimate of the noise mixed in."""

from __future__ import annotations

from comfy_api.latest import io

from ..samplers.dual_fast import MOST, RAMPS, REFERENCES
from . import inputs
from .host.dual_fast import dual_fast_sampler
from .host.progress import Report


class FewStepDualFast(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FewStepDualFast",
            display_name="DualFast (FewStep)",
            category="FewStep/sampling",
            description="Makes euler much better at few steps, at no further model call: an earlier estimate of the "
            "noise is mixed into every later one. Samplers that look back themselves are the worse for it.",
            inputs=[
                io.Sampler.Input("sampler", tooltip="euler. Others gain little, or lose."),
                io.Float.Input(
                    "strength",
                    default=0.5,
                    min=0.0,
                    max=MOST,
                    step=0.05,
                    round=0.001,
                    tooltip="How much of the difference is added, 0 to 2. 0 changes nothing; 0.5 is right for euler.",
                ),
                io.Combo.Input(
                    "ramp",
                    options=list(RAMPS),
                    default="constant",
                    tooltip="constant: the same at all steps, the best in our tests. linear: from 0 at the first step "
                    "to the strength at the last, as the paper has it.",
                    **inputs.ADVANCED,
                ),
                io.Combo.Input(
                    "reference",
                    options=list(REFERENCES),
                    default="previous",
                    optional=True,
                    tooltip="The earlier estimate. previous: the last one of more noise. first: that of the first "
                    "step; on flow models it hurts from 8 steps on.",
                    **inputs.ADVANCED,
                ),
            ],
            outputs=[io.Sampler.Output()],
            hidden=[io.Hidden.unique_id],
            **inputs.searched_as("dualfast", "gradient estimation", "sampler wrapper"),
            **inputs.REPORTING,
        )

    @classmethod
    def execute(cls, sampler, strength, ramp, reference="previous") -> io.NodeOutput:
        report = Report(cls.hidden.unique_id)
        return io.NodeOutput(dual_fast_sampler(sampler, strength, ramp, reference, report), ui=report.ui)
