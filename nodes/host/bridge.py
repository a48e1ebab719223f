"""A picture up to its noise on one MODEL and down again on another, inside the host's own sampling.

The host loads either model when its way begins, so both are in memory only where there is room for both.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.samplers
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...samplers.bridge import calls_up, down, handed_over, meeting, noise_in, spread, up
from ...samplers.contract import Denoiser, OnStep
from ...samplers.noise_law import NoiseLaw
from ...samplers.streams import Streams
from ...schedulers.recipe import recipe_between
from .boost import without_boost
from .caches import caches_on
from .guiders import guider_for
from .noise_law import noise_law
from .progress import show_text
from .sampler import Reporter, denoiser
from .schedules import shift_of, sigma_at
from .streams import in_models_scale

ODD_SPREAD = 0.15  # by which the spread of the noise in between may differ from 1 before it is remarked on


@dataclass(frozen=True, eq=False)
class Side:
    """A model under its prompt. sigmas: falling to 0 from where the two sides meet."""

    guider: comfy.samplers.CFGGuider
    law: NoiseLaw
    sigmas: tuple[float, ...]

    @property
    def model(self) -> ModelPatcher:
        return self.guider.model_patcher

    @property
    def top(self) -> float:
        return self.sigmas[0]

    @property
    def steps(self) -> int:
        return len(self.sigmas) - 1


@dataclass(frozen=True, eq=False)
class Prompted:
    """What a person connects for one side."""

    model: ModelPatcher
    positive: list
    negative: list
    cfg: float

    @property
    def sampling(self) -> Any:
        return self.model.get_model_object("model_sampling")

    def side(self, law: NoiseLaw, top: float, steps: int) -> Side:
        sigmas = recipe_between(law, top, 0.0, steps, shift_of(self.sampling, law)).sigmas(law, top, 0.0, steps)
        return Side(without_boost(guider_for(self.model, self.positive, self.negative, self.cfg)), law, sigmas)


def sides(first: Prompted, second: Prompted, steps: int, strength: float) -> tuple[Side, Side]:
    """Both, from where `strength` of the first model's time is noise, or from as near there as the second can be.

    Raises ValueError for a strength that is none.
    """
    law, law_to = noise_law(first.sampling), noise_law(second.sampling)
    top = highest(law, sigma_at(first.sampling, strength))
    met = meeting(law, top, law_to, highest(law_to, float(second.sampling.sigma_max)))
    return first.side(law, top, steps), second.side(law_to, met, steps)


def highest(law: NoiseLaw, sigma: float) -> float:
    """A flow model's may be above 1 by rounding."""
    return min(sigma, 1.0) if law.is_flow else sigma


def check_climbs(model: ModelPatcher, name: str) -> None:
    """Raises ValueError for a model that answers some calls with what it knows of earlier ones, of less noise here."""
    if found := caches_on(model):
        verb = "is" if len(found) == 1 else "are"
        raise ValueError(
            f"{' and '.join(found)} {verb} on {name}, on which the picture goes up to its noise: the answers kept from "
            "there are of less noise. Take the model from before it."
        )


# ---------------------------------------------------------------------------------------------------------
# One way


class Progress:
    """All ways in one bar of the host's, with its previews, and stopped by its cancel."""

    def __init__(self, total: int, node_id: str | None):
        self.total, self.node_id, self.done = total, node_id, 0

    def watch(self, side: Side, calls: int, what: str) -> Reporter:
        """Told of every step of a way of so many calls."""
        show = importlib.import_module("latent_preview").prepare_callback(side.model, self.total)
        show_text(self.node_id, what)

        def told(state: dict[str, Any]) -> None:
            comfy.model_management.throw_exception_if_processing_interrupted()
            show(self.done, state["denoised"], state["x"], self.total)
            self.done += 1

        shown = comfy.utils.PROGRESS_BAR_ENABLED
        return Reporter(told, torch.tensor(side.sigmas[: calls + 1], dtype=torch.float64), disable=not shown)


Work = Callable[[Denoiser, Tensor, OnStep], Tensor]  # a denoiser and the clean latent in the model's scale: x


def travel(
    side: Side,
    work: Work,
    latent: Tensor,
    watch: Reporter,
    noise: Tensor | None = None,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """x, and what the host makes of it as the end of a run, both on the CPU. latent: in the host's scale.

    noise, mask: what the mask keeps is at every sigma the latent with this noise, as with any sampler.
    Raises ValueError where the model answers with NaN, or the way leaves the range of numbers.
    """
    found: list[Tensor] = []

    @torch.no_grad()
    def sampler_function(model, x, sigmas, extra_args=None, callback=None, disable=None) -> Tensor:
        x = work(denoiser(model, extra_args or {}), model.latent_image, watch)
        found.append(x.float().cpu())
        return x

    sampler = comfy.samplers.KSAMPLER(sampler_function)
    schedule = torch.tensor(side.sigmas, dtype=torch.float64).float()
    noise = torch.zeros_like(latent) if noise is None else noise
    ended = side.guider.sample(noise, latent, sampler, schedule, denoise_mask=mask, disable_pbar=True, seed=0)
    for complaint in watch.complaints(found[0]):
        raise ValueError(complaint)
    return found[0], ended.float().cpu()


def go_up(side: Side, latent: Tensor, progress: Progress, name: str) -> Tensor:
    """x at the side's highest sigma."""
    watch = progress.watch(side, calls_up(side.steps), f"up on {name}, to sigma {side.top:.4g}")
    x, _ = travel(side, lambda ask, x0, told: up(ask, x0, side.sigmas, side.law, on_step=told), latent, watch)
    return x


def go_down(
    side: Side, x: Tensor, latent: Tensor, progress: Progress, name: str, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The latent that x leads to, in the model's scale and in the host's. latent: of which the mask keeps a part."""
    watch = progress.watch(side, side.steps, f"down on {name}, from sigma {side.top:.4g}")
    noise = noise_in(x, clean(side, latent).cpu(), side.law, side.top)

    def work(ask: Denoiser, x0: Tensor, told: OnStep) -> Tensor:
        return down(ask, x.to(x0), side.sigmas, side.law, on_step=told)

    return travel(side, work, latent, watch, noise, mask)


def clean(side: Side, latent: Tensor) -> Tensor:
    """A latent of the host's scale in the model's own."""
    return in_models_scale(side.model.model, latent, Streams((tuple(latent.shape[1:]),)))


# ---------------------------------------------------------------------------------------------------------
# The bridge


@dataclass(frozen=True, eq=False)
class Crossed:
    """samples: in the host's scale of the second model. said: about the run.

    noise: see `hosts_noise`.
    """

    samples: Tensor
    noise: Tensor
    said: str


def cross(
    first: Side, second: Side, latent: Tensor, latent_to: Tensor, mask: Tensor | None, cycle: bool, node_id: str | None
) -> Crossed:
    """latent, latent_to: the picture as either model has it, in the host's scale. cycle: go back as well, and tell."""
    back = cycle and mask is None
    progress = Progress((calls_up(first.steps) + second.steps) * (2 if back else 1), node_id)
    x = go_up(first, latent, progress, "model_from")
    handed = handed_over(x, first.law, first.top, second.law, second.top).view_as(latent_to)
    _, samples = go_down(second, handed, latent_to, progress, "model_to", mask)
    told = [told_of(first, second, progress.total), remark_on(x / spread(first.law, first.top))]
    if back:
        told.append(gone_back(first, second, latent, samples, progress))
    elif cycle:
        told.append("The way back is not measured under a mask: what it keeps does not go there.")
    return Crossed(samples, hosts_noise(first, x, latent), "\n".join(filter(None, told)))


def hosts_noise(side: Side, x: Tensor, latent: Tensor) -> Tensor:
    """The noise from which the host begins at x: over an empty latent at full strength, over the picture below it."""
    if side.top >= highest(side.law, float(side.model.get_model_object("model_sampling").sigma_max)):
        return x / spread(side.law, side.top)
    return noise_in(x, clean(side, latent).cpu(), side.law, side.top)


def gone_back(first: Side, second: Side, latent: Tensor, samples: Tensor, progress: Progress) -> str:
    """The same two ways backwards, by the same equations: what is lost is the steps' error."""
    x = go_up(second, samples, progress, "model_to")
    handed = handed_over(x, second.law, second.top, first.law, first.top).view_as(latent)
    _, returned = go_down(first, handed, latent, progress, "model_from")
    error = float((returned - latent.cpu()).double().square().mean().sqrt())
    share = error / max(float(latent.double().std()), 1e-12)
    return f"There and back again the picture is off by {error:.3g} (rms of its latent), {share:.1%} of its spread."


def told_of(first: Side, second: Side, calls: int) -> str:
    return (
        f"{calls} model calls: up to sigma {first.top:.4g} at cfg {first.guider.cfg:g}, "
        f"down from sigma {second.top:.4g} at cfg {second.guider.cfg:g}."
    )


def remark_on(reached: Tensor) -> str:
    """One sentence where what was reached, in units of its own spread, is not like noise or a noisy picture."""
    found = float(reached.double().std())
    if abs(found - 1) < ODD_SPREAD:
        return ""
    return (
        f"What is in between has {found:.3g} times the spread of an ordinary noisy picture, and models do not know "
        "such: take more steps, a cfg_from of 1, and a prompt that says what is in the picture."
    )
