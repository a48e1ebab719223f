"""TrigFlow and the sampling of sCM, arXiv 2410.11081: noise as an angle, pictures in 1 to 4 calls.

| symbol | meaning                                                                              |
|--------|--------------------------------------------------------------------------------------|
| t      | the angle, from 0 (picture) to pi/2 (noise)                                          |
| s_d    | `sigma_data`: standard deviation of the data, and of z                               |
| x_t    | cos(t) x0 + sin(t) z, z of deviation s_d (eq. 5)                                     |
| F      | the network, of (x_t / s_d, t)                                                       |
| f      | cos(t) x_t - s_d sin(t) F: the prediction; of a consistency model the end of the ODE |

x_t / cos(t) = x0 + s_d tan(t) e is the picture with variance-exploding noise: sigma~ = s_d tan(t) for every noise law.
So a consistency model in these terms is sampled by any sampler that predicts and puts noise back (the host's lcm).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from .facts import is_number
from .noise_law import NoiseLaw

HIGHEST = 80.0  # sigma~ of the first call, in sCM and rCM
MOST_STEPS = 4


@dataclass(frozen=True)
class Times:
    """Angles after the first call by number of steps: those of `published`, the first few of `list`, or even ones."""

    published: dict[int, tuple[float, ...]]
    listed: tuple[float, ...] = ()

    def between(self, steps: int, first: float) -> tuple[float, ...]:
        if steps in self.published:
            return self.published[steps]
        if len(self.listed) >= steps - 1:
            return self.listed[: steps - 1]
        return tuple(first * (1 - n / steps) for n in range(1, steps))


PRESETS = {
    "scm": Times({2: (1.1,)}),  # section 5; for 3 and 4 steps it says none
    "rcm_wan": Times({}, (1.5, 1.4, 1.0)),  # rCM's for Wan 2.1
    "rcm_wan_low": Times({}, (1.3, 1.0, 0.6)),  # the same, with less noise put back
}


# ---------------------------------------------------------------------------------------------------------
# Angles


def angle(ratio: float, sigma_data: float) -> float:
    """t of a noise-to-signal ratio; pi/2 where it is infinite."""
    return math.atan(ratio / sigma_data)


def ratio(t: float, sigma_data: float) -> float:
    """The inverse of `angle`."""
    return sigma_data * math.tan(t)


def rotated(x: Tensor, network: Tensor, t: float, s: float, sigma_data: float) -> Tensor:
    """x_s of x_t along the arc (eq. 9): exact where F does not change on the way."""
    return math.cos(s - t) * x + math.sin(s - t) * sigma_data * network


def predicted(x: Tensor, network: Tensor, t: float, sigma_data: float) -> Tensor:
    """f, the rotation to 0 (eq. 7)."""
    return rotated(x, network, t, 0.0, sigma_data)


# ---------------------------------------------------------------------------------------------------------
# Schedules


def schedule(
    law: NoiseLaw, steps: int, times: str | Sequence[float], sigma_data: float, first: float
) -> tuple[float, ...]:
    """steps + 1 falling sigmas of the host, the last 0. first: the host's sigma of the first call.

    times: a preset, or steps - 1 angles of your own. Raises ValueError for what is no schedule.
    """
    if not is_number(steps, 1, MOST_STEPS) or steps != int(steps):
        raise ValueError(f"steps is {steps!r}; consistency models are sampled in 1 to {MOST_STEPS}.")
    if isinstance(times, str):
        if times not in PRESETS:
            raise ValueError(f"times is {times!r}; choose one of {', '.join(PRESETS)}.")
        middle = PRESETS[times].between(steps, angle(law.ratio(first), sigma_data))
    else:
        middle = tuple(times)
    check_times(middle, steps)
    sigmas = (first, *(law.sigma(ratio(t, sigma_data)) for t in middle), 0.0)
    if not all(s > t for s, t in zip(sigmas, sigmas[1:], strict=False)):
        listed = ", ".join(f"{t:g}" for t in middle)
        raise ValueError(
            f"The times {listed} do not fall from this model's first, {angle(law.ratio(first), sigma_data):.4g}. Write "
            "angles that fall, or choose another preset."
        )
    return sigmas


def check_times(times: Sequence[float], steps: int) -> None:
    if len(times) != steps - 1:
        raise ValueError(
            f"{steps} steps need {steps - 1} times, one for every call but the first; there are {len(times)}."
        )
    for t in times:
        if not 0 < t < math.pi / 2:
            raise ValueError(f"{t:g} is no time of TrigFlow: it must lie between 0 and pi/2 = 1.5708.")


def read_times(text: str) -> tuple[float, ...]:
    """Angles written with commas or blanks between them. Raises ValueError for what is no number."""
    words = text.replace(",", " ").split()
    try:
        return tuple(float(word) for word in words)
    except ValueError:
        raise ValueError(
            f"own_times is {text[:40]!r}; write angles between 0 and pi/2 with commas between them, as 1.5, 1.4, 1.0."
        ) from None


# ---------------------------------------------------------------------------------------------------------
# Sampling, in the paper's own terms: what the host's lcm is compared with


def sample_consistency(
    f: Callable[[Tensor, float], Tensor], z: Sequence[Tensor], times: Sequence[float], sigma_data: float
) -> Tensor:
    """Algorithm 1 of arXiv 2303.01469 by angles. f(x_t, t) -> x0; z: unit Gaussian noise of every call; times fall."""
    x0 = None
    for noise, t in zip(z, times, strict=True):
        x = math.sin(t) * sigma_data * noise
        x0 = f(x if x0 is None else math.cos(t) * x0 + x, t)
    assert x0 is not None, "a consistency model is called once at least"
    return x0
