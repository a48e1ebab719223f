"""NoiseLaw: the laws are one in y = x / alpha."""

import math

import pytest
import torch
from fewstep.samplers.noise_law import FLOW, VARIANCE_EXPLODING, NoiseLaw

SCALED = NoiseLaw(is_flow=True, scale=8.0)
LAWS = pytest.mark.parametrize("law", [VARIANCE_EXPLODING, FLOW, SCALED], ids=["ve", "flow", "scaled"])


@LAWS
def test_ratio_and_sigma_are_inverse(law):
    sigma = torch.linspace(0.001, 0.999, 101, dtype=torch.float64)
    torch.testing.assert_close(law.sigma(law.ratio(sigma)), sigma, rtol=1e-12, atol=0)
    torch.testing.assert_close(law.lam(sigma), -torch.log(law.deviation(sigma) / law.alpha(sigma)))


@LAWS
@pytest.mark.parametrize("low, high", [(0.0, 0.3), (0.2, 0.9), (0.5, 0.5), (0.5, 1.0)])
def test_renoising_gives_the_law_of_the_higher_sigma(law, low, high):
    """Means and variances over 40,000 draws, against x = alpha x0 + c sigma e."""
    generator = torch.Generator().manual_seed(3)
    e, noise = torch.randn((2, 40000), generator=generator, dtype=torch.float64)
    x0 = 1.7
    x = law.renoise(law.noised(torch.tensor(x0), low, e), low, high, noise)
    deviation = 8 * high if law is SCALED else high
    assert x.mean().item() == pytest.approx(law.alpha(high) * x0, abs=4 * deviation / 200)
    assert x.std().item() == pytest.approx(deviation, rel=4 / 283)


@LAWS
def test_renoising_downwards_is_refused(law):
    with pytest.raises(ValueError, match="from sigma 0.5 down to 0.4"):
        law.renoise(torch.zeros(1), 0.5, 0.4, torch.zeros(1))


@pytest.mark.parametrize("law", [FLOW, SCALED], ids=["flow", "scaled"])
def test_a_flow_models_one_is_one_however_it_was_rounded(law):
    """The host's float32 begins at 1.0000001 at 79 of 9,901 shifts; a negative alpha has no logarithm."""
    for sigma in (1.0, 1.0000001, 1 + 1e-6):
        assert (law.alpha(sigma), law.ratio(sigma)) == (0.0, math.inf)
        assert law.lam(torch.tensor([sigma])).item() == -math.inf
        x = torch.ones(3)
        assert torch.equal(law.renoise(x, 1.0, sigma, x), x)
