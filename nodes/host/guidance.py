"""Probabilistic guidance on a MODEL: a function after the host's guidance, which keeps what others did to it."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Any

from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...samplers.guidance import ProbabilisticGuidance
from ...samplers.spread import Spread, prior
from .identity import differences, identify
from .noise_law import noise_law

REMEDY = "Measure the spread on this model."
log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class AfterGuidance:
    """The host's post-cfg function. It holds no state, so runs do not see each other, and it asks the model nothing.

    Outside of the percents, which are of the model's own time, the host's guidance is left as it is.
    """

    guidance: ProbabilisticGuidance
    spread: Spread | None
    start_percent: float
    end_percent: float

    def __call__(self, args: dict[str, Any]) -> Tensor:
        """The host's `denoised` with plain guidance exchanged for ours: what others added to it stays."""
        denoised, cfg, sigma = args["denoised"], float(args["cond_scale"]), float(args["sigma"].max())
        if cfg == 1 or args.get("uncond") is None:
            if is_first(args, sigma):
                log.warning(
                    "Probabilistic guidance does nothing at cfg 1: it needs a negative prompt and a cfg above 1. "
                    "Models with distilled guidance (FLUX dev) want their own guidance low and a true cfg instead."
                )
            return denoised
        sampling = args["model"].model_sampling
        if not sampling.percent_to_sigma(self.start_percent) >= sigma >= sampling.percent_to_sigma(self.end_percent):
            return denoised
        conditional, unconditional = args["cond_denoised"].float(), args["uncond_denoised"].float()
        ours = self.guidance(conditional, unconditional, cfg, self.at(sampling, sigma, tuple(denoised.shape)))
        plain = unconditional + cfg * (conditional - unconditional)
        return self.checked(denoised.float() + (ours - plain)).to(denoised.dtype)

    def at(self, sampling, sigma: float, shape: tuple[int, ...]) -> float:
        """s at the host's sigma."""
        law = noise_law(sampling)
        ratio = law.ratio(sigma) if law.alpha(sigma) > 0 else math.inf
        return prior(ratio, shape) if self.spread is None else self.spread.at(ratio)

    def checked(self, result: Tensor) -> Tensor:
        """The result; items with NaN, which touch no other, are named."""
        fine = result.flatten(1).isfinite().all(1).tolist()
        if not all(fine):
            wrong = [number for number, is_fine in enumerate(fine) if not is_fine]
            log.warning("Probabilistic guidance: the model answered with NaN in item %s of the batch.", wrong)
        return result


def is_first(args: dict[str, Any], sigma: float) -> bool:
    """Whether this is the first step of a run."""
    sigmas = args["model_options"].get("transformer_options", {}).get("sample_sigmas")
    return sigmas is not None and sigma >= float(sigmas[0]) * (1 - 1e-5)


def guided_model(
    model: ModelPatcher,
    guidance: ProbabilisticGuidance,
    start_percent: float,
    end_percent: float,
    spread: Spread | None,
) -> tuple[ModelPatcher, list[str]]:
    """A clone with the guidance, and what to know of its spread. Raises ValueError for one of another latent."""
    remarks = ["No spread is connected: that of picture-like latents is taken, which is up to a third too wide."]
    if spread is not None:
        remarks = [f"The spread was measured {text}." for text in differences(spread.facts, identify(model), REMEDY)]
    guided = model.clone()
    guided.set_model_sampler_post_cfg_function(AfterGuidance(guidance, spread, start_percent, end_percent))
    return guided, remarks
