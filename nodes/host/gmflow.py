"""GMFlow as the host's GUIDER and SAMPLER."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...samplers.choices import check_choice
from ...samplers.gmflow import GMFlow, Mixture, Prediction, SpectralDraw, guided
from ...samplers.gmflow.mixture import checked, mean
from .mixtures import MixtureNetwork, Recorder, predicts_mixtures
from .noise import ItemNoise
from .noise_law import check_unit_noise
from .sampler import reporter

MODES = ("ode", "sde")
SHARED_SUBSTEPS = 128  # among all calls of a run: what the authors take
HOW_TO_GET_ONE = "Connect Load GMFlow, or the Demo Model with the variant gmflow."


# ---------------------------------------------------------------------------------------------------------
# GUIDER


@dataclass(frozen=True)
class Guidance:
    """What the person chose. start and end: shares of the run, 0 to 1, between which there is guidance.

    Raises ValueError for values out of range.
    """

    strength: float
    orthogonal: float = 1.0
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.strength < 1:
            raise ValueError(
                f"strength is {self.strength:g}; it must be at least 0 (no guidance) and below 1. "
                "It is no cfg: 0.45 is a good start."
            )
        if not 0 <= self.orthogonal <= 1:
            raise ValueError(f"orthogonal is {self.orthogonal:g}; it must be between 0 (off) and 1.")
        if not 0 <= self.start <= self.end <= 1:
            raise ValueError(
                f"start_percent is {self.start:g} and end_percent {self.end:g}; both must be between 0 and 1, the "
                "start not after the end."
            )


class GMFlowGuider(comfy.samplers.CFGGuider):
    """Probabilistic guidance, arXiv 2504.05304 section 3.2, as the host's guider.

    The host evaluates the prompts and applies what hangs on the model, as ever; only in the place of its own
    guidance stands the guided mean. A sampler of ours finds the mixture on the recorder that it brought.
    """

    def __init__(self, model: ModelPatcher, guidance: Guidance):
        if not predicts_mixtures(model):
            raise ValueError(
                "The GMFlow Guider needs a model that predicts Gaussian mixtures, and this one does not. "
                f"{HOW_TO_GET_ONE} For this model use CFG Guider."
            )
        super().__init__(model)
        self.guidance = guidance

    def predict_noise(self, x: Tensor, timestep: Tensor, model_options=None, seed=None) -> Tensor:
        options = model_options or {}
        strength = self.strength_at(float(timestep[0]))
        recorder = Recorder.of(options) or Recorder()
        if Recorder.of(options) is None:
            options = recorder.on(options)

        def guide(args: dict[str, Any]) -> Tensor:
            recorder.prediction = self.prediction(recorder.sides, strength)
            mixture = checked(recorder.prediction.mixture)
            return args["input"] - (mean(mixture) if strength else args["cond_denoised"])

        return comfy.samplers.sampling_function(
            self.inner_model,
            x,
            timestep,
            self.conds.get("negative") if strength else None,
            self.conds.get("positive"),
            1 + strength,  # at 1 the host makes no unconditional call
            model_options=options | {"sampler_cfg_function": guide},
            seed=seed,
        )

    def strength_at(self, sigma: float) -> float:
        """The strength, or 0 outside of the chosen part of the run."""
        first, last = (
            self.inner_model.model_sampling.percent_to_sigma(p) for p in (self.guidance.start, self.guidance.end)
        )
        return self.guidance.strength if last <= sigma <= first else 0.0

    def prediction(self, sides: list[Mixture | None], strength: float) -> Prediction:
        conditional, unconditional = sides[0], sides[1] if len(sides) > 1 else None
        if conditional is None:
            raise ValueError("No positive prompt is active at some step of this run. Give one that covers all steps.")
        if not strength:
            return Prediction(conditional)
        if unconditional is None:
            raise ValueError(
                "No negative prompt is active at some step of this run. Give one that covers all steps, or set the "
                "strength of the GMFlow Guider to 0."
            )
        return guided(conditional, unconditional, strength, self.guidance.orthogonal)


def gmflow_guider(model: ModelPatcher, positive: list, negative: list, guidance: Guidance) -> GMFlowGuider:
    guider = GMFlowGuider(model, guidance)
    guider.set_conds(positive, negative)
    return guider


# ---------------------------------------------------------------------------------------------------------
# SAMPLER


@dataclass(frozen=True)
class MixtureCall:
    """The MixtureDenoiser of a run: the host's model call, guidance and masks and all, with the mixture behind it.

    The mixture is moved so that its mean is what the host's call answers. That is next to nothing with the GMFlow
    Guider; with the host's own it is CFG, with a mask it is the picture that stays, and patches of the result count.
    """

    model: Any
    extra_args: dict[str, Any]

    def __call__(self, x: Tensor, sigma: float) -> Prediction:
        recorder = Recorder()
        options = recorder.on(self.extra_args.get("model_options") or {})
        sigmas = x.new_full((len(x),), sigma, dtype=torch.float32)
        denoised = self.model(x, sigmas, **(self.extra_args | {"model_options": options}))
        prediction = recorder.prediction or Prediction(first_of(recorder.sides))
        return moved(prediction, denoised - mean(prediction.mixture))


def first_of(sides: list[Mixture | None]) -> Mixture:
    if not sides or sides[0] is None:
        raise ValueError("No positive prompt is active at some step of this run. Give one that covers all steps.")
    return sides[0]


def moved(prediction: Prediction, by: Tensor) -> Prediction:
    """The same prediction with every component moved, by (B, C, *S)."""
    mixture = prediction.conditional
    return replace(prediction, conditional=replace(mixture, means=mixture.means + by[:, None]))


@dataclass(frozen=True)
class Choice:
    """What the person chose. substeps 0: SHARED_SUBSTEPS among the calls."""

    mode: str
    order: int
    substeps: int
    temperature: float
    spectral: bool

    def solver(self, model, calls: int) -> GMFlow:
        """For a run of so many calls. Raises ValueError for what GMFlow or the model does not have."""
        options: dict[str, Any] = {}
        if self.spectral and self.mode == "sde":
            spectrum = getattr(model, "spectrum", None)
            if spectrum is None:
                raise ValueError(
                    "spectral is on, and no spectrum network came with this model. Put it beside the model as "
                    "NAME_spectrum.safetensors and load again, or switch spectral off."
                )
            options["draw"] = SpectralDraw(spectrum)
        substeps = self.substeps or max(1, round(SHARED_SUBSTEPS / max(calls, 1)))
        shift = float(getattr(model.model_sampling, "shift", 1.0))
        return GMFlow(self.mode, self.order, substeps, self.temperature, shift, **options)


def check_guider(guider) -> None:
    """Raises ValueError for a model without mixtures, and for a guider whose answer has no mixture behind it."""
    if not isinstance(guider.inner_model.diffusion_model, MixtureNetwork):
        raise ValueError(
            "The GMFlow Sampler needs a model that predicts Gaussian mixtures, and this one predicts a single picture. "
            f"{HOW_TO_GET_ONE} For this model use another sampler."
        )
    known = (GMFlowGuider.predict_noise, comfy.samplers.CFGGuider.predict_noise)
    if type(guider).predict_noise not in known:
        raise ValueError(
            f"The GMFlow Sampler cannot tell which mixture the guider {type(guider).__name__} means. Use the GMFlow "
            "Guider, CFG Guider or Basic Guider."
        )


@torch.no_grad()
def sample_gmflow(
    model, x: Tensor, sigmas: Tensor, extra_args=None, callback=None, disable=None, *, choice: Choice
) -> Tensor:
    """The host's sampler function."""
    extra_args = dict(extra_args or {})
    check_guider(model.inner_model)
    check_unit_noise(model.inner_model.inner_model.model_sampling)
    nodes = sigmas.detach().to("cpu", torch.float64)
    solver = choice.solver(model.inner_model.inner_model, len(nodes) - 1)
    first = round(float(nodes[0]) * 2**20)  # parts of a cut schedule do not draw the same noise
    noise = ItemNoise(extra_args.get("seed") or 0, getattr(model, "noise", x), first)
    x = solver(MixtureCall(model, extra_args), x, nodes, noise=noise, on_step=reporter(callback, nodes, disable))
    return kept_outside(model, x, nodes, extra_args)


def kept_outside(model, x: Tensor, nodes: Tensor, extra_args: dict[str, Any]) -> Tensor:
    """A finished x with the picture that a mask keeps: the sub-steps after the last model call do not know it."""
    mask = extra_args.get("denoise_mask")
    if mask is None or len(nodes) < 2 or nodes[-1] > 0:
        return x
    thresholds = (extra_args.get("model_options") or {}).get("denoise_mask_function")
    if thresholds:
        last = x.new_full((len(x),), float(nodes[-2]), dtype=torch.float32)
        mask = thresholds(last, mask, extra_options={"model": model.inner_model, "sigmas": model.sigmas})
    return torch.lerp(model.latent_image.to(x), x, mask.to(x))


def gmflow_sampler(choice: Choice) -> comfy.samplers.KSAMPLER:
    """A SAMPLER. Raises ValueError for choices out of range, before anything runs."""
    check_choice("mode", choice.mode, MODES)
    GMFlow(choice.mode, choice.order, choice.substeps or 1, choice.temperature)
    return comfy.samplers.KSAMPLER(sample_gmflow, {"choice": choice})
