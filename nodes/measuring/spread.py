"""The spread s(sigma) measured on a MODEL with a prompt."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ...samplers.bands import parted
from ...samplers.choices import check_choice
from ...samplers.contract import Denoiser
from ...samplers.dpm_solver_v3 import DPMSolverV3, Options
from ...samplers.dpm_solver_v3.observe import by_differences
from ...samplers.spread import Spread
from ..host.noise import seeded
from ..host.noise_law import noise_law
from .asked import Asked
from .estimate import IMAGES, LEVELS, checked_sigmas, draw_with, level_sigmas
from .interrupted import Parts
from .running import Counter, HostDenoiser, check_reached, inside_sampling

ESTIMATORS = ("residual", "derivative")
BANDS = ("1", "4", "8")  # of frequency
DRAWING_STEPS = 20
START, RENOISE, SIGNS = range(3)  # what random numbers are for


@dataclass(frozen=True, eq=False)
class Request(Asked):
    """What a person asked for. latent: all zeros to let the model draw its own references at `cfg`, or references."""

    images: int
    levels: int
    estimator: str = "residual"
    bands: str = "1"

    def __post_init__(self) -> None:
        super().__post_init__()
        IMAGES.check("images", self.images)
        self.check_all_dealt("images", self.images)
        LEVELS.check("levels", self.levels)
        check_choice("estimator", self.estimator, ESTIMATORS)
        check_choice("bands", self.bands, BANDS)
        if self.by_band and self.streams.is_pack:
            raise ValueError("A latent of several streams has no bands of its own: set bands to 1.")

    @property
    def by_band(self) -> bool:
        return self.bands != "1"

    @property
    def batches(self) -> list[range]:
        """Numbers of the images, as many at a time as the latent has."""
        size = min(len(self.latent), self.images)
        return [range(i, min(i + size, self.images)) for i in range(0, self.images, size)]

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What is kept with the result; a measurement of equal facts is the same."""
        own = {"images": self.images, "levels": self.levels, "estimator": self.estimator}
        own |= {"bands": int(self.bands)} if self.by_band else {}
        return self.asked | self.references | own


def measure_spread(request: Request, node_id: str | None, kept: Parts | None = None) -> Spread:
    """Draw references, noise them anew at every level, and add up s^2 of each.

    kept: filled batch by batch, so that what was measured survives a cancel.
    Raises ValueError where the model answers with NaN, or leads nowhere.
    """
    sampling = request.model.get_model_object("model_sampling")
    law = noise_law(sampling)
    sigmas = level_sigmas(sampling, law, request.levels)
    sigmas = sigmas[sigmas < 1] if law.is_flow else sigmas
    per_batch = len(sigmas) * (2 if request.estimator == "derivative" else 1)
    drawing = 0 if request.from_references else DRAWING_STEPS
    kept = Parts() if kept is None else kept
    kept.expected = len(request.batches) * (per_batch + drawing)

    def work(numbers: range) -> tuple[int, Callable[[], Tensor]]:
        return per_batch + drawing, lambda: measure_batch(request, numbers, sigmas, counter)

    works = {images_of(numbers): work(numbers) for numbers in request.batches}
    counter = Counter(kept.left(works), node_id, "Measuring the spread")
    apart = torch.cat(kept.all_of(works))
    squares = apart.sum(2) if request.by_band else apart.mean(2)
    check_reached(squares.clamp(min=0).sqrt(), "The model's answers to noised references", cure_for(request))
    halves = [squares[i::2].mean(0).clamp(min=1e-30).sqrt() for i in (0, 1)]
    check = float((halves[0] / halves[1]).log().abs().mean()) if len(squares) > 1 else math.nan
    ratios = law.ratio(sigmas)
    counts = torch.full_like(ratios, len(squares))
    facts = request.facts | {"check": check}
    if request.streams.is_pack:
        s = apart.mean(0).clamp(min=0).sqrt()
        facts["by_stream"] = request.streams.named(s.T.tolist())
    by_band = apart.sum(0).T.clamp(min=0).contiguous() if request.by_band else None
    return Spread(ratios, squares.sum(0), counts, facts, by_band)


def images_of(numbers: range) -> str:
    """A batch, in words."""
    return f"images {numbers[0] + 1} to {numbers[-1] + 1}"


def measure_batch(request: Request, numbers: range, sigmas: Tensor, counter: Counter) -> Tensor:
    """s^2 of every image at every level, of each stream or band, (images, levels, streams or bands)."""
    counter.phase = f"drawing {images_of(numbers)}"
    x0 = references(request, numbers, counter)
    check_reached(x0, "A reference", cure_for(request), request.streams)
    counter.phase = f"measuring the spread of {images_of(numbers)}"
    noise = torch.stack([numbers_for(request, number, RENOISE, x0[0].shape) for number in numbers])

    def work(denoise: HostDenoiser, x: Tensor) -> Tensor:
        watched = counter.watch(denoise.dealt(request.dealt(numbers)))
        given = (x0.to(x), noise.to(x))
        return torch.stack([at_level(request, watched, *given, float(sigma), numbers) for sigma in sigmas], 1)

    guider, streams = request.without_guidance(), request.streams
    return inside_sampling(guider, noise, sigmas, work, request.seed, streams).cpu().double()


def cure_for(request: Request) -> str:
    return f"Lower the cfg, which is {request.cfg:g}, and check the model's shift."


def references(request: Request, numbers: range, counter: Counter) -> Tensor:
    """Latents in the model's own scale: the person's, or drawn with guidance."""
    if request.from_references:
        at = torch.tensor(numbers) % len(request.latent)
        return request.latents[at]
    sampling = request.model.get_model_object("model_sampling")
    solver = DPMSolverV3(noise_law(sampling), options=Options(order=3, last_step="denoised"))
    noise = torch.stack([numbers_for(request, number, START, request.latent.shape[1:]) for number in numbers])
    sigmas = checked_sigmas(sampling, DRAWING_STEPS)
    prompts = request.dealt(numbers)
    return draw_with(solver, request, request.guidance(), noise, sigmas, counter, prompts)


def numbers_for(request: Request, number: int, purpose: int, shape) -> Tensor:
    """Unit Gaussian numbers of one image."""
    return torch.randn(shape, generator=seeded(request.seed, number, purpose))


def at_level(request: Request, denoise: Denoiser, x0: Tensor, noise: Tensor, sigma: float, numbers: range) -> Tensor:
    """s^2 of every image of a batch at a level, (B, streams or bands).

    In the size that the model carries a stream at: there guidance meets it.
    """
    law = noise_law(request.model.get_model_object("model_sampling"))
    x = law.noised(x0, sigma, noise)
    denoised = denoise(x, sigma)
    if request.estimator == "residual":
        return means_apart(request, x0 - denoised, x0 - denoised)
    signs = torch.stack([numbers_for(request, number, SIGNS, x0[0].shape) for number in numbers]).sign().to(x)
    slope = means_apart(request, signs, by_differences(denoise, x, sigma, denoised, signs))
    return law.ratio(sigma) ** 2 * law.alpha(sigma) * slope


def means_apart(request: Request, a: Tensor, b: Tensor) -> Tensor:
    """The mean product of every item, of each stream or band, (B, streams or bands)."""
    if not request.by_band:
        return request.streams.means(a * b)
    return (parted(a, int(request.bands)) * b).flatten(2).mean(2).T
