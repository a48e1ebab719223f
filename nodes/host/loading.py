"""Schedules from files and published tables, for a MODEL."""

from __future__ import annotations

import logging
from typing import Any

from comfy.model_patcher import ModelPatcher

from ...samplers.facts import guidance_in
from ...samplers.noise_law import NoiseLaw
from ...schedulers.optimal_steps.curve import Curve
from ...schedulers.optimal_steps.published import PUBLISHED
from ...schedulers.optimal_steps.schedules import Schedules, load_schedules
from .files import find
from .identity import differences, identify
from .noise_law import noise_law
from .schedules import shift_of, sigma_at

TABLES = tuple(PUBLISHED)
SAME_SHIFT = 0.005
log = logging.getLogger(__name__)


def loaded(name: str, model: ModelPatcher, steps: int, denoise: float) -> tuple[tuple[float, ...], list[str]]:
    """The sigmas, and what to know of them, in words. Raises ValueError where they make no sense for the model."""
    sampling = model.get_model_object("model_sampling")
    law = noise_law(sampling)
    if name in PUBLISHED:
        curve, remarks = published(name, law)
        own_start = 1.0
    else:
        schedules = load_schedules(find(name))
        curve, remarks = searched(schedules, identify(model), law, steps)
        own_start = schedules.facts.get("denoise", 1.0)
    shift = shift_of(sampling, law)
    if abs(shift - curve.shift) > SAME_SHIFT * curve.shift:
        remarks.append(
            f"Made at shift {curve.shift:.4g}; carried over to your model's {shift:.4g}, which was not tried."
        )
    if steps != len(curve.sigmas) - 1:
        remarks.append(f"Made for {len(curve.sigmas) - 1} steps; {steps} are put between on a smooth curve.")
    start = None if denoise == own_start else sigma_at(sampling, denoise)
    for remark in remarks[1:]:
        log.warning("Load Schedule: %s", remark)
    return curve.resampled(steps, shift, start), remarks


def published(name: str, law: NoiseLaw) -> tuple[Curve, list[str]]:
    table = PUBLISHED[name]
    if not law.is_flow:
        raise ValueError(
            f"{name} is for flow models (FLUX, SD3, Wan); this model is of another kind. Search a schedule on it, or "
            "use ComfyUI's Align Your Steps."
        )
    return Curve(table.sigmas, law, table.shift), [f"Made for {table.made_for}."]


def searched(schedules: Schedules, here: dict[str, Any], law: NoiseLaw, steps: int) -> tuple[Curve, list[str]]:
    """The searched schedule of the nearest number of steps."""
    facts = schedules.facts
    if facts["is_flow"] != law.is_flow:
        kinds = {True: "a flow model", False: "an eps, v or EDM model"}
        raise ValueError(
            f"This schedule was searched on {kinds[facts['is_flow']]}, and the model is {kinds[law.is_flow]}. Search "
            "one on this model."
        )
    carried = {"shift", "sampling"} if facts.get("shift") != here["shift"] else set()  # which has its own sentence
    said = {name: value for name, value in facts.items() if name not in carried}
    number = schedules.nearest(steps)
    as_it = "guider" if facts.get("guider") else "cfg"
    remarks = [f"Searched for {facts['solver']} at {guidance_in(facts)}: use that sampler, and that {as_it}."]
    if number != facts["steps"]:
        remarks.append(
            f"{number} steps were found on the way to {facts['steps']}: neither polished nor compared. For the best of "
            f"{number} steps, search for them."
        )
    remarks += [f"Searched {text}." for text in differences(said, here, "Search a schedule on this model.")]
    return Curve(schedules.sigmas[number], law, facts["shift_factor"]), remarks
