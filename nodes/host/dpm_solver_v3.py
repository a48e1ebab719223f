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
from .progress import Report
from .sampler import denoiser, model_sampling_of, reporter

PREDICTIONS = {"data": Statistics.data_prediction, "noise": Statistics.noise_prediction}
USES = ("when_checked", "always", "never")
REMEDY = "Measure statistics on this model."
NEAR_THE_END = 1.1  # times the model's smallest sigma: its own answer there is where every schedule converges to
log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Choice:
    """What the person connected and chose."""

    options: Options
    measured: Measured | None
    prediction: str
    use: str
    report: Report | None = None


def table_for(
    choice: Choice, calls: int, here: dict[str, Any], item: tuple[int, ...]
) -> tuple[Statistics | None, int, list[str]]:
    """The statistics of a run of so many calls, or None; the order; why, in words. Raises ValueError for nonsense."""
    order, without = choice.options.order, f"{choice.prediction} prediction"
    if choice.measured is None:
        return None, order, [f"{calls} calls with {without}: no statistics are connected."]
    if choice.use == "never":
        return None, order, [f"{calls} calls with {without}, as chosen."]
    remarks = [f"The statistics were measured {text}." for text in differences(choice.measured.facts, here, REMEDY)]
    best = 2 if choice.use == "always" else choice.measured.best_order(calls)
    if best is None:
        said = f"{calls} calls with {without}: in their check the statistics did not help here."
        return None, order, [said, *remarks]
    table = choice.measured.statistics
    if table.is_per_pixel and tuple(table.features[-2:]) != item[-2:]:
        table = table.pooled_by_channel()
        remarks.append("They are per pixel at another size, so their mean over each channel is used.")
    lowered = best < order and best == 1
    said = f"{calls} calls with statistics" + (", at order 1, which was best in their check." if lowered else ".")
    return table, 1 if lowered else order, [said, *remarks]


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
    here: dict[str, Any] = {}
    if choice.measured is not None:  # reads some of the weights
        here = identify(guider.model_patcher) | {"cfg": getattr(guider, "cfg", None)}
    table, order, remarks = table_for(choice, len(nodes) - 1, here, tuple(x.shape[1:]))
    if choice.report:
        choice.report.add("\n".join(remarks))
    for remark in remarks[1:]:
        log.warning("DPM-Solver-v3: %s", remark)
    solver = solver_for(table, replace(choice.options, order=order), sampling, nodes, choice.prediction)
    denoise = denoiser(model, extra_args or {})
    return solver(denoise, x, nodes, on_step=reporter(callback, nodes, disable))


def dpm_solver_v3_sampler(choice: Choice) -> comfy.samplers.KSAMPLER:
    return comfy.samplers.KSAMPLER(sample_dpm_solver_v3, {"choice": choice})
