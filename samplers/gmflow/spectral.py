"""Spectral sampling, arXiv 2504.05304 sections 3.4 and A.3: samples whose pixels hang together as predicted.

A spectrum shapes white noise into a Gaussian field z, every value of which has variance 1; at every pixel the
Knothe-Rosenblatt map then carries z to the mixture, channel by channel in the order of the principal axes.

| symbol | name        | shape            |                                                                    |
|--------|-------------|------------------|--------------------------------------------------------------------|
| P      | `log_power` | (B, C, H, W)     | of the Hartley coefficients, in the order of an FFT; mean power 1   |
| z      | `z`         | (B, C, *S)       | unit Gaussian at every pixel                                        |
|        | `axes`      | (B, C, C)        | columns: orthonormal, the widest first                              |
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .covariance import full_moments
from .mixture import Gaussian, Mixture, moments

NEWTON_STEPS = 16
LONGEST_STEP = 1.5  # of Newton, in standard deviations of a component
LEAST_DENSITY = 1e-6
LARGEST_CHANCE = 1 - 1e-6  # of |z|: outside, erfinv has no digits left in float32


@dataclass(frozen=True)
class SpectralDraw:
    """A solver.Draw, arXiv 2504.05304 figure 9. network: statistics (B, 2) -> log-power (B, C, n, n), not normalised.

    Differs: the statistics are those of the mixture that is sampled. Under guidance and in second order the authors
    take the Gaussian that these aim at, as an approximation.
    Raises ValueError where the network is of a latent with other channels.
    """

    network: Callable[[Tensor], Tensor]

    def __call__(self, mixture: Mixture, noise: Callable[[], Tensor]) -> Tensor:
        gaussian = moments(mixture)
        base = self.network(statistics(gaussian)).to(mixture.means.dtype)
        channels, (height, width) = mixture.means.shape[2], mixture.means.shape[-2:]
        if base.shape[1] != channels:
            raise ValueError(
                f"The spectrum network is for latents of {base.shape[1]} channels; this latent has {channels}. "
                "Use the one that came with the model, or none."
            )
        log_power = fitted(base, height, width)
        return from_gaussian(mixture, coloured(noise(), log_power), principal_axes(mixture))


# ---------------------------------------------------------------------------------------------------------
# Spectra


def statistics(gaussian: Gaussian) -> Tensor:
    """What the spectrum depends on, (B, 2): the mean variance, and the variance of the mean over an item's pixels."""
    pixels = gaussian.mean.flatten(2)
    across = pixels.var(2, correction=min(1, pixels.shape[2] - 1)).mean(1)
    return torch.stack([gaussian.var.flatten(1).mean(1), across], 1)


def fitted(base: Tensor, height: int, width: int) -> Tensor:
    """A network's log-power (B, C, n, m) for another size, (B, C, height, width), with mean power 1 in every channel.

    A smaller size keeps the low frequencies, as cycles per picture, as the model was trained. Differs: the authors'
    code has nothing for a larger size; there the spectrum is interpolated as cycles per pixel. Sides go separately.
    """
    fitted_rows = fitted_line(base.mT, height).mT
    log_power = fitted_line(fitted_rows, width)
    return log_power.flatten(2).log_softmax(2).view_as(log_power) + math.log(height * width)


def fitted_line(base: Tensor, n: int) -> Tensor:
    """The last axis, in the order of an FFT, brought to the length n."""
    own = base.shape[-1]
    if n <= own:
        return torch.cat([base[..., : (n + 1) // 2], base[..., own - n // 2 :]], -1)
    place = torch.arange(n, device=base.device, dtype=base.dtype) * (own / n)
    lower = place.floor().long()
    return torch.lerp(base[..., lower], base[..., (lower + 1) % own], place - lower)


def hartley(x: Tensor) -> Tensor:
    """Re + Im of the orthonormal FFT over the last two axes: real, orthogonal, and its own inverse at any size."""
    transformed = torch.fft.fft2(x, norm="ortho")
    return transformed.real + transformed.imag


def coloured(white: Tensor, log_power: Tensor) -> Tensor:
    """White noise (B, C, *S) as the Hartley coefficients of a field with the spectrum (B, C, H, W), every frame alike.

    Differs: the authors' code goes through irfft2 and fails at odd widths.
    """
    frames = white.ndim - log_power.ndim
    return hartley(white * (log_power / 2).exp().unflatten(1, (-1, *[1] * frames)))


# ---------------------------------------------------------------------------------------------------------
# Knothe-Rosenblatt


def principal_axes(mixture: Mixture) -> Tensor:
    """Eigenvectors of the covariance between channels, averaged over an item's pixels: (B, C, C), the widest first.

    Differs: the largest entry of each is made positive. The sign that an eigensolver gives is its own, and with it the
    picture of a seed would depend on the machine.
    """
    cov = full_moments(mixture).cov.flatten(1, -3).mean(1)
    vectors = torch.linalg.eigh(cov.cpu().double())[1].flip(-1)
    largest = vectors.gather(-2, vectors.abs().argmax(-2, keepdim=True))
    return (vectors * largest.sign()).to(cov.dtype).to(cov.device)


class Line(NamedTuple):
    """Mixtures on one axis: means, logweights (B, K, *S), std (B, 1, *1)."""

    means: Tensor
    logweights: Tensor
    std: Tensor


def chance(line: Line, x: Tensor) -> Tensor:
    """2 P(X < x) - 1, (B, *S), for x (B, *S)."""
    return (line.logweights.exp() * torch.erf((x[:, None] - line.means) / (line.std * math.sqrt(2)))).sum(1)


def density(line: Line, x: Tensor) -> Tensor:
    """(B, *S), for x (B, *S)."""
    away = (x[:, None] - line.means) / line.std
    return (line.logweights - away.square() / 2).exp().sum(1) / (line.std.squeeze(1) * math.sqrt(2 * math.pi))


def quantile(line: Line, z: Tensor, steps: int = NEWTON_STEPS) -> Tensor:
    """x (B, *S) below which the mixture has as much as a unit Gaussian has below z: Newton from equal moments."""
    weights, target = line.logweights.exp(), torch.erf(z / math.sqrt(2))
    centre = (weights * line.means).sum(1)
    var = (weights * (line.means - centre[:, None]).square()).sum(1) + line.std.squeeze(1).square()
    x, longest = centre + var.sqrt() * z, LONGEST_STEP * line.std.squeeze(1)
    for _ in range(steps):
        step = (chance(line, x) - target) / (2 * density(line, x).clamp(min=LEAST_DENSITY))
        x = x - step.clamp(-longest, longest)
    return x


def from_gaussian(mixture: Mixture, z: Tensor, axes: Tensor, steps: int = NEWTON_STEPS) -> Tensor:
    """z (B, C, *S), unit Gaussian along the axes, carried to the mixture: (B, C, *S)."""
    lines = Lines(mixture, axes)
    for along in z.unbind(1):
        lines.condition(quantile(lines.next, along, steps))
    return rotated(torch.stack(lines.known, 1), axes.mT)


def to_gaussian(mixture: Mixture, x: Tensor, axes: Tensor) -> Tensor:
    """The inverse of `from_gaussian`, exact but for the far tails."""
    lines, found = Lines(mixture, axes), []
    for along in rotated(x, axes).unbind(1):
        found.append(math.sqrt(2) * torch.erfinv(chance(lines.next, along).clamp(-LARGEST_CHANCE, LARGEST_CHANCE)))
        lines.condition(along)
    return torch.stack(found, 1)


class Lines:
    """A mixture seen axis by axis, each given the values on the axes before it."""

    def __init__(self, mixture: Mixture, axes: Tensor):
        self.means = rotated(mixture.means.transpose(1, 2), axes)  # (B, C, K, *S)
        self.logweights = mixture.logweights.squeeze(2)
        self.std = mixture.logstds.exp().squeeze(2)
        self.known: list[Tensor] = []

    @property
    def next(self) -> Line:
        return Line(self.means[:, len(self.known)], self.logweights.log_softmax(1), self.std)

    def condition(self, x: Tensor) -> None:
        """Take x (B, *S) as the value on the next axis."""
        away = (x[:, None] - self.means[:, len(self.known)]) / self.std
        self.logweights = self.logweights - away.square() / 2
        self.known.append(x)


def rotated(x: Tensor, axes: Tensor) -> Tensor:
    """The coordinates of x (B, C, ...) along the columns of `axes`."""
    return torch.einsum("bc...,bcd->bd...", x, axes)
