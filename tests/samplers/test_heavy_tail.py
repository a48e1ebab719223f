"""PFGM++'s prior: the published radius, its limit, and its evenness in all directions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from fewstep.samplers.heavy_tail import MOST, check_dimension, spread_of_norm, stretch
from scipy import stats

COUNT = 4000


def drawn(numbers: int, dimension: int, count: int = COUNT) -> np.ndarray:
    """(count, numbers) of unit scale."""
    ordinary = np.random.default_rng(0).standard_normal((count, numbers))
    return ordinary * np.array([[stretch(dimension, seed)] for seed in range(count)])


@pytest.mark.parametrize("numbers, dimension", [(12, 3), (48, 48), (48, 2048)])
def test_the_radius_is_the_papers(numbers, dimension):
    """R = sqrt(D B / (1 - B)), B of Beta(N/2, D/2); R^2 / N is then Fisher's F of N and D degrees."""
    squares = (drawn(numbers, dimension) ** 2).sum(1)
    beta = np.random.default_rng(1).beta(numbers / 2, dimension / 2, COUNT)
    assert stats.ks_2samp(squares, dimension * beta / (1 - beta)).pvalue > 0.01
    assert stats.kstest(squares / numbers, stats.f(numbers, dimension).cdf).pvalue > 0.01


def test_another_dimension_is_told_from_it():
    """So that the test above can fail."""
    squares = (drawn(48, 24) ** 2).sum(1)
    assert stats.kstest(squares / 48, stats.f(48, 2048).cdf).pvalue < 1e-6


@pytest.mark.parametrize("direction", [0, 1])
def test_every_direction_is_alike(direction):
    """A single number, and the sum of all, both of unit scale: Student's t of D degrees."""
    x = drawn(12, 5)
    along = (x[:, 0], x.sum(1) / math.sqrt(12))[direction]
    assert stats.kstest(along, stats.t(5).cdf).pvalue > 0.01


def test_at_a_high_dimension_it_is_ordinary_noise():
    assert [stretch(10**8, seed) for seed in range(50)] == pytest.approx([1] * 50, abs=1e-3)
    assert stretch(MOST, 0) == pytest.approx(1, abs=2e-4)


def test_the_spread_of_the_norm():
    """The figures that the node shows: 1.6 % at D 2048, and 0.3 % in ordinary noise of 65,536 numbers."""
    assert spread_of_norm(65536, 2048) == pytest.approx(0.016, abs=3e-4)
    assert spread_of_norm(65536) == pytest.approx(0.0028, abs=1e-4)
    norms = np.linalg.norm(drawn(256, 512), axis=1)
    assert norms.std() / norms.mean() == pytest.approx(spread_of_norm(256, 512), rel=0.08)


@pytest.mark.parametrize("dimension", [0, -1, MOST + 1, 2.5, math.nan, "2048", True])
def test_what_is_no_dimension_is_refused_in_words(dimension):
    with pytest.raises(ValueError, match="must be a whole number"):
        check_dimension(dimension)
