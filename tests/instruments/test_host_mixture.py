"""The exact mixture inside the host: every prediction type answers the exact posterior mean and converges."""

import pytest
import torch
from fewstep.samplers.noise_law import FLOW, VARIANCE_EXPLODING
from support.mixture import GuidedMixture, converged, picture_like

pytestmark = pytest.mark.usefixtures("host")
KINDS = ["eps", "v", "edm", "flow"]
LABELS = [0, 3]


def noise(count: int = 2) -> torch.Tensor:
    return torch.randn((count, 4, 16, 16), generator=torch.Generator().manual_seed(0))


def exact(kind: str, cfg: float = 1.0) -> GuidedMixture:
    law = FLOW if kind == "flow" else VARIANCE_EXPLODING
    return GuidedMixture(picture_like(), law, torch.tensor(LABELS), cfg)


def sample(patcher, scheduler: str, steps: int, cfg: float, sampler="dpmpp_2m"):
    """The host's own way: KSampler's function on real conditioning."""
    import comfy.sample
    from support.host_mixture import label_conditioning

    positive, negative = label_conditioning(LABELS), label_conditioning([-1, -1])
    latent = torch.zeros(2, 4, 16, 16)
    return comfy.sample.sample(
        patcher, noise(), steps, cfg, sampler, scheduler, positive, negative, latent, disable_pbar=True, seed=0
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sigma", [0.03, 0.4, 0.93])
def test_one_model_call_is_the_posterior_mean(kind, sigma):
    from support.host_mixture import mixture_model

    x = noise() * 1.3
    model = mixture_model(picture_like(), kind).model
    label = torch.tensor(LABELS, dtype=torch.float32).reshape(-1, 1, 1)
    denoised = model.apply_model(x, torch.full((2,), sigma), c_crossattn=label)
    torch.testing.assert_close(denoised.double(), exact(kind)(x.double(), sigma), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_hosts_sampler_reaches_the_converged_solution(kind):
    """64 steps of the host's own second-order sampler with guidance end at the solution of the pure denoiser."""
    from support.host_mixture import mixture_model

    patcher = mixture_model(picture_like(), kind, shift=3.0)
    sampling = patcher.model.model_sampling
    top = sampling.sigma_max
    start = sampling.noise_scaling(top, noise(), torch.zeros(1), max_denoise=True)
    solution = converged(exact(kind, cfg=3.0), start, float(top), tolerance=1e-7)
    drawn = sample(patcher, "sgm_uniform" if kind == "flow" else "karras", 64, cfg=3.0)
    assert (drawn - solution).square().mean() < 2e-3


def test_guidance_of_a_batch_is_that_of_its_items():
    both = exact("eps", cfg=4.0)(noise().double(), 1.0)
    for item, label in enumerate(LABELS):
        alone = GuidedMixture(picture_like(), VARIANCE_EXPLODING, torch.tensor([label]), 4.0)
        torch.testing.assert_close(alone(noise()[item : item + 1].double(), 1.0)[0], both[item])


def test_the_converged_solution_of_one_gaussian_is_known():
    """One component: y(0) = m + sqrt(P / (P + s^2)) (y(s) - m) at every frequency."""
    mixture, s = picture_like(size=4, components=1, classes=1), 5.0
    y = s * torch.randn((3, 4, 4, 4), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    shrink = (mixture.spectrum / (mixture.spectrum + s**2)).sqrt()
    expected = mixture.to_pixels(mixture.means + shrink * (mixture.to_frequency(y) - mixture.means))
    got = converged(GuidedMixture(mixture, VARIANCE_EXPLODING), y, s)
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)
    flow = converged(GuidedMixture(mixture, FLOW), y / (1 + s), s / (1 + s))
    torch.testing.assert_close(flow, expected, atol=1e-5, rtol=0)


def test_a_model_that_fails_or_interrupts_inside_the_host():
    import comfy.model_management
    from support.host_mixture import fail, mixture_model

    patcher = mixture_model(picture_like(), "eps")
    fail(patcher, at=3)
    assert sample(patcher, "karras", 6, cfg=1.0, sampler="euler").isnan().any()
    interrupt = comfy.model_management.InterruptProcessingException()
    fail(patcher, at=3, error=interrupt)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        sample(patcher, "karras", 6, cfg=1.0, sampler="euler")
