"""DPM-Solver-v3 as the host's SAMPLER: which statistics a run uses, and what it says of them."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import comfy.samplers
import torch
from torch import Tensor

from ...samplers.dpm_solver_v3 import DPMSolverV3, Options, Statistics
from ...samplers.dpm_solver_v3.measured import Measured
from ...samplers.noise_law import NoiseLaw
from ...samplers.sigmas import checked_sigmas, without_repeats
from ...samplers.streams import ALONE, Streams
from .guiders import recognised
from .identity import differences
from .noise_law import noise_law
from .progress import Report
from .sampler import Reporter, denoiser, model_sampling_of
from .streams import streams_in_run

PREDICTIONS = {"data": Statistics.data_prediction, "noise": Statistics.noise_prediction}
USES = ("when_checked", "always", "never")
REMEDY = "Measure statistics on this model."
CHECK_SCHEDULE = "beta"  # on which statistics are checked
# By how much a step may be longer than the longest on which they helped. On exact models and the demo model, 5 to 20
# calls on eight schedules, they helped in 50 of 51 runs with a step up to this, and harmed in 12 of 44 beyond.
HOP_BEYOND = 1.25
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
    choice: Choice,
    calls: int,
    here: dict[str, Any],
    item: tuple[int, ...],
    beyond: str = "",
    streams: Streams = ALONE,
) -> tuple[Statistics | None, int, list[str]]:
    """The statistics of a run of so many calls, or None; the order; why, in words. Raises ValueError for nonsense.

    beyond: what of the run their check does not cover, as a clause; see `beyond_check`.
    """
    order, without = choice.options.order, f"{choice.prediction} prediction"
    if choice.measured is None:
        return None, order, [f"{calls} calls with {without}: no statistics are connected."]
    if choice.use == "never":
        return None, order, [f"{calls} calls with {without}, as chosen."]
    remarks = [f"The statistics were measured {text}." for text in differences(choice.measured.facts, here, REMEDY)]
    remarks += choice.measured.remarks_on(streams, REMEDY)
    if choice.use == "when_checked" and beyond:
        return None, order, [f"{calls} calls with {without}: {beyond}.", *remarks]
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


def beyond_check(measured: Measured, calls: int, sampling, sigmas: Sequence[float] | None = None) -> str:
    """What of a run the check of its statistics does not cover, as a clause; empty where it covers all.

    That is fewer calls than were checked (of a part of a schedule, for that part), and a schedule with a longer step
    than any on which they helped. Statistics without a check are held to the budgets that it would have had.
    """
    fewest, law, start = measured.fewest_calls, noise_law(sampling), measured.statistics.start

    def steps(nodes: Sequence[float]) -> Tensor:
        return steps_on_table(law, nodes, start)

    def checked(budget: int) -> Tensor:
        return steps(comfy.samplers.calculate_sigmas(sampling, CHECK_SCHEDULE, budget).tolist())

    share = 1.0 if sigmas is None else min(float(steps(sigmas).sum() / checked(fewest).sum()), 1.0)
    if calls < fewest * share:
        return f"statistics are checked from {fewest} calls on"
    allowed = float(checked(measured.fewest_good_calls).max())
    longest = 0.0 if sigmas is None else float(steps(sigmas).max())
    if longest <= HOP_BEYOND * allowed:
        return ""
    return (
        f"a step of this schedule crosses {longest:.2g} of ln sigma, and the statistics are checked up to "
        f"{allowed:.2g}; take the schedule {CHECK_SCHEDULE}, or more steps"
    )


def steps_on_table(law: NoiseLaw, sigmas: Sequence[float], start: float) -> Tensor:
    """The lengths in lambda of a schedule's steps on a table from `start` on; one to 0 goes to `final_ratio`."""
    lams = law.lam(torch.tensor(sigmas, dtype=torch.float64)).clamp(min=start)
    if sigmas[-1] == 0:
        lams[-1] = lams[-2].clamp(min=-math.log(Options.final_ratio))
    return lams.diff()


def solver_for(
    table: Statistics | None,
    options: Options,
    sampling,
    sigmas: Tensor,
    prediction: str = "data",
    on_held: Callable[[Tensor], None] | None = None,
    streams: Streams = ALONE,
) -> DPMSolverV3:
    """The solver with the last step that fits a schedule.

    From the model's own smallest sigma it ends with the model's own answer, where all schedules converge to. Without
    statistics it always does: data prediction would extrapolate D over the whole of a long last hop.
    """
    before_last = float(sigmas[-2]) if len(sigmas) > 1 else 0.0
    if table is None or before_last <= NEAR_THE_END * float(sampling.sigma_min):
        options = replace(options, last_step="denoised")
    statistics = PREDICTIONS[prediction]() if table is None else table
    return DPMSolverV3(noise_law(sampling), statistics, options, on_held, streams)


@torch.no_grad()
def sample_dpm_solver_v3(
    model, x: Tensor, sigmas: Tensor, extra_args=None, callback=None, disable=None, *, choice: Choice
) -> Tensor:
    """The host's sampler function."""
    sampling = model_sampling_of(model)
    values = without_repeats(checked_sigmas(sigmas, noise_law(sampling)))
    if len(values) < 2:
        return x
    nodes = torch.tensor(values, dtype=torch.float64)
    streams = streams_in_run(model.inner_model, x)
    table, order, remarks = table_of_run(choice, model.inner_model, values, tuple(x.shape[1:]), streams)
    before = said(choice, remarks)
    held: list[Tensor] = []
    options = replace(choice.options, order=order)
    solver = solver_for(table, options, sampling, nodes, choice.prediction, held.append, streams)
    watch = Reporter(callback, nodes, disable)
    end = solver(denoiser(model, extra_args or {}), x, nodes, on_step=watch)
    remarks += [*held_remark(held[0], len(values) - 1), *watch.complaints(end)]
    said(choice, remarks, before)
    for remark in remarks[1:]:
        log.warning("DPM-Solver-v3: %s", remark)
    return end


def said(choice: Choice, remarks: Sequence[str], before: str = "") -> str:
    """What stays on the node of a run, instead of what was said `before` it."""
    text = "\n".join(remarks)
    if choice.report and text != before:
        choice.report.add(text, instead=before)
    return text


def table_of_run(
    choice: Choice, guider, sigmas: Sequence[float], item: tuple[int, ...], streams: Streams
) -> tuple[Statistics | None, int, list[str]]:
    """`table_for` of a run of the host."""
    calls = len(sigmas) - 1
    if choice.measured is None:
        return table_for(choice, calls, {}, item)
    if sigmas[-1] > sigmas[0]:
        said = f"{calls} calls with {choice.prediction} prediction: statistics are for falling sigmas, and these rise."
        return None, choice.options.order, [said]
    here = recognised(getattr(guider, "at_rest", guider))
    beyond = beyond_check(choice.measured, calls, guider.inner_model.model_sampling, sigmas)
    return table_for(choice, calls, here, item, beyond, streams)


def held_remark(held: Tensor, calls: int) -> list[str]:
    """Of the steps that were held back, in words."""
    most = int(held.max())
    if not most:
        return []
    return [
        f"{most} of {calls} steps led further than a picture can be, and were made at order 1 with data prediction. "
        "Take more steps, a lower cfg or another schedule."
    ]


def dpm_solver_v3_sampler(choice: Choice) -> comfy.samplers.KSAMPLER:
    return comfy.samplers.KSAMPLER(sample_dpm_solver_v3, {"choice": choice})
