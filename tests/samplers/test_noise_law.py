"""NoiseLaw: the two laws are one in y = x / alpha."""

import pytest
import torch
from fewstep.samplers.noise_law import FLOW, VARIANCE_EXPLODING

LAWS = pytest.mark.parametrize("law", [VARIANCE_EXPLODING, FLOW], ids=["ve", "flow"])


@LAWS
def test_ratio_and_sigma_are_inverse(law):
    sigma = torch.linspace(0.001, 0.999, 101, dtype=torch.float64)
    torch.testing.assert_close(law.sigma(law.ratio(sigma)), sigma, rtol=1e-12, atol=0)
    torch.testing.assert_close(law.lam(sigma), -torch.log(sigma / law.alpha(sigma)))


@LAWS
@pytest.mark.parametrize("low, high", [(0.0, 0.3), (0.2, 0.9), (0.5, 0.5), (0.5, 1.0)])
def test_renoising_gives_the_law_of_the_higher_sigma(law, low, high):
    """Means and variances over 40,000 draws, against x = alpha x0 + sigma e."""
    generator = torch.Generator().manual_seed(3)
    e, noise = torch.randn((2, 40000), generator=generator, dtype=torch.float64)
    x0 = 1.7
    x = law.renoise(law.alpha(low) * x0 + low * e, low, high, noise)
    assert x.mean().item() == pytest.approx(law.alpha(high) * x0, abs=4 * high / 200)
    assert x.std().item() == pytest.approx(high, rel=4 / 283)


@LAWS
def test_renoising_downwards_is_refused(law):
    with pytest.raises(ValueError, match="from sigma 0.5 down to 0.4"):
        law.renoise(torch.zeros(1), 0.5, 0.4, torch.zeros(1))
