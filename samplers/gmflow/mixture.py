"""Isotropic Gaussian mixtures on latents, and their algebra: GMFlow, arXiv 2504.05304 sections 3.1 and D.

At every pixel of an item there are K components with means of their own and weights of their own; one standard
deviation s is shared by all of the item's pixels, channels and components. Pixels are independent given the model's
output.

| symbol | name         | shape                 |                                                                  |
|--------|--------------|-----------------------|------------------------------------------------------------------|
| mu     | `means`      | (B, K, C, *S)         | *S is (H, W), (T, H, W), or any other spatial shape               |
| log pi | `logweights` | (B, K, 1, *S)         | logsumexp over K is 0                                             |
| log s  | `logstds`    | (B, 1, 1, *1)         |                                                                  |
| v, s^2 | `var`        | (B, 1, *1)            | of a Gaussian also (B, 1, *S)                                     |

Everything that multiplies a mixture by a Gaussian, or divides it by one, is a `Tilt`: a factor given by its natural
parameters, which stay finite where a mean and a variance do not.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .doubts import Doubts, settled

LEAST_SIGMA = 1e-6  # below it the logarithm of a standard deviation is held


@dataclass(frozen=True, eq=False)
class Mixture:
    """K isotropic Gaussians at every pixel; shapes above. Raises ValueError for shapes that do not fit together."""

    means: Tensor
    logweights: Tensor
    logstds: Tensor

    def __post_init__(self) -> None:
        means, logweights, logstds = (tuple(t.shape) for t in (self.means, self.logweights, self.logstds))
        per_pixel = (*means[:2], 1, *means[3:])
        if len(means) < 3 or logweights != per_pixel or logstds != (means[0], *[1] * (len(means) - 1)):
            raise ValueError(
                f"A mixture of means {means} needs log-weights {per_pixel} and one log-deviation an item; "
                f"it has {logweights} and {logstds}."
            )

    @classmethod
    def of_logits(cls, means: Tensor, logits: Tensor, logstds: Tensor) -> Mixture:
        """From a network's output, with logits (B, K, 1, *S) that need not be normalised. In float32 at least.

        Half precision has no room for log-weights: float16 ends at 65504, and bfloat16 has two or three digits.
        """
        means, logits, logstds = (t.to(torch.promote_types(t.dtype, torch.float32)) for t in (means, logits, logstds))
        return cls(means, logits.log_softmax(1), logstds)

    @property
    def components(self) -> int:
        return self.means.shape[1]

    @property
    def var(self) -> Tensor:
        """s^2, (B, 1, *1)."""
        return (2 * self.logstds).exp().squeeze(1)

    @property
    def weights(self) -> Tensor:
        """pi, (B, K, 1, *S)."""
        return self.logweights.exp()


@dataclass(frozen=True, eq=False)
class Gaussian:
    """mean (B, C, *S); var (B, 1, *1), or (B, 1, *S) where every pixel has its own."""

    mean: Tensor
    var: Tensor


@dataclass(frozen=True, eq=False)
class Tilt:
    """The factor exp(force . (x - centre) - precision |x - centre|^2 / 2), x being one pixel's channels.

    centre, force (B, C, *S); precision (B, 1, *1). N(m, v) is Tilt(m, 0, 1 / v), and a division by it has precision
    -1 / v. A centre near the mixture keeps float32 from subtracting large numbers where the precision is high.
    """

    centre: Tensor
    force: Tensor
    precision: Tensor


# ---------------------------------------------------------------------------------------------------------
# Moments


def mean(mixture: Mixture, power: float = 1.0) -> Tensor:
    """(B, C, *S): the mean, with the weights raised to `power` and normalised again."""
    return ((power * mixture.logweights).softmax(1) * mixture.means).sum(1)


def moments(mixture: Mixture) -> Gaussian:
    """Mean, and per pixel the variance averaged over the channels, var (B, 1, *S): arXiv 2504.05304 eqs. 11, 12."""
    centre = mean(mixture)
    apart = (mixture.means - centre[:, None]).square().mean(2, keepdim=True)
    return Gaussian(centre, (mixture.weights * apart).sum(1) + mixture.var)


# ---------------------------------------------------------------------------------------------------------
# Products


def tilt(mixture: Mixture, factor: Tilt) -> Mixture:
    """mixture * factor, normalised: arXiv 2504.05304 eqs. 47 to 50 by natural parameters about a centre.

    With q = 1 + s^2 precision and d = mu - centre:
        mu' = centre + (d + s^2 force) / q,  s'^2 = s^2 / q,  log pi' = log pi + (d . force - precision |d|^2 / 2) / q.
    A proper result needs q > 0.
    """
    away = mixture.means - factor.centre[:, None]
    force, precision, var = factor.force[:, None], factor.precision[:, None], mixture.var[:, None]
    q = 1 + var * precision
    change = (away * (force - precision / 2 * away)).sum(2, keepdim=True) / q
    return Mixture(
        factor.centre[:, None] + (away + var * force) / q,
        (mixture.logweights + change).log_softmax(1),
        mixture.logstds - q.log() / 2,
    )


def times_gaussian(mixture: Mixture, gaussian: Gaussian, power: float = 1.0, gaussian_power: float = 1.0) -> Mixture:
    """The mixture M with M^power = mixture^power * gaussian^gaussian_power, up to a constant; -1 divides.

    The power of a mixture is taken component by component. gaussian.var must be (B, 1, *1).
    """
    still = torch.zeros_like(gaussian.mean)
    return tilt(mixture, Tilt(gaussian.mean, still, gaussian_power / power / gaussian.var))


def gaussian_product(a: Gaussian, b: Gaussian, a_power: float = 1.0, b_power: float = 1.0) -> Gaussian:
    """a^a_power * b^b_power, normalised: arXiv 2504.05304 eqs. 44, 45; a power of -1 divides.

    Improper where the precisions add up to 0 or less, as in a division by the narrower one.
    """
    total = a_power * b.var + b_power * a.var
    centre = (a_power * b.var * a.mean + b_power * a.var * b.mean) / total
    return Gaussian(centre, a.var * b.var / total)


def product(a: Mixture, b: Mixture) -> Mixture:
    """a * b, normalised: K_a K_b components, those of b running fastest."""
    var_a, var_b = a.var[:, None, None], b.var[:, None, None]
    means_a, means_b = a.means[:, :, None], b.means[:, None]
    total = var_a + var_b
    means = (var_b * means_a + var_a * means_b) / total
    apart = (means_a - means_b).square().sum(3, keepdim=True)
    logits = a.logweights[:, :, None] + b.logweights[:, None] - apart / (2 * total)
    logstds = a.logstds + b.logstds - total.squeeze(1).log() / 2
    return Mixture(means.flatten(1, 2), logits.flatten(1, 2).log_softmax(1), logstds)


def tempered(mixture: Mixture, temperature: float) -> Mixture:
    """Weights to the power 1 / temperature, variance times temperature: below 1 sharper. Raises ValueError at 0."""
    if not temperature > 0:
        raise ValueError(f"The temperature is {temperature:g}; it must be above 0, and 1 changes nothing.")
    logweights = (mixture.logweights / temperature).log_softmax(1)
    return Mixture(mixture.means, logweights, mixture.logstds + math.log(temperature) / 2)


# ---------------------------------------------------------------------------------------------------------
# Draws


def choose(mixture: Mixture, noise: Tensor, power: float = 1.0) -> Tensor:
    """Which component every pixel takes, (B, 1, *S) int64, with the chances pi^power.

    noise: unit Gaussian (B, C, *S), whose first channel is turned into a uniform number, so that one seeded source
    of Gaussian noise serves for everything.

    The number is compared from the nearer end: in float32 a uniform number near 1 has steps of 6e-8, and components of
    less chance that stand last would never be taken (the trap of arXiv 2409.02908).
    """
    number, chances = noise[:, :1], (power * mixture.logweights).softmax(1).squeeze(2)
    before = chances.cumsum(1)  # the chance of this component or one before it
    after = torch.cat([chances.flip(1).cumsum(1).flip(1)[:, 1:], torch.zeros_like(chances[:, :1])], 1)
    tail = torch.erfc(number.abs() / math.sqrt(2)) / 2  # torch's ndtr is of 1 + erf, and 0 from 5.4 on
    return torch.where(number > 0, after > tail, before < tail).sum(1, keepdim=True)


def sample(mixture: Mixture, index: Tensor, noise: Tensor) -> Tensor:
    """(B, C, *S): mean of the component `index` (B, 1, *S) of each pixel, plus s times unit Gaussian noise."""
    shape = (len(index), 1, *mixture.means.shape[2:])
    picked = mixture.means.gather(1, index[:, None].expand(shape)).squeeze(1)
    return picked + mixture.var.sqrt() * noise


# ---------------------------------------------------------------------------------------------------------
# Densities


def log_prob_of_components(mixture: Mixture, x: Tensor) -> Tensor:
    """log N(x; mu_k, s^2 I) for x (B, C, *S): (B, K, *S)."""
    apart = ((x[:, None] - mixture.means) / mixture.logstds.exp()).square().sum(2)
    return -apart / 2 - x.shape[1] * (mixture.logstds.squeeze(2) + math.log(2 * math.pi) / 2)


def log_prob(mixture: Mixture, x: Tensor) -> Tensor:
    """The log-density of every pixel of x (B, C, *S): (B, *S)."""
    return (mixture.logweights.squeeze(2) + log_prob_of_components(mixture, x)).logsumexp(1)


def entropy(mixture: Mixture, samples: Tensor) -> Tensor:
    """-E[log q] per pixel, (B, *S), from samples (N, B, C, *S) of the mixture."""
    return -torch.stack([log_prob(mixture, x) for x in samples]).mean(0)


def divergence(p: Mixture, q: Mixture, samples: Tensor) -> Tensor:
    """KL(p | q) per pixel, (B, *S), from samples (N, B, C, *S) of p."""
    return torch.stack([log_prob(p, x) - log_prob(q, x) for x in samples]).mean(0)


# ---------------------------------------------------------------------------------------------------------
# Changes of variables


def x0_from_u(mixture: Mixture, x: Tensor, sigma: float | Tensor) -> Mixture:
    """The mixture of x0 = x - sigma u from that of the velocity u: arXiv 2504.05304 section 3.1.

    x (B, C, *S), sigma a number or (B,).
    """
    at = torch.as_tensor(sigma, dtype=mixture.means.dtype, device=x.device).reshape(-1, *[1] * x.ndim)
    logstds = mixture.logstds + at.clamp(min=LEAST_SIGMA).log()
    return Mixture(x[:, None].to(at.dtype) - at * mixture.means, mixture.logweights, logstds)


def checked(mixture: Mixture) -> Mixture:
    """The mixture itself. Raises ValueError where its numbers cannot be used; one wait for the device."""
    return settled(doubt, mixture)


def doubt(mixture: Mixture, doubts: Doubts, where: Callable[[], str] = str) -> None:
    """Has it looked at later whether a mixture's numbers can be used.

    where: at which call, for the message, as in "at sigma 0.7".
    """
    parts = {
        "means": mixture.means.isfinite().all(),
        "weights": (mixture.logweights <= 1).all(),  # -inf is a component without weight
        "deviations": mixture.logstds.isfinite().all(),
    }

    def sentence() -> str:
        wrong, at = " and ".join(name for name, fine in parts.items() if not fine), where()
        return (
            f"The model gave a Gaussian mixture whose {wrong} are not numbers{at and f' ({at})'}. Half precision "
            "may have overflowed (load the model in bf16 or fp32), or the checkpoint is damaged."
        )

    doubts.note(torch.stack(list(parts.values())).all(), sentence)
