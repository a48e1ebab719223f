"""The host's KSampler, taken apart: its sigmas, what is put into them, and the host's own way to sample them."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import comfy.samplers
import numpy as np
import torch
from comfy.model_patcher import ModelPatcher
from comfy.model_sampling import ModelSamplingDiscrete
from torch import Tensor

from ...samplers.choices import check_choice
from ...samplers.noise_law import NoiseLaw
from ...samplers.restart import falling_runs
from ...samplers.sigmas import checked_sigmas, without_repeats
from ...schedulers.optimal_steps.curve import Curve
from ...schedulers.restart.plan import RestartPlan, unchanged
from ...schedulers.restart.written import TIMESTEPS, Place, Written, written_plan
from .boost import ODE_SAMPLERS, calls_of, function_of, listed, name_of
from .noise_law import noise_law
from .progress import Report
from .sampler import restart_sampler
from .schedules import falls, shift_of

FINE = 1000  # steps of a schedule through which its curve is drawn
LONGEST = 100_000  # steps of a schedule whose end is taken for denoise
SAME = "same"  # as the scheduler of the main steps


class Steps(NamedTuple):
    """A KSampler's widgets. first, last: start_at_step and end_at_step. to_zero: no leftover noise."""

    sampler: str
    scheduler: str
    steps: int
    denoise: float = 1.0
    first: int = 0
    last: int = LONGEST
    to_zero: bool = False


def scheduled(model: ModelPatcher, asked: Steps) -> Tensor:
    """The sigmas that the host's KSampler, or KSampler (Advanced), would sample; none where that does nothing.

    Raises ValueError for what the host does not have.
    """
    check_choice("sampler_name", asked.sampler, comfy.samplers.SAMPLER_NAMES)
    check_choice("scheduler", asked.scheduler, comfy.samplers.SCHEDULER_NAMES)
    check_denoise(asked.steps, asked.denoise)
    sigmas = comfy.samplers.KSampler(
        model, asked.steps, model.load_device, asked.sampler, asked.scheduler, asked.denoise, model.model_options
    ).sigmas
    if asked.last < len(sigmas) - 1:
        sigmas = sigmas[: asked.last + 1].clone()
        sigmas[-1] = 0 if asked.to_zero else sigmas[-1]
    return sigmas[asked.first :] if asked.first < len(sigmas) - 1 else sigmas[:0]


def check_denoise(steps: int, denoise: float) -> None:
    """Raises ValueError for no share, and for one of which the steps would be too small a part."""
    if not isinstance(denoise, (int, float)) or not 0 <= denoise <= 1:
        raise ValueError(f"denoise is {denoise!r}; it must be a number from 0 to 1.")
    if 0 < denoise < steps / LONGEST:
        raise ValueError(
            f"denoise {denoise:g} of {steps} steps is the end of a schedule of more than {LONGEST} steps. Raise "
            "denoise, or set it to 0 to leave the picture as it is."
        )


# ---------------------------------------------------------------------------------------------------------
# Restarts in them


def with_restarts(model: ModelPatcher, sigmas: Tensor, written: Sequence[Written | str], scheduler: str) -> RestartPlan:
    """The plan of the restarts that fit; the way down in each of them is the `scheduler`'s between its two ends.

    Nothing is asked of the model where nothing is written.
    """
    check_choice("restart_scheduler", scheduler, comfy.samplers.SCHEDULER_NAMES)
    if not written:
        return unchanged(sigmas.tolist())
    sampling = model.get_model_object("model_sampling")
    law = noise_law(sampling)
    return written_plan(
        sigmas.tolist(), law, written, lambda place: sigma_at(sampling, place), grid_of(sampling, law, scheduler)
    )


def sigma_at(sampling, place: Place) -> float:
    """The model's sigma at a written noise level.

    Differs: a model without a table of timesteps counts them as shares of its time, 1000 for all of it.
    """
    if place.kind == "sigma":
        return place.value
    if place.kind == "timestep" and isinstance(sampling, ModelSamplingDiscrete):
        return float(sampling.sigma(torch.tensor(place.value)))
    over = place.value / 100 if place.kind == "percent" else 1 - place.value / TIMESTEPS
    return float(sampling.percent_to_sigma(over))


def grid_of(sampling, law: NoiseLaw, scheduler: str) -> Callable[[float, float, int], list[float]]:
    """Points between two noise-to-signal ratios as a scheduler of the host places them: a piece of its curve.

    Of karras and exponential this is what they give for these ends. Raises ValueError where it has no such piece.
    """
    whole = comfy.samplers.calculate_sigmas(sampling, scheduler, FINE)
    curve = Curve(without_repeats(checked_sigmas(whole, law)), law, shift_of(sampling, law))

    def grid(top: float, bottom: float, points: int) -> list[float]:
        ends = law.sigma(top), law.sigma(bottom)
        numbers = np.linspace(number_of(curve, ends[0]), number_of(curve, ends[1]), points)
        down = (ends[0], *curve.at(numbers[1:-1]), ends[1])
        if not falls(down):
            raise ValueError(
                f"The restart_scheduler {scheduler} has no {points} points between sigma {ends[0]:.4g} and "
                f"{ends[1]:.4g} of this model. Choose another, such as karras, or write fewer points."
            )
        return [top, *(law.ratio(sigma) for sigma in down[1:-1]), bottom]

    return grid


def number_of(curve: Curve, sigma: float) -> float:
    """The number of the node where a schedule has this sigma; its first or last where it lies beyond."""
    if sigma >= curve.sigmas[0]:
        return 0.0
    return curve.number_at(sigma) if sigma > curve.sigmas[-1] else len(curve.sigmas) - 1.0


# ---------------------------------------------------------------------------------------------------------
# Sampling


class Given(NamedTuple):
    """What a KSampler is given besides its steps."""

    model: ModelPatcher
    positive: list
    negative: list
    latent: dict[str, Any]
    cfg: float
    seed: int
    add_noise: bool = True


def sampled(given: Given, sampler, sigmas: Tensor, plan: RestartPlan, report: Report) -> tuple[dict, dict]:
    """The latent, and the last prediction of it, by the host's own SamplerCustom; what is run is said.

    Where the plan restarts nothing, sampler and sigmas are the host's, to the bit.
    """
    report.say(told(plan, sampler))
    if plan.main_steps < plan.steps:
        sampler, sigmas = restart_sampler(sampler, 1.0, report), torch.tensor(plan.sigmas, dtype=torch.float32)
    node = importlib.import_module("comfy_extras.nodes_custom_sampler").SamplerCustom
    model, positive, negative, latent, cfg, seed, add_noise = given
    output = node.execute(model, add_noise, seed, cfg, positive, negative, sampler, sigmas, latent)
    return output.args


def told(plan: RestartPlan, sampler) -> str:
    """What will be run: steps, restarts, model calls as far as they are known, and sigmas."""
    if not plan.steps:
        return "Nothing to do: denoise is 0, or the steps asked for are beyond the schedule. The latent is passed on."
    runs = falling_runs(torch.tensor(plan.sigmas, dtype=torch.float64))
    calls = sum(calls_of(sampler, len(run) - 1, float(run[-1]) == 0) for run in runs if len(run) > 1)
    is_known = getattr(function_of(sampler), "__name__", "") in ODE_SAMPLERS
    by = f"{calls} model calls of {name_of(sampler)}" if is_known else f"by {name_of(sampler)}"
    return f"{plan}\n{by}, sigmas {listed(plan.sigmas)}"
