"""DualFast around any SAMPLER of the host that is built on KSAMPLER."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import comfy.samplers
import torch
from torch import Tensor

from ...samplers.dual_fast import DualFast, check_strength, strength_of
from ...samplers.sigmas import checked_sigmas, without_repeats
from .noise_law import noise_law
from .progress import Report
from .sampler import model_sampling_of, sample_restart

# These look back on their own, so that the mixture goes too far; and these draw noise, which nothing earlier knows.
LOOK_BACK = (
    "deis deis_method deis_clock dpm_solver_v3 dpmpp_2m gradient_estimation ipndm ipndm_v lms res_multistep unipc "
    "unipc_bh2"
).split()
DRAW = ("ancestral", "sde", "lcm", "ddpm", "seeds", "er_sde", "sa_solver")


class Interposed:
    """The host's model as a sampler function sees it, with one more between them: a run's own."""

    def __init__(self, model: Any, strength: Callable[[float], float], reference: str):
        self.model = model
        self.asked: tuple[Tensor, dict[str, Any]] | None = None
        self.mixed = DualFast(self.ask, strength, reference)

    def __call__(self, x: Tensor, sigma: Tensor, **extra_args) -> Tensor:
        self.asked = sigma, extra_args
        return self.mixed(x, float(sigma.max()))

    def ask(self, x: Tensor, sigma: float) -> Tensor:
        assert self.asked is not None, "a denoiser is asked from within a call"
        own, extra_args = self.asked
        return self.model(x, own, **extra_args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)


@torch.no_grad()
def sample_dual_fast(
    model,
    x: Tensor,
    sigmas: Tensor,
    extra_args=None,
    callback=None,
    disable=None,
    *,
    sampler: comfy.samplers.KSAMPLER,
    strength: float,
    ramp: str,
    reference: str,
) -> Tensor:
    """The host's sampler function. Raises ValueError for sigmas that cannot be run."""
    nodes = checked_sigmas(sigmas, noise_law(model_sampling_of(model)))
    if sampler.sampler_function is not sample_restart:
        nodes = falling(nodes)
    if len(nodes) < 2:
        return x
    interposed = Interposed(model, strength_of(strength, ramp, falling_part(nodes)), reference)
    given = torch.tensor(
        nodes, dtype=sigmas.dtype if sigmas.is_floating_point() else torch.float32, device=sigmas.device
    )
    return sampler.sampler_function(
        interposed, x, given, extra_args=extra_args, callback=callback, disable=disable, **sampler.extra_options
    )


def falling(nodes: Sequence[float]) -> list[float]:
    """Without steps that go nowhere. Raises ValueError where the sigmas rise."""
    kept = without_repeats(nodes)
    if any(later > sigma for sigma, later in pairwise(kept)):
        raise ValueError(
            "DualFast needs sigmas that fall. Connect an ordinary scheduler, or put a Restart Sampler into DualFast."
        )
    return kept


def falling_part(nodes: Sequence[float]) -> list[float]:
    """The sigmas of a schedule in the order of their noise, once each: what a jump repeats is as far as before it."""
    return sorted(set(nodes), reverse=True)


def dual_fast_sampler(
    sampler: comfy.samplers.KSAMPLER,
    strength: float,
    ramp: str,
    reference: str = "previous",
    report: Report | None = None,
) -> comfy.samplers.KSAMPLER:
    """A SAMPLER of the same kind. Raises ValueError, and TypeError for a SAMPLER that is not built on KSAMPLER."""
    check_strength(strength, ramp, reference)
    if not hasattr(sampler, "sampler_function"):
        raise TypeError(
            f"The sampler {type(sampler).__name__} cannot be run by DualFast: it is not built on ComfyUI's KSAMPLER. "
            "Connect another."
        )
    if report and (remark := remark_on(sampler, strength)):
        report.say(remark)
    mixed = copy.copy(sampler)
    mixed.sampler_function = sample_dual_fast
    mixed.extra_options = {"sampler": sampler, "strength": strength, "ramp": ramp, "reference": reference}
    return mixed


def remark_on(sampler: comfy.samplers.KSAMPLER, strength: float) -> str:
    """One sentence about a sampler that has nothing to gain."""
    name = getattr(sampler.sampler_function, "__name__", "").removeprefix("sample_")
    if strength == 0:
        return ""
    if name in LOOK_BACK:
        return f"{name} looks back on earlier answers itself, and is the worse for DualFast. Use euler."
    if any(word in name for word in DRAW):
        return f"{name} draws noise at every step, and an earlier estimate is of other noise. Use euler."
    return ""
