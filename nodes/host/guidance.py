"""Probabilistic guidance on a MODEL: it bounds what all guidance together adds, whatever nodes it shares it with."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...samplers.guidance import ProbabilisticGuidance
from ...samplers.spread import Spread, prior
from .identity import differences, identify
from .noise_law import noise_law
from .progress import Report, complain

KEY = "fewstep_guidance"
PRE_CFG, POST_CFG = "sampler_pre_cfg_function", "sampler_post_cfg_function"
REMEDY = "Measure the spread on this model."
WHO = "Probabilistic guidance"
NOTHING_TO_DO = (
    "It does nothing at cfg 1: it needs a negative prompt and a cfg above 1. Models with distilled guidance (FLUX dev) "
    "want their own guidance low and a true cfg instead."
)


@dataclass(frozen=True, eq=False)
class AfterGuidance:
    """The host's post-cfg function. It asks the model nothing, and what it keeps lives as long as one call.

    Other nodes hang on the prediction before it is guided, in the place of the host's guidance, or on the result, as
    this one does. What is bounded is all that stands between the model's own prediction under the prompt and the
    result so far, whoever added it. Functions of the result that come after are left alone, unless they guide by cfg.

    Outside of the percents, which are of the model's own time, the host's guidance is left as it is.
    Raises ValueError for percents outside of [0, 1].
    """

    guidance: ProbabilisticGuidance
    spread: Spread | None
    start_percent: float
    end_percent: float
    seen: ModelsAnswer | None = None
    report: Report | None = None

    def __post_init__(self) -> None:
        for name, value in (("start_percent", self.start_percent), ("end_percent", self.end_percent)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} of Probabilistic Guidance is {value:g}; it must be between 0 and 1.")

    def __call__(self, args: dict[str, Any]) -> Tensor:
        """D_c plus what was added to it, bounded. Raises ValueError for a sigma that is no number."""
        denoised, cfg, sigma = args["denoised"], float(args["cond_scale"]), float(args["sigma"].max())
        sampling = args["model"].model_sampling
        inside = within(sampling, sigma, self.start_percent, self.end_percent)
        if broken := broken_answer(args):
            complain(self.report, WHO, broken)
        if cfg == 1 or args.get("uncond") is None:
            if is_first(args, sigma):
                complain(self.report, WHO, NOTHING_TO_DO)
            return denoised
        if not inside:
            return denoised
        conditional = self.seen.under(args["cond"]) if self.seen else None
        conditional = (args["cond_denoised"] if conditional is None else conditional).float()
        as_if_plain = conditional - (denoised.float() - conditional) / (cfg - 1)  # D_u that would have led here
        bound = self.at(sampling, sigma, tuple(denoised.shape))
        return self.guidance(conditional, as_if_plain, cfg, bound).to(denoised.dtype)

    def at(self, sampling, sigma: float, shape: tuple[int, ...]) -> float:
        """s at the host's sigma."""
        law = noise_law(sampling)
        ratio = law.ratio(sigma) if law.alpha(sigma) > 0 else math.inf
        return prior(ratio, shape) if self.spread is None else self.spread.at(ratio)


def within(sampling, sigma: float, start: float, end: float) -> bool:
    """Whether the host's sigma lies in a part of the model's own time; 0 is the very start, however a sigma is rounded.

    Raises ValueError for a sigma that is no number.
    """
    if math.isnan(sigma):
        raise ValueError("A sigma of this run is no number (NaN). Look at the SIGMAS that go into the sampler.")
    return sigma >= sampling.percent_to_sigma(end) and (start <= 0 or sigma <= sampling.percent_to_sigma(start))


class ModelsAnswer:
    """The host's pre-cfg function that stands first: keeps what the model answers, before others change it."""

    prompts: Sequence[Any] = ()
    answers: Sequence[Tensor] = ()

    def __call__(self, args: dict[str, Any]) -> list[Tensor]:
        self.prompts, self.answers = args["conds"], args["conds_out"]
        return args["conds_out"]

    def under(self, prompt: Any) -> Tensor | None:
        """The prediction under one of the guider's prompts; None where it was not asked for."""
        pairs = zip(self.prompts, self.answers, strict=False)
        return next((answer for known, answer in pairs if known is prompt), None)


def around_prediction(
    executor, x: Tensor, timestep: Tensor, model_options: dict[str, Any], seed: int | None = None
) -> Tensor:
    """The host's wrapper of one guided prediction: tells every AfterGuidance what the model itself answers."""
    seen, functions = ModelsAnswer(), []
    ours: AfterGuidance | None = None
    for function in model_options.get(POST_CFG, []):
        if isinstance(function, AfterGuidance):
            ours = function = replace(function, seen=seen)
        functions.append(Following(function, ours) if ours and function is not ours else function)
    options = model_options | {PRE_CFG: [seen, *model_options.get(PRE_CFG, [])], POST_CFG: functions}
    return executor(x, timestep, options, seed)


@dataclass(frozen=True, eq=False)
class Following:
    """Another's post-cfg function after ours. One that reads the cfg guides by it (Mahiro, CFG-Zero*): bound it too."""

    function: Callable[[dict[str, Any]], Tensor]
    bound: AfterGuidance

    def __call__(self, args: dict[str, Any]) -> Tensor:
        watched = WatchedArguments(args)
        result = self.function(watched)
        return self.bound(args | {"denoised": result}) if watched.cfg_was_read else result


class WatchedArguments(dict):
    """The arguments of a post-cfg function, which note whether the cfg was read; who reads all, reads it."""

    cfg_was_read = False

    def __getitem__(self, name: str) -> Any:
        self.cfg_was_read |= name == "cond_scale"
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        return self[name] if name in self else default

    def keys(self):
        self.cfg_was_read = True
        return super().keys()

    def __iter__(self):
        return iter(self.keys())

    def items(self):
        return [(name, self[name]) for name in self]

    def values(self):
        return [self[name] for name in self]

    def copy(self) -> dict[str, Any]:
        return dict(self.items())


def broken_answer(args: dict[str, Any]) -> str:
    """The items of which the model answers NaN or infinity, at the call where it begins, in words."""
    sane = finite_items(args["input"])
    wrong = {
        number
        for name in ("cond_denoised", "uncond_denoised", "denoised")
        if args.get(name) is not None
        for number, fine in enumerate(finite_items(args[name]))
        if sane[number] and not fine
    }
    if not wrong:
        return ""
    where = f"sigma {float(args['sigma'].max()):.4g}{call_of(args)}, in item {sorted(wrong)} of the batch"
    return f"The model answered with NaN or infinite numbers at {where}."


def finite_items(x: Tensor) -> list[bool]:
    """Of every item whether all its numbers are finite."""
    return x.flatten(1).isfinite().all(1).tolist()


def schedule_of(args: dict[str, Any]) -> list[float]:
    """The sigmas of this run; none where the host did not tell."""
    sigmas = args["model_options"].get("transformer_options", {}).get("sample_sigmas")
    return [] if sigmas is None else sigmas.tolist()


def call_of(args: dict[str, Any]) -> str:
    """Which call of the run this is, for a message."""
    sigma, sigmas = float(args["sigma"].max()), schedule_of(args)
    near = [number for number, other in enumerate(sigmas, 1) if math.isclose(other, sigma, rel_tol=1e-5)]
    return f" (step {near[0]} of {len(sigmas) - 1})" if near else ""


def is_first(args: dict[str, Any], sigma: float) -> bool:
    """Whether this is the first step of a run."""
    sigmas = schedule_of(args)
    return bool(sigmas) and sigma >= sigmas[0] * (1 - 1e-5)


def guided_model(
    model: ModelPatcher,
    guidance: ProbabilisticGuidance,
    start_percent: float,
    end_percent: float,
    spread: Spread | None,
    report: Report | None = None,
) -> tuple[ModelPatcher, list[str]]:
    """A clone with the guidance, and what to know of its spread. Raises ValueError for one of another latent."""
    remarks = ["No spread is connected: that of picture-like latents is taken, which is up to a third too wide."]
    if spread is not None:
        remarks = [f"The spread was measured {text}." for text in differences(spread.facts, identify(model), REMEDY)]
    guided = model.clone()
    after = AfterGuidance(guidance, spread, start_percent, end_percent, report=report)
    guided.set_model_sampler_post_cfg_function(after)
    if not guided.get_wrappers(WrappersMP.PREDICT_NOISE, KEY):
        guided.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, KEY, around_prediction)
    return guided, remarks
