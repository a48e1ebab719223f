"""From a mixture of x0 to other noise levels of the flow law: arXiv 2504.05304 section 3.3.

x_sigma = (1 - sigma) x0 + sigma e. The forward transition, to more noise, is `noise_law.FLOW.renoise`.

| symbol     | name                   | meaning                                                                |
|------------|------------------------|------------------------------------------------------------------------|
| c1, c2, c3 | `x`, `x0`, `var`       | q(x_lo given x_hi, x0) = N(c1 x_hi + c2 x0, c3 I)                      |
| zeta, nu   | `precision`, `force`   | what x at a lower sigma says of x0 that x_s did not, as a `Tilt`       |
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..noise_law import FLOW
from .mixture import Mixture, mean


class Bridge(NamedTuple):
    """q(x_lo | x_hi, x0) = N(x x_hi + x0 x0, var I): the factors of x_hi and x0, and the variance."""

    x: float
    x0: float
    var: float


def bridge(sigma: float, sigma_next: float) -> Bridge:
    """The reverse transition from `sigma` down to `sigma_next`: arXiv 2504.05304 eq. 39.

    With r = lo / hi, g = alpha_hi / alpha_lo and k = 1 - (r g)^2: c1 = r^2 g, c2 = k alpha_lo, c3 = k lo^2.
    """
    ratio, gain = sigma_next / sigma, FLOW.alpha(sigma) / FLOW.alpha(sigma_next)
    fresh = 1 - (ratio * gain) ** 2
    return Bridge(ratio**2 * gain, fresh * FLOW.alpha(sigma_next), fresh * sigma_next**2)


def wide_std(sigma: float, sigma_next: float) -> float:
    """The deviation of a step from the mean of x0 in DDPM's large variance: arXiv 2504.05304 section A.5.

    sqrt(k) hi sqrt((alpha_lo^2 + lo^2) / (alpha_hi^2 + hi^2)); the small one is sqrt(c3). It is not 0 at the end.
    """
    fresh = 1 - (sigma_next / sigma * FLOW.alpha(sigma) / FLOW.alpha(sigma_next)) ** 2
    sizes = [FLOW.alpha(s) ** 2 + s**2 for s in (sigma_next, sigma)]
    return (fresh * sizes[0] / sizes[1]) ** 0.5 * sigma


def reverse_transition(mixture: Mixture, x: Tensor, sigma: float, sigma_next: float) -> Mixture:
    """The mixture of x at sigma_next from that of x0 at (x, sigma): arXiv 2504.05304 eq. 9. x (B, C, *S).

    Differs: the authors' code holds the variance of the bridge above 1e-6; here it is c3, which is 0 at the end.
    """
    step = bridge(sigma, sigma_next)
    var = step.var + step.x0**2 * mixture.var[:, None]
    return Mixture(step.x * x[:, None] + step.x0 * mixture.means, mixture.logweights, var.log() / 2)


class Posterior:
    """The mixture of x0 that was predicted at (x, sigma), and its mean at any lower noise: arXiv 2504.05304 eq. 10.

    The prior implied by the mixture times the likelihood of the new point is the mixture times a `Tilt`. About the
    mixture's own mean m it has
        precision = (alpha / t)^2 - (alpha_s / t_s)^2,   force = alpha (x - alpha m) / t^2 - the same at s,
    of which neither loses digits when t comes near t_s or 0. Differs: the authors' code divides two Gaussians.
    """

    def __init__(self, mixture: Mixture, x: Tensor, sigma: float):
        self.logweights, self.var = mixture.logweights, mixture.var
        self.mean = mean(mixture)
        self.away = mixture.means - self.mean[:, None]
        self.half_square = self.away.square().sum(2, keepdim=True) / 2
        self.known_pull, self.known_precision = pull(x, sigma, self.mean), FLOW.alpha(sigma) ** 2 / sigma**2

    def mean_at(self, x: Tensor, sigma: float) -> Tensor:
        """E[x0] given x (B, C, *S) at 0 < `sigma` <= the sigma of the prediction; no call of the model.

        The mean of `tilt`, in as few passes as there can be: it is what a sub-step costs.
        """
        precision = FLOW.alpha(sigma) ** 2 / sigma**2 - self.known_precision
        force = pull(x, sigma, self.mean) - self.known_pull
        q = 1 + self.var * precision
        change = torch.sub((self.away * force[:, None]).sum(2, keepdim=True), self.half_square, alpha=precision)
        weights = torch.addcdiv(self.logweights, change, q[:, None]).softmax(1)
        away = torch.addcmul((weights * self.away).sum(1), self.var, force)
        return torch.addcdiv(self.mean, away, q)


def pull(x: Tensor, sigma: float, centre: Tensor) -> Tensor:
    """The gradient at x0 = centre of the log-likelihood of x at sigma, alpha (x - alpha centre) / sigma^2."""
    alpha = FLOW.alpha(sigma)
    return torch.sub(x, centre, alpha=alpha) * (alpha / sigma**2)
