"""Inspect Schedule: any sigmas as a picture, in numbers, and what is unusual about them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..samplers.noise_law import NoiseLaw
from ..schedulers.inspection import Looked
from . import inputs
from .host.noise_law import noise_law
from .host.plots import schedule_plot
from .host.progress import Report
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
            "words where something about them is unusual. Passes them on as they are.",
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
            ],
            outputs=[io.Sigmas.Output(display_name="sigmas"), io.Image.Output(display_name="picture")],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,  # to be queued alone
            **inputs.REPORTING,
            **inputs.searched_as("plot sigmas", "sigma graph", "visualize sigmas", "log snr", "scheduler compare"),
        )

    @classmethod
    def execute(cls, sigmas, model=None, compare_with=None, compare_with_2=None, compare_with_3=None) -> io.NodeOutput:
        others = {"compare_with": compare_with, "compare_with_2": compare_with_2, "compare_with_3": compare_with_3}
        given = {"sigmas": sigmas} | {name: one for name, one in others.items() if one is not None}
        schedules = {name: read(name, one) for name, one in given.items()}
        law, span = known_of(model)
        looked = {name: Looked(one, law, span) for name, one in schedules.items()}
        picture, remark = schedule_chart(looked)
        report = Report(cls.hidden.unique_id).say(described(looked) + remark)
        report.draw(schedule_plot(schedules, law, span))
        return io.NodeOutput(sigmas, torch.zeros(1, 64, 64, 3) if picture is None else picture, ui=report.ui)


def described(looked: Mapping[str, Looked]) -> str:
    """What is to be said of all, then their numbers."""
    alone = len(looked) == 1
    words = [one.words() if alone else f"{name}: {one.words()}" for name, one in looked.items()]
    numbers = ["\n".join(one.numbers() if alone else [name, *one.numbers()]) for name, one in looked.items()]
    return "\n\n".join(["\n".join(words), *numbers])


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
