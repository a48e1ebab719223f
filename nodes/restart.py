"""Restart (arXiv 2306.14878): noise put back and re-solved, for any sampler, schedule and model."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from ..schedulers.restart.plan import UNITS, Interval, check_interval
from ..schedulers.restart.presets import PRESETS
from ..schedulers.restart.request import BUDGETS, requested_plan
from . import inputs
from .host.noise_law import noise_law
from .host.progress import Report
from .host.sampler import restart_sampler

Intervals = io.Custom("FEWSTEP_INTERVALS")


class FewStepRestartInterval(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FewStepRestartInterval",
            display_name="Restart Interval (FewStep)",
            category="FewStep/restart",
            description="One restart: when the picture has come down to sigma_min, noise is put back up to sigma_max "
            "and solved down again. Chain several by `previous`.",
            inputs=[
                io.Float.Input(
                    "sigma_min",
                    default=0.1,
                    min=0.0,
                    max=1000.0,
                    step=0.01,
                    round=0.0001,
                    tooltip="Where the restart begins; moved to the nearest main step. In the unit given below, 0 to "
                    "1000; in the unit step: the number of the step after which to go back.",
                ),
                io.Float.Input(
                    "sigma_max",
                    default=2.0,
                    min=0.0,
                    max=1000.0,
                    step=0.01,
                    round=0.0001,
                    tooltip="Up to where noise is put back. In the unit given below, 0 to 1000, above sigma_min; in "
                    "the unit step: how many steps to go back.",
                ),
                io.Int.Input(
                    "steps",
                    default=10,
                    min=2,
                    max=1000,
                    tooltip="Points of the way down, as papers count them (N_R): 10 points are 9 steps. 2 to 1000.",
                ),
                io.Int.Input("repeats", default=1, min=1, max=1000, tooltip="How often, one after another. 1 to 1000."),
                io.Combo.Input(
                    "unit",
                    options=list(UNITS),
                    default="noise_to_signal",
                    tooltip="noise_to_signal: the ratio of noise to picture, the same on every model (papers use it). "
                    "sigma: the model's own scale, 0 to 1 on flow models. step: steps of the schedule.",
                ),
                Intervals.Input("previous", optional=True, tooltip="Further intervals; they are run as well."),
            ],
            outputs=[Intervals.Output(display_name="intervals")],
        )

    @classmethod
    def execute(cls, sigma_min, sigma_max, steps, repeats, unit, previous=()) -> io.NodeOutput:
        interval = Interval(steps, repeats, sigma_min, sigma_max, unit)
        check_interval(interval)
        return io.NodeOutput((*previous, interval))


class FewStepRestartSchedule(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FewStepRestartSchedule",
            display_name="Restart Schedule (FewStep)",
            category="FewStep/restart",
            description="Puts restarts into a schedule. Connect the sigmas to a custom sampler together with Restart "
            "Sampler. The steps it takes in all are printed on the node before anything is sampled.",
            inputs=[
                io.Model.Input("model", tooltip="The model that will be sampled; only its kind of noise is read."),
                io.Sigmas.Input("sigmas", tooltip="The main schedule, from any scheduler node."),
                io.Combo.Input(
                    "preset",
                    options=list(PRESETS),
                    default="a1111",
                    tooltip="A published list of restarts; connected intervals replace it. a1111: from 20 steps on; a "
                    "shorter schedule is passed on. sd_cfg: by guidance scale. cifar10 and imagenet64: from the paper, "
                    "by its model calls.",
                ),
                io.Combo.Input(
                    "budget",
                    options=list(BUDGETS),
                    default="keep_steps",
                    tooltip="keep_steps: as many steps in all as the schedule has; main steps give way. add_steps: the "
                    "restarts come on top, as in the paper.",
                ),
                Intervals.Input("intervals", optional=True, tooltip="Your own restarts, instead of the preset."),
            ],
            outputs=[io.Sigmas.Output(display_name="sigmas"), io.Int.Output(display_name="steps")],
            hidden=[io.Hidden.unique_id],
            **inputs.REPORTING,
        )

    @classmethod
    def execute(cls, model, sigmas, preset, budget, intervals=None) -> io.NodeOutput:
        law = noise_law(model.get_model_object("model_sampling"))
        plan = requested_plan(sigmas.tolist(), law, preset, budget, intervals)
        report = Report(cls.hidden.unique_id).say(str(plan))
        return io.NodeOutput(torch.tensor(plan.sigmas, dtype=torch.float32), plan.steps, ui=report.ui)


class FewStepRestartSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FewStepRestartSampler",
            display_name="Restart Sampler (FewStep)",
            category="FewStep/restart",
            description="Samples the schedule of Restart Schedule: noise at every jump, and any sampler in between.",
            inputs=[
                io.Float.Input(
                    "s_noise",
                    default=1.0,
                    min=0.0,
                    max=2.0,
                    step=0.001,
                    round=0.0001,
                    tooltip="Strength of the noise at a jump, 0 to 2. 1 is right; the paper's ImageNet uses 1.003. "
                    "0 puts no noise back, which is not a restart.",
                ),
                io.Sampler.Input(
                    "sampler", optional=True, tooltip="Solves between the jumps. Heun (2 model calls a step) if absent."
                ),
            ],
            outputs=[io.Sampler.Output()],
            hidden=[io.Hidden.unique_id],
            **inputs.REPORTING,
        )

    @classmethod
    def execute(cls, s_noise, sampler=None) -> io.NodeOutput:
        report = Report(cls.hidden.unique_id)
        return io.NodeOutput(restart_sampler(sampler, s_noise, report), ui=report.ui)
