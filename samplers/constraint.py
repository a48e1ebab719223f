"""Pictures held to a measurement: the manifold-constrained gradient, MCG (arXiv 2206.00941, algorithm 1).

| symbol  | meaning                                                                                         |
|---------|-------------------------------------------------------------------------------------------------|
| A, y    | what is known of a picture x: y = A x                                                            |
| D       | the prediction of x at the state of a step                                                      |
| J       | dD / dstate; the covariance of x given the state, but for a factor, and so symmetric             |
| e       | y - A D, what the prediction still misses                                                       |
| A^+     | the pseudo-inverse: A^+ y is the smallest change that makes up for y                             |

The paper moves along J^T A^T e / |e|, the gradient of |e|, and then puts the known part of y in: what is unknown
follows what is known, by the model's own idea of how the two go together, instead of meeting it at a seam.

Differs: the paper moves the state after an ancestral step, by a length that is to be found anew for every number of
steps. Here the prediction is moved, so that any sampler may make the step: a sampler takes (1 - sigma' / sigma) of it
over into its state. The length is the one that solves A J A^T u = e in the direction e, of conjugate gradients: exact
for a measurement of one number, the more so in further iterations, and the same for any number of steps and either
noise law. The norm is that of each picture, where the published code takes the batch's. Nothing is replaced in the
state: a prediction whose known part is y leads any sampler through noised states of y.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

Response = Callable[[Tensor], Tensor]  # v -> J v, of the prediction's shape
FADED = 0.1  # share of a frequency below which a blur has taken it: what is left would be noise, ten times as strong


class Operator(Protocol):
    """A of (B, C, ..., H, W). `weight` is how far each number of y is known, from 0 to 1."""

    def measure(self, x: Tensor) -> Tensor:
        """A x."""
        ...

    def spread(self, y: Tensor) -> Tensor:
        """A^T y."""
        ...

    def restore(self, y: Tensor) -> Tensor:
        """A^+ y."""
        ...


@dataclass(frozen=True)
class Identity:
    """Of inpainting, whose unknown part has the weight 0."""

    def measure(self, x: Tensor) -> Tensor:
        return x

    spread = restore = measure


@dataclass(frozen=True)
class Pooled:
    """The mean of every square of `factor` by `factor`: of super-resolution."""

    factor: int

    def measure(self, x: Tensor) -> Tensor:
        rows, columns = x.shape[-2] // self.factor, x.shape[-1] // self.factor
        return x.reshape(*x.shape[:-2], rows, self.factor, columns, self.factor).mean((-3, -1))

    def spread(self, y: Tensor) -> Tensor:
        return self.restore(y) / self.factor**2

    def restore(self, y: Tensor) -> Tensor:
        return y.repeat_interleave(self.factor, -2).repeat_interleave(self.factor, -1)


@dataclass(frozen=True)
class Grey:
    """One weighted sum of the channels."""

    weights: tuple[float, ...]

    def along(self, x: Tensor) -> Tensor:
        return x.new_tensor(self.weights).reshape(-1, *[1] * (x.ndim - 2))

    def measure(self, x: Tensor) -> Tensor:
        return (x * self.along(x)).sum(1, keepdim=True)

    def spread(self, y: Tensor) -> Tensor:
        return y * self.along(y)

    def restore(self, y: Tensor) -> Tensor:
        return self.spread(y) / sum(weight**2 for weight in self.weights)


@dataclass(frozen=True)
class Blurred:
    """A Gaussian of deviation `radius`, with a picture's edges mirrored: a share of every frequency of the DCT."""

    radius: float

    def measure(self, x: Tensor) -> Tensor:
        return self.by_frequency(x, lambda share: share)

    spread = measure

    def restore(self, y: Tensor) -> Tensor:
        return self.by_frequency(y, lambda share: torch.where(share > FADED, 1 / share, 0.0))

    def by_frequency(self, x: Tensor, factor: Callable[[Tensor], Tensor]) -> Tensor:
        rows, columns = (cosines(n).to(x) for n in x.shape[-2:])
        shares = [(-0.5 * (self.radius * math.pi * torch.arange(n) / n) ** 2).exp().to(x) for n in x.shape[-2:]]
        return rows.T @ (factor(shares[0][:, None] * shares[1]) * (rows @ x @ columns.T)) @ columns


@lru_cache(maxsize=8)
def cosines(n: int) -> Tensor:
    """The orthonormal DCT-II, (n, n) float64."""
    with torch.inference_mode(False):  # it is kept for calls that take gradients
        k, i = torch.arange(n, dtype=torch.float64)[:, None], torch.arange(n, dtype=torch.float64)
        rows = torch.cos(math.pi * k * (2 * i + 1) / (2 * n)) * math.sqrt(2 / n)
        rows[0] /= math.sqrt(2)
        return rows


@dataclass(frozen=True, eq=False)
class Measurement:
    """What is known: y = A x where weight is 1, nothing where it is 0. y and weight: of A's shape, (B, ...)."""

    operator: Operator
    y: Tensor
    weight: Tensor

    def missed(self, denoised: Tensor) -> Tensor:
        """e."""
        return self.weight * (self.y - self.operator.measure(denoised))

    def kept(self, denoised: Tensor) -> Tensor:
        """The nearest prediction that has what is known."""
        return denoised + self.operator.restore(self.missed(denoised))

    def move(self, denoised: Tensor, response: Response, iterations: int) -> Tensor:
        """What to add to the prediction, by so many conjugate gradients of A J A^T u = e, each picture its own.

        A length that would lead away from y, as a network's J that is not symmetric may ask for, is cut to one that
        does not.
        """
        left = self.missed(denoised)
        moved, towards, squares = torch.zeros_like(denoised), left, dot(left, left)
        for number in range(iterations):
            way = response(self.operator.spread(self.weight * towards))
            seen = self.weight * self.operator.measure(way)
            length = bounded(squares, dot(towards, seen), dot(left, seen), dot(seen, seen))
            moved, left = moved + over(length, moved) * way, left - over(length, left) * seen
            if number + 1 < iterations:
                before, squares = squares, dot(left, left)
                towards = left + over(divided(squares, before), left) * towards
        return moved


def bounded(squares: Tensor, energy: Tensor, descent: Tensor, length: Tensor) -> Tensor:
    """squares / energy, at most what leaves |e| as it was, and 0 where there is no way to y; all (B,)."""
    most = divided(2 * descent, length)
    return torch.where((energy > 0) & (descent > 0), torch.minimum(divided(squares, energy), most), 0.0)


def divided(a: Tensor, b: Tensor) -> Tensor:
    """a / b, and 0 where b is 0."""
    return torch.where(b == 0, 0.0, a / torch.where(b == 0, 1.0, b))


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Of each picture, (B,)."""
    wide = torch.promote_types(a.dtype, torch.float32)
    return (a.to(wide) * b.to(wide)).flatten(1).sum(1)


def over(values: Tensor, like: Tensor) -> Tensor:
    """(B,) -> (B, 1, ...)."""
    return values.to(like.dtype).reshape(-1, *[1] * (like.ndim - 1))


def fitted(weight: Tensor, size: tuple[int, int]) -> Tensor:
    """Weights (B, 1, h, w) at another size."""
    if weight.shape[-2:] == size:
        return weight
    return functional.interpolate(weight, size=size, mode="bilinear", antialias=True)
