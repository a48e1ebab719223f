"""Gaussians and mixtures with a full covariance between the channels of a pixel: arXiv 2504.05304 section D.

Channels are last here, so that every pixel has a vector and a matrix: mean (B, *S, C), cov (B, *S, C, C); of a mixture
means (B, K, *S, C), covs (B, 1, *S, C, C), logweights (B, K, *S).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .mixture import Mixture, mean


@dataclass(frozen=True, eq=False)
class FullGaussian:
    """mean (B, *S, C), cov (B, *S, C, C)."""

    mean: Tensor
    cov: Tensor


@dataclass(frozen=True, eq=False)
class FullMixture:
    """means (B, K, *S, C), logweights (B, K, *S), covs (B, 1, *S, C, C): one covariance for all components."""

    means: Tensor
    logweights: Tensor
    covs: Tensor


def full_mixture(mixture: Mixture) -> FullMixture:
    """The same law with its covariance s^2 I written out; covs (B, 1, *1, C, C)."""
    channels = mixture.means.shape[2]
    eye = torch.eye(channels, dtype=mixture.means.dtype, device=mixture.means.device)
    covs = mixture.var[:, None, ..., None] * eye
    return FullMixture(mixture.means.movedim(2, -1), mixture.logweights.squeeze(2), covs)


def full_moments(mixture: Mixture) -> FullGaussian:
    """Mean, and the covariance between the channels of every pixel."""
    centre = mean(mixture)
    away = (mixture.means - centre[:, None]).movedim(2, -1)
    between = torch.einsum("bk...,bk...c,bk...d->b...cd", mixture.weights.squeeze(2), away, away)
    return FullGaussian(centre.movedim(1, -1), between + full_mixture(mixture).covs.squeeze(1))


def full_product(a: FullGaussian, b: FullGaussian, a_power: float = 1.0, b_power: float = 1.0) -> FullGaussian:
    """a^a_power * b^b_power, normalised: arXiv 2504.05304 eqs. 44, 45; a power of -1 divides."""
    precision_a, precision_b = a_power * torch.linalg.inv(a.cov), b_power * torch.linalg.inv(b.cov)
    cov = torch.linalg.inv(precision_a + precision_b)
    pull = times(precision_a, a.mean) + times(precision_b, b.mean)
    return FullGaussian(times(cov, pull), cov)


def times_full_gaussian(
    mixture: FullMixture, gaussian: FullGaussian, power: float = 1.0, gaussian_power: float = 1.0
) -> FullMixture:
    """The mixture M with M^power = mixture^power * gaussian^gaussian_power, up to a constant; -1 divides.

    arXiv 2504.05304 eqs. 47 to 50. With L^-1 = power / gaussian_power cov, the covariance S becomes (S^-1 + L)^-1, and
    log pi loses d . (S + L^-1)^-1 d / 2, d = mu - m.
    """
    target = gaussian.cov[:, None] * (power / gaussian_power)
    total = mixture.covs + target
    away = mixture.means - gaussian.mean[:, None]
    pulled = times(torch.linalg.inv(total), away)
    kept = gaussian.mean[:, None] + times(target, pulled)
    logits = mixture.logweights - (away * pulled).sum(-1) / 2
    covs = mixture.covs @ torch.linalg.solve(total, target)
    return FullMixture(kept, logits.log_softmax(1), (covs + covs.mT) / 2)


def full_log_prob(mixture: FullMixture, x: Tensor) -> Tensor:
    """The log-density of every pixel of x (B, *S, C): (B, *S)."""
    root = torch.linalg.cholesky(mixture.covs)
    away = torch.linalg.solve_triangular(root, (x[:, None] - mixture.means)[..., None], upper=False).squeeze(-1)
    volume = root.diagonal(dim1=-2, dim2=-1).log().sum(-1) + x.shape[-1] * math.log(2 * math.pi) / 2
    return (mixture.logweights - away.square().sum(-1) / 2 - volume).logsumexp(1)


def full_sample(mixture: FullMixture, index: Tensor, noise: Tensor) -> Tensor:
    """(B, *S, C): mean of the component `index` (B, *S) of each pixel, plus the Cholesky root times `noise`."""
    shape = (len(index), 1, *mixture.means.shape[2:])
    picked = mixture.means.gather(1, index[:, None, ..., None].expand(shape)).squeeze(1)
    return picked + times(torch.linalg.cholesky(mixture.covs).squeeze(1), noise)


def times(matrix: Tensor, vector: Tensor) -> Tensor:
    """(..., C, C) times (..., C)."""
    return (matrix @ vector[..., None]).squeeze(-1)
