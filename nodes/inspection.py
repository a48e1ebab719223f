"""Inspect Schedule: any sigmas as a picture, in numbers, and what is unusual about them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..samplers.noise_law import NoiseLaw
from ..schedulers.inspection import Looked
from ..schedulers.meters import Metered
from . import inputs
from .host.noise_law import noise_law
from .host.plots import schedule_plot
from .host.progress import Report
from .measuring.asked import latent_for, sampled_model
from .measuring.meter import Request, in_numbers, in_words, measured
from .measuring.schedule_chart import schedule_chart

MOST = 10_000  # sigmas


class FewStepInspectSchedule(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FewStepInspectSchedule",
            display_name="Inspect Schedule (FewStep)",
            category="FewStep",
            description="Shows where the sigmas of any node put the steps: as a plot, as a picture, in numbers, and in "
            "words where something about them is unusual. With a model, a prompt and a latent it measures too where "
            "the steps err, and how curved the model's path is. Passes the sigmas on as they are.",
            inputs=[
                io.Sigmas.Input("sigmas", tooltip="From any scheduler, of any pack."),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="The model that will be sampled: noise-to-signal and log-SNR depend on its kind, and its "
                    "range is shaded.",
                ),
                *(
                    io.Sigmas.Input(name, optional=True, tooltip="Another schedule, drawn over the first.")
                    for name in ("compare_with", "compare_with_2", "compare_with_3")
                ),
                io.Conditioning.Input(
                    "positive",
                    optional=True,
                    tooltip="For measuring where the steps of sigmas err and how curved the path is: a typical prompt. "
                    "64 model calls of each latent at 8 steps, 120 at 20. With nothing here and below, none.",
                ),
                io.Conditioning.Input(
                    "negative",
                    optional=True,
                    tooltip="For measuring: the negative prompt that goes with it. At cfg 1 it may be left out.",
                ),
                inputs.cfg(
                    5.0, "For measuring: the cfg you sample with, 0 to 100. A high one bends the path.", optional=True
                ),
                io.Latent.Input(
                    "latent_image",
                    optional=True,
                    tooltip="For measuring: an empty latent of the size you sample, as many as are to be measured on "
                    "(batch_size, 1 to 64). Encoded pictures for sigmas that begin below the model's highest.",
                ),
                inputs.fixed_seed("For measuring: of the noise that is begun with.", optional=True),
                inputs.guider(),
            ],
            outputs=[io.Sigmas.Output(display_name="sigmas"), io.Image.Output(display_name="picture")],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,  # to be queued alone
            **inputs.REPORTING,
            **inputs.searched_as("plot sigmas", "sigma graph", "visualize sigmas", "log snr", "scheduler compare"),
        )

    @classmethod
    def execute(
        cls, sigmas, model=None, compare_with=None, compare_with_2=None, compare_with_3=None,
        positive=None, negative=None, cfg=5.0, latent_image=None, seed=0, guider=None,
    ) -> io.NodeOutput:  # fmt: skip
        others = {"compare_with": compare_with, "compare_with_2": compare_with_2, "compare_with_3": compare_with_3}
        given = {"sigmas": sigmas} | {name: one for name, one in others.items() if one is not None}
        schedules = {name: read(name, one) for name, one in given.items()}
        sampled = sampled_model(model, guider)
        law, span = known_of(sampled)
        looked = {name: Looked(one, law, span) for name, one in schedules.items()}
        metered = None
        if any(one is not None for one in (positive, negative, latent_image, guider)):
            latent = latent_for(sampled, latent_image)
            request = Request(model, positive, negative, cfg, latent, seed, schedules["sigmas"], guider=guider)
            metered = measured(request, cls.hidden.unique_id)
        picture, remark = schedule_chart(looked, metered)
        report = Report(cls.hidden.unique_id).say(described(looked, metered) + remark)
        report.draw(schedule_plot(schedules, law, span))
        return io.NodeOutput(sigmas, torch.zeros(1, 64, 64, 3) if picture is None else picture, ui=report.ui)


def described(looked: Mapping[str, Looked], metered: Metered | None = None) -> str:
    """What is to be said of all, then what was measured on the first, then their numbers."""
    alone = len(looked) == 1
    words = [one.words() if alone else f"{name}: {one.words()}" for name, one in looked.items()]
    numbers = ["\n".join(one.numbers() if alone else [name, *one.numbers()]) for name, one in looked.items()]
    measures = ["\n".join(in_numbers(metered))] if metered else []
    return "\n\n".join(["\n".join([*words, *(in_words(metered) if metered else ())]), *measures, *numbers])


def read(name: str, sigmas: Any) -> tuple[float, ...]:
    """Raises ValueError for what is no row of numbers."""
    if not isinstance(sigmas, Tensor) or sigmas.ndim != 1 or len(sigmas) > MOST:
        shape = f"of the shape {tuple(sigmas.shape)}" if isinstance(sigmas, Tensor) else f"a {type(sigmas).__name__}"
        raise ValueError(
            f"{name} is {shape}; it must be SIGMAS, one row of at most {MOST} numbers. Connect a scheduler node."
        )
    return tuple(sigmas.detach().double().cpu().tolist())


def known_of(model: Any) -> tuple[NoiseLaw | None, tuple[float, float] | None]:
    """The model's kind of noise, and its lowest and highest sigma."""
    if model is None:
        return None, None
    sampling = model.get_model_object("model_sampling")
    return noise_law(sampling), (float(sampling.sigma_min), float(sampling.sigma_max))
