"""The light Schroedinger bridge between two sets of codes, arXiv 2310.01174: a plan in closed form, fitted in seconds.

| symbol     | meaning                                                                                       |
|------------|-----------------------------------------------------------------------------------------------|
| x, y       | codes of the one set and of the other, (N, D)                                                 |
| eps        | the noise of the bridge: how freely x finds its y                                             |
| a, r, S    | weight, centre and (diagonal) slope of each of K components: log_a (K,), r and log_s (K, D)   |
| pi(y | x)  | sum_k a_k(x) N(y; r_k + S_k x, eps S_k), a_k(x) ~ a_k exp((x S_k x + 2 r_k x) / (2 eps))      |

Fitted by descent on E_x log c(x) - E_y log v(y) (equation 9), v(y) = sum_k a_k N(y; r_k, eps S_k) and c the sum of the
a_k exp(...) above; both as logarithms of sums, in float64.

Differs: components start at codes of the second set that lie far from each other, and at the slope of the plan between
Gaussians; no component gets narrower than a share of the second set's spread, because between two finite sets the loss
has no lower bound: a component could close around a single code.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

NARROWEST = 0.1  # of the second set's deviation, for a component
STEPS = 800
RATE = 0.03  # of Adam at the start; it falls to 0 by a cosine
LEAST = 1e-12


@dataclass(frozen=True, eq=False)
class LightBridge:
    """A fitted plan. log_a (K,), centres (K, D), log_slopes (K, D), float64."""

    noise: float
    log_a: Tensor
    centres: Tensor
    log_slopes: Tensor

    def log_weights(self, x: Tensor) -> Tensor:
        """log a_k(x) but for what all share, (N, K)."""
        along = (x[:, None] ** 2 * self.log_slopes.exp() + 2 * self.centres * x[:, None]).sum(-1)
        return self.log_a + along / (2 * self.noise)

    def log_potential(self, y: Tensor) -> Tensor:
        """log v(y), (N,)."""
        variances = self.noise * self.log_slopes.exp()
        squares = (y[:, None] - self.centres) ** 2 / variances + variances.log() + math.log(2 * math.pi)
        return (self.log_a - squares.sum(-1) / 2).logsumexp(1)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return self.log_weights(x).logsumexp(1).mean() - self.log_potential(y).mean()

    def mean(self, x: Tensor) -> Tensor:
        """E[y | x], (N, D)."""
        towards = self.centres + self.log_slopes.exp() * x[:, None]
        return (self.log_weights(x).softmax(1)[..., None] * towards).sum(1)

    def draw(self, x: Tensor, uniform: Tensor, normal: Tensor) -> Tensor:
        """y of pi(y | x). uniform (N,), float64, chooses the component; normal (N, D)."""
        ends = self.log_weights(x).softmax(1).cumsum(1)
        chosen = (uniform[:, None] * ends[:, -1:] >= ends).sum(1).clamp(max=len(self.log_a) - 1)
        slope = self.log_slopes.exp()[chosen]
        return self.centres[chosen] + slope * x + (self.noise * slope).sqrt() * normal


def slope_between(variance_x: Tensor, variance_y: Tensor, noise: float) -> Tensor:
    """S of the plan between Gaussians of these variances: (sqrt(eps^2 + 4 ab) - eps) / 2a, without the difference."""
    return 2 * variance_y / ((noise**2 + 4 * variance_x * variance_y).sqrt() + noise)


def spread_out(y: Tensor, count: int) -> Tensor:
    """So many codes, each the farthest from those before it, the first the nearest to the mean; (count, D)."""
    chosen = [int((y - y.mean(0)).square().sum(1).argmin())]
    distance = (y - y[chosen[0]]).square().sum(1)
    while len(chosen) < count:
        chosen.append(int(distance.argmax()))
        distance = torch.minimum(distance, (y - y[chosen[-1]]).square().sum(1))
    return y[chosen]


def fit(
    x: Tensor,
    y: Tensor,
    components: int,
    noise: float,
    steps: int = STEPS,
    on_step: Callable[[int], None] = lambda step: None,
) -> LightBridge:
    """The bridge between codes x (N, D) and y (M, D), both float64. on_step: told of each step, may raise to stop."""
    with torch.inference_mode(False), torch.enable_grad():
        x, y = x.clone(), y.clone()
        variance_x, variance_y = (codes.var(0, correction=0).clamp(min=LEAST) for codes in (x, y))
        spread, floor = variance_y.sqrt(), (NARROWEST**2 * variance_y / noise).log()
        slope = slope_between(variance_x, variance_y, noise)
        log_a = torch.full((components,), -math.log(components), dtype=torch.float64)
        centres = (spread_out(y, components) - slope * x.mean(0)) / spread  # so that Adam's steps are shares of it
        parts = [part.clone().requires_grad_() for part in (log_a, centres, slope.log().expand(components, -1))]

        def bridge(log_a: Tensor, centres: Tensor, log_slopes: Tensor) -> LightBridge:
            return LightBridge(noise, log_a, centres * spread, torch.maximum(log_slopes, floor))

        descend(parts, lambda: bridge(*parts).loss(x, y), steps, on_step)
        return bridge(*(part.detach() for part in parts))


def descend(parts: list[Tensor], loss: Callable[[], Tensor], steps: int, on_step: Callable[[int], None]) -> None:
    optimizer = torch.optim.Adam(parts, lr=RATE)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        falling.step()
        on_step(step)


def energy_distance(x: Tensor, y: Tensor) -> float:
    """2 E|x - y| - E|x - x'| - E|y - y'|: 0 for sets of the same distribution."""
    between = torch.cdist(x, y).mean()
    return float(2 * between - torch.cdist(x, x).mean() - torch.cdist(y, y).mean())
