"""The prior of PFGM++, arXiv 2302.04265: noise with heavy tails, of an augmented dimension D.

The paper draws the direction u evenly on the sphere of N dimensions and the radius R = r_max sqrt(B / (1 - B)) with B
of Beta(N/2, D/2), r_max = sigma_max sqrt(D) (appendix B). B / (1 - B) is the ratio of two chi-squares, of N and of D
degrees of freedom, so that in units of sigma_max

    R u = g / sqrt(chi2_D / D),   g ~ N(0, I_N)

is the same law: Student's t of D degrees, one number a picture beside ordinary noise, and as D grows that noise itself.
"""

from __future__ import annotations

import math

import numpy as np

from .facts import whole

MOST = 10**9


def check_dimension(dimension: int) -> None:
    """Raises ValueError for what is no D."""
    whole(1, MOST).check("dimension", dimension)


def stretch(dimension: int, seed: int) -> float:
    """sqrt(D / chi2_D), drawn in float64: float32 would cut the tail that all this is about."""
    chi2 = 2 * np.random.default_rng(seed).standard_gamma(dimension / 2)
    return math.sqrt(dimension / max(chi2, np.finfo(np.float64).tiny))


def spread_of_norm(numbers: int, dimension: float = math.inf) -> float:
    """The relative standard deviation of the norm of noise of so many numbers, near enough for large ones."""
    return math.sqrt(1 / (2 * numbers) + 1 / (2 * dimension))
