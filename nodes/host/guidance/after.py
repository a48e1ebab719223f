"""The bound, behind the host's guidance. Nothing waits for the device while a sampler runs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ....samplers.guidance import ProbabilisticGuidance, acting_cfg
from ....samplers.rivals import BEGINNING, Rival
from ....samplers.spread import Spread, prior
from ..identity import differences, identify
from ..percents import check_numbers, within
from ..progress import Report
from .others import POST_CFG, PRE_CFG, Following, ModelsAnswer
from .told import Places, Run, places_of

KEY = "fewstep_guidance"
REMEDY = "Measure the spread on this model."
NO_SPREAD = "No spread is connected: that of picture-like latents is taken, which is up to a third too wide."
EARLY = 0.15  # of the model's time: where it is decided what the picture shows


@dataclass(frozen=True, eq=False)
class AfterGuidance:
    """The host's post-cfg function. It asks the model nothing, and what it keeps lives as long as one run.

    Other nodes hang on the prediction before it is guided, in the place of the host's guidance, or on the result, as
    this one does. What is bounded is all that stands between the model's own prediction under the prompt and the
    result so far, whoever added it. Functions of the result that come after are left alone, unless they guide by cfg.

    Outside of the percents, which are of the model's own time, the host's guidance is left as it is.
    Raises ValueError for percents outside of [0, 1].
    """

    guidance: ProbabilisticGuidance | Rival
    spread: Spread | None
    start_percent: float
    end_percent: float
    seen: ModelsAnswer | None = None
    report: Report | None = None
    run: Run | None = None

    def __post_init__(self) -> None:
        for name, value in (("start_percent", self.start_percent), ("end_percent", self.end_percent)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} of Probabilistic Guidance is {value:g}; it must be between 0 and 1.")

    def __call__(self, args: dict[str, Any]) -> Tensor:
        """D_c plus what was added to it, bounded."""
        if self.run:
            self.run.hear(args)
        return self.bound(args)

    def bound(self, args: dict[str, Any]) -> Tensor:
        """Also what another node made of our result, by guiding once more."""
        denoised, cfg = args["denoised"], float(args["cond_scale"])
        if cfg == 1 or args.get("uncond") is None:
            return denoised
        sigma = args["sigma"].reshape(-1, *[1] * (denoised.ndim - 1)).float()
        conditional = self.seen.under(args["cond"]) if self.seen else None
        conditional = (args["cond_denoised"] if conditional is None else conditional).float()
        as_if_plain = conditional - (denoised.float() - conditional) / (cfg - 1)  # D_u that would have led here
        to_sigma, law = self.places(args["model"].model_sampling)
        if isinstance(self.guidance, Rival):
            beginning = within(to_sigma, sigma, 0, BEGINNING)
            guided = self.guidance(args["input"].float(), conditional, as_if_plain, cfg, beginning)
        else:
            reach = self.reach(law.ratio(sigma), denoised.shape)
            guided = self.guidance(conditional, as_if_plain, cfg, reach, within(to_sigma, sigma, 0, EARLY))
        inside = within(to_sigma, sigma, self.start_percent, self.end_percent)
        guided = torch.where(inside, guided.to(denoised.dtype), denoised)
        if self.run:
            self.run.bounded(cfg, acting_cfg(guided, conditional, as_if_plain))
        return guided

    def places(self, sampling) -> Places:
        return self.run.places_of(sampling) if self.run else places_of(sampling)

    def reach(self, ratio: Tensor, shape: torch.Size) -> Tensor:
        """s at noise-to-signal ratios, (B, 1, ...), or of bands, (bands, B, 1, ...)."""
        return prior(ratio, tuple(shape)) if self.spread is None else self.spread.reach(ratio)


def around_run(executor, guider, sigmas: Tensor, extra_args: dict[str, Any], *given, **named):
    """The host's wrapper of one run of a sampler: tells every AfterGuidance of it, and lets it speak at the end.

    Raises ValueError for a sigma that is no number.
    """
    schedule = sigmas.tolist()
    check_numbers(schedule)
    options = extra_args["model_options"]
    functions = [
        replace(function, run=Run(schedule, function.report)) if isinstance(function, AfterGuidance) else function
        for function in options.get(POST_CFG, [])
    ]
    result = executor(guider, sigmas, extra_args | {"model_options": options | {POST_CFG: functions}}, *given, **named)
    for function in functions:
        if isinstance(function, AfterGuidance) and function.run:
            function.run.tell()
    return result


def around_prediction(
    executor, x: Tensor, timestep: Tensor, model_options: dict[str, Any], seed: int | None = None
) -> Tensor:
    """The host's wrapper of one guided prediction: tells every AfterGuidance what the model itself answers."""
    seen, functions = ModelsAnswer(), []
    ours: AfterGuidance | None = None
    for function in model_options.get(POST_CFG, []):
        if isinstance(function, AfterGuidance):
            ours = function = replace(function, seen=seen)
        functions.append(Following(function, ours.bound) if ours and function is not ours else function)
    options = model_options | {PRE_CFG: [seen, *model_options.get(PRE_CFG, [])], POST_CFG: functions}
    return executor(x, timestep, options, seed)


def guided_model(
    model: ModelPatcher,
    guidance: ProbabilisticGuidance | Rival,
    start_percent: float,
    end_percent: float,
    spread: Spread | None,
    report: Report | None = None,
) -> tuple[ModelPatcher, list[str]]:
    """A clone with the guidance, and what to know of its spread. Raises ValueError for one of another latent."""
    remarks = [] if isinstance(guidance, Rival) else [NO_SPREAD]
    if spread is not None:
        remarks = [f"The spread was measured {text}." for text in differences(spread.facts, identify(model), REMEDY)]
    guided = model.clone()
    after = AfterGuidance(guidance, spread, start_percent, end_percent, report=report)
    guided.set_model_sampler_post_cfg_function(after)
    for kind, wrapper in ((WrappersMP.SAMPLER_SAMPLE, around_run), (WrappersMP.PREDICT_NOISE, around_prediction)):
        if not guided.get_wrappers(kind, KEY):
            guided.add_wrapper_with_key(kind, KEY, wrapper)
    return guided, remarks
