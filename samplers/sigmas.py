"""What may be a schedule: sigmas come from any node, and those that cannot be run are refused before the first call."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .noise_law import ROUNDING, NoiseLaw

HIGHEST = 1e6  # in the latents' float32 next to nothing of a picture is left beside noise of this strength
NOTHING = 1e-6  # noise, and changes of it, that the float32 of a latent does not show


def checked_sigmas(sigmas: Tensor | Sequence[float], law: NoiseLaw) -> list[float]:
    """The sigmas as numbers, rising or falling, any number of them; what is 0 or 1 but for rounding is that.

    Raises ValueError for NaN, infinity, and numbers that the model has no noise for.
    """
    given = sigmas if isinstance(sigmas, Tensor) else torch.tensor(sigmas, dtype=torch.float64)
    if given.ndim != 1:
        raise ValueError(
            f"The sigmas have the shape {tuple(given.shape)}; a schedule is one row of numbers. Connect the SIGMAS of "
            "a scheduler."
        )
    values: list[float] = given.detach().to("cpu", torch.float64).tolist()
    highest = 1 + ROUNDING if law.is_flow else HIGHEST
    for number, sigma in enumerate(values, start=1):
        if not 0 <= sigma <= highest:
            raise ValueError(f"Number {number} of the {len(values)} sigmas is {sigma:g}; {allowed(sigma, law)}")
    return [0.0 if sigma < NOTHING else min(sigma, 1.0) if law.is_flow else sigma for sigma in values]


def allowed(sigma: float, law: NoiseLaw) -> str:
    """What a sigma may be, and what to do about one that is not."""
    if math.isfinite(sigma) and sigma > 0 and law.is_flow:
        return "on a flow model 1 is the highest. Connect a scheduler that knows your model, or scale the sigmas down."
    return f"each must be a number from 0 to {1 if law.is_flow else HIGHEST:g}. Look at the node that made them."


def is_repeat(sigma: float, before: float) -> bool:
    """Whether a step between the two goes nowhere. The Brownian noise of SDE samplers never comes back from such."""
    return abs(sigma - before) <= NOTHING * max(sigma, before, 1.0)


def kept_places(sigmas: Sequence[float]) -> list[int]:
    """Numbers of the sigmas without those that repeat the one kept before them."""
    kept: list[int] = []
    for i, sigma in enumerate(sigmas):
        if not kept or not is_repeat(sigma, sigmas[kept[-1]]):
            kept.append(i)
    return kept


def without_repeats(sigmas: Sequence[float]) -> list[float]:
    """The sigmas without steps that go nowhere."""
    return [sigmas[i] for i in kept_places(sigmas)]
