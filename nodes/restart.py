"""Restart (arXiv 2306.14878): noise put back and re-solved, for any sampler, schedule and model."""

from __future__ import annotations

from typing import Any

import comfy.samplers
import torch
from comfy_api.latest import io

from ..samplers.choices import check_choice
from ..schedulers.restart.plan import UNITS, Interval, check_interval
from ..schedulers.restart.presets import PRESETS
from ..schedulers.restart.request import BUDGETS, requested_plan
from ..schedulers.restart.written import read
from . import inputs
from .host.ksampler import SAME, Given, Steps, sampled, scheduled, with_restarts
from .host.noise_law import noise_law
from .host.plots import schedule_plot
from .host.progress import Report
from .host.sampler import restart_sampler
from .measuring.asked import SEED, Range, check_latent, check_model, check_prompts, latent_for

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
            **inputs.searched_as("restart", "krestart", "restart segment", "restart range"),
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
            **inputs.searched_as("restart", "krestart", "restart sigmas", "re-noise"),
        )

    @classmethod
    def execute(cls, model, sigmas, preset, budget, intervals=None) -> io.NodeOutput:
        law = noise_law(model.get_model_object("model_sampling"))
        plan = requested_plan(sigmas.tolist(), law, preset, budget, intervals)
        report = Report(cls.hidden.unique_id).say(str(plan)).draw(schedule_plot({"with restarts": plan.sigmas}, law))
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
                    **inputs.ADVANCED,
                ),
                io.Sampler.Input(
                    "sampler", optional=True, tooltip="Solves between the jumps. Heun (2 model calls a step) if absent."
                ),
            ],
            outputs=[io.Sampler.Output()],
            hidden=[io.Hidden.unique_id],
            **inputs.REPORTING,
            **inputs.searched_as("restart", "krestart", "sampler restart"),
        )

    @classmethod
    def execute(cls, s_noise, sampler=None) -> io.NodeOutput:
        report = Report(cls.hidden.unique_id)
        return io.NodeOutput(restart_sampler(sampler, s_noise, report), ui=report.ui)


# ---------------------------------------------------------------------------------------------------------
# KSamplers with restarts in them

STEPS = Range(1, 10000)
STEP = Range(0, 10000)
SWITCH = ("enable", "disable")


class FewStepRestartKSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FewStepRestartKSampler",
            display_name="Restart KSampler (FewStep)",
            category="FewStep/restart",
            description="KSampler with restarts on top of its steps; what was run is said on the node. Takes the place "
            "of ssitu's KSampler With Restarts.",
            inputs=[
                *widgets_of_ksampler("seed"),
                *sockets_of_ksampler(),
                io.Float.Input(
                    "denoise",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="How much of the picture is drawn anew, 0 to 1. Restarts that begin above it are left out.",
                ),
                *written_restarts(),
            ],
            outputs=[io.Latent.Output(display_name="latent")],
            hidden=[io.Hidden.unique_id],
            **inputs.REPORTING,
            **inputs.searched_as("restart", "krestart", "ksampler with restarts"),
        )

    @classmethod
    def validate_inputs(cls, segments: str | None = None) -> bool | str:
        return readable(segments)

    @classmethod
    def execute(
        cls,
        model,
        seed,
        steps,
        cfg,
        sampler_name,
        scheduler,
        positive,
        negative,
        latent_image,
        denoise,
        segments,
        restart_scheduler,
    ) -> io.NodeOutput:
        check_sampled(model, positive, negative, latent_image, cfg, seed, steps)
        given = Given(model, positive, negative, latent_image, cfg, seed)
        asked = Steps(sampler_name, scheduler, steps, denoise)
        latent, _, report = restarted(cls, given, asked, segments, restart_scheduler)
        return io.NodeOutput(latent, ui=report.ui)


class FewStepRestartKSamplerAdvanced(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FewStepRestartKSamplerAdvanced",
            display_name="Restart KSampler Advanced (FewStep)",
            category="FewStep/restart",
            description="KSampler (Advanced) with restarts on top of its steps, and with a sampler of your own where "
            "one is connected. Takes the place of ssitu's KSampler With Restarts (Advanced) and (Custom).",
            inputs=[
                *widgets_of_ksampler(
                    "noise_seed",
                    switch(
                        "add_noise",
                        "enable",
                        "enable: noise is added first. disable: the latent has its noise already.",
                    ),
                ),
                *sockets_of_ksampler(),
                io.Int.Input(
                    "start_at_step",
                    default=0,
                    min=0,
                    max=10000,
                    tooltip="The first step that is run, 0 to 10000. Those before it are left out.",
                    **inputs.ADVANCED,
                ),
                io.Int.Input(
                    "end_at_step",
                    default=10000,
                    min=0,
                    max=10000,
                    tooltip="Steps from it on are left out, 0 to 10000. So are restarts that do not fit what is left.",
                    **inputs.ADVANCED,
                ),
                switch(
                    "return_with_leftover_noise",
                    "disable",
                    "Where end_at_step cuts: enable keeps the noise for another sampler, disable takes it off.",
                ),
                *written_restarts(),
                io.Sampler.Input("sampler", optional=True, tooltip="Instead of sampler_name."),
            ],
            outputs=[io.Latent.Output(display_name="latent"), io.Latent.Output(display_name="denoised")],
            hidden=[io.Hidden.unique_id],
            **inputs.REPORTING,
            **inputs.searched_as("restart", "krestart", "ksampler with restarts", "custom sampler restart"),
        )

    @classmethod
    def validate_inputs(cls, segments: str | None = None) -> bool | str:
        return readable(segments)

    @classmethod
    def execute(
        cls,
        model,
        add_noise,
        noise_seed,
        steps,
        cfg,
        sampler_name,
        scheduler,
        positive,
        negative,
        latent_image,
        start_at_step,
        end_at_step,
        return_with_leftover_noise,
        segments,
        restart_scheduler,
        sampler=None,
    ) -> io.NodeOutput:
        check_sampled(model, positive, negative, latent_image, cfg, noise_seed, steps)
        STEP.check("start_at_step", start_at_step)
        STEP.check("end_at_step", end_at_step)
        check_choice("add_noise", add_noise, SWITCH)
        check_choice("return_with_leftover_noise", return_with_leftover_noise, SWITCH)
        given = Given(model, positive, negative, latent_image, cfg, noise_seed, add_noise == "enable")
        to_zero = return_with_leftover_noise == "disable"
        asked = Steps(sampler_name, scheduler, steps, 1.0, start_at_step, end_at_step, to_zero)
        latent, denoised, report = restarted(cls, given, asked, segments, restart_scheduler, sampler)
        return io.NodeOutput(latent, denoised, ui=report.ui)


def widgets_of_ksampler(seed: str, *before: io.Input) -> list[io.Input]:
    """The model and the widgets up to the scheduler, in the host's order. seed: how its node calls it."""
    return [
        io.Model.Input("model", tooltip="The model that samples."),
        *before,
        io.Int.Input(
            seed,
            default=0,
            min=SEED.least,
            max=SEED.most,
            control_after_generate=True,
            tooltip="Of the noise at the start, and of what the restarts put back.",
        ),
        io.Int.Input(
            "steps",
            default=20,
            min=STEPS.least,
            max=STEPS.most,
            tooltip="Main steps, 1 to 10000; the restarts come on top.",
        ),
        inputs.cfg(8.0, "Guidance, 0 to 100. 1: none, at half the time."),
        io.Combo.Input(
            "sampler_name",
            options=list(comfy.samplers.SAMPLER_NAMES),
            tooltip="Samples the steps, and begins afresh at every restart. Meant for those that draw no noise.",
        ),
        io.Combo.Input("scheduler", options=list(comfy.samplers.SCHEDULER_NAMES), tooltip="Where the main steps go."),
    ]


def sockets_of_ksampler() -> list[io.Input]:
    return [
        io.Conditioning.Input("positive", tooltip="What to draw."),
        io.Conditioning.Input("negative", tooltip="What to avoid. At cfg 1 it is not looked at."),
        io.Latent.Input("latent_image", tooltip="An empty latent, or a picture to draw anew, with its mask."),
    ]


def written_restarts() -> list[io.Input]:
    return [
        io.String.Input(
            "segments",
            default="default",
            tooltip="The restarts: [points, repeats, from, up to], with commas between; default, a1111 or another "
            'preset; or nothing. Noise is a sigma (0.3), a timestep (-250) or a share of the run ("75%").',
        ),
        io.Combo.Input(
            "restart_scheduler",
            options=[SAME, *comfy.samplers.SCHEDULER_NAMES],
            default="karras",
            tooltip="Where the steps of a restart go, between its two ends. same: as scheduler.",
            **inputs.ADVANCED,
        ),
    ]


def switch(name: str, default: str, tooltip: str) -> io.Input:
    return io.Combo.Input(name, options=list(SWITCH), default=default, tooltip=tooltip, **inputs.ADVANCED)


def readable(segments: str | None) -> bool | str:
    """For validate_inputs: True, or what cannot be read. None where a node is connected: its text is not known."""
    try:
        read("" if segments is None else segments)
    except ValueError as error:
        return str(error)
    return True


def check_sampled(model, positive, negative, latent_image, cfg, seed, steps) -> None:
    """Raises ValueError, in words, for what cannot be sampled."""
    check_model(model)
    check_prompts(positive, negative, cfg)
    check_latent(model, latent_for(model, latent_image))
    SEED.check("seed", seed)
    STEPS.check("steps", steps)


def restarted(
    node: type[io.ComfyNode], given: Given, asked: Steps, segments: str, restart_scheduler: str, sampler: Any = None
) -> tuple[dict, dict, Report]:
    """The latent, the last prediction of it, and what is said on the node. sampler: instead of the named one."""
    written = read(segments)
    sigmas = scheduled(given.model, asked if sampler is None else asked._replace(sampler="euler"))
    again = asked.scheduler if restart_scheduler == SAME else restart_scheduler
    plan = with_restarts(given.model, sigmas, written, again)
    report = Report(node.hidden.unique_id)
    sampler = comfy.samplers.sampler_object(asked.sampler) if sampler is None else sampler
    return *sampled(given, sampler, sigmas, plan, report), report
