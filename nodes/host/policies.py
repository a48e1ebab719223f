"""pi-Flow's policies as the host's SAMPLER and SIGMAS, and what the node says about them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...samplers.gmflow import Prediction
from ...samplers.gmflow.policy import SUBSTEPS, Answer, PiFlow, policy_sigmas, usual_temperature
from ...samplers.noise_law import ROUNDING
from .gmflow import AnswerCall, Watch, guider_of, shift_of_head, solved, time_shift
from .mixtures import head_in, head_of_model, moved, predicts_mixtures
from .progress import Report, complain

FLUX_GUIDANCE = 3.5  # what adapters of FLUX.1 were made at


class PolicyCall(AnswerCall):
    """The PolicyDenoiser of a run."""

    def __call__(self, x: Tensor, sigma: float) -> Answer:
        denoised, answer = self.ask(x, sigma)
        return moved(answer.mixture if isinstance(answer, Prediction) else answer, to=denoised)


@dataclass(frozen=True)
class PolicyChoice:
    """What the person chose of the pi-Flow Sampler. temperature None: the authors'. report: of its node."""

    substeps: int = SUBSTEPS
    temperature: float | None = None
    noise: float = 0.0
    report: Report | None = None

    def solver(self, model, calls: int) -> PiFlow:
        return PiFlow(self.substeps, self.temperature, self.noise, time_shift(model))


@torch.no_grad()
def sample_policy(
    model, x: Tensor, sigmas: Tensor, extra_args=None, callback=None, disable=None, *, choice: PolicyChoice
) -> Tensor:
    """The host's sampler function of the pi-Flow Sampler."""
    for remark in guidance_remarks(guider_of(model)) if len(sigmas) > 1 else []:
        complain(choice.report, "pi-Flow Sampler", remark)
    return solved(model, x, sigmas, extra_args, Watch(callback, disable), PolicyCall, choice)


def policy_sampler(choice: PolicyChoice) -> comfy.samplers.KSAMPLER:
    """A SAMPLER. Raises ValueError for choices out of range, before anything runs."""
    PiFlow(choice.substeps, choice.temperature, choice.noise)
    return comfy.samplers.KSAMPLER(sample_policy, {"choice": choice})


# ---------------------------------------------------------------------------------------------------------
# What the pi-Flow Sampler says


def schedule_for(model: ModelPatcher, steps: int, last: float, denoise: float) -> list[float]:
    """Sigmas for a MODEL, equal in the time of its policy. Raises ValueError for a model without one."""
    head = head_of_model(model)
    if not head and not predicts_mixtures(model):
        raise ValueError(
            "The pi-Flow Sampler needs a model whose calls decide policies, and this one predicts a single picture. "
            "Put a pi-Flow adapter on it with Load GMFlow, or use another sampler."
        )
    own = float(getattr(model.get_model_object("model_sampling"), "shift", 1.0))
    return policy_sigmas(steps, shift_of_head(head) if head else own, last, denoise)


def policy_remarks(model: ModelPatcher, steps: int, last: float, denoise: float, choice: PolicyChoice) -> str:
    """What runs, and what an adapter was not made for, in lines."""
    head, temperature = head_of_model(model), choice.temperature
    heat = usual_temperature(steps) if temperature is None else temperature
    law = head and head.config.law
    if law:
        told = [f"{steps} calls. DX policy: {law.mode} of {head.config.count if head else 0} points."]
        longest = denoise / (steps - 1 + last)
        if law.mode == "grid" and longest > law.segment * (1 + ROUNDING):
            least = math.ceil(denoise / law.segment + 1 - last - ROUNDING)
            told.append(
                f"The policy reaches over {law.segment:.3g} of the time, a step is {longest:.3g} long: what is "
                f"beyond stands still. Take {least} steps or more."
            )
        return "\n".join(told)
    return f"{steps} calls. Mixture policy, temperature {heat:g} but for the last call."


def guidance_remarks(guider) -> list[str]:
    """On FLUX.1 an adapter knows one guidance value; with another the authors saw noise."""
    config = getattr(guider.inner_model, "model_config", None)
    flux = getattr(config, "unet_config", {}).get("image_model") == "flux"
    if not flux or not head_in(guider.inner_model.diffusion_model):
        return []
    values = {c["guidance"] for c in guider.conds.get("positive") or [] if c.get("guidance") is not None}
    return [
        f"Flux Guidance is {value:g}; pi-Flow adapters of FLUX.1 were made at {FLUX_GUIDANCE:g} and are noisy "
        f"elsewhere. Set it to {FLUX_GUIDANCE:g}."
        for value in sorted(values - {FLUX_GUIDANCE})
    ]
