"""Boost: what FewStep knows, for every node that samples, on the MODEL line."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from . import inputs
from .host.boost import Boost, boosted
from .host.progress import Report
from .optimal_steps import ScheduleType
from .tune import TuningType


class FewStepBoost(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FewStepBoost",
            display_name="Boost (FewStep)",
            category="FewStep",
            description="Put it on the MODEL line before KSampler, or any other node that samples: the same number of "
            "model calls comes nearer to the converged picture. It exchanges the sampler and the sigmas between "
            "the first and the last; steps, denoise, start and end keep their meaning.",
            inputs=[
                io.Model.Input("model", tooltip="The model that will be sampled."),
                io.Boolean.Input("enabled", default=True, tooltip="Off: the model is passed on as it came in."),
                TuningType.Input(
                    "tuning",
                    optional=True,
                    tooltip="From Tune or Load Tuning: what was measured on this model, at the numbers of steps "
                    "that it has. Without it, and at other numbers, what needs no measurement runs.",
                ),
                io.Sampler.Input(
                    "sampler",
                    optional=True,
                    tooltip="Samples instead of the one chosen downstream, DPM-Solver-v3 with statistics for example.",
                ),
                io.Sigmas.Input(
                    "sigmas",
                    optional=True,
                    tooltip="Where the steps go, of any number: its curve is used between the first and the last sigma "
                    "of each sampling, with as many steps as that has.",
                ),
                ScheduleType.Input(
                    "schedule",
                    optional=True,
                    tooltip="From Search Schedule: the one for the number of steps nearest to that downstream, with "
                    "the sampler it was searched for. Instead of sigmas.",
                ),
            ],
            outputs=[io.Model.Output()],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
            **inputs.REPORTING,
            **inputs.searched_as(
                "few steps",
                "fewer steps",
                "faster",
                "speed up",
                "override sampler",
                "override sigmas",
                "ksampler sigmas",
                "deis",
                "which sampler",
            ),
        )

    @classmethod
    def execute(cls, model, enabled, tuning=None, sampler=None, sigmas=None, schedule=None) -> io.NodeOutput:
        report = Report(cls.hidden.unique_id)
        if not enabled:
            return io.NodeOutput(model, ui=report.say("Off.").ui)
        given = None if sigmas is None else tuple(torch.as_tensor(sigmas).tolist())
        boost = Boost(sampler, given, schedule, tuning, report, cls.hidden.prompt or {})
        return io.NodeOutput(boosted(model, boost), ui=report.ui)
