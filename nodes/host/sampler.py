"""Solvers of samplers/ as the host's SAMPLER, and the host's samplers as solvers."""

from __future__ import annotations

from typing import Any

import comfy.samplers
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ...samplers.contract import Denoiser, Noise, OnStep, Solver
from ...samplers.heun import heun
from ...samplers.restart import restart, solver_steps
from .noise import ItemNoise, derived_seed
from .noise_law import noise_law


def denoiser(model, extra_args: dict[str, Any]) -> Denoiser:
    """The host's model call, guidance and masks and all, as a function of x, of any batch, and a number."""
    return lambda x, sigma: model(x, x.new_full((len(x),), sigma, dtype=torch.float32), **extra_args)


def model_sampling_of(model):
    """The model sampling behind what the host hands to a sampler function."""
    return model.inner_model.inner_model.model_sampling


def reporter(callback, sigmas: Tensor, disable: bool | None) -> OnStep:
    """The host's preview and progress, and a bar in the console."""
    bar = tqdm(total=solver_steps(sigmas), disable=disable)

    def on_step(step: int, sigma: float, x: Tensor, denoised: Tensor) -> None:
        bar.update(step + 1 - bar.n)
        if callback:
            callback({"i": step, "denoised": denoised, "x": x, "sigma": sigma, "sigma_hat": sigma})

    return on_step


class HostSolver:
    """One of the host's samplers as a Solver, for the runs of one picture.

    It gets its model, not `denoise`, because the host's samplers look into it. The first run has the host's
    seed, so a schedule without jumps is sampled as without us; each later one a seed of its own, because an SDE
    sampler would otherwise draw the same noise again.
    """

    def __init__(self, sampler: comfy.samplers.KSAMPLER, model, extra_args: dict[str, Any]):
        self.sampler, self.model, self.extra_args, self.runs = sampler, model, extra_args, 0

    def __call__(
        self,
        denoise: Denoiser,
        x: Tensor,
        sigmas: Tensor,
        *,
        noise: Noise | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        seed = self.extra_args.get("seed")
        if self.runs and seed is not None:
            seed = derived_seed(seed, self.runs)
        self.runs += 1

        def callback(state: dict[str, Any]) -> None:
            if on_step:
                step = min(state["i"], len(sigmas) - 2)  # dpm_adaptive makes as many steps as it likes
                on_step(step, float(sigmas[step]), state["x"], state["denoised"])

        return self.sampler.sampler_function(
            self.model,
            x,
            sigmas.to(x.device),
            extra_args=self.extra_args | {"seed": seed},
            callback=callback,
            disable=True,
            **self.sampler.extra_options,
        )


class StepCountingSampler(comfy.samplers.KSAMPLER):
    """KSAMPLER whose progress has as many steps as the solver makes: a jump of the schedule is none."""

    def sample(self, model_wrap, sigmas, extra_args, callback, *args, **kwargs):
        total = solver_steps(sigmas)
        counted = callback and (lambda step, denoised, x, _: callback(step, denoised, x, total))
        return super().sample(model_wrap, sigmas, extra_args, counted, *args, **kwargs)


@torch.no_grad()
def sample_restart(
    model, x: Tensor, sigmas: Tensor, extra_args=None, callback=None, disable=None, *, sampler=None, s_noise=1.0
) -> Tensor:
    """The host's sampler function of Restart; `sampler` solves the falling runs, Heun where there is none."""
    extra_args = dict(extra_args or {})
    nodes = sigmas.detach().to("cpu", torch.float64)
    first = round(float(nodes[0]) * 2**20)  # parts of a cut schedule do not draw the same noise
    noise = ItemNoise(extra_args.get("seed") or 0, getattr(model, "noise", x), first)
    inner: Solver = HostSolver(sampler, model, extra_args) if sampler else heun
    return restart(
        denoiser(model, extra_args),
        x,
        nodes if sampler is None else sigmas.detach().cpu(),
        noise=noise,
        on_step=reporter(callback, nodes, disable),
        inner=inner,
        law=noise_law(model_sampling_of(model)),
        s_noise=s_noise,
    )


def restart_sampler(sampler: comfy.samplers.KSAMPLER | None, s_noise: float) -> comfy.samplers.KSAMPLER:
    """A SAMPLER that runs expanded schedules. Raises TypeError for a SAMPLER that cannot be started mid-way."""
    if sampler is not None and not hasattr(sampler, "sampler_function"):
        raise TypeError(
            f"The sampler {type(sampler).__name__} cannot be restarted: it is not built on ComfyUI's KSAMPLER. "
            "Connect another, or none for Heun."
        )
    options = {"sampler": sampler, "s_noise": s_noise}
    return StepCountingSampler(sample_restart, options, sampler.inpaint_options if sampler else {})
