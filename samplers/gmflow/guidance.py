"""Probabilistic guidance on mixtures, arXiv 2504.05304 section 3.2, and second order, section A.2.

| symbol | name        | meaning                                                                                      |
|--------|-------------|----------------------------------------------------------------------------------------------|
| mu_c   | `centre`    | mean of the conditional mixture                                                              |
| V      | `spread`    | its variance per channel, averaged over the item's pixels, (B, 1, *1)                         |
| w~     | `strength`  | guidance strength in [0, 1)                                                                  |
| b      | `bias`      | what guidance adds to the mean; its root mean square is w~ sqrt(V)                            |
| rho    | `share`     | share of the variance that the bias takes: w~^2, or rms(B)^2 / V with the correction B        |

Both multiply the mixture by N(mu + B, V (1 - rho)) / N(mu, V). As a `Tilt` about mu that is force = B / (V (1 - rho))
and precision = rho / (V (1 - rho)), finite at w~ = 0. Differs: the authors' code forms the quotient as a Gaussian and
clamps its variance, which pulls x0 towards 0 where V w~^2 < 1e-6: at low noise pictures lose amplitude.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .mixture import Mixture, Tilt, mean, moments, tilt

LEAST_SQUARE = 1e-6  # of a difference: below it, where two prompts agree, its direction means nothing
LARGEST_SHARE = 1 - 1e-6
VARIANCE_SHARE = 0.005  # c_a of second order


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a mixture denoiser gives: the mixture of x0 under the condition, and what guidance adds to its mean.

    bias (B, C, *S), or None without guidance, as in Prediction(mixture).
    """

    conditional: Mixture
    bias: Tensor | None = None
    strength: float = 0.0

    @cached_property
    def centre(self) -> Tensor:
        """mu_c, (B, C, *S)."""
        return mean(self.conditional)

    @cached_property
    def spread(self) -> Tensor:
        """V, (B, 1, *1)."""
        return spread_of(self.conditional)

    @cached_property
    def mixture(self) -> Mixture:
        """The guided mixture: arXiv 2504.05304 eq. 7."""
        if self.bias is None:
            return self.conditional
        return shifted(self, self.bias, torch.full_like(self.spread, self.strength**2))


def guided(conditional: Mixture, unconditional: Mixture, strength: float, orthogonal: float = 1.0) -> Prediction:
    """Probabilistic guidance between two mixtures of x0 at the same x: arXiv 2504.05304 eq. 8.

    b = strength sqrt(V) d / rms(d), d = mu_c - mu_u less the share `orthogonal` of its part along mu_c
    (section 4.2). Only the direction of d counts; where rms(d) < 1e-3 the bias fades with it.
    Raises ValueError for a strength outside of [0, 1).
    """
    if not 0 <= strength < 1:
        raise ValueError(
            f"The guidance strength is {strength:g}; it must be at least 0 and below 1 (0 is no guidance)."
        )
    centre = mean(conditional)
    difference = across(centre - mean(unconditional), centre, orthogonal)
    size = mean_square(difference).clamp(min=LEAST_SQUARE)
    return Prediction(conditional, difference * (strength * (spread_of(conditional) / size).sqrt()), strength)


def across(difference: Tensor, along: Tensor, orthogonal: float) -> Tensor:
    """`difference` less the share `orthogonal` of its projection on `along`, item by item."""
    projection = mean_of_item(difference * along) / mean_of_item(along.square()).clamp(min=LEAST_SQUARE)
    return difference - orthogonal * projection * along


def shifted(prediction: Prediction, bias: Tensor, share: Tensor) -> Mixture:
    """The conditional mixture times N(mu + bias, V (1 - share)) / N(mu, V). bias (B, C, *S), share (B, 1, *1)."""
    left = prediction.spread * (1 - share)
    return tilt(prediction.conditional, Tilt(prediction.centre, bias / left, share / left))


# ---------------------------------------------------------------------------------------------------------
# Second order


@dataclass(frozen=True, eq=False)
class Earlier:
    """What a step leaves for the next: the mean that its first-order mixture expects there, and its length.

    expected (B, C, *S), h in sigma.
    """

    expected: Tensor
    h: float


def second_order(prediction: Prediction, earlier: Earlier, h: float, corrections: int = 0) -> Mixture:
    """The guided mixture with its mean extrapolated over a step of length h: arXiv 2504.05304 eq. 14."""
    return shifted(prediction, *extrapolated(prediction, earlier, h, corrections))


def extrapolated(prediction: Prediction, earlier: Earlier, h: float, corrections: int = 0) -> tuple[Tensor, Tensor]:
    """The bias of second order with that of guidance in it, (B, C, *S), and the share of the variance that it takes.

    arXiv 2504.05304 eq. 13, for steps of any length. The model's mean here differs from what the step before expected
    of it; f times the difference is added, f going from h / (2 h_p) at a narrow mixture to 0 where its spread exceeds
    the step.
    corrections: how often the bias is adapted towards the one whose result has the intended mean. That is an iteration
    of the authors' code, off by default; it need not converge where components lie far apart.
    """
    current = mean(prediction.mixture)
    change = trust(prediction, earlier.h) * (h / (2 * earlier.h)) * (current - earlier.expected)
    intended = change + current - prediction.centre
    bias, share = bounded(prediction, change if prediction.bias is None else change + prediction.bias)
    for _ in range(corrections):
        reached = mean(shifted(prediction, bias, share)) - prediction.centre
        bias, share = bounded(prediction, corrected(bias, reached, intended))
    return bias, share


def trust(prediction: Prediction, h: float) -> Tensor:
    """sqrt(1 - e / h^2), or 0, with e = V (w~^2 + 0.005): (B, 1, *1).

    Differs: section A.2 of arXiv 2504.05304 has no root; the authors' code has, and it is what they measured.
    """
    error = prediction.spread * (prediction.strength**2 + VARIANCE_SHARE)
    return (1 - error / h**2).clamp(min=0).sqrt()


def bounded(prediction: Prediction, bias: Tensor) -> tuple[Tensor, Tensor]:
    """The bias, no larger than sqrt(V) in root mean square, and the share of the variance that it takes.

    Differs: the authors' code holds rms^2 above 1e-6 here, which shrinks every bias at low noise.
    """
    size = mean_square(bias)
    factor = (prediction.spread / size.clamp(min=torch.finfo(size.dtype).tiny)).clamp(max=1).sqrt()
    return bias * factor, (size / prediction.spread).clamp(max=LARGEST_SHARE)


def corrected(bias: Tensor, reached: Tensor, intended: Tensor) -> Tensor:
    """The bias less the error of the mean, in proportion to how strongly each pixel answers, at most one to one."""
    answer = bias.norm(dim=1, keepdim=True) / reached.norm(dim=1, keepdim=True).clamp(min=LEAST_SQUARE)
    return bias - (reached - intended) * answer.clamp(max=1)


# ---------------------------------------------------------------------------------------------------------


def spread_of(mixture: Mixture) -> Tensor:
    """V: the variance per channel, averaged over the pixels of an item, (B, 1, *1)."""
    return mean_of_item(moments(mixture).var)


def mean_of_item(x: Tensor) -> Tensor:
    """The mean over all but the first axis, kept as (B, 1, *1)."""
    return x.mean(tuple(range(1, x.ndim)), keepdim=True)


def mean_square(x: Tensor) -> Tensor:
    """rms^2 of every item, (B, 1, *1)."""
    return mean_of_item(x.square())
