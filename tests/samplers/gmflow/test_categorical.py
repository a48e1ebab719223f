"""Which component a pixel takes, down to chances of one in a thousand million: the trap of arXiv 2409.02908.

Masked diffusion was found to draw at a lower temperature than asked, because Gumbel noise made of float32 uniform
numbers has no tail. Every categorical draw of ours is `choose`; here is its law where float32 ends.
"""

from __future__ import annotations

import pytest
import torch
from fewstep.samplers.gmflow.mixture import Mixture, choose
from scipy import stats

RARE = [3e-9, 1e-9, 4e-9]  # chances of the last components, or of the first
TAIL = sum(RARE)
COUNT = 20_000


def mixture(chances: list[float], count: int, dtype: torch.dtype) -> Mixture:
    """count pixels of one channel, with the same chances."""
    logweights = torch.tensor(chances, dtype=torch.float64).log().to(dtype).view(1, -1, 1, 1)
    shape = (1, len(chances), 1, count)
    return Mixture(torch.zeros(shape, dtype=dtype), logweights.expand(shape), torch.zeros(1, 1, 1, 1, dtype=dtype))


def numbers_beyond(chance: float, upper: bool, dtype: torch.dtype) -> torch.Tensor:
    """Gaussian numbers of the tail that has this chance, (1, 1, COUNT), in float64 before they are rounded."""
    uniform = torch.rand(COUNT, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * chance
    number = torch.special.ndtri(uniform)
    return (-number if upper else number).to(dtype).view(1, 1, COUNT)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("upper", [True, False], ids=["last", "first"])
def test_rare_components_have_their_chances(dtype, upper):
    """Of the numbers in the tail of 8e-9 every rare component gets its share, and the frequent one none."""
    often = [1 - TAIL]
    chances = [*often, *RARE] if upper else [*RARE, *often]
    index = choose(mixture(chances, COUNT, dtype), numbers_beyond(TAIL, upper, dtype)).flatten()
    seen = torch.bincount(index, minlength=4)
    rare = seen[1:] if upper else seen[:3]
    assert int(seen[0 if upper else 3]) <= 2  # at the very edge of the tail, by rounding
    expected = torch.tensor(RARE, dtype=torch.float64) / TAIL * int(rare.sum())
    assert stats.chisquare(rare.numpy(), expected.numpy()).pvalue > 0.01


def test_ordinary_chances_have_their_shares():
    chances, count = [0.1, 0.25, 0.4, 0.05, 0.2], 50_000
    number = torch.randn((1, 1, count), generator=torch.Generator().manual_seed(1))
    seen = torch.bincount(choose(mixture(chances, count, torch.float32), number).flatten(), minlength=5)
    assert stats.chisquare(seen.numpy(), [count * chance for chance in chances]).pvalue > 0.01


def test_compared_with_one_uniform_number_of_float32_rare_components_would_never_be_taken():
    """What `choose` avoids: all of these numbers lie in the tail that belongs to the rare ones."""
    number = numbers_beyond(TAIL, True, torch.float32)
    reached = torch.tensor([1 - TAIL, *RARE]).cumsum(0)
    plainly = (reached[:, None] < torch.special.ndtr(number.flatten())).sum(0)
    assert int(plainly.max()) == 0
    assert int((choose(mixture([1 - TAIL, *RARE], COUNT, torch.float32), number) > 0).sum()) >= COUNT - 2


def test_gumbel_noise_of_float32_ends_at_17():
    """Why no draw of ours takes the largest of logits plus Gumbel noise."""
    largest = torch.tensor(1 - 2.0**-24)  # the highest float32 below 1
    assert float(-(-largest.log()).log()) == pytest.approx(16.6, abs=0.1)
    assert float(-(-torch.tensor(1 - 2.0**-53, dtype=torch.float64).log()).log()) > 36
