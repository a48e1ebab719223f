"""GM-ODE and GM-SDE, arXiv 2504.05304 section 3.3 and algorithm 2: solvers that take a mixture for every model call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from ..choices import check_choice
from ..contract import Noise, OnStep
from ..noise_law import FLOW
from ..sigmas import checked_sigmas
from .doubts import Doubts
from .guidance import Earlier, Prediction, second_order
from .mixture import Mixture, choose, doubt, mean, sample, tempered
from .transition import Posterior, bridge, wide_std

MOST_SUBSTEPS = 100_000  # between two calls: more is a slip, and takes hours
MODES = ("ode", "sde", "mean_narrow", "mean_wide")


class MixtureDenoiser(Protocol):
    """One model call: x (B, C, *S) at sigma in (0, 1] -> the mixture of x0, guided or not.

    A model of the velocity u goes through `x0_from_u`; guidance is `guided(conditional, unconditional, strength)`, and
    a mixture without guidance is `Prediction(mixture)`. At which sigmas there is guidance is the caller's choice.
    """

    def __call__(self, x: Tensor, sigma: float) -> Prediction: ...


class Draw(Protocol):
    """A sample of x0 (B, C, *S) from its mixture; each call of `noise` gives unit Gaussian noise of that shape."""

    def __call__(self, mixture: Mixture, noise: Callable[[], Tensor]) -> Tensor: ...


def independent(mixture: Mixture, noise: Callable[[], Tensor]) -> Tensor:
    """The Draw of independent pixels: one noise chooses the components, the next is that of the chosen ones."""
    index = choose(mixture, noise())
    return sample(mixture, index, noise())


class Way(Protocol):
    """E[x0] along the way down from a call, (B, C, *S): `mean` at the call itself, `mean_at` at lower noise."""

    mean: Tensor

    def mean_at(self, x: Tensor, sigma: float) -> Tensor: ...


@dataclass(frozen=True)
class GMFlow:
    """A solver for flow models that predict mixtures: N calls for N steps, with any falling sigmas in [0, 1].

    mode: "ode" follows the probability flow in `substeps` Euler steps of the analytic posterior for every call;
        "sde" draws x0 and re-noises it, which for an exact model has the exact law; "mean_narrow" and "mean_wide"
        re-noise the mean instead, with the small and the large variance of DDPM.
    order: 1, or 2 to extrapolate from the step before.
    substeps: the authors take 128 / N, and 8 where N is 4 or 6.
    temperature: below 1 sharpens the mixture in all steps but the last.
    shift: of the host's schedule; the sub-steps are uniform in the time before it. It changes no end of a step.
    corrections: see guidance.extrapolated.
    draw: how "sde" samples x0; `independent`, or a spectral.SpectralDraw.
    sample_last: end "sde" on a sample of x0 too. That has the exact law for an exact model, and in pictures it leaves
        the noise of the last mixture, independent from pixel to pixel.

    Between calls it holds, besides x, one latent in second order. Half precision is stepped in float32. A step between
    equal sigmas leads nowhere and costs no call.
    Differs: a last step to 0 takes the mean. The authors' "sde" ends on a sample, and their "mean_wide" adds noise.
    Raises ValueError for options out of range, for sigmas that rise, are no numbers or lie outside of [0, 1], and for
    NaN or infinity, from the model or from a step that overflowed: in the end, with the call where it began.
    """

    mode: str = "ode"
    order: int = 2
    substeps: int = 16
    temperature: float = 1.0
    shift: float = 1.0
    corrections: int = 0
    draw: Draw = independent
    sample_last: bool = False

    def __post_init__(self) -> None:
        check_choice("The mode", self.mode, MODES)
        for name, value, allowed in (
            ("order", self.order, self.order in (1, 2)),
            ("number of sub-steps", self.substeps, 1 <= self.substeps <= MOST_SUBSTEPS),
            ("temperature", self.temperature, 0 < self.temperature <= 1),
            ("shift", self.shift, self.shift > 0),
            ("number of corrections", self.corrections, self.corrections >= 0),
        ):
            if not allowed:
                raise ValueError(f"The {name} of GMFlow cannot be {value:g}.")

    def __call__(
        self,
        predict: MixtureDenoiser,
        x: Tensor,
        sigmas: Tensor,
        *,
        noise: Noise | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        nodes = falling(sigmas)
        dtype, x = x.dtype, x.to(torch.promote_types(x.dtype, torch.float32))
        earlier: Earlier | None = None
        doubts = Doubts()
        for step, (sigma, sigma_next) in enumerate(pairwise(nodes)):
            if sigma == sigma_next:
                continue
            where = f"at sigma {sigma:.4g}, step {step + 1} of {len(nodes) - 1}"
            prediction = predict(x.to(dtype), sigma)
            doubt(prediction.mixture, doubts, partial(str, where))
            mixture = self.mixture_of(prediction, earlier, sigma - sigma_next)
            if on_step:
                on_step(step, sigma, x.to(dtype), mean(mixture).to(dtype))
            x_next = self.advance(mixture, x, sigma, sigma_next, noise)
            doubt_step(x_next, doubts, where)
            if self.order == 2 and sigma_next > 0:
                expected = Posterior(prediction.mixture, x, sigma).mean_at(x_next, sigma_next)
                earlier = Earlier(expected, sigma - sigma_next)
            x = x_next
            del prediction, mixture  # a call of the model finds no K-fold latent in memory
        doubts.settle()
        return x.to(dtype)

    def mixture_of(self, prediction: Prediction, earlier: Earlier | None, h: float) -> Mixture:
        """The guided mixture, extrapolated when a step came before."""
        return prediction.mixture if earlier is None else second_order(prediction, earlier, h, self.corrections)

    def advance(self, mixture: Mixture, x: Tensor, sigma: float, sigma_next: float, noise: Noise | None) -> Tensor:
        """One step from the mixture of x0 at (x, sigma)."""
        if sigma_next > 0 and self.temperature != 1:
            mixture = tempered(mixture, self.temperature)
        if self.mode == "ode":
            return ode_step(mixture, x, between(sigma, sigma_next, self.substeps, self.shift))
        if sigma_next == 0 and not (self.mode == "sde" and self.sample_last):
            return mean(mixture)
        if noise is None:
            raise ValueError(f"The mode {self.mode} draws noise, and none was given.")
        return self.renoised(mixture, x, sigma, sigma_next, lambda: noise(sigma, sigma_next).to(x))

    def renoised(
        self, mixture: Mixture, x: Tensor, sigma: float, sigma_next: float, noise: Callable[[], Tensor]
    ) -> Tensor:
        """x_lo = c1 x + c2 x0 + std e: arXiv 2504.05304 eq. 39, with x0 drawn or its mean."""
        step = bridge(sigma, sigma_next)
        x0 = self.draw(mixture, noise) if self.mode == "sde" else mean(mixture)
        std = wide_std(sigma, sigma_next) if self.mode == "mean_wide" else step.var**0.5
        return step.x * x + step.x0 * x0 + std * noise()


def ode_step(mixture: Mixture, x: Tensor, nodes: list[float]) -> Tensor:
    """Euler steps of the probability flow over falling `nodes`; the mixture is that of x0 at (x, nodes[0])."""
    return follow(Posterior(mixture, x, nodes[0]), x, nodes)


def follow(policy: Way, x: Tensor, nodes: list[float]) -> Tensor:
    """Euler steps of dx/dt = (x - E[x0 | x]) / t over falling `nodes`, the first that of the call."""
    x0 = policy.mean
    for t, t_next in pairwise(nodes):
        if t < nodes[0]:
            x0 = policy.mean_at(x, t)
        x = torch.lerp(x0, x.to(x0.dtype), t_next / t)
    return x


def warped(time: float, shift: float) -> float:
    """sigma of the time before the shift: shift t / (1 + (shift - 1) t)."""
    return shift * time / (1 + (shift - 1) * time)


def unwarped(sigma: float, shift: float) -> float:
    """The inverse of `warped`."""
    return sigma / (shift - (shift - 1) * sigma)


def between(sigma: float, sigma_next: float, substeps: int, shift: float) -> list[float]:
    """substeps + 1 falling nodes from `sigma` to `sigma_next`, uniform in the time before the shift."""
    first, last = unwarped(sigma, shift), unwarped(sigma_next, shift)
    times = [first + (last - first) * i / substeps for i in range(1, substeps)]
    return [sigma, *(warped(t, shift) for t in times), sigma_next]


def falling(sigmas: Tensor) -> list[float]:
    """The sigmas as numbers, those too small to see as 0: a likelihood there has no place in float32.

    Raises ValueError unless they never rise and, but for rounding, lie within [0, 1].
    """
    nodes = checked_sigmas(sigmas, FLOW)
    if any(b > a for a, b in pairwise(nodes)):
        raise ValueError(
            f"GMFlow steps over sigmas that fall from 1 or below to 0 or above; given: {[round(s, 4) for s in nodes]}. "
            "Use the schedule of a flow model."
        )
    return nodes


def doubt_step(x: Tensor, doubts: Doubts, where: str) -> None:
    """Has it looked at later whether a step turned usable predictions into numbers that are none."""
    doubts.note(
        x.isfinite().all(),
        lambda: (
            f"GMFlow's own step overflowed {where}: the model's mixture was too large or too narrow for the numbers of "
            "this device. Use more steps, less guidance, or the model in fp32."
        ),
    )
