"""What is known of a mixture's draw, and the exact posterior of the rest: of every linear measurement, closed form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .mixture import Mixture, dct_matrix


@dataclass(frozen=True)
class Posterior:
    """mean and variance of every number, (C, H, W), given y = A x and, where told, a noisy state of x."""

    mean: Tensor
    variance: Tensor


def covariance(mixture: Mixture) -> Tensor:
    """Of a component, (N, N) in pixels, N = C H W."""
    basis = torch.kron(*(dct_matrix(n) for n in mixture.spectrum.shape[-2:]))
    return torch.block_diag(*(basis.T @ torch.diag(power.flatten()) @ basis for power in mixture.spectrum))


def matrix_of(measure: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> Tensor:
    """A as a matrix (M, N), without the rows that are 0."""
    identity = torch.eye(shape.numel() if isinstance(shape, torch.Size) else torch.Size(shape).numel()).double()
    rows = measure(identity.reshape(-1, *shape)).flatten(1).T
    return rows[rows.abs().sum(1) > 0]


def posterior(mixture: Mixture, a: Tensor, x: Tensor) -> Posterior:
    """Of what is measured of x (C, H, W) by the matrix a."""
    prior, means = covariance(mixture), mixture.to_pixels(mixture.means).flatten(1)
    seen = a @ prior @ a.T
    missed = (x.flatten() - means) @ a.T
    solved = torch.linalg.solve(seen, missed.T).T
    weights = (-0.5 * (missed * solved).sum(1)).softmax(0)
    centres = means + solved @ a @ prior
    mean = weights @ centres
    within = prior.diagonal() - ((a @ prior) * torch.linalg.solve(seen, a @ prior)).sum(0)
    variance = within + weights @ (centres - mean).square()
    return Posterior(mean.view_as(x), variance.clamp(min=0).view_as(x))


@dataclass(frozen=True)
class Judged:
    """bias: squared, of the mean of the draws, without what few draws alone would have. variance: over the truth's."""

    bias: float
    variance: float


def judged(draws: Tensor, truth: Posterior) -> Judged:
    """draws: (D, C, H, W) of one problem. Where the truth leaves nothing open, nothing is judged."""
    is_open = truth.variance > 1e-6
    own = draws.double().var(0)
    squared = (draws.double().mean(0) - truth.mean).square() - own / len(draws)
    return Judged(float(squared[is_open].mean()), float(own[is_open].mean() / truth.variance[is_open].mean()))
