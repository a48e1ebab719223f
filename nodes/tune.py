"""Tune: what to do on this model at every number of steps, measured once."""

from __future__ import annotations

import torch
from comfy_api.latest import io, ui

from ..schedulers.tuning.tuning import load_tuning
from . import inputs
from .host.files import FULL, find, keep, key_of, names_of, path_for, saved_at
from .host.identity import identify
from .host.noise_law import noise_law
from .host.plots import schedule_plot, tuning_plot
from .host.progress import Report
from .host.schedules import shift_of, sigma_at
from .host.tuned import choose, tuned_sampler
from .measuring.asked import latent_for, sampled_model
from .measuring.interrupted import Interrupted
from .measuring.tune import EFFORTS, Request, tune
from .measuring.tuning_chart import tuning_chart

TuningType = io.Custom("FEWSTEP_TUNING")
interrupted = Interrupted("tuning", most=2)


def costs() -> str:
    """Of every effort, in words."""
    told = (f"{name}: {effort.calls} model calls of one latent" for name, effort in EFFORTS.items())
    return "; ".join(told)


class FewStepTune(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FewStepTune",
            display_name="Tune (FewStep)",
            category="FewStep",
            description="Measures once, on your model with your prompt and cfg, how to sample it in few steps: where "
            "to step and by which weights, for every number of steps, checked on seeds it did not see. Connect it to "
            "Boost, or to Tuned Sampler. As long as 12 pictures of 20 steps (quick) or 50 (normal).",
            inputs=[
                *inputs.measured_on(
                    "A typical prompt. More of them: Further Prompt.",
                    "The negative prompt that goes with it.",
                    inputs.cfg(5.0, "The cfg you will sample with, 0 to 100. A tuning is for one cfg."),
                    "an empty latent of the size you will sample.",
                ),
                inputs.fixed_seed("Of the latents it measures on. Another seed is another tuning."),
                io.Combo.Input("effort", options=list(EFFORTS), default="normal", tooltip=f"{costs()}."),
                inputs.save_as("model type, effort, cfg"),
                inputs.guider(),
                inputs.prompts(),
            ],
            outputs=[TuningType.Output(display_name="tuning")],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,  # to be queued alone, before anything is sampled
            **inputs.REPORTING,
            **inputs.searched_as(
                "few steps", "which sampler", "best sampler", "best settings", "calibrate", "solver table", "optimise"
            ),
        )

    @classmethod
    def execute(
        cls,
        cfg,
        seed,
        effort,
        model=None,
        positive=None,
        negative=None,
        latent_image=None,
        save_as="",
        guider=None,
        prompts=(),
    ) -> io.NodeOutput:
        latent = latent_for(sampled_model(model, guider), latent_image)
        request = Request(model, positive, negative, cfg, latent, seed, effort, guider=guider, prompts=prompts)
        facts = request.facts
        stem = f"tuning-{facts['prediction'].lower()}-{effort}-cfg{request.cfg:g}-{key_of(facts)}"
        path, tuning = path_for(save_as, stem, facts, load_tuning)
        place = saved_at(path)
        if tuning is None:
            with interrupted.resumed(key_of(facts, FULL)) as kept:
                tuning = tune(request, kept, cls.hidden.unique_id)
                place = keep(tuning, path, fresh=True)
        picture, remark = tuning_chart(tuning)
        report = Report(cls.hidden.unique_id).say(f"{tuning.describe()}\n{place}{remark}").draw(tuning_plot(tuning))
        shown = {} if picture is None else ui.PreviewImage(picture, cls=cls).as_dict()
        return io.NodeOutput(tuning, ui=shown | report.ui)


class FewStepLoadTuning(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FewStepLoadTuning",
            display_name="Load Tuning (FewStep)",
            category="FewStep",
            description="A tuning that Tune saved, from models/fewstep, for Boost or Tuned Sampler.",
            inputs=[io.Combo.Input("name", options=names_of("tuning"), tooltip="A file in models/fewstep.")],
            outputs=[TuningType.Output(display_name="tuning")],
            hidden=[io.Hidden.unique_id],
            **inputs.REPORTING,
            **inputs.searched_as("few steps", "calibration", "solver table"),
        )

    @classmethod
    def validate_inputs(cls, name: str = "") -> bool | str:
        return inputs.found(find, name)

    @classmethod
    def fingerprint_inputs(cls, name: str, **linked) -> float:
        return inputs.time_of(find(name))

    @classmethod
    def execute(cls, name) -> io.NodeOutput:
        tuning = load_tuning(find(name))
        picture, remark = tuning_chart(tuning)
        report = Report(cls.hidden.unique_id).say(tuning.describe() + remark).draw(tuning_plot(tuning))
        shown = {} if picture is None else ui.PreviewImage(picture, cls=cls).as_dict()
        return io.NodeOutput(tuning, ui=shown | report.ui)


class FewStepTunedSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FewStepTunedSampler",
            display_name="Tuned Sampler (FewStep)",
            category="FewStep",
            description="The sampler and the sigmas of a tuning, for a number of steps, for Sampler Custom nodes. "
            "Before KSampler take Boost instead.",
            inputs=[
                TuningType.Input("tuning", tooltip="From Tune or Load Tuning."),
                io.Model.Input("model", tooltip="The model that will be sampled."),
                io.Int.Input(
                    "steps",
                    default=8,
                    min=1,
                    max=1000,
                    tooltip="Steps, 1 to 1000, a model call each. Where the tuning has no table for so many, what "
                    "needs no measurement runs, and the node says so.",
                ),
                inputs.denoise(
                    "Share of the noise to begin with, 0.01 to 1, by the model's own time. Below 1 what needs no "
                    "measurement runs."
                ),
            ],
            outputs=[io.Sampler.Output(), io.Sigmas.Output()],
            hidden=[io.Hidden.unique_id],
            **inputs.REPORTING,
            **inputs.searched_as("few steps", "which sampler", "best sampler", "solver table"),
        )

    @classmethod
    def execute(cls, tuning, model, steps, denoise) -> io.NodeOutput:
        sampling = model.get_model_object("model_sampling")
        law = noise_law(sampling)
        chosen = choose(
            tuning, identify(model), law, shift_of(sampling, law), (sigma_at(sampling, denoise), 0.0), steps
        )
        said = f"{steps} calls by table." if chosen.table else ""
        report = Report(cls.hidden.unique_id).say("\n".join(part for part in (said, *chosen.remarks) if part))
        report.draw(schedule_plot({"table" if chosen.table else "unmeasured": chosen.sigmas}, law))
        sigmas = torch.tensor(chosen.sigmas, dtype=torch.float32)
        return io.NodeOutput(tuned_sampler(tuning, report), sigmas, ui=report.ui)
