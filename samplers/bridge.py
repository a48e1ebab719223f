"""Dual Diffusion Implicit Bridges, arXiv 2203.08382: a picture up to its noise on one model, down again on another.

Both ways are the probability-flow ODE dx/dsigma = d = (x - x0) / sigma, solved by rho-AB2 (samplers/deis.py): Adams and
Bashforth's second order in the host's sigma, a call a step. The equation is regular at a flow model's sigma 1.

Differs: the way up begins at sigma 0, where d is known without a call: the clean latent's own part of dx/dsigma.
Differs: what is handed over is measured in its own spread, sqrt(alpha^2 + deviation^2), 1 for latents of variance 1; so
the two models may add noise by different laws, and end at different sigmas.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from .clock import hosts_sigma
from .contract import Denoiser, OnStep
from .deis import DEIS, SLOPE, check_falling, weights_of
from .noise_law import NoiseLaw

ORDER = 2
LEAST_STEPS = 4  # fewer lead to no noise


def calls_up(steps: int) -> int:
    """Model calls of the way up; the way down takes one a step."""
    return steps - 1


def up(
    denoise: Denoiser,
    x0: Tensor,
    sigmas: Sequence[float],
    law: NoiseLaw,
    *,
    order: int = ORDER,
    on_step: OnStep | None = None,
) -> Tensor:
    """x at sigmas[0] of the clean latent x0. sigmas: falling to 0, as for `down`; they are climbed from behind.

    Raises ValueError for sigmas that do not fall, or not to 0.
    """
    nodes = climbed(sigmas)
    x, known = x0, [slope_of_clean(law) * x0]
    for n, (s, t) in enumerate(zip(nodes, nodes[1:], strict=False)):
        if s > 0:
            denoised = denoise(x, s)
            known = [(x - denoised) / s, *known][:order]
            if on_step:
                on_step(n - 1, s, x, denoised)
        weights = weights_of(nodes[max(n + 1 - order, 0) : n + 1], s, t, law, hosts_sigma(law), SLOPE)
        x = x + sum(weight * slope for weight, slope in zip(weights, known, strict=True))
    return x


def climbed(sigmas: Sequence[float]) -> list[float]:
    """The sigmas from 0 up."""
    nodes = [float(sigma) for sigma in sigmas]
    check_falling(nodes, "A bridge")
    if len(nodes) < 2 or nodes[-1] != 0:
        raise ValueError("A bridge needs sigmas that fall to 0. Connect an ordinary scheduler.")
    return nodes[::-1]


def slope_of_clean(law: NoiseLaw) -> float:
    """d over x0 at sigma 0, where the noise that comes is of mean 0: the slope of alpha, which is a straight line."""
    return law.alpha(1.0) - law.alpha(0.0)


def down(
    denoise: Denoiser,
    x: Tensor,
    sigmas: Sequence[float],
    law: NoiseLaw,
    *,
    order: int = ORDER,
    on_step: OnStep | None = None,
) -> Tensor:
    """The clean latent of x at sigmas[0]; the last step ends with the prediction. Raises ValueError as `up` does."""
    climbed(sigmas)
    solver = DEIS(law, hosts_sigma(law), order, corrector=False, ends_denoised=True, answers=SLOPE)
    return solver(denoise, x, sigmas, on_step=on_step)


# ---------------------------------------------------------------------------------------------------------
# Between the two


def spread(law: NoiseLaw, sigma: float) -> float:
    """The standard deviation of x where that of the clean latents is 1."""
    return math.hypot(law.alpha(sigma), law.deviation(sigma))


def handed_over(x: Tensor, law_from: NoiseLaw, sigma_from: float, law_to: NoiseLaw, sigma_to: float) -> Tensor:
    """x of one model as that of another, at a sigma of its own; the same latent at the same noise-to-signal ratio."""
    return x * (spread(law_to, sigma_to) / spread(law_from, sigma_from))


def noise_in(x: Tensor, x0: Tensor, law: NoiseLaw, sigma: float) -> Tensor:
    """The noise that makes x out of the clean latent x0 at `sigma`."""
    return (x - law.alpha(sigma) * x0) / law.deviation(sigma)


def meeting(law_from: NoiseLaw, sigma_from: float, law_to: NoiseLaw, highest_to: float) -> float:
    """The sigma of the other model at which there is the same noise, or its highest where it knows no such."""
    ratio = law_from.ratio(sigma_from)
    return highest_to if math.isinf(ratio) else min(law_to.sigma(ratio), highest_to)
