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
from ...samplers.sigmas import checked_sigmas
from .caches import forgetting, remembering_at_jumps
from .noise import ItemNoise, derived_seed
from .noise_law import noise_law
from .progress import Report, complain


def denoiser(model, extra_args: dict[str, Any]) -> Denoiser:
    """The host's model call, guidance and masks and all, as a function of x, of any batch, and a number."""
    return lambda x, sigma: model(x, x.new_full((len(x),), sigma, dtype=torch.float32), **extra_args)


def model_sampling_of(model):
    """The model sampling behind what the host hands to a sampler function."""
    return model.inner_model.inner_model.model_sampling


class Reporter:
    """The host's preview and progress, a bar in the console, and a watch on the numbers: an OnStep."""

    def __init__(self, callback, sigmas: Tensor, disable: bool | None):
        self.callback, self.bar = callback, tqdm(total=solver_steps(sigmas), disable=disable)
        self.sigmas: list[float] = []
        self.sound: list[Tensor] = []  # of each step, which items are; looked at in the end, so that no step waits

    def __call__(self, step: int, sigma: float, x: Tensor, denoised: Tensor) -> None:
        self.bar.update(step + 1 - self.bar.n)
        self.sigmas.append(sigma)
        self.sound.append(denoised.flatten(1).isfinite().all(1))
        if self.callback:
            self.callback({"i": step, "denoised": denoised, "x": x, "sigma": sigma, "sigma_hat": sigma})

    def complain(self, end: Tensor, report, who: str) -> None:
        """Says what there is to complain of, on the node of who samples."""
        for complaint in self.complaints(end):
            complain(report, who, complaint)

    def complaints(self, end: Tensor) -> list[str]:
        """One sentence where the picture holds NaN or infinity: since when, and in which items of the batch."""
        ended = [item for item, sound in enumerate(end.flatten(1).isfinite().all(1).tolist()) if not sound]
        if not ended:
            return []
        which = f"item{'s' if len(ended) > 1 else ''} {', '.join(map(str, ended))} of the batch"
        for step, (sigma, sound) in enumerate(zip(self.sigmas, self.sound, strict=True)):
            if not bool(sound.all()):
                return [
                    f"The model answered with NaN or infinity at step {step + 1}, sigma {sigma:.4g}; {which} cannot be "
                    "used. Start ComfyUI with --force-fp32, lower the cfg, or use another file of the model."
                ]
        return [f"The sampler left the range of numbers; {which} cannot be used. Take more steps or a lower cfg."]


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
                step = max(min(state["i"], len(sigmas) - 2), 0)  # dpm_adaptive makes as many steps as it likes
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
    model,
    x: Tensor,
    sigmas: Tensor,
    extra_args=None,
    callback=None,
    disable=None,
    *,
    sampler=None,
    s_noise=1.0,
    report=None,
) -> Tensor:
    """The host's sampler function of Restart; `sampler` solves the falling runs, Heun where there is none."""
    extra_args = dict(extra_args or {})
    law = noise_law(model_sampling_of(model))
    nodes = torch.tensor(checked_sigmas(sigmas, law), dtype=torch.float64)
    if not len(nodes):
        return x
    first = round(float(nodes[0]) * 2**20)  # parts of a cut schedule do not draw the same noise
    noise = forgetting(ItemNoise(extra_args.get("seed") or 0, getattr(model, "noise", x), first), extra_args)
    sampler = innermost(sampler)
    inner: Solver = HostSolver(sampler, model, extra_args) if sampler else heun
    watch = Reporter(callback, nodes, disable)
    end = restart(
        denoiser(model, extra_args),
        x,
        nodes if sampler is None else nodes.float(),  # the host's own; uni_pc knows no other
        noise=noise,
        on_step=watch,
        inner=inner,
        law=law,
        s_noise=s_noise,
    )
    remembered = remembering_at_jumps(model.inner_model.model_patcher) if (nodes.diff() > 0).any() else []
    for complaint in [*remembered, *watch.complaints(end)]:
        complain(report, "Restart Sampler", complaint)
    return end


def innermost(sampler: comfy.samplers.KSAMPLER | None) -> comfy.samplers.KSAMPLER | None:
    """What solves the falling runs where a Restart Sampler is inside another: a falling run has no jump for it.

    Raises ValueError where they go round in a circle.
    """
    seen: list[comfy.samplers.KSAMPLER] = []
    while sampler is not None and sampler.sampler_function is sample_restart:
        if any(sampler is one for one in seen):
            raise ValueError(
                "This Restart Sampler is its own inner sampler. Connect an ordinary sampler to it, or none for Heun."
            )
        seen.append(sampler)
        sampler = sampler.extra_options.get("sampler")
    return sampler


def restart_sampler(
    sampler: comfy.samplers.KSAMPLER | None, s_noise: float, report: Report | None = None
) -> comfy.samplers.KSAMPLER:
    """A SAMPLER that runs expanded schedules. Raises TypeError for a SAMPLER that cannot be started mid-way."""
    if sampler is not None and not hasattr(sampler, "sampler_function"):
        raise TypeError(
            f"The sampler {type(sampler).__name__} cannot be restarted: it is not built on ComfyUI's KSAMPLER. "
            "Connect another, or none for Heun."
        )
    options = {"sampler": sampler, "s_noise": s_noise, "report": report}
    return StepCountingSampler(sample_restart, options, sampler.inpaint_options if sampler else {})
