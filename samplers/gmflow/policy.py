"""pi-Flow, arXiv 2510.14974: one network call decides a policy, which is integrated without the network.

A policy gives E[x0] at any x of lower noise. What the network answers is either a mixture, whose policy is the mean of
`transition.Posterior` (GMFlow policy), or N points of u along the way (DX policy), which become N points of x0.

| symbol | name     | meaning                                                                                   |
|--------|----------|-------------------------------------------------------------------------------------------|
| r      | `time`   | the authors' raw time, 0 to 1: sigma = c r / (1 + (c - 1) r), c the shift                   |
| h      | `noise`  | diffusion coefficient: 0 none, 1 as DDPM, infinite: all noise anew at every call           |
| m      | `kept`   | share of the noise at the next sigma that is the old one                                   |
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor

from ..choices import check_choice
from ..contract import Noise, OnStep
from ..noise_law import FLOW
from .doubts import Doubts
from .mixture import Mixture, doubt, mean, tempered, x0_from_u
from .solver import MOST_SUBSTEPS, Way, between, doubt_step, falling, follow, unwarped, warped
from .transition import Posterior

SHIFT = 3.2  # of all published adapters
LAST_STEP = 0.5  # size of the last step among equal ones, as they were trained
SUBSTEPS = 128  # over all of time, as in the paper
LEAST_TEMPERATURE = 0.01
MOST_STEPS = 10_000
SHORTEST = 1e-4  # of a segment in raw time: below it its points lie on each other
DX_MODES = ("grid", "polynomial")


# ---------------------------------------------------------------------------------------------------------
# What the network answers


@dataclass(frozen=True)
class DXLaw:
    """Where the points of a DX policy lie. Raises ValueError for values that no policy has.

    mode: "grid": N values of x0 at equal raw times over the segment, the last at the call itself, between them a line;
        "polynomial": x0 = sum_i values_i (r_call - r)^i.
    segment: raw time that one call covers. shift: c of this policy, whatever the schedule has.
    """

    mode: str = "grid"
    segment: float = 1.0
    shift: float = 1.0

    def __post_init__(self) -> None:
        check_choice("The mode of a DX policy", self.mode, DX_MODES)
        for name, value in (("segment_size", self.segment), ("shift", self.shift)):
            if not 0 < value < math.inf:
                raise ValueError(f"The {name} of a DX policy must be above 0; it is {value:g}.")

    @classmethod
    def of_json(cls, config: Mapping[str, Any]) -> DXLaw:
        """From the authors' policy_config."""
        numbers = [config.get("segment_size", 1.0), config.get("shift", 1.0)]
        if not all(isinstance(n, (int, float)) for n in numbers):
            raise ValueError(f"The segment_size and the shift of a DX policy are numbers; they are {numbers}.")
        return cls(str(config.get("mode", "grid")), *map(float, numbers))


@dataclass(frozen=True, eq=False)
class Points:
    """values (B, N, C, *S): N of u as the network gives them, or of x0."""

    values: Tensor
    law: DXLaw

    @property
    def at_call(self) -> Tensor:
        """The value at the (x, sigma) of the call, (B, C, *S)."""
        return self.values[:, -1] if self.law.mode == "grid" else self.values[:, 0]

    def moved(self, by: Tensor) -> Points:
        """All of the way moved by (B, C, *S)."""
        if self.law.mode == "grid":
            return replace(self, values=self.values + by[:, None])
        return replace(self, values=torch.cat([self.values[:, :1] + by[:, None], self.values[:, 1:]], 1))


Answer = Mixture | Points


def value_of(answer: Answer) -> Tensor:
    """The mean at the call itself, (B, C, *S): what a sampler that knows no policies gets."""
    return mean(answer) if isinstance(answer, Mixture) else answer.at_call


def space_of(answer: Answer) -> tuple[int, ...]:
    """(C, *S) of one of its values."""
    return tuple((answer.means if isinstance(answer, Mixture) else answer.values).shape[2:])


def x0_of(answer: Answer, x: Tensor, sigma: float | Tensor) -> Answer:
    """The answer in x0 = x - sigma u. x (B, C, *S), sigma a number or (B,)."""
    if isinstance(answer, Mixture):
        return x0_from_u(answer, x, sigma)
    at = torch.as_tensor(sigma, dtype=answer.values.dtype, device=x.device).reshape(-1, *[1] * x.ndim)
    return replace(answer, values=x[:, None].to(at.dtype) - at * answer.values)


def moved_by(answer: Answer, by: Tensor) -> Answer:
    """The answer with all that it holds possible moved by (B, C, *S)."""
    if isinstance(answer, Mixture):
        return replace(answer, means=answer.means + by[:, None])
    return answer.moved(by)


def chunks_of(answer: Answer, count: int) -> list[Answer]:
    """The answer of a batch of `count` equal parts, part by part."""
    if isinstance(answer, Points):
        return [replace(answer, values=part) for part in answer.values.chunk(count)]
    parts = (t.chunk(count) for t in (answer.means, answer.logweights, answer.logstds))
    return [Mixture(*part) for part in zip(*parts, strict=True)]


def doubt_answer(answer: Answer, doubts: Doubts, where: str = "") -> None:
    """Has it looked at later whether the answer's numbers can be used. where: at which call, for the message."""
    if isinstance(answer, Mixture):
        return doubt(answer, doubts, lambda: where)
    doubts.note(
        answer.values.isfinite().all(),
        lambda: (
            f"The model gave a DX policy whose points are not numbers{where and f' ({where})'}. Half precision may "
            "have overflowed (load the model in bf16 or fp32), or the adapter is damaged."
        ),
    )


# ---------------------------------------------------------------------------------------------------------
# Policies


class DXPolicy:
    """The policy of points of x0, made at `sigma`. Its x0 depends on the time alone."""

    def __init__(self, points: Points, sigma: float):
        self.points, self.mean = points, points.at_call
        self.start = unwarped(sigma, points.law.shift)
        self.end = max(self.start - points.law.segment, 0.0)

    def mean_at(self, x: Tensor, sigma: float) -> Tensor:
        values, time = self.points.values, unwarped(sigma, self.points.law.shift)
        if self.points.law.mode == "polynomial":
            powers = [(self.start - time) ** i for i in range(values.shape[1])]
            return torch.einsum("bn...,n->b...", values, values.new_tensor(powers))
        if values.shape[1] == 1:
            return values[:, 0]
        place = (time - self.end) / max(self.start - self.end, SHORTEST)
        place = min(max(place, 0.0), 1.0) * (values.shape[1] - 1)
        left = min(int(place), values.shape[1] - 2)
        return torch.lerp(values[:, left], values[:, left + 1], place - left)


def policy_of(answer: Answer, x: Tensor, sigma: float, temperature: float = 1.0) -> Way:
    """The policy of an answer in x0 at (x, sigma). A DX policy has no temperature."""
    if isinstance(answer, Points):
        return DXPolicy(answer, sigma)
    return Posterior(answer if temperature == 1 else tempered(answer, temperature), x, sigma)


# ---------------------------------------------------------------------------------------------------------
# The sampler


class PolicyDenoiser(Protocol):
    """One network call: x (B, C, *S) at sigma in (0, 1] -> its answer in x0."""

    def __call__(self, x: Tensor, sigma: float, /) -> Answer: ...


def policy_sigmas(steps: int, shift: float = SHIFT, last: float = LAST_STEP, denoise: float = 1.0) -> list[float]:
    """steps + 1 sigmas, equal in raw time but for the last step, which is `last` of the others.

    denoise: share of the raw time to begin with. Raises ValueError for values out of range.
    """
    for name, value, allowed in (
        ("number of steps", steps, 1 <= steps <= MOST_STEPS),
        ("shift", shift, 0 < shift < math.inf),
        ("size of the last step", last, 0 < last <= 1),
        ("denoise", denoise, 0 < denoise <= 1),
    ):
        if not allowed:
            raise ValueError(f"The {name} of pi-Flow cannot be {value:g}.")
    times = [denoise * (1 - i / (steps - 1 + last)) for i in range(steps)]
    return [*(warped(t, shift) for t in times), 0.0]


def usual_temperature(calls: int) -> float:
    """The authors', of all calls but the last: 0.1 for every call before it."""
    return min(max(0.1 * (calls - 1), LEAST_TEMPERATURE), 1.0)


def landing(sigma: float, sigma_next: float, noise: float) -> tuple[float, float]:
    """Where the policy is followed to before noise is put back, and the share m of the noise that is kept.

    m = (lo alpha_hi / (hi alpha_lo))^(h^2); the place has the noise-to-signal ratio m lo / alpha_lo.
    """
    ratio = sigma_next * FLOW.alpha(sigma) / (sigma * FLOW.alpha(sigma_next))
    kept = 1.0 if noise == 0 else 0.0 if ratio == 0 or math.isinf(noise) else ratio ** (noise * noise)
    left = sigma_next * kept
    return left / (FLOW.alpha(sigma_next) + left), kept


@dataclass(frozen=True)
class PiFlow:
    """A solver for models whose calls decide policies: N calls for N steps, over falling sigmas in [0, 1].

    substeps: Euler steps of the policy over all of raw time, shared among the calls by their length.
    temperature: of a GMFlow policy in all calls but the last; None is `usual_temperature`.
    noise: h. shift: of the raw time in which the sub-steps are equal.

    Half precision is stepped in float32. A step between equal sigmas costs no call.
    Differs: the authors' code clamps denominators at 1e-4; `transition.Posterior` needs none.
    Raises ValueError for options and sigmas out of range, and for numbers that cannot be used, with the call.
    """

    substeps: int = SUBSTEPS
    temperature: float | None = None
    noise: float = 0.0
    shift: float = SHIFT

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("number of sub-steps", self.substeps, 1 <= self.substeps <= MOST_SUBSTEPS),
            ("temperature", self.temperature or 1, self.temperature is None or 0 < self.temperature <= 1),
            ("noise", self.noise, self.noise >= 0),
            ("shift", self.shift, 0 < self.shift < math.inf),
        ):
            if not allowed:
                raise ValueError(f"The {name} of pi-Flow cannot be {value:g}.")

    def __call__(
        self,
        predict: PolicyDenoiser,
        x: Tensor,
        sigmas: Tensor,
        *,
        noise: Noise | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        nodes = falling(sigmas)
        calls = sum(a != b for a, b in pairwise(nodes))
        dtype, x = x.dtype, x.to(torch.promote_types(x.dtype, torch.float32))
        made, doubts = 0, Doubts()
        for step, (sigma, sigma_next) in enumerate(pairwise(nodes)):
            if sigma == sigma_next:
                continue
            made += 1
            where = f"at sigma {sigma:.4g}, step {step + 1} of {len(nodes) - 1}"
            answer = predict(x.to(dtype), sigma)
            doubt_answer(answer, doubts, where)
            policy = policy_of(answer, x, sigma, 1.0 if made == calls else self.heat(calls))
            if on_step:
                on_step(step, sigma, x.to(dtype), value_of(answer).to(dtype))
            x = self.advance(policy, x, sigma, sigma_next, noise)
            doubt_step(x, doubts, where)
            del answer, policy  # a call of the model finds no K-fold latent in memory
        doubts.settle()
        return x.to(dtype)

    def heat(self, calls: int) -> float:
        return usual_temperature(calls) if self.temperature is None else self.temperature

    def advance(self, policy: Way, x: Tensor, sigma: float, sigma_next: float, noise: Noise | None) -> Tensor:
        """Along the policy, past the next sigma where noise is put back, and up to it again."""
        end, kept = landing(sigma, sigma_next, self.noise)
        length = unwarped(sigma, self.shift) - unwarped(end, self.shift)
        x = follow(policy, x, between(sigma, end, max(1, round(length * self.substeps)), self.shift))
        if kept == 1 or sigma_next == 0:
            return x
        if noise is None:
            raise ValueError("pi-Flow draws noise where its noise is above 0, and none was given.")
        fresh = sigma_next * (1 - kept * kept) ** 0.5
        return (FLOW.alpha(sigma_next) + sigma_next * kept) * x + fresh * noise(sigma, sigma_next).to(x)
