"""GMFlow as the host's GUIDER and SAMPLER."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, cast

import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...samplers.choices import check_choice
from ...samplers.gmflow import GMFlow, Mixture, Prediction, SpectralDraw, guided
from ...samplers.gmflow.head import PolicyHead
from ...samplers.gmflow.mixture import checked, mean
from ...samplers.gmflow.policy import SHIFT, Answer
from ...samplers.gmflow.solver import falling
from .guidance.others import PRE_CFG
from .mixtures import (
    MixtureNetwork,
    Recorder,
    framed,
    head_in,
    moved,
    own_frame,
    predicts_mixtures,
)
from .noise import ItemNoise
from .noise_law import check_unit_noise
from .percents import check_numbers, within
from .sampler import Reporter

MODES = ("ode", "sde")
NO_CFG = float("1")  # told apart, as an object, from the 1 of a node that sets the cfg of a guider
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
        if "sampler_cfg_function" in model.model_options:
            function = model.model_options["sampler_cfg_function"]
            raise ValueError(
                "A node on this model (RescaleCFG, CFGNorm with pre_cfg, PerpNeg or another) puts guidance of its own "
                f"in the place of cfg ({getattr(function, '__qualname__', type(function).__name__)}), and so does the "
                "GMFlow Guider. Take that node out, or use CFG Guider."
            )
        super().__init__(model)
        self.guidance, self.cfg = guidance, NO_CFG

    def predict_noise(self, x: Tensor, timestep: Tensor, model_options=None, seed=None) -> Tensor:
        options, sigma = model_options or {}, float(timestep[0])
        strength = self.strength_at(sigma)
        recorder = Recorder.of(options) or Recorder(x.shape)
        if Recorder.of(options) is None:
            options = recorder.on(options)

        def guide(args: dict[str, Any]) -> Tensor:
            sides = cast(list[Mixture | None], recorder.sides)
            if PRE_CFG in options:  # others changed the predictions: APG, TCFG
                answers = (args["cond_denoised"], args["uncond_denoised"])
                sides = [side and cast(Mixture, moved(side, to)) for side, to in zip(sides, answers, strict=False)]
            recorder.prediction = self.prediction(sides, strength)
            mixture = checked(recorder.prediction.mixture, f"at sigma {sigma:.4g}")
            answer = args["cond_denoised"]
            return args["input"] - (mean(mixture).reshape(answer.shape) if strength else answer)

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
        """The strength, or 0 outside of the chosen part of the run.

        Raises ValueError for a sigma that is no number, and where CFG Override asks for a cfg.
        """
        if self.cfg is not NO_CFG and self.cfg != 1:
            raise ValueError(
                f"CFG Override sets a cfg of {self.cfg:g}, and the GMFlow Guider has a strength, which is no cfg. Set "
                "strength, start_percent and end_percent of the GMFlow Guider instead, or use CFG Guider."
            )
        check_numbers([sigma])
        to_sigma = self.inner_model.model_sampling.percent_to_sigma
        if not within(to_sigma, sigma, self.guidance.start, self.guidance.end):
            return 0.0
        return 0.0 if self.cfg is not NO_CFG else self.guidance.strength

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


class AnswerCall:
    """The host's model call of a run, guidance and masks and all, with the network's whole answer behind it.

    It is called in the frame of the network's answers. The answer is moved so that its mean is what the host's call
    gives. That is next to nothing with the GMFlow Guider; with the host's own it is CFG, with a mask it is the picture
    that stays, and patches of the result count.

    shape: of the host's x. sigma, denoised: where the last call was, and what the host answered.
    """

    wants_mixtures = False
    sigma: float
    denoised: Tensor | None = None

    def __init__(self, model, extra_args: dict[str, Any], shape: torch.Size):
        self.model, self.extra_args, self.shape = model, extra_args, shape
        self.velocities: list[Answer | None] = []  # of the last call

    def ask(self, x: Tensor, sigma: float) -> tuple[Tensor, Prediction | Answer]:
        """What the host answers, and the answer of the positive prompts in x0, or what a guider made of them."""
        x = x.reshape(self.shape)
        recorder = Recorder(x.shape, self.velocities)
        options = recorder.on(self.extra_args.get("model_options") or {})
        sigmas = x.new_full((len(x),), sigma, dtype=torch.float32)
        self.denoised = self.model(x, sigmas, **(self.extra_args | {"model_options": options}))
        self.sigma, self.velocities = sigma, recorder.velocities
        return self.denoised, recorder.prediction or self.conditional(recorder, x, sigmas)

    @staticmethod
    def conditional(recorder: Recorder, x: Tensor, sigmas: Tensor) -> Answer:
        """The answer of the positive prompts. Raises ValueError where none is active."""
        answer = recorder.sides[0] if recorder.sides else recorder.from_earlier(x, sigmas)
        if answer is None:
            raise ValueError("No positive prompt is active at some step of this run. Give one that covers all steps.")
        return answer


class MixtureCall(AnswerCall):
    """The MixtureDenoiser of a run."""

    wants_mixtures = True

    def __call__(self, x: Tensor, sigma: float) -> Prediction:
        denoised, answer = self.ask(x, sigma)
        prediction = answer if isinstance(answer, Prediction) else Prediction(cast(Mixture, answer))
        mixture = prediction.conditional
        by = framed(denoised, mixture) - mean(prediction.mixture)
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
        return GMFlow(self.mode, self.order, substeps, self.temperature, time_shift(model), **options)


def time_shift(model) -> float:
    """The shift in whose time sub-steps are equal, of a model in a run."""
    head = head_in(model.diffusion_model)
    return shift_of_head(head) if head else float(getattr(model.model_sampling, "shift", 1.0))


def shift_of_head(head: PolicyHead) -> float:
    """Of the schedule that an adapter was made for."""
    return head.config.law.shift if head.config.law else SHIFT


def check_guider(guider, wants_mixtures: bool = True) -> None:
    """Raises ValueError for a model without mixtures, and for a guider whose answer has no mixture behind it.

    wants_mixtures: whether a DX policy will not do.
    """
    network = guider.inner_model.diffusion_model
    head = head_in(network)
    if wants_mixtures and head and head.config.law:
        raise ValueError(
            "The adapter on this model has a DX policy, and the GMFlow Sampler needs Gaussian mixtures. Use the "
            "pi-Flow Sampler."
        )
    if not head and not isinstance(network, MixtureNetwork):
        raise ValueError(
            f"The {'GMFlow' if wants_mixtures else 'pi-Flow'} Sampler needs a model that predicts Gaussian mixtures, "
            f"and this one predicts a single picture. {HOW_TO_GET_ONE} For this model use another sampler."
        )
    known = (GMFlowGuider.predict_noise, comfy.samplers.CFGGuider.predict_noise)
    if type(guider).predict_noise not in known:
        raise ValueError(
            f"The GMFlow Sampler cannot tell which mixture the guider {type(guider).__name__} means. Use the GMFlow "
            "Guider, CFG Guider or Basic Guider."
        )


def guider_of(model):
    """The guider behind what the host, or a sampler around ours, hands to a sampler function.

    Samplers that wrap another (Detail Daemon) hand on a function with a few attributes of the host's object, or an
    object with that one inside. Raises ValueError where none leads to the guider.
    """
    inner = getattr(model, "inner_model", None)
    while inner is not None and not hasattr(inner, "predict_noise"):
        inner = getattr(inner, "inner_model", None)
    if inner is None:
        raise ValueError(
            "The sampler around the GMFlow Sampler hides the model from it. Use the GMFlow Sampler by itself, or "
            "another sampler inside that one."
        )
    return inner


@torch.no_grad()
def sample_gmflow(
    model, x: Tensor, sigmas: Tensor, extra_args=None, callback=None, disable=None, *, choice: Choice
) -> Tensor:
    """The host's sampler function of the GMFlow Sampler."""
    return solved(model, x, sigmas, extra_args, Watch(callback, disable), MixtureCall, choice)


def check_end(nodes: Tensor) -> None:
    """Raises ValueError for a schedule that ends in noise alone: the host would divide by 1 - sigma."""
    if nodes[-1] == 1:
        raise ValueError(
            "All sigmas are 1, which is noise alone, so there is no picture at the end of this schedule. Connect the "
            "SIGMAS of a scheduler, or let them end below 1."
        )


class Solving(Protocol):
    """What the person chose of a sampler."""

    def solver(self, model, calls: int) -> Any:
        """For a run of so many calls of a model in a run."""
        ...


class Watch(NamedTuple):
    """Who looks on: the host's callback, and whether its bar is off."""

    callback: Any
    disable: bool | None


def solved(
    model, x: Tensor, sigmas: Tensor, extra_args, watch: Watch, kind: type[AnswerCall], choice: Solving
) -> Tensor:
    """A run in the frame of the network's answers. As the host's, it passes on what comes with under two sigmas."""
    if len(sigmas) < 2:
        return x
    extra_args, guider, own = dict(extra_args or {}), guider_of(model), x.shape
    check_guider(guider, kind.wants_mixtures)
    check_unit_noise(guider.inner_model.model_sampling)
    nodes = torch.tensor(falling(sigmas), dtype=torch.float64)
    check_end(nodes)
    solver = choice.solver(guider.inner_model, len(nodes) - 1)
    frame = own_frame(guider.inner_model.diffusion_model, own)
    first = round(float(nodes[0]) * 2**20)  # parts of a cut schedule do not draw the same noise
    noise = ItemNoise(extra_args.get("seed") or 0, getattr(model, "noise", x), first)
    call, report = kind(model, extra_args, own), Reporter(watch.callback, nodes, watch.disable)
    end = solver(
        call,
        x.reshape(frame),
        nodes,
        noise=lambda a, b: noise(a, b).reshape(frame),
        on_step=lambda step, sigma, x, x0: report(step, sigma, x.reshape(own), x0.reshape(own)),
    ).reshape(own)
    return end if nodes[-1] > 0 else kept_outside(end, call, getattr(model, "sigmas", sigmas))


def kept_outside(x: Tensor, call: AnswerCall, sigmas: Tensor) -> Tensor:
    """A finished x with the picture that a mask keeps: the sub-steps after the last model call do not know it.

    The host's last answer has it already; what the sub-steps made of that counts where the mask lets it.
    """
    mask = call.extra_args.get("denoise_mask")
    if mask is None or call.denoised is None:
        return x
    thresholds = (call.extra_args.get("model_options") or {}).get("denoise_mask_function")
    if thresholds:
        last = x.new_full((len(x),), call.sigma, dtype=torch.float32)
        mask = thresholds(last, mask, extra_options={"model": guider_of(call.model), "sigmas": sigmas})
    return torch.lerp(call.denoised.to(x), x, mask.to(x))


def gmflow_sampler(choice: Choice) -> comfy.samplers.KSAMPLER:
    """A SAMPLER. Raises ValueError for choices out of range, before anything runs."""
    check_choice("mode", choice.mode, MODES)
    GMFlow(choice.mode, choice.order, choice.substeps or 1, choice.temperature)
    return comfy.samplers.KSAMPLER(sample_gmflow, {"choice": choice})
