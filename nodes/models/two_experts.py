"""Two models that share one run, one for high noise and one for low (Wan 2.2), as one GUIDER of the host.

Each expert is a guider of the host with its own model, patches, hooks, cfg and prompts, and only one of them is at
work: what the host's guider holds during a run (`HELD`) is that expert's. At the boundary one leaves as at the end of
a run and the other comes in as at the start of one, so the host loads it, and frees the first where it needs the room.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import comfy.sampler_helpers
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...samplers.noise_law import NoiseLaw
from ...samplers.sigmas import is_repeat
from ..host.noise_law import noise_law

HELD = ("model_patcher", "model_options", "conds", "inner_model", "loaded_models", "cfg")


class Place(NamedTuple):
    """Where prompts are made ready for a model: what the host's `inner_sample` is given."""

    noise: Tensor
    latent_image: Tensor | None
    device: torch.device
    denoise_mask: Tensor | None
    seed: int | None
    streams: dict[str, Any]  # latent_shapes, where the host says them


class Expert(comfy.samplers.CFGGuider):
    """One of the two, so that what hangs on its model finds a guider of the host."""

    within: Callable[..., Tensor]

    def __init__(self, model: ModelPatcher, options: dict[str, Any], prompts: dict[str, list], cfg: float):
        super().__init__(model)
        self.model_options, self.original_conds, self.cfg = options, prompts, cfg
        self.untouched: dict[str, list] | None = None  # prompts, before the model's own conditions are added

    @property
    def is_ready(self) -> bool:
        """Whether it can be handed over to."""
        return self.untouched is not None

    def outer_sample(self, *given, **named) -> Tensor:
        """Of the one that is not first: hooks and wrappers are in place, and the run goes on inside them."""
        self.keep(self.conds)
        return self.within(*given, **named)

    def keep(self, conds: dict[str, list]) -> None:
        self.untouched = copied(conds)

    def enter(self, place: Place) -> None:
        """As at the start of a run: loaded, and the prompts made ready for this model."""
        patcher, options = self.model_patcher, self.model_options
        self.conds, self.loaded_models = copied(self.untouched or {}), []
        self.inner_model, self.conds, self.loaded_models = comfy.sampler_helpers.prepare_sampling(
            patcher, place.noise.shape, self.conds, options
        )
        self.inner_model.latent_shapes = place.streams.get("latent_shapes")
        comfy.samplers.cast_to_load_options(options, device=place.device, dtype=patcher.model_dtype())
        patcher.pre_run()
        latent = place.latent_image
        if latent is not None and torch.count_nonzero(latent) > 0:  # the host leaves an empty latent as it is
            latent = self.inner_model.process_latent_in(latent)
        self.conds = comfy.samplers.process_conds(
            self.inner_model,
            place.noise,
            self.conds,
            place.device,
            latent,
            place.denoise_mask,
            place.seed,
            **place.streams,
        )

    def leave(self) -> None:
        """As at the end of a run; the model stays loaded until the host needs the room."""
        self.model_patcher.cleanup()
        comfy.sampler_helpers.cleanup_models(self.conds, self.loaded_models)
        comfy.samplers.cast_to_load_options(self.model_options, device=self.model_patcher.offload_device)


@dataclass
class Shared:
    """A run of two experts: which one it begins with, the other, and the one at work."""

    first: Expert
    other: Expert
    first_is_high: bool
    now: Expert
    place: Place | None = None


class TwoExpertsGuider(comfy.samplers.CFGGuider):
    """model_high from `boundary` up, model_low below it, each at a cfg of its own.

    boundary: a share of the model's timesteps, between 0 and 1; `sigma_boundary` is where that lies. A call on the
    boundary is the high expert's, as in Wan's own code. In a run, `at_rest` is this guider as it was before.
    Raises ValueError for a boundary out of range, and for two models that cannot share a latent.
    """

    original_conds: dict[str, list]

    def __init__(
        self, model_high: ModelPatcher, model_low: ModelPatcher, cfg_high: float, cfg_low: float, boundary: float
    ):
        check_pair(model_high, model_low)
        self.sigma_boundary = sigma_of_boundary(model_high.get_model_object("model_sampling"), boundary)
        super().__init__(model_high)
        self.model_patcher_low = model_low
        self.cfg_high, self.cfg_low, self.boundary = cfg_high, cfg_low, boundary
        self.cfg = cfg_high
        self.shared: Shared | None = None

    def inner_set_conds(self, conds: dict[str, list]) -> None:
        """The host may exchange a patcher for one that can do what the prompts ask; so it may for the low one."""
        self.original_conds = dict(self.original_conds)  # a copy of this guider keeps its own
        super().inner_set_conds(conds)
        low = comfy.samplers.CFGGuider(self.model_patcher_low)
        low.inner_set_conds(conds)
        self.model_patcher_low = low.model_patcher

    def is_high(self, sigma: float) -> bool:
        return sigma >= self.sigma_boundary or is_repeat(sigma, self.sigma_boundary)

    # -----------------------------------------------------------------------------------------------------
    # A run

    def sample(self, noise, latent_image, sampler, sigmas, *given, **named) -> Tensor:
        """The host's. It begins with the expert of the first sigma; the other is loaded when it is called."""
        if not len(sigmas):
            return latent_image
        rest = copy.copy(self)
        self.shared, self.at_rest = self.run_from(float(sigmas[0])), rest
        move(self.shared.first, self)
        try:
            return super().sample(noise, latent_image, sampler, sigmas, *given, **named)
        finally:
            self.__dict__.clear()
            self.__dict__.update(vars(rest))

    def run_from(self, sigma: float) -> Shared:
        prompts, low_options = self.original_conds, self.model_patcher_low.model_options
        high = Expert(self.model_patcher, self.model_options, prompts, self.cfg_high)
        low = Expert(self.model_patcher_low, low_options, prompts, self.cfg_low)
        first, other = (high, low) if self.is_high(sigma) else (low, high)
        return Shared(first, other, first is high, first)

    def outer_sample(
        self, noise, latent_image, sampler, sigmas, denoise_mask=None, callback=None, *given, **named
    ) -> Tensor:
        """The host's, inside of what hangs on the other expert where the schedule comes to that."""
        run, shared = super().outer_sample, shared_by(self)

        def within(noise, latent_image, sampler, sigmas, _=None, callback=None, *__, **___) -> Tensor:
            return run(noise, latent_image, sampler, sigmas, denoise_mask, callback, *given, **named)

        if all(self.is_high(sigma) == shared.first_is_high for sigma in sigmas.tolist()):
            return within(noise, latent_image, sampler, sigmas, None, callback)
        shared.other.within = within
        # Without the mask, which the host would fit to the latent once more.
        return shared.other.sample(noise, latent_image, sampler, sigmas, None, callback, *given)

    def inner_sample(
        self, noise, latent_image, device, sampler, sigmas, denoise_mask, callback, disable_pbar, seed, **streams
    ) -> Tensor:
        """The host's; in the end the first expert stands there again, whose run the host ends."""
        shared = shared_by(self)
        shared.place = Place(noise, latent_image, device, denoise_mask, seed, streams)
        shared.first.keep(self.conds)
        given = (sampler, sigmas, denoise_mask, callback, disable_pbar, seed)
        try:
            return super().inner_sample(noise, latent_image, device, *given, **streams)
        finally:
            if shared.now is not shared.first:
                shared.now.leave()
                move(shared.first, self)

    def outer_predict_noise(self, x: Tensor, timestep: Tensor, model_options=None, seed=None) -> Tensor:
        """The host's, with the expert of this noise: what hangs on the other one does not see the call."""
        shared, options = shared_by(self), model_options or {}
        expert = self.expert_at(float(timestep.flatten()[0]))
        if expert is not shared.now:
            self.hand_over(expert)
        if expert is not shared.first:  # whose options the sampler was given, and may have added to
            options = carried(shared.first.model_options, options, expert.model_options)
        return super().outer_predict_noise(x, timestep, options, seed)

    def expert_at(self, sigma: float) -> Expert:
        """Noise that a sampler adds a little beyond a schedule of one expert's (s_churn) is that expert's."""
        shared = shared_by(self)
        is_first = self.is_high(sigma) == shared.first_is_high or not shared.other.is_ready
        return shared.first if is_first else shared.other

    def hand_over(self, expert: Expert) -> None:
        shared = shared_by(self)
        assert shared.place is not None, "set before the sampler runs"
        move(self, shared.now)
        shared.now.leave()
        shared.now = expert
        expert.enter(shared.place)
        move(expert, self)


def shared_by(guider: TwoExpertsGuider) -> Shared:
    assert guider.shared is not None, "the host calls this only within sample()"
    return guider.shared


def move(source: comfy.samplers.CFGGuider, target: comfy.samplers.CFGGuider) -> None:
    """What the host's guider holds during a run, as far as the run has come."""
    target.__dict__.update({name: value for name, value in vars(source).items() if name in HELD})


def copied(conds: dict[str, list]) -> dict[str, list]:
    return {name: [dict(one) for one in those] for name, those in conds.items()}


def carried(before: dict[str, Any], now: dict[str, Any], onto: dict[str, Any]) -> dict[str, Any]:
    """`onto` with what was added to `before`, or changed in it, to make `now`: nested dictionaries and lists."""
    result = dict(onto)
    for name, value in now.items():
        old = before.get(name)
        if isinstance(value, dict):
            result[name] = carried(old or {}, value, onto.get(name) or {})
        elif isinstance(value, list):
            added = [one for one in value if all(one is not other for other in old or [])]
            result[name] = [*onto.get(name, []), *added]
        elif value is not old:
            result[name] = value
    return result


# ---------------------------------------------------------------------------------------------------------
# What may be a pair, and where they part


def sigma_of_boundary(sampling, boundary: float) -> float:
    """The sigma at a share of the model's timesteps.

    A flow model's sigma is its timestep / 1000, after any shift, so Wan's "timestep / 1000 >= boundary" is a comparison
    with sigma. Other models have a list of timesteps, or a range of ln sigma, of which this is the share counted from
    no noise: 0.875 is what other nodes call 0.125 of the run. Raises ValueError for what is no share.
    """
    if not 0 < boundary < 1:
        raise ValueError(
            f"boundary is {boundary:g}; it must be above 0 and below 1. Wan 2.2: 0.875 for text to video, 0.9 for "
            "image to video. For one model alone use CFG Guider."
        )
    return boundary if noise_law(sampling).is_flow else float(sampling.percent_to_sigma(1 - boundary))


def check_pair(high: ModelPatcher, low: ModelPatcher) -> None:
    """Raises ValueError for two models that cannot work on one latent."""
    formats = [model.get_model_object("latent_format") for model in (high, low)]
    told = [f"{type(latent).__name__} of {latent.latent_channels} channels" for latent in formats]
    if told[0] != told[1]:
        raise ValueError(
            f"The two experts have different latents: model_high {told[0]}, model_low {told[1]}. They must be two "
            "models of one family, such as the high noise and the low noise file of Wan 2.2 14B."
        )
    laws = [noise_law(model.get_model_object("model_sampling")) for model in (high, low)]
    if laws[0] != laws[1]:
        raise ValueError(
            f"The two experts add noise in different ways: model_high is {named(laws[0])}, model_low {named(laws[1])}. "
            "Connect two models of one family, with the same Model Sampling nodes on both."
        )


def named(law: NoiseLaw) -> str:
    """A noise law for a person."""
    kind = "a flow model" if law.is_flow else "a model of eps or v prediction"
    return kind if law.scale == 1 else f"{kind} with noise scale {law.scale:g}"


def two_experts_guider(
    model_high: ModelPatcher,
    model_low: ModelPatcher,
    positive: list,
    negative: list,
    cfg_high: float,
    cfg_low: float,
    boundary: float,
) -> TwoExpertsGuider:
    guider = TwoExpertsGuider(model_high, model_low, cfg_high, cfg_low, boundary)
    guider.set_conds(positive, negative)
    return guider
