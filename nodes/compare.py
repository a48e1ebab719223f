"""Compare: samplers and schedules side by side on the person's model, with numbers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from comfy_api.latest import io, ui
from torch import Tensor

from . import inputs
from .host.outputs import Saved, checked_prefix, save_beside
from .host.progress import Report
from .host.streams import nested
from .measuring.asked import latent_for, sampled_model
from .measuring.compare import IMAGES, REFERENCE_STEPS, Compared, Request, budgets, compare
from .measuring.comparing.entries import Entry
from .measuring.comparing.shelf import Shelf
from .measuring.comparing.show import shown
from .tune import TuningType

EntryType = io.Custom("FEWSTEP_ENTRY")
MOST_ENTRIES, SOCKETS = 32, 12  # where they grow, and where all of them are there from the beginning
PREFIX = "fewstep/compare"
shelf = Shelf()


class FewStepEntry(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FewStepEntry",
            display_name="Entry (FewStep)",
            category="FewStep/compare",
            description="A sampler with its sigmas, to be compared with others by Compare. Samplers and schedulers of "
            "other packs are welcome. Entries of one label are one curve: give it at several numbers of steps.",
            inputs=[
                io.String.Input(
                    "label", default="mine", tooltip="Its name in the table and the chart, up to 60 letters."
                ),
                io.Sampler.Input("sampler", tooltip="Any SAMPLER: KSampler Select, one of FewStep's, of another pack."),
                io.Sigmas.Input("sigmas", tooltip="Any SIGMAS: Basic Scheduler, Load Schedule, of another pack."),
                io.Guider.Input(
                    "guider",
                    optional=True,
                    tooltip="Guidance of its own, instead of that of Compare; its error is then to where this guidance "
                    "converges. Its model may have Boost on it.",
                ),
            ],
            outputs=[EntryType.Output(display_name="entry")],
            **inputs.searched_as("compare samplers", "sampler comparison", "xy plot"),
        )

    @classmethod
    def execute(cls, label, sampler, sigmas, guider=None) -> io.NodeOutput:
        return io.NodeOutput(Entry(label, sampler, sigmas, guider))


def growing_entries() -> list[io.Input]:
    """Sockets that grow; where the host has none (0.3), as many as there may be, with the same names in a workflow."""
    tooltip = "From Entry. A free socket more appears with each."
    growing = getattr(io, "Autogrow", None)
    if growing is not None:
        one = EntryType.Input("entry", optional=True, tooltip=tooltip)
        template = growing.TemplatePrefix(one, prefix="entry", min=0, max=MOST_ENTRIES)
        return [growing.Input("entries", template=template, optional=True, tooltip=tooltip)]
    names = [(f"entries.entry{number}", f"entry {number + 1}") for number in range(SOCKETS)]
    return [EntryType.Input(id, display_name=name, optional=True, tooltip="From Entry.") for id, name in names]


def connected(entries: Any, sockets: Mapping[str, Any]) -> list[Any]:
    """In the order of their sockets, from either kind of host."""
    given = dict(entries) if isinstance(entries, Mapping) else {}
    given |= {name: value for name, value in sockets.items() if name.startswith("entries.")}
    known = {name: value for name, value in given.items() if value is not None}
    return [known[name] for name in sorted(known, key=number_of)]


def number_of(name: str) -> tuple[int, str]:
    digits = re.search(r"\d+$", name)
    return (int(digits.group()) if digits else 0, name)


class FewStepCompare(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FewStepCompare",
            display_name="Compare (FewStep)",
            category="FewStep/compare",
            description="Which sampler and schedule is best on your model? Draws the same noise by all of them, and "
            "measures how far each is from the converged picture, over model calls and over seconds. Without entries "
            "it takes what people use, and what Boost runs.",
            inputs=[
                *inputs.measured_on(
                    "A typical prompt.",
                    "The negative prompt that goes with it.",
                    inputs.cfg(5.0, "The cfg you sample with, 0 to 100. At another cfg another sampler may be best."),
                    "an empty latent of the size you sample. Encoded pictures for entries with a denoise below 1.",
                ),
                inputs.fixed_seed("Of the first picture; the next ones count up from it, as KSampler's seeds would."),
                io.Int.Input(
                    "reference_steps",
                    default=100,
                    min=REFERENCE_STEPS.least,
                    max=REFERENCE_STEPS.most,
                    tooltip="Steps to the converged picture, 20 to 1000. It is solved with half of them as well, and "
                    "the difference is told: so well it is known.",
                    **inputs.ADVANCED,
                ),
                *growing_entries(),
                io.String.Input(
                    "calls",
                    default="6, 8, 12",
                    optional=True,
                    tooltip="Steps for which the rivals run, 1 to 200, with commas between. Entries keep their sigmas.",
                ),
                io.Int.Input(
                    "images",
                    default=4,
                    min=IMAGES.least,
                    max=IMAGES.most,
                    optional=True,
                    tooltip="Pictures of each, 1 to 64, every one with its own seed. With few, the order may be "
                    "chance; samplers that draw noise want 16 or more.",
                ),
                io.Boolean.Input(
                    "rivals",
                    default=True,
                    optional=True,
                    tooltip="Whether what people use, and what Boost runs, is compared as well. Off: entries alone.",
                ),
                io.String.Input(
                    "filename_prefix",
                    default=PREFIX,
                    optional=True,
                    tooltip="Table (CSV, JSON), chart and grid (PNG) are saved under it in the output folder. Empty: "
                    "nothing is saved.",
                ),
                TuningType.Input("tuning", optional=True, tooltip="From Tune or Load Tuning: Boost runs with it, too."),
                io.Vae.Input("vae", optional=True, tooltip="For the grid. Without it the pictures have rough colours."),
                inputs.guider(),
                inputs.prompts(),
            ],
            outputs=[
                io.Latent.Output(display_name="latents"),
                io.Image.Output(display_name="chart"),
                io.String.Output(display_name="table"),
                io.Image.Output(display_name="grid"),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,  # to be queued alone
            **inputs.REPORTING,
            **inputs.searched_as(
                *["compare samplers", "compare schedulers", "sampler comparison", "which sampler", "which scheduler"],
                *["best sampler", "benchmark", "xy plot", "grid"],
            ),
        )

    @classmethod
    def execute(
        cls,
        cfg,
        seed,
        reference_steps,
        model=None,
        positive=None,
        negative=None,
        latent_image=None,
        entries=None,
        calls="6, 8, 12",
        images=4,
        rivals=True,
        filename_prefix=PREFIX,
        tuning=None,
        vae=None,
        guider=None,
        prompts=(),
        **sockets,
    ) -> io.NodeOutput:
        prefix = checked_prefix(filename_prefix)
        latent = latent_for(sampled_model(model, guider), latent_image)
        request = Request(
            model, positive, negative, cfg, latent, seed, latent, reference_steps, connected(entries, sockets),
            budgets(calls), images, rivals, tuning, guider=guider, prompts=prompts,
        )  # fmt: skip
        found = compare(request, shelf, cls.hidden.unique_id)
        told = shown(found, vae)
        saved = saved_or_not(prefix, told)
        report = Report(cls.hidden.unique_id).say("\n".join([*told.sentences, "", told.table, saved.said]).strip())
        pictures = saved.images[:1] or ui.PreviewImage(told.chart, cls=cls).as_dict()["images"]  # one is drawn large
        latents = {"samples": latents_of(found)}
        return io.NodeOutput(latents, told.chart, told.table, told.grid, ui={"images": pictures} | report.ui)


def saved_or_not(prefix: str, told: Any) -> Saved:
    if not prefix:
        return Saved("", [])
    pictures = {"chart.png": told.chart, "grid.png": told.grid}
    return save_beside(prefix, {".csv": told.csv, ".json": told.json}, pictures)


def latents_of(found: Compared) -> Any:
    """The converged pictures, then all others in the order of the rows."""
    parts = [*([found.converged] if found.converged is not None else []), *found.ends]
    whole: Tensor = torch.cat([part.float().cpu() for part in parts])
    return nested(whole, found.request.streams)
