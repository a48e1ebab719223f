"""DualFast, arXiv 2506.13058: an earlier estimate of the noise mixed into the one of now, at no further call.

A network estimates noise better where there is more of it. With e = (x - x0) / sigma, the slope of either noise law,

    e_new = (1 + c) e - c e_earlier,   so that   x0_new = x0 - c sigma (e - e_earlier),

and whatever solver runs on x0_new runs on e_new. Where its steps are Euler's and c is half the ratio of this step to
the one before, that is the second-order method of Adams and Bashforth: part of the gain is plain extrapolation.

Differs: on flow models e is the velocity; the paper treats noise predictions only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from .choices import check_choice
from .contract import Denoiser
from .facts import is_number

RAMPS = ("linear", "constant")
REFERENCES = ("previous", "first")
MOST = 2.0  # of the strength


@dataclass(frozen=True)
class Strength:
    """c at every sigma of a run. nodes: the sigmas of its calls, falling.

    linear: from 0 at the first to `value` at the last; between them in equal parts. constant: `value`.
    """

    value: float
    ramp: str
    nodes: tuple[float, ...]

    def __call__(self, sigma: float) -> float:
        if self.ramp == "constant" or len(self.nodes) < 2:
            return self.value
        rising = np.linspace(1, 0, len(self.nodes))
        return self.value * float(np.interp(sigma, self.nodes[::-1], rising))


@dataclass(frozen=True, eq=False)
class Estimate:
    """e at a sigma."""

    sigma: float
    e: Tensor


class DualFast:
    """A Denoiser of samplers.contract around another, for one run.

    The earlier estimate is the last one of more noise (`previous`), or the first of the run. It is told by its sigma
    and not by the number of a step, because some solvers call twice in a step. Where the noise rises a run begins anew.
    """

    def __init__(self, denoise: Denoiser, strength: Callable[[float], float], reference: str = "previous"):
        check_choice("reference", reference, REFERENCES)
        self.denoise, self.strength, self.reference = denoise, strength, reference
        self.earlier: Estimate | None = None
        self.latest: Estimate | None = None

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        denoised = self.denoise(x, sigma)
        if sigma <= 0:
            return denoised
        now = Estimate(sigma, (x - denoised) / sigma)
        earlier = self.before(now)
        c = self.strength(sigma)
        return denoised if earlier is None or c == 0 else denoised - c * sigma * (now.e - earlier.e)

    def before(self, now: Estimate) -> Estimate | None:
        """The estimate to mix in; `now` is kept for later ones."""
        latest = self.latest
        if latest is None or now.sigma > latest.sigma:
            self.earlier = None
        elif now.sigma < latest.sigma and (self.earlier is None or self.reference == "previous"):
            self.earlier = latest
        self.latest = now
        return self.earlier


def check_strength(strength: float, ramp: str, reference: str) -> None:
    """Raises ValueError, in words."""
    if not is_number(strength, 0, MOST):
        raise ValueError(f"strength is {strength!r}; it must be a number from 0 to {MOST:g}.")
    check_choice("ramp", ramp, RAMPS)
    check_choice("reference", reference, REFERENCES)


def strength_of(value: float, ramp: str, sigmas: Sequence[float]) -> Strength:
    """For the sigmas of a run, the last of which no call is made at."""
    return Strength(value, ramp, tuple(sigmas[:-1]))
