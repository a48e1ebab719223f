"""Models that draw in 1 to 4 calls: TrigFlow and sCM (arXiv 2410.11081), rCM, Decoupled MeanFlow (arXiv 2510.24474)."""

from __future__ import annotations

from comfy_api.latest import io

from ..samplers.flow_map import METHODS
from ..samplers.trig_flow import MOST_STEPS, PRESETS
from . import inputs
from .host.flow_map import flow_map_sampler
from .host.progress import Report
from .host.trig_flow import trig_flow_model, trig_flow_schedule
from .measuring.asked import check_model

CATEGORY = "FewStep/few-step models"


class FewStepTrigFlow(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FewStepTrigFlow",
            display_name="TrigFlow Model (FewStep)",
            category=CATEGORY,
            description="For checkpoints trained as TrigFlow (sCM): tells the network the angle of the noise, and "
            "reads its answer as such. An ordinary checkpoint gives nonsense with it.",
            inputs=[
                io.Model.Input("model", tooltip="A checkpoint that was trained as TrigFlow."),
                io.Float.Input(
                    "sigma_data",
                    default=0.5,
                    min=0.01,
                    max=100.0,
                    step=0.01,
                    round=0.0001,
                    tooltip="Standard deviation of the latents that it was trained on, 0.01 to 100. sCM: 0.5.",
                    **inputs.ADVANCED,
                ),
            ],
            outputs=[io.Model.Output()],
            hidden=[io.Hidden.unique_id],
            **inputs.searched_as("scm", "consistency model", "model sampling"),
            **inputs.REPORTING,
        )

    @classmethod
    def execute(cls, model, sigma_data) -> io.NodeOutput:
        check_model(model)
        patched, remark = trig_flow_model(model, sigma_data)
        report = Report(cls.hidden.unique_id)
        return io.NodeOutput(patched, ui=report.say(remark).ui)


class FewStepTrigFlowSchedule(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FewStepTrigFlowSchedule",
            display_name="TrigFlow Schedule (FewStep)",
            category=CATEGORY,
            description="The published times of consistency models, for 1 to 4 steps of the sampler lcm: sCM's, and "
            "rCM's for Wan. Works on eps, v and flow models alike.",
            inputs=[
                io.Model.Input(
                    "model", tooltip="The model that will be sampled; after TrigFlow Model where it needs that."
                ),
                io.Int.Input("steps", default=2, min=1, max=MOST_STEPS, tooltip="Model calls, 1 to 4."),
                io.Combo.Input(
                    "times",
                    options=list(PRESETS),
                    default="scm",
                    tooltip="scm: the paper's; at 3 and 4 steps even ones. rcm_wan: rCM's for Wan 2.1. rcm_wan_low: "
                    "the same with less noise put back.",
                ),
                io.String.Input(
                    "own_times",
                    default="",
                    optional=True,
                    tooltip="Instead of the preset: an angle for every step but the first, falling, between 0 and "
                    "1.5708, as 1.5, 1.4, 1.0.",
                    **inputs.ADVANCED,
                ),
            ],
            outputs=[io.Sigmas.Output(display_name="sigmas")],
            hidden=[io.Hidden.unique_id],
            **inputs.searched_as("scm", "rcm", "consistency model", "lcm schedule", "wan"),
            **inputs.REPORTING,
        )

    @classmethod
    def execute(cls, model, steps, times, own_times="") -> io.NodeOutput:
        check_model(model)
        sigmas = trig_flow_schedule(model, steps, times, own_times)
        report = Report(cls.hidden.unique_id).say("sigmas " + " ".join(f"{sigma:.4g}" for sigma in sigmas.tolist()))
        return io.NodeOutput(sigmas, ui=report.ui)


class FewStepFlowMapSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FewStepFlowMapSampler",
            display_name="Flow Map Sampler (FewStep)",
            category=CATEGORY,
            description="For networks that are told where a step goes (Decoupled MeanFlow, MeanFlow): 1 to 4 model "
            "calls. On any other model it is Euler, and says so.",
            inputs=[
                io.Combo.Input(
                    "method",
                    options=list(METHODS),
                    default="euler",
                    tooltip="euler: from sigma to sigma, no noise. restart: to the picture, and noise put back. ctm: "
                    "in between, by gamma.",
                ),
                io.Float.Input(
                    "gamma",
                    default=0.9,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    round=0.001,
                    tooltip="Of ctm: how much of the noise is new at every step, 0 to 1. 0 is euler, 1 is restart.",
                    **inputs.ADVANCED,
                ),
            ],
            outputs=[io.Sampler.Output()],
            hidden=[io.Hidden.unique_id],
            **inputs.searched_as("meanflow", "dmf", "flow map", "ctm", "decoupled meanflow"),
            **inputs.REPORTING,
        )

    @classmethod
    def execute(cls, method, gamma) -> io.NodeOutput:
        report = Report(cls.hidden.unique_id)
        return io.NodeOutput(flow_map_sampler(method, gamma, report), ui=report.ui)
