"""On what a person wants something measured, whether that can be, and the latents of it."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import comfy.sample
import comfy.samplers
import numpy as np
import torch
from comfy.model_patcher import ModelPatcher
from comfy.nested_tensor import NestedTensor
from torch import Tensor

from ...samplers.noise_law import NoiseLaw
from ...samplers.streams import Streams
from ..host.caches import check_no_cache
from ..host.guiders import (
    as_conditioning,
    cfg_of,
    check_guider,
    fresh,
    further_models,
    guider_fact,
    guider_for,
    is_ordinary,
    numbers_of,
    prompt_digest,
    without_guidance,
)
from ..host.identity import conditioning_digest, identify
from ..host.noise_law import noise_law
from ..host.prompts import Prompt, together, under
from ..host.streams import in_models_scale, is_nested, packed, streams_of


class Range(NamedTuple):
    """The whole numbers that an input allows: what the widget offers, and what the API is held to."""

    least: int
    most: int

    def check(self, name: str, value: Any) -> None:
        """Raises ValueError for what is no whole number in it."""
        if not isinstance(value, (int, np.integer)) or not self.least <= value <= self.most:
            raise ValueError(f"{name} is {value!r}; it must be a whole number from {self.least} to {self.most}.")


SEED = Range(0, 0xFFFFFFFFFFFFFFFF)


@dataclass(frozen=True, eq=False)
class Asked:
    """On what a person wants something measured. latent: all zeros, or pictures.

    streams: those of the latent; several become their pack (B, 1, N), in which the model is sampled.
    guider: stands for model, positive, negative and cfg, which then say nothing; model and cfg become the guider's.
    prompts: further ones, which are dealt out with the first.
    Raises ValueError, in words, where a part is missing or is not what it should be.
    """

    model: ModelPatcher
    positive: list
    negative: list
    cfg: float
    latent: Tensor
    seed: int
    guider: comfy.samplers.CFGGuider | None = field(default=None, kw_only=True)
    prompts: Sequence[Prompt] = field(default=(), kw_only=True)
    streams: Streams = field(init=False)

    def __post_init__(self) -> None:
        check_model(sampled_model(self.model, self.guider))
        if self.guider is None:
            check_prompts(self.positive, self.negative, self.cfg)
        else:
            check_guidance(self.guider)
        check_further(self.guided, self.prompts)
        object.__setattr__(self, "model", self.guided.model_patcher)
        object.__setattr__(self, "cfg", cfg_of(self.guided))
        for model in self.models:
            check_no_cache(model)
        SEED.check("seed", self.seed)
        check_latent(self.model, self.latent)
        object.__setattr__(self, "streams", streams_of(self.latent, self.model.get_model_object("model_sampling")))
        object.__setattr__(self, "latent", packed(self.latent))

    @cached_property
    def sampling(self):
        return self.model.get_model_object("model_sampling")

    @cached_property
    def law(self) -> NoiseLaw:
        return noise_law(self.sampling)

    @cached_property
    def guided(self) -> comfy.samplers.CFGGuider:
        """The person's guider, or one of the four inputs."""
        if self.guider is not None:
            return self.guider
        return guider_for(self.model, self.positive, self.negative or [], self.cfg)

    @cached_property
    def each(self) -> list[comfy.samplers.CFGGuider]:
        """A guider for each prompt, as the person guides."""
        return [
            fresh(self.guided),
            *(under(self.guided, (positive, negative or [])) for positive, negative in self.prompts),
        ]

    def guidance(self) -> comfy.samplers.CFGGuider:
        """To sample with, as the person will."""
        return together([fresh(guider) for guider in self.each])

    def without_guidance(self) -> comfy.samplers.CFGGuider:
        """To ask for the prediction under the prompts alone."""
        return together([without_guidance(guider) for guider in self.each])

    def dealt(self, numbers: Iterable[int]) -> list[int]:
        """Which prompt, by number, each of the latents `numbers` has: one after the other."""
        return [number % len(self.each) for number in numbers]

    def check_all_dealt(self, name: str, value: int) -> None:
        """Raises ValueError where there are fewer latents than prompts."""
        if value < len(self.each):
            raise ValueError(
                f"{name} is {value}, and there are {len(self.each)} prompts. Raise {name} to {len(self.each)} or more, "
                "or connect fewer prompts."
            )

    @property
    def models(self) -> list[ModelPatcher]:
        """All that run: a guider may hold several."""
        return [self.model, *further_models(self.guided)]

    @cached_property
    def from_references(self) -> bool:
        return bool(self.latent.count_nonzero())

    @property
    def asked(self) -> dict[str, Any]:
        """The part that every measurement keeps of it, as JSON values."""
        scale = self.law.scale
        noise = {} if scale == 1 else {"noise_scale": scale}
        guider = guider_fact(self.guided)
        further = {"guider": guider} if guider else {}
        own = {"cfg": self.cfg, "prompt": prompt_digest(self.guided), "seed": self.seed}
        if self.prompts:
            digests = [prompt_digest(guider) for guider in self.each[1:]]
            own |= {"prompt": conditioning_digest([own["prompt"], *digests]), "prompts": len(self.each)}
        streams = {"streams": self.streams.fact} if self.streams.is_pack else {}
        return identify(self.model) | noise | own | further | streams

    @cached_property
    def latents(self) -> Tensor:
        """`latent` in the model's own scale. As in the host an empty one stays 0, whatever the format's shift."""
        if not self.from_references:
            return self.latent
        return in_models_scale(self.model.model, self.latent, self.streams)

    @property
    def references(self) -> dict[str, Any]:
        """The latents it is measured on."""
        references = conditioning_digest([self.latent]) if self.from_references else "drawn"
        return {"latent": list(self.latent.shape[1:]), "references": references}


def sampled_model(model: Any, guider: Any) -> Any:
    """The guider's model where there is a guider. Raises ValueError, in words, for what is no guider."""
    if guider is None:
        return model
    check_guider(guider)
    return guider.model_patcher


def check_model(model: Any) -> None:
    if not hasattr(model, "get_model_object"):
        raise ValueError(
            f"model is {described(model)}; it must be a MODEL. Connect a node that loads one, or a guider that has one."
        )


def check_guidance(guider: comfy.samplers.CFGGuider) -> None:
    """Raises ValueError for prompts and numbers in a guider that do not go together."""
    if is_ordinary(guider):
        sides = {name: as_conditioning(prompt) for name, prompt in guider.original_conds.items()}
        check_prompts(sides["positive"], sides.get("negative"), guider.cfg)
    for name, value in numbers_of(guider).items():
        if isinstance(value, (int, float)):
            check_cfg(name, value)


def check_further(guider: comfy.samplers.CFGGuider, prompts: Any) -> None:
    """Raises ValueError for further prompts that are none, or that the guider has no sides for."""
    if not prompts:
        return
    if not is_ordinary(guider):
        raise ValueError(
            f"Further prompts have a positive and a negative side, and {type(guider).__name__} guides otherwise. Take "
            "CFG Guider, Basic Guider or no guider, or disconnect prompts."
        )
    for positive, negative in prompts:
        check_prompts(positive, negative, guider.cfg)


def check_prompts(positive: Any, negative: Any, cfg: Any) -> None:
    """Raises ValueError for prompts and a cfg that do not go together."""
    check_cfg("cfg", cfg)
    check_conditioning("positive", positive)
    check_negative(negative, cfg)


def check_negative(negative: Any, cfg: float) -> None:
    """At cfg 1 the host does not ask about it, so it may be missing."""
    if cfg != 1 or negative:
        check_conditioning("negative", negative)


def check_cfg(name: str, value: Any) -> None:
    if not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise ValueError(f"{name} is {value!r}; it must be a number of 0 or more.")


def check_conditioning(name: str, conditioning: Any) -> None:
    """Raises ValueError for what is no CONDITIONING of one prompt at least."""
    parts = conditioning if isinstance(conditioning, (list, tuple)) else ()
    if not parts or not all(isinstance(p, (list, tuple)) and len(p) > 1 and isinstance(p[1], dict) for p in parts):
        raise ValueError(
            f"{name} is {described(conditioning)}; it must be a CONDITIONING. Connect an encoded prompt; an empty text "
            "will do for the negative one."
        )


def check_latent(model: ModelPatcher, latent: Tensor | NestedTensor) -> None:
    """Raises ValueError for latents that the model does not have, and for those that hold no numbers."""
    if is_nested(latent):
        check_streams(model, latent.unbind())
    else:
        check_channels(model, latent)
    if not packed(latent).isfinite().all():
        raise ValueError("latent_image holds NaN or infinite numbers. Encode the pictures again, or take an empty one.")


def check_streams(model: ModelPatcher, parts: Sequence[Tensor]) -> None:
    """Raises ValueError for streams that cannot be this model's.

    A latent format knows the channels of one stream only: of the video (LTX), of the widest (MiniMax), or how wide a
    row of tokens is (TripoSplat). So one of the streams must have them.
    """
    shapes = [tuple(part.shape) for part in parts]
    channels = model.get_model_object("latent_format").latent_channels
    sound = all(len(shape) > 2 and math.prod(shape) and shape[0] == shapes[0][0] for shape in shapes)
    if not sound or not any(channels in (shape[1], shape[-1] if len(shape) == 3 else 0) for shape in shapes):
        told = " and ".join(" x ".join(map(str, shape)) for shape in shapes)
        raise ValueError(
            f"latent_image has streams of the shapes {told}; this model's latents have a stream of {channels} "
            "channels, and all streams have the same batch size, none of them 0. Connect an empty latent, or encode "
            "picture and sound, with the nodes for this model."
        )


def check_channels(model: ModelPatcher, latent: Tensor) -> None:
    """Raises ValueError for a latent of another number of channels, or of none."""
    kind = model.get_model_object("latent_format")
    channels = kind.latent_channels
    if not 3 <= latent.ndim <= 2 + max(kind.latent_dimensions, 2) or latent.shape[1] != channels or not latent.numel():
        raise ValueError(
            f"latent_image has the shape {' x '.join(map(str, latent.shape))}; this model's latents are batch x "
            f"{channels} channels x height x width, none of them 0. Connect an empty latent, or encode the pictures "
            "with the model's own VAE."
        )


def described(value: Any) -> str:
    """In an error: what was given."""
    if value is None:
        return "missing"
    empty = hasattr(value, "__len__") and not len(value)
    return f"{'an empty' if empty else 'a'} {type(value).__name__}"


def latent_for(model: ModelPatcher, latent: dict[str, Any]) -> Tensor | NestedTensor:
    """The samples of a LATENT as the host would sample them: where it is empty, with the model's channels and size.

    Raises ValueError for what is no LATENT.
    """
    check_model(model)
    samples: Any = latent.get("samples") if isinstance(latent, dict) else None
    if not hasattr(samples, "is_nested"):
        raise ValueError(
            f"latent_image is {described(latent)}, without samples; it must be a LATENT. Connect an empty latent or an "
            "encoded picture."
        )
    if not is_nested(samples) and (samples.ndim < 3 or not samples.numel()):
        check_channels(model, samples)
    return comfy.sample.fix_empty_latent_channels(model, samples, **dict(ratios_of(latent)))


def ratios_of(latent: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """What a LATENT says of its size in pixels, as far as this host asks for it: 0.3 does not."""
    for name in inspect.signature(comfy.sample.fix_empty_latent_channels).parameters:
        if name.startswith("downscale_ratio") and name in latent:
            yield name, latent[name]


def where_it_stands(sampling, sigmas: Tensor) -> Tensor:
    """The sigmas, float64, that the model itself takes for these: a model of time steps knows no others.

    One at a time, because the host's own sampling of Cosmos compares its time with a number.
    """
    return torch.tensor([float(sampling.sigma(t)) for t in times_of(sampling, sigmas)], dtype=torch.float64)


def times_of(sampling, sigmas: Tensor) -> list[Tensor]:
    """The model's own time at each sigma, (1,) each."""
    return [sampling.timestep(sigma) for sigma in sigmas.float().split(1)]
