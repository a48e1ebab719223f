"""DPM-Solver-v3's statistics, measured on a MODEL with prompt and guidance, and checked on seeds they do not know."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial, reduce
from typing import Any

import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...samplers.choices import check_choice
from ...samplers.contract import Denoiser
from ...samplers.dpm_solver_v3 import DPMSolverV3, Options, Statistics
from ...samplers.dpm_solver_v3.measured import BUDGETS, Measured
from ...samplers.dpm_solver_v3.observe import (
    Derivative,
    Measurement,
    Observer,
    by_differences,
    by_forward_mode,
    observe_references,
    observed_sigmas,
)
from ...samplers.dpm_solver_v3.pooling import Pooling
from ...samplers.dpm_solver_v3.sums import Sums
from ...samplers.noise_law import NoiseLaw
from ...samplers.streams import Streams
from ..host.dpm_solver_v3 import CHECK_SCHEDULE, solver_for
from ..host.noise import seeded
from ..host.noise_law import noise_law
from .asked import Asked, Range, where_it_stands
from .interrupted import Parts
from .running import Counter, HostDenoiser, check_reached, inside_sampling

DERIVATIVES = ("auto", "forward_mode", "differences")
IMAGES, LEVELS = Range(2, 4096), Range(6, 400)
# Of noise-to-signal: above the first everything is noise, and below the last the host's schedules have no node.
HIGHEST, LOWEST = 150.0, 0.01
CHECKED = 2  # batches that are left out once each, and drawn with the statistics of the others
FEWEST = (
    8  # numbers that a statistic is made of, at least. Of 3 pictures, pixel statistics draw NaN on an exact mixture
)
WAYS = 3  # at order 1, at order 2, and without
log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Request(Asked):
    """What a person asked for. latent: all zeros to let the model draw its own references, or the references."""

    images: int
    levels: int
    pooling: str
    derivative: str

    def __post_init__(self) -> None:
        super().__post_init__()
        IMAGES.check("images", self.images)
        self.check_all_dealt("images", self.images)
        LEVELS.check("levels", self.levels)
        check_choice("derivative", self.derivative, DERIVATIVES)
        numbers = int(self.pooled.numbers.min())
        needed = self.batch + math.ceil(FEWEST / numbers)  # a batch is left out to check the others
        if self.images < needed:
            raise ValueError(
                f"images is {self.images}; with pooling {self.pooling} it must be {needed} or more, so that every "
                f"statistic is made of {FEWEST} numbers. Raise images, or set pooling to global."
            )

    @cached_property
    def pooled(self) -> Pooling:
        return Pooling(self.pooling, tuple(self.latent.shape[1:]), self.streams)

    @property
    def batch(self) -> int:
        """As many at a time as the latent has, but two batches at least, so that one can check the other."""
        return max(1, min(len(self.latent), self.images // 2))

    def prompts_of(self, number: int) -> list[int]:
        """Those of a batch, in the order of its latents."""
        return self.dealt(range(number * self.batch, (number + 1) * self.batch))

    @property
    def batches(self) -> int:
        return math.ceil(self.images / self.batch)

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What is kept with the result. Results of equal facts add up, whatever their number of images."""
        own = {"batch": self.batch, "levels": self.levels, "pooling": self.pooling}
        return self.asked | self.references | own


@dataclass(frozen=True, eq=False)
class Part:
    """One batch: its sums, the start and the converged end of its latents, and how J was found."""

    sums: Sums
    noise: Tensor
    end: Tensor
    derivative: str


@dataclass(frozen=True, eq=False)
class Checked:
    """Errors (B, streams) of a batch, by way, in so many calls."""

    calls: int
    errors: dict[str, Tensor]


class Differentiation:
    """How J is taken. "auto": forward mode, or differences where the model's code, or the memory, turns out not to
    have it at the first try. name: what was found.
    """

    def __init__(self, asked: str):
        self.automatic, self.works = asked == "auto", False
        self.name = "forward_mode" if self.automatic else asked

    def on(self, host: HostDenoiser) -> Derivative:
        """In one sampling of the host. Its fused attention has no forward mode; written out it has."""

        def derivative(denoise: Denoiser, x: Tensor, sigma: float, denoised: Tensor, u: Tensor) -> Tensor:
            if self.name == "forward_mode":
                try:
                    with host.plain_attention():
                        response = by_forward_mode(denoise, x, sigma, denoised, u)
                    self.works = True
                    return response
                except (RuntimeError, NotImplementedError, TypeError, AttributeError) as error:
                    if self.works or not self.automatic:  # then it is something else that went wrong
                        raise
                    log.info("Forward-mode derivatives are not to be had here (%s); taking differences.", error)
                    self.name = "differences"
            return by_differences(denoise, x, sigma, denoised, u)

        return derivative


def published_range(model: ModelPatcher) -> tuple[float, float]:
    """lambda at the model's highest and lowest sigma, between which the authors' tables are uniform."""
    sampling = model.get_model_object("model_sampling")
    law = noise_law(sampling)
    first, last = law.lam(torch.tensor([float(sampling.sigma_max), float(sampling.sigma_min)]).double()).tolist()
    return first, last


# ---------------------------------------------------------------------------------------------------------
# The plan


def level_sigmas(sampling, law: NoiseLaw, levels: int) -> Tensor:
    """The host's sigmas of `levels` levels, uniform in lambda over the model's range, where the model itself stands.

    A model of discrete time steps answers for the nearest of them; its levels are moved there.
    """
    highest = HIGHEST if law.is_flow else min(float(sampling.sigma_max), HIGHEST)
    lowest = max(law.ratio(float(sampling.sigma_min)), LOWEST)
    ratios = torch.logspace(math.log10(highest), math.log10(lowest), levels, dtype=torch.float64)
    wanted = law.sigma(ratios)
    if law.is_flow:
        return wanted
    return torch.unique(where_it_stands(sampling, wanted)).flip(0)


def first_sigma(sampling, sigmas: Tensor) -> Tensor:
    """What the host's schedules begin with, where that is above the first level; empty else."""
    top = torch.tensor([float(sampling.sigma_max)], dtype=torch.float64)
    return top[top > sigmas[0] * (1 + 1e-6)]


def calls_of(request: Request, sigmas: Tensor) -> int:
    """Guided model calls of one batch."""
    if request.from_references:
        return 4 * len(sigmas) - 1
    sampling = request.model.get_model_object("model_sampling")
    return 2 * len(sigmas) + len(first_sigma(sampling, sigmas))


# ---------------------------------------------------------------------------------------------------------
# The measurement


def estimate(request: Request, known: Measured | None, kept: Parts, node_id: str | None) -> Measured:
    """Measure what `known` (of the same facts) and `kept` (an interrupted run) do not hold yet, and check it.

    kept is filled part by part, so that what was finished survives a cancel.
    Raises ValueError where the model answers with NaN, or leads nowhere.
    """
    bench = Bench(request, known, kept)
    measuring, checking = bench.measuring(), bench.checking()
    kept.expected = sum(calls for calls, _ in [*measuring.values(), *checking.values()])
    bench.counter = Counter(kept.left(measuring) + kept.left(checking), node_id, "Measuring")
    own = kept.all_of(measuring)
    bench.own.update(zip(bench.numbers, own, strict=True))
    batches = bench.numbers.stop
    facts = request.facts | {
        "batches": batches,
        "images": batches * request.batch,
        "derivative": own[-1].derivative,
    }
    if not request.from_references:
        facts |= facts_of_check(request.streams, kept.all_of(checking)) if checking else {"check": {}}
        bench.counter.finish()
    return Measured.of(bench.total, facts)


class Bench:
    """An estimate at work. own: what was measured of each batch. counter: set before any part is made."""

    counter: Counter

    def __init__(self, request: Request, known: Measured | None, kept: Parts):
        sampling = request.model.get_model_object("model_sampling")
        self.request, self.known = request, known
        self.sigmas = level_sigmas(sampling, noise_law(sampling), request.levels)
        self.guider, self.derivative = request.guidance(), Differentiation(request.derivative)
        self.own: dict[int, Part] = {}
        before = int(known.facts["batches"]) if known else 0
        batches = max(request.batches, before)
        while batch_name(batches) in kept.done:  # an interrupted run may have measured more than is asked now
            batches += 1
        self.numbers = range(before, batches)

    @cached_property
    def total(self) -> Sums:
        known = [self.known.sums] if self.known and self.known.sums else []
        return reduce(Sums.__add__, [part.sums for part in self.own.values()] + known)

    def measuring(self) -> dict[str, tuple[int, Callable[[], Part]]]:
        calls = calls_of(self.request, self.sigmas)
        return {batch_name(number): (calls, partial(self.measured, number)) for number in self.numbers}

    def measured(self, number: int) -> Part:
        self.counter.phase = f"measuring {batch_name(number)} of {self.numbers.stop}"
        return measure_batch(self.request, self.guider, self.derivative, self.sigmas, number, self.counter)

    def checking(self) -> dict[str, tuple[int, Callable[[], Checked]]]:
        """By name, which says of how many batches the statistics are. A single batch has nobody to check it."""
        batches = self.numbers.stop
        if self.request.from_references or batches < 2:
            return {}
        return {
            f"check of {batch_name(number)} of {batches} at {calls} calls": (
                WAYS * calls,
                partial(self.checked, number, calls),
            )
            for number in self.numbers[:CHECKED]
            for calls in BUDGETS
        }

    def checked(self, number: int, calls: int) -> Checked:
        self.counter.phase = "checking the statistics"
        others = Measured.of(self.total - self.own[number].sums, {}).statistics
        return check(self.request, self.guider, others, self.own[number], number, calls, self.counter)


def batch_name(number: int) -> str:
    return f"batch {number + 1}"


def measure_batch(
    request: Request,
    guider: comfy.samplers.CFGGuider,
    derivative: Differentiation,
    sigmas: Tensor,
    number: int,
    counter: Counter,
) -> Part:
    """One batch. Raises ValueError where the model answers with NaN, or leads nowhere."""
    sampling = request.model.get_model_object("model_sampling")
    measurement = measurement_for(request, noise_law(sampling), sigmas, number)
    noise = torch.randn((request.batch, *request.latent.shape[1:]), generator=generator(request, number, "start"))
    way = torch.cat([first_sigma(sampling, sigmas), sigmas])
    if request.from_references:
        way = torch.tensor(observed_sigmas(measurement.law, sigmas), dtype=torch.float64)

    def work(denoise: HostDenoiser, x: Tensor) -> Tensor:
        watched = counter.watch(denoise.dealt(request.prompts_of(number)))
        probed = replace(measurement, derivative=derivative.on(denoise))
        if not request.from_references:
            return draw_watched(watched, x, way, probed)
        x0, fresh = references(request, number).to(x), generator(request, number, "renoise")
        observe_references(watched, x0, sigmas, probed, lambda level, shape: torch.randn(shape, generator=fresh))
        return x0

    end = inside_sampling(guider, noise, way, work, request.seed, request.streams).cpu()
    cure = f"Lower the cfg, which is {request.cfg:g}, and check the model's shift."
    check_reached(end, "A latent to measure on", cure, request.streams)
    check_reached(measurement.sums.largest_answer().sqrt(), "The model's answers", cure)
    return Part(measurement.sums, noise, end, derivative.name)


def generator(request: Request, number: int, purpose: str) -> torch.Generator:
    """Random numbers of one batch, for one of three purposes."""
    purposes = ("start", "signs", "renoise")
    return seeded(request.seed, number, purposes.index(purpose))


def measurement_for(request: Request, law: NoiseLaw, sigmas: Tensor, number: int) -> Measurement:
    """Empty sums of one batch, and its probes."""
    pooling = request.pooled
    source = generator(request, number, "signs")

    def signs(level: int, shape: torch.Size) -> Tensor:
        return torch.randint(0, 2, shape, generator=source).float().mul_(2).sub_(1)

    return Measurement(law, pooling, Sums.empty(law.lam(sigmas), pooling.features), signs)


def draw_watched(denoise: Denoiser, x: Tensor, way: Tensor, measurement: Measurement) -> Tensor:
    """The converged latents from x at the first sigma of `way`; what happens on it is added up."""
    observer = Observer(denoise, measurement)
    options = Options(order=3, corrector="off", last_step="denoised")
    end = DPMSolverV3(measurement.law, options=options)(observer, x, torch.cat([way, way.new_zeros(1)]))
    observer.finish()
    return end


def references(request: Request, number: int) -> Tensor:
    """The latents of one batch, in the model's own scale; over and over again where there are too few."""
    at = torch.arange(number * request.batch, (number + 1) * request.batch) % len(request.latent)
    return request.latents[at]


# ---------------------------------------------------------------------------------------------------------
# The check


def check(
    request: Request,
    guider: comfy.samplers.CFGGuider,
    others: Statistics,
    part: Part,
    number: int,
    calls: int,
    counter: Counter,
) -> Checked:
    """Errors of a batch that is left out of the statistics, drawn in so many calls in each of WAYS."""
    ways: dict[str, tuple[Statistics | None, int]] = {"1": (others, 1), "2": (others, 2), "without": (None, 2)}
    sampling = request.model.get_model_object("model_sampling")
    sigmas, errors = checked_sigmas(sampling, calls), {}
    for name, (used, order) in ways.items():
        solver = solver_for(used, Options(order), sampling, sigmas, streams=request.streams)
        drawn = draw_with(solver, request, guider, part.noise, sigmas, counter, request.prompts_of(number))
        errors[name] = request.streams.square_errors(drawn, part.end)
    return Checked(calls, errors)


def facts_of_check(streams: Streams, checks: Sequence[Checked]) -> dict[str, Any]:
    """Facts of `Measured`: geometric means of errors by calls and way, all streams alike; of several also of each."""
    apart = {
        str(calls): {
            name: torch.cat([check.errors[name] for check in checks if check.calls == calls])
            for name in checks[0].errors
        }
        for calls in BUDGETS
    }
    facts: dict[str, Any] = {
        "check": {calls: {name: geometric_mean(e.mean(1)) for name, e in ways.items()} for calls, ways in apart.items()}
    }
    if streams.is_pack:
        facts["check_by_stream"] = {
            calls: {
                stream: {name: geometric_mean(e[:, number]) for name, e in ways.items()}
                for number, stream in enumerate(streams.names)
            }
            for calls, ways in apart.items()
        }
    return facts


def checked_sigmas(sampling, calls: int) -> Tensor:
    """The host's schedule, without the sigmas that it gives twice where the model's own do not go higher."""
    return torch.unique_consecutive(comfy.samplers.calculate_sigmas(sampling, CHECK_SCHEDULE, calls))


def draw_with(
    solver: DPMSolverV3,
    request: Asked,
    guider: comfy.samplers.CFGGuider,
    noise: Tensor,
    sigmas: Tensor,
    counter: Counter,
    prompts: Sequence[int],
) -> Tensor:
    """The latents that the solver draws from `noise`, each under its own of the prompts, on the CPU."""

    def solve(denoise: HostDenoiser, x: Tensor) -> Tensor:
        return solver(counter.watch(denoise.dealt(prompts)), x, sigmas).cpu()

    return inside_sampling(guider, noise, sigmas, solve, request.seed, request.streams)


def geometric_mean(errors: Tensor) -> float:
    """One latent that fell into another picture does not outweigh the rest. NaN counts as very bad."""
    return errors.double().nan_to_num(1e6).clamp(1e-12, 1e6).log().mean().exp().item()
