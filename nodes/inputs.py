"""Inputs that several nodes have, with the same limits wherever they stand, and what ComfyUI asks about files."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from comfy_api.latest import io

Prompts = io.Custom("FEWSTEP_PROMPTS")


def known(to: Callable[..., Any], **options: Any) -> dict[str, Any]:
    """Those of the options that this host's class takes: what is newer than 0.3.75 is left out there."""
    return {name: value for name, value in options.items() if name in inspect.signature(to).parameters}


# For schemas of nodes that report: a page that is opened later is told too (0.33).
REPORTING = known(io.Schema, has_intermediate_output=True)
# For inputs that are rarely turned: the front end folds them away (0.33), as it does with the host's own of that kind.
ADVANCED = known(io.Input, advanced=True)


def searched_as(*aliases: str) -> dict[str, Any]:
    """For schemas: what else a person may type to find the node (0.33), other names of the method among it."""
    return known(io.Schema, search_aliases=list(aliases))


def sampled_model(optional: bool = False) -> io.Input:
    tooltip = "With its LoRAs and shift, as it will be sampled."
    return io.Model.Input("model", optional=optional, tooltip=tooltip)


def measured_on(positive: str, negative: str, guidance: io.Input, latent_image: str) -> list[io.Input]:
    """What is measured, and on what: sockets for which a guider may stand, with their tooltips. guidance: `cfg`.

    The sockets are optional, the latent too although nothing can stand for it: front ends put what is optional behind
    the rest, and so the sockets keep their order. cfg is a widget, whose place in saved workflows counts: it stays.
    """
    return [
        sampled_model(optional=True),
        io.Conditioning.Input("positive", optional=True, tooltip=positive),
        io.Conditioning.Input("negative", optional=True, tooltip=f"{negative} At cfg 1 it may be left out."),
        guidance,
        io.Latent.Input("latent_image", optional=True, tooltip=f"Needed: {latent_image}"),
    ]


def guider() -> io.Input:
    return io.Guider.Input(
        "guider",
        optional=True,
        tooltip="Instead of model, positive, negative and cfg, which then say nothing: the guider you will sample with "
        "(Basic Guider with Flux Guidance, CFG Guider, Dual CFG Guider and others).",
    )


def prompts() -> io.Input:
    return Prompts.Input(
        "prompts",
        optional=True,
        tooltip="From Further Prompt: dealt out with the first over the latents that are measured on, one after the "
        "other, so that what is found is for all of them.",
    )


def cfg(default: float, tooltip: str, name: str = "cfg", optional: bool = False) -> io.Input:
    return io.Float.Input(
        name, default=default, min=0.0, max=100.0, step=0.1, round=0.01, optional=optional, tooltip=tooltip
    )


def fixed_seed(tooltip: str, optional: bool = False) -> io.Input:
    """One that does not change by itself: it would measure anew at every queue."""
    most = 0xFFFFFFFFFFFFFFFF
    return io.Int.Input(
        "seed", default=0, min=0, max=most, control_after_generate=False, optional=optional, tooltip=tooltip
    )


def denoise(tooltip: str) -> io.Input:
    return io.Float.Input("denoise", default=1.0, min=0.01, max=1.0, step=0.01, tooltip=tooltip)


def orthogonal(tooltip: str) -> io.Input:
    return io.Float.Input(
        "orthogonal", default=1.0, min=0.0, max=1.0, step=0.05, round=0.001, tooltip=tooltip, **ADVANCED
    )


def percents(start: str, end: str) -> list[io.Input]:
    """start_percent and end_percent, with their tooltips."""
    return [
        io.Float.Input(name, default=default, min=0.0, max=1.0, step=0.01, round=0.001, tooltip=tooltip, **ADVANCED)
        for name, default, tooltip in (("start_percent", 0.0, start), ("end_percent", 1.0, end))
    ]


def save_as(made_of: str) -> io.Input:
    return io.String.Input(
        "save_as",
        default="",
        optional=True,
        tooltip=f"Name of the file in models/fewstep. Empty: made of {made_of} and a digest.",
    )


def found(find: Callable[[str], Path], name: str) -> bool | str:
    """For validate_inputs: True, or why there is no such file, in words."""
    try:
        find(name)
    except ValueError as error:
        return str(error)
    return True


def time_of(path: Path) -> float:
    """For fingerprint_inputs: a new file of the same name is read."""
    return path.stat().st_mtime
