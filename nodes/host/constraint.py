"""What is known of a picture as a patch of a MODEL: its predictions are held to it, whatever samples."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...samplers.choices import check_choice
from ...samplers.constraint import Blurred, Grey, Identity, Measurement, Operator, Pooled, fitted
from ...samplers.facts import number, whole
from .caches import caches_on
from .progress import Report
from .slope import GRADIENTS, Slope, in_words
from .streams import is_nested, streams_in_run

KEY = "fewstep_constraint"
FACTORS = {f"downsample {factor}": factor for factor in (2, 4, 8)}
OPERATORS = ("inpaint", *FACTORS, "grey", "blur")
MOST_SCALE, MOST_RADIUS, MOST_ITERATIONS = 10.0, 64.0, 8
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as pictures are made grey


@dataclass(frozen=True, eq=False)
class Known:
    """What the person connected, on the model's own scale. y: (B, C, ..., H, W) of the picture or of its measurement.

    unknown: (B, 1, H, W), 1 where y says nothing, or None. Raises ValueError, in words, for what cannot be held to.
    """

    operator: Operator
    y: Tensor
    unknown: Tensor | None = None

    def on(self, x: Tensor) -> Measurement:
        """For latents like x. Raises ValueError for those of another size."""
        y = self.y.to(x.device, torch.float32)
        if y.ndim + 1 == x.ndim:
            y = y.unsqueeze(2)  # a picture is a video of one frame
        self.check_size(x)
        if y.shape[1:] == x.shape[1:]:
            y = y if isinstance(self.operator, Blurred) else self.operator.measure(y)  # a blurred picture is measured
        elif y.shape[1:] != (measured := self.operator.measure(x).shape[1:]):
            raise ValueError(self.misfit(x, measured))
        return Measurement(self.operator, repeated(y, len(x)), repeated(self.weight(y), len(x)))

    def check_size(self, x: Tensor) -> None:
        factor = getattr(self.operator, "factor", 1)
        if any(size % factor for size in x.shape[-2:]):
            raise ValueError(
                f"The latent that is sampled is {by(x.shape[2:])}; for downsample {factor} of Manifold Constraint its "
                f"height and width must be multiples of {factor}. Take another size for the empty latent."
            )

    def weight(self, y: Tensor) -> Tensor:
        """(B, 1, ..., h, w)."""
        if self.unknown is None:
            return y.new_ones((1, 1, *y.shape[2:]))
        known = 1 - fitted(self.unknown.to(y), (y.shape[-2], y.shape[-1])).clamp(0, 1)
        return known.reshape(len(known), 1, *[1] * (y.ndim - 4), *y.shape[-2:])

    def misfit(self, x: Tensor, measured: torch.Size) -> str:
        fits = dict.fromkeys([by(x.shape[2:]), by(measured[1:])])
        return (
            f"The measurement of Manifold Constraint is {by(self.y.shape[2:])}, and the latent that is sampled "
            f"{by(x.shape[2:])}; the measurement must be {' or '.join(fits)}. Take another size for the empty latent, "
            "or scale the picture before it is encoded."
        )


@dataclass(frozen=True, eq=False)
class Held:
    """The host's wrapper of one guided prediction, which holds it to what is known."""

    known: Known
    scale: float
    project: bool
    gradient: str = "differences"
    iterations: int = 1
    report: Report | None = None

    @cached_property
    def slope(self) -> Slope:
        return Slope(self.gradient, self.iterations, self.report)

    @cached_property
    def last(self) -> dict[tuple, Measurement]:
        """The measurement as the latest latents needed it."""
        return {}

    def __call__(self, executor, x: Tensor, timestep: Tensor, model_options: dict[str, Any], seed: int | None = None):
        guider = executor.class_obj
        measurement = self.measurement(guider, x)

        def ask(x: Tensor) -> Tensor:
            return executor(x, timestep, model_options, seed)

        if self.scale == 0:
            return self.projected(measurement, ask(x))
        denoised, moved = self.slope(ask, x, timestep, measurement, guider)
        return self.projected(measurement, denoised + self.scale * moved.to(denoised.dtype))

    def projected(self, measurement: Measurement, denoised: Tensor) -> Tensor:
        return measurement.kept(denoised).to(denoised.dtype) if self.project else denoised

    def measurement(self, guider, x: Tensor) -> Measurement:
        key = (tuple(x.shape), x.device)
        if key not in self.last:
            if x.ndim < 4 or streams_in_run(guider, x).is_pack:
                raise ValueError(
                    "Manifold Constraint holds pictures: this model's latents have no height and width, or several "
                    "streams."
                )
            self.last.clear()
            self.last[key] = self.known.on(x)
        return self.last[key]


def by(sizes: Iterable[int]) -> str:
    return " x ".join(map(str, sizes))


def repeated(values: Tensor, count: int) -> Tensor:
    """So many items, from the first on again where there are fewer, as the host's masks and latents are."""
    return values[[number % len(values) for number in range(count)]]


# ---------------------------------------------------------------------------------------------------------
# From the node's inputs


@dataclass(frozen=True, eq=False)
class Wanted:
    """The node's inputs. Raises ValueError, in words, for what does not fit."""

    operator: str
    scale: float
    project: bool
    blur_radius: float = 2.0
    gradient: str = "differences"
    iterations: int = 1
    report: Report | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        check_choice("operator", self.operator, OPERATORS)
        check_choice("gradient", self.gradient, GRADIENTS)
        number(0, MOST_SCALE).check("scale", self.scale)
        number(0, MOST_RADIUS).check("blur_radius", self.blur_radius)
        whole(1, MOST_ITERATIONS).check("iterations", self.iterations)

    def on(self, latent_format) -> Operator:
        """A on latents of this format."""
        if self.operator in FACTORS:
            return Pooled(FACTORS[self.operator])
        if self.operator == "grey":
            return Grey(grey_weights(latent_format))
        return Blurred(self.blur_radius) if self.operator == "blur" else Identity()


def grey_weights(latent_format) -> tuple[float, ...]:
    """By the colours that the host's preview makes of the channels. Raises ValueError where it knows none."""
    factors, channels = getattr(latent_format, "latent_rgb_factors", None), latent_format.latent_channels
    if factors is None and channels == 3:
        return LUMA
    if factors is None or len(factors) != channels:
        raise ValueError(
            f"Of {type(latent_format).__name__} latents ComfyUI does not know which colours they stand for, so grey "
            "cannot be held. Take a model of another kind."
        )
    return tuple(sum(share * colour for share, colour in zip(LUMA, row, strict=True)) for row in factors)


def constrained(model: ModelPatcher, measurement: Any, mask: Any, wanted: Wanted) -> tuple[ModelPatcher, str]:
    """A clone that is held to the measurement, and what to know. Raises ValueError for what does not fit."""
    known = known_of(model, measurement, mask, wanted)
    made = model.clone()
    held = Held(known, wanted.scale, wanted.project, wanted.gradient, wanted.iterations, wanted.report)
    made.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, KEY, held)
    return made, "\n".join(remarks(model, known, wanted))


def known_of(model: ModelPatcher, measurement: Any, mask: Any, wanted: Wanted) -> Known:
    kind = model.get_model_object("latent_format")
    samples = checked_samples(measurement, kind)
    if mask is None and wanted.operator == "inpaint":
        mask = measurement.get("noise_mask")
        if mask is None:
            raise ValueError(
                "Inpainting needs to know what to draw: connect mask, white where something new is wanted, or a "
                "measurement with one (Set Latent Noise Mask)."
            )
    if mask is not None and wanted.operator == "blur":
        raise ValueError("A blur mixes what a mask would part: disconnect mask, or choose another operator.")
    unknown = None if mask is None else checked_mask(mask)
    return Known(wanted.on(kind), model.model.process_latent_in(samples.float()), unknown)


def checked_samples(measurement: Any, latent_format) -> Tensor:
    samples: Any = measurement.get("samples") if isinstance(measurement, dict) else None
    channels = latent_format.latent_channels
    if not isinstance(samples, Tensor) or is_nested(samples) or samples.ndim < 4 or samples.shape[1] != channels:
        given = by(samples.shape) if isinstance(samples, Tensor) else "no LATENT of pictures"
        raise ValueError(
            f"measurement is {given}; it must be batch x {channels} channels x height x width. Encode the known "
            "picture with this model's own VAE (VAE Encode)."
        )
    if not samples.numel() or not samples.isfinite().all():
        raise ValueError("measurement is empty, or holds NaN or infinite numbers. Encode the picture again.")
    return samples


def checked_mask(mask: Any) -> Tensor:
    """(B, 1, H, W) of a MASK or a noise mask."""
    if not isinstance(mask, Tensor) or mask.ndim < 2 or not mask.numel() or not mask.isfinite().all():
        raise ValueError("mask is no MASK of numbers. Connect Load Image (as Mask), or paint one in the mask editor.")
    return mask.float().reshape(-1, 1, *mask.shape[-2:])


def remarks(model: ModelPatcher, known: Known, wanted: Wanted) -> list[str]:
    """What is said before anything is sampled."""
    said = [held_words(known, wanted)]
    if wanted.scale > 0:
        said.append(memory_words(model, known, wanted))
    if found := caches_on(model):
        said.append(f"{' and '.join(found)} on the model answers some calls from memory: the gradient is wrong there.")
    return said


def held_words(known: Known, wanted: Wanted) -> str:
    share = 1.0 if known.unknown is None else 1 - float(known.unknown.clamp(0, 1).mean())
    held = "held" if wanted.project else "pulled towards it, not held"
    return f"{wanted.operator}: {share:.0%} of the measurement is known and {held}."


def memory_words(model: ModelPatcher, known: Known, wanted: Wanted) -> str:
    """An estimate beforehand: what the host itself reckons with for a call, and what a gradient needs beside it."""
    calls = wanted.iterations + 1
    if wanted.gradient == "differences":
        return f"{calls} model calls for each of the sampler's. Memory as without it."
    factor = getattr(known.operator, "factor", 1)
    shape = [len(known.y), *known.y.shape[1:-2], *(factor * size for size in known.y.shape[-2:])]
    ordinary = model.model.memory_required(shape)
    otherwise = f"{calls} calls are made instead" if wanted.gradient == "auto" else "sampling stops"
    return (
        f"Memory: ComfyUI reckons with {in_words(ordinary)} for an ordinary call on a latent of {by(shape[2:])}, "
        "beside the weights. A gradient keeps what every layer computes on the way: with large models many times that. "
        f"Where it does not fit, {otherwise}."
    )
