"""Optimal Stepsize (arXiv 2503.21774): schedules searched on the person's own model, sampler and prompt."""

from __future__ import annotations

import torch
from comfy_api.latest import io, ui

from ..schedulers.optimal_steps.schedules import load_schedules
from . import inputs
from .dpm_solver_v3 import StatisticsType
from .host.files import FULL, find, keep, key_of, names_of, path_for, saved_at
from .host.loading import TABLES, loaded
from .host.noise_law import noise_law
from .host.plots import schedule_plot
from .host.progress import Report
from .measuring.asked import latent_for, sampled_model
from .measuring.chart import chart
from .measuring.interrupted import Interrupted
from .measuring.search import (
    POLISH,
    SOLVERS,
    STARTS,
    STEPS,
    TEACHER_STEPS,
    TRAJECTORIES,
    Request,
    search_schedule,
)

ScheduleType = io.Custom("FEWSTEP_SCHEDULE")
interrupted = Interrupted("schedule", most=2)


class FewStepSearchSchedule(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FewStepSearchSchedule",
            display_name="Search Schedule (FewStep)",
            category="FewStep/optimal-steps",
            description="Searches the schedule with which your sampler, on your model, prompt and cfg, comes nearest "
            "to the converged picture in so many steps. It is compared with all of ComfyUI's schedules on seeds that "
            "the search did not see; the best of all is the result, and it is saved in models/fewstep.",
            inputs=[
                *inputs.measured_on(
                    "A typical prompt.",
                    "The negative prompt that goes with it.",
                    inputs.cfg(5.0, "The cfg you will sample with, 0 to 100. At another cfg another schedule is best."),
                    "an empty latent of the size you will sample. For a denoise below 1: encoded pictures.",
                ),
                inputs.fixed_seed("Of the noise that is searched and compared on. Another seed is another search."),
                io.Int.Input(
                    "steps",
                    default=8,
                    min=STEPS.least,
                    max=STEPS.most,
                    tooltip="Steps, which are model calls, 1 to 100. All numbers up to 10 (or to yours) are found too.",
                ),
                io.Combo.Input(
                    "solver",
                    options=list(SOLVERS),
                    default="dpmpp_2m",
                    tooltip="The sampler that you will use with the sigmas. Each wants a schedule of its own.",
                ),
                io.Int.Input(
                    "teacher_steps",
                    default=100,
                    min=TEACHER_STEPS.least,
                    max=TEACHER_STEPS.most,
                    tooltip="Steps of the trajectories to follow, 20 to 1000. Half of them are nodes of the search.",
                    **inputs.ADVANCED,
                ),
                io.Int.Input(
                    "trajectories",
                    default=8,
                    min=TRAJECTORIES.least,
                    max=TRAJECTORIES.most,
                    tooltip="Latents to search on, 2 to 256; as many more are kept for the comparison. With few, what "
                    "is found fits only them. Batched as far as memory allows.",
                ),
                io.Combo.Input(
                    "start",
                    options=list(STARTS),
                    default="auto",
                    tooltip="auto: the first sigma may be below the model's highest, which often saves a step. "
                    "sigma_max: begin at the model's highest.",
                    **inputs.ADVANCED,
                ),
                io.Int.Input(
                    "polish",
                    default=4,
                    min=POLISH.least,
                    max=POLISH.most,
                    tooltip="Rounds of moving single sigmas to lower the final error, 0 to 20. Each costs model calls.",
                    **inputs.ADVANCED,
                ),
                inputs.denoise(
                    "Share of the noise to begin with, 0.01 to 1, by the model's own time. Below 1 the search starts "
                    "from the pictures of latent_image."
                ),
                StatisticsType.Input(
                    "statistics", optional=True, tooltip="For the solver dpm_solver_v3: those you will sample with."
                ),
                inputs.save_as("solver, steps, cfg"),
                inputs.guider(),
                inputs.prompts(),
            ],
            outputs=[io.Sigmas.Output(display_name="sigmas"), ScheduleType.Output(display_name="schedule")],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,  # to be queued alone, before anything is sampled
            **inputs.REPORTING,
            **inputs.searched_as(
                "oss",
                "optimal steps",
                "optimal stepsize",
                "ays",
                "align your steps",
                "best sigmas",
                "which scheduler",
                "find sigmas",
                "few steps",
            ),
        )

    @classmethod
    def execute(
        cls,
        cfg,
        seed,
        steps,
        solver,
        teacher_steps,
        trajectories,
        start,
        polish,
        denoise,
        model=None,
        positive=None,
        negative=None,
        latent_image=None,
        statistics=None,
        save_as="",
        guider=None,
        prompts=(),
    ) -> io.NodeOutput:
        latent = latent_for(sampled_model(model, guider), latent_image)
        request = Request(
            model, positive, negative, cfg, latent, seed, steps, solver, teacher_steps, trajectories, start, polish,
            denoise, statistics if solver == "dpm_solver_v3" else None, guider=guider, prompts=prompts,
        )  # fmt: skip
        facts = request.facts
        stem = f"schedule-{solver}-{steps}-cfg{request.cfg:g}-{key_of(facts)}"
        path, schedules = path_for(save_as, stem, facts, load_schedules)
        place = saved_at(path)
        if schedules is None:
            with interrupted.resumed(key_of(facts, FULL)) as kept:
                schedules = search_schedule(request, kept, cls.hidden.unique_id)
                place = keep(schedules, path, fresh=True)
        picture, remark = chart(schedules)
        report = Report(cls.hidden.unique_id).say(f"{schedules.describe()}\n{place}{remark}")
        report.draw(schedule_plot({schedules.facts["chosen"]: schedules.sigmas[steps]}, request.law))
        sigmas = torch.tensor(schedules.sigmas[steps], dtype=torch.float32)
        shown = {} if picture is None else ui.PreviewImage(picture, cls=cls).as_dict()
        return io.NodeOutput(sigmas, schedules, ui=shown | report.ui)


class FewStepLoadSchedule(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FewStepLoadSchedule",
            display_name="Load Schedule (FewStep)",
            category="FewStep/optimal-steps",
            description="Sigmas from a schedule that Search Schedule saved, or from a published one. Says for which "
            "sampler, cfg and shift they were made, and where your model differs.",
            inputs=[
                io.Combo.Input(
                    "name",
                    options=[*TABLES, *names_of("schedule")],
                    tooltip="A published table, or a file in models/fewstep.",
                ),
                io.Model.Input("model", tooltip="The model that will be sampled: its shift is read."),
                io.Int.Input(
                    "steps",
                    default=8,
                    min=1,
                    max=1000,
                    tooltip="Steps, 1 to 1000. A number that was not searched is put between on a smooth curve.",
                ),
                inputs.denoise(
                    "Share of the noise to begin with, 0.01 to 1, by the model's own time. The steps are spread over "
                    "the rest."
                ),
            ],
            outputs=[io.Sigmas.Output(display_name="sigmas")],
            hidden=[io.Hidden.unique_id],
            **inputs.REPORTING,
            **inputs.searched_as("oss", "optimal steps", "optimal stepsize", "ays", "align your steps", "sigmas table"),
        )

    @classmethod
    def validate_inputs(cls, name: str = "") -> bool | str:
        return name in TABLES or inputs.found(find, name)

    @classmethod
    def fingerprint_inputs(cls, name: str, **linked) -> float:
        return 0.0 if name in TABLES else inputs.time_of(find(name))

    @classmethod
    def execute(cls, name, model, steps, denoise) -> io.NodeOutput:
        sigmas, remarks = loaded(name, model, steps, denoise)
        law = noise_law(model.get_model_object("model_sampling"))
        report = Report(cls.hidden.unique_id).say("\n".join(remarks)).draw(schedule_plot({name: sigmas}, law))
        return io.NodeOutput(torch.tensor(sigmas, dtype=torch.float32), ui=report.ui)
