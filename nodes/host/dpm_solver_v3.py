"""DPM-Solver-v3 as the host's SAMPLER: which statistics a run uses, and what it says of them."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Any

import comfy.samplers
import torch
from torch import Tensor

from ...samplers.dpm_solver_v3 import DPMSolverV3, Options, Statistics
from ...samplers.dpm_solver_v3.measured import Measured
from .identity import differences, identify
from .noise_law import noise_law
from .progress import show_text
from .sampler import denoiser, model_sampling_of, reporter

PREDICTIONS = {"data": Statistics.data_prediction, "noise": Statistics.noise_prediction}
USES = ("when_checked", "always", "never")
LONGEST_HOP_WITHOUT = 1.0  # of lambda
NEAR_THE_END = 1.1  # times the model's smallest sigma: its own answer there is where every schedule converges to
log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Choice:
    """What the person connected and chose."""

    options: Options
    measured: Measured | None
    prediction: str
    use: str
    node_id: str | None


def table_for(
    choice: Choice, calls: int, here: dict[str, Any], item: tuple[int, ...]
) -> tuple[Statistics | None, list[str]]:
    """The statistics of a run of so many calls, or None, and sentences on why. Raises ValueError for nonsense."""
    without = f"{choice.prediction} prediction"
    if choice.measured is None:
        return None, [f"{calls} calls with {without}: no statistics are connected."]
    if choice.use == "never":
        return None, [f"{calls} calls with {without}, as chosen."]
    remarks = [f"The statistics were measured {text}." for text in differences(choice.measured.facts, here)]
    if choice.use == "when_checked" and not choice.measured.helps(calls):
        return None, [f"{calls} calls with {without}: in their check the statistics did not help here.", *remarks]
    table = choice.measured.statistics
    if table.is_per_pixel and tuple(table.features[-2:]) != item[-2:]:
        table = table.pooled_by_channel()
        remarks.append("They are per pixel at another size, so their mean over each channel is used.")
    return table, [f"{calls} calls with statistics.", *remarks]


def solver_for(
    table: Statistics | None, options: Options, sampling, sigmas: Tensor, prediction: str = "data"
) -> DPMSolverV3:
    """The solver with the last step that fits a schedule.

    From the model's own smallest sigma it ends with the model's own answer, where all schedules converge to. Without
    statistics it always does: data prediction would extrapolate D over the whole of a long last hop.
    """
    before_last = float(sigmas[-2]) if len(sigmas) > 1 else 0.0
    if table is None or before_last <= NEAR_THE_END * float(sampling.sigma_min):
        options = replace(options, last_step="denoised")
    return DPMSolverV3(noise_law(sampling), PREDICTIONS[prediction]() if table is None else table, options)


@torch.no_grad()
def sample_dpm_solver_v3(
    model, x: Tensor, sigmas: Tensor, extra_args=None, callback=None, disable=None, *, choice: Choice
) -> Tensor:
    """The host's sampler function."""
    sampling = model_sampling_of(model)
    nodes = sigmas.detach().to("cpu", torch.float64)
    guider = model.inner_model
    here = identify(guider.model_patcher) | {"cfg": getattr(guider, "cfg", None)}
    table, remarks = table_for(choice, len(nodes) - 1, here, tuple(x.shape[1:]))
    show_text(choice.node_id, "\n".join(remarks))
    for remark in remarks[1:]:
        log.warning("DPM-Solver-v3: %s", remark)
    solver = solver_for(table, choice.options, sampling, nodes, choice.prediction)
    denoise = denoiser(model, x, extra_args or {})
    return solver(denoise, x, nodes, on_step=reporter(callback, nodes, disable))


def dpm_solver_v3_sampler(choice: Choice) -> comfy.samplers.KSAMPLER:
    return comfy.samplers.KSAMPLER(sample_dpm_solver_v3, {"choice": choice})
