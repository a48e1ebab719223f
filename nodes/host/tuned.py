"""A tuning as the host's SAMPLER: the table of a run's sigmas, and the recipe of Boost where there is none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import comfy.samplers
import torch
from torch import Tensor

from ...samplers.contract import Denoiser, OnStep
from ...samplers.noise_law import NoiseLaw
from ...samplers.sigmas import checked_sigmas, without_repeats
from ...samplers.table import Table, step_by_table
from ...schedulers.recipe import recipe_between
from ...schedulers.tuning.tuning import Tuning
from .answers import InParts, apart
from .identity import differences
from .noise_law import noise_law
from .progress import Report, complain
from .sampler import Reporter, model_sampling_of
from .schedules import shift_of

SAME = 1e-4  # of two sigmas, the host's being float32
SAME_START = 1e-3
REMEDY = "Tune this model."


@dataclass(frozen=True, eq=False)
class Chosen:
    """What to run for so many calls: sigmas, and why, in words. table: None for the recipe."""

    sigmas: tuple[float, ...]
    table: Table | None
    remarks: tuple[str, ...]


def choose(
    tuning: Tuning, here: dict[str, Any], law: NoiseLaw, shift: float, ends: tuple[float, float], calls: int
) -> Chosen:
    """What a tuning has for `calls` from one sigma to another. Raises ValueError for one of another kind of model."""
    first, last = ends
    if tuning.facts["is_flow"] != law.is_flow:
        kinds = {True: "a flow model", False: "an eps, v or EDM model"}
        raise ValueError(
            f"This tuning is of {kinds[tuning.facts['is_flow']]}, and the model is {kinds[law.is_flow]}. {REMEDY}"
        )
    remarks = tuple(f"Tuned {text}." for text in differences(tuning.facts, here, REMEDY))
    why = why_not(tuning, first, last, calls)
    if why:
        sigmas = recipe_between(law, first, last, calls, shift).sigmas(law, first, last, calls)
        return Chosen(sigmas, None, (f"{why} What needs no measurement runs.", *remarks))
    table = tuning.tables[calls]
    return Chosen((first, *table.sigmas[1:]), table, remarks)


def why_not(tuning: Tuning, first: float, last: float, calls: int) -> str:
    """Why there is no table for a run; empty where there is one."""
    table = next(iter(tuning.tables.values()))
    if not starts_as(table, first) or last != table.sigmas[-1]:
        whole = f"{table.sigmas[0]:.4g} to {table.sigmas[-1]:g}"
        return f"The tuning is of whole runs, sigma {whole}; this is {first:.4g} to {last:.4g}."
    if not tuning.used:
        return "No table of the tuning won its check."
    numbers = ", ".join(map(str, tuning.used))
    if calls not in tuning.tables:
        return f"The tuning has tables for {numbers} calls; this run has {calls}."
    return "" if calls in tuning.used else f"At {calls} calls the table did not win its check; it did at {numbers}."


def table_of(tuning: Tuning, sigmas: Sequence[float]) -> Table | None:
    """The table of these very sigmas, which are the host's float32 of its own."""
    table = tuning.tables.get(len(sigmas) - 1) if len(sigmas) - 1 in tuning.used else None
    if table is None or not starts_as(table, sigmas[0]):
        return None
    same = (abs(a - b) <= SAME * max(b, SAME) for a, b in zip(sigmas[1:], table.sigmas[1:], strict=True))
    return replace(table, sigmas=tuple(sigmas)) if all(same) else None


def starts_as(table: Table, sigma: float) -> bool:
    """Whether a run from this sigma is the table's: the host's schedulers begin at the highest, but for rounding."""
    return abs(sigma - table.sigmas[0]) <= SAME_START * table.sigmas[0]


@torch.no_grad()
def sample_tuned(
    model,
    x: Tensor,
    sigmas: Tensor,
    extra_args=None,
    callback=None,
    disable=None,
    *,
    tuning: Tuning,
    report: Report | None = None,
) -> Tensor:
    """The host's sampler function. Raises ValueError for sigmas that do not fall."""
    sampling, given = model_sampling_of(model), extra_args or {}
    law = noise_law(sampling)
    nodes = without_repeats(checked_sigmas(sigmas, law))
    table = table_of(tuning, nodes)
    watch = Reporter(callback, torch.tensor(nodes, dtype=torch.float64), disable)
    heard = InParts(model, given)
    ask = once(heard, x, nodes[0]) if table else heard
    if table and parts_at_first(table) <= ask(x, nodes[0]).shape[1]:
        end = run_by(table, ask, x, heard, model, watch)
    else:
        told = "this guidance asks for no answer without the prompt" if table else "its sigmas are those of no table"
        complain(report, "Tuned Sampler", f"{len(nodes) - 1} steps without a table: {told}. Nothing measured is used.")
        own = recipe_between(law, nodes[0], nodes[-1], len(nodes) - 1, shift_of(sampling, law))
        end = own.solver(law)(lambda x, sigma: ask(x, sigma)[:, 0], x, nodes, on_step=watch)
    watch.complain(end, report, "Tuned Sampler")
    return end


def parts_at_first(table: Table) -> int:
    """Of the first answer: two experts may differ in whether they ask without the prompt, and then the push was 0."""
    return max(number for number, weights in enumerate(table.rows[0].weights, 1) if number == 1 or any(weights))


def run_by(table: Table, ask: Denoiser, x: Tensor, heard: InParts, model, watch: OnStep) -> Tensor:
    """The end of a run by table. What a mask keeps is kept exactly: weights of a table need not add up to 1."""
    last = x

    def on_step(step: int, sigma: float, x: Tensor, denoised: Tensor) -> None:
        nonlocal last
        last = x
        watch(step, sigma, x, denoised)

    end = step_by_table(apart(ask, table.parts), x, table, on_step=on_step)
    if heard.mask is None or table.sigmas[-1]:
        return end
    row = table.rows[-1]
    return end + (1 - heard.mask) * ((1 - sum(row.weights[0])) * model.latent_image - row.kept * last)


def once(ask: Denoiser, x: Tensor, sigma: float) -> Denoiser:
    """The same, asked at the start now and not again: the number of parts is known then."""
    first = ask(x, sigma)
    return lambda x, at: first if at == sigma else ask(x, at)


def tuned_sampler(tuning: Tuning, report: Report | None = None) -> comfy.samplers.KSAMPLER:
    return comfy.samplers.KSAMPLER(sample_tuned, {"tuning": tuning, "report": report})
