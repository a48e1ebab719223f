"""Restart as the host's SAMPLER, in this process: kinds of model, seeds, masks, shapes, every inner sampler."""

from __future__ import annotations

import pytest
import torch
from fewstep.samplers.noise_law import FLOW, VARIANCE_EXPLODING
from fewstep.schedulers.restart.plan import Interval
from fewstep.schedulers.restart.request import requested_plan
from support.mixture import picture_like

pytestmark = pytest.mark.usefixtures("host")
KINDS = ["eps", "v", "edm", "flow"]
LABELS = [0, 3, 5, 1]
EVERY = slice(None)
TWICE = [Interval(4, 2, 0.3, 1.5)]


def schedule(patcher, steps: int = 8, denoise: float = 1.0, intervals=TWICE) -> torch.Tensor:
    """karras (simple on flow models) with two restarts on top."""
    import comfy.samplers
    from fewstep.nodes.host.noise_law import noise_law

    sampling = patcher.get_model_object("model_sampling")
    law = noise_law(sampling)
    sigmas = comfy.samplers.calculate_sigmas(sampling, "simple" if law.is_flow else "karras", round(steps / denoise))
    plan = requested_plan(sigmas[-steps - 1 :].tolist(), law, "a1111", "add_steps", intervals)
    return torch.tensor(plan.sigmas, dtype=torch.float32)


def mixture(kind: str):
    from support.host_mixture import mixture_model

    return mixture_model(picture_like(), kind, shift=3.0)


def start_noise(count: int = 4, seed: int = 0) -> torch.Tensor:
    """As the host draws it for a batch."""
    return torch.randn((count, 4, 16, 16), generator=torch.Generator().manual_seed(seed))


def sample(patcher, inner: str | None = None, seed: int = 7, items: slice = EVERY, **given) -> torch.Tensor:
    """The host's own way; `items` of the batch of four, `given` for what a test changes."""
    import comfy.sample
    import comfy.samplers
    from fewstep.nodes.host.sampler import restart_sampler
    from support.host_mixture import label_conditioning

    noise = given.pop("noise", start_noise())[items]
    latent = given.pop("latent", torch.zeros(4, 4, 16, 16))[items]
    sampler = restart_sampler(inner and comfy.samplers.sampler_object(inner), given.pop("s_noise", 1.0))
    labels = [[0] * 4 if given.pop("same_label", False) else LABELS, [-1] * 4]
    conditioning = [label_conditioning(part[items]) for part in labels]
    sigmas = given.pop("sigmas", None)
    sigmas = schedule(patcher) if sigmas is None else sigmas
    return comfy.sample.sample_custom(
        patcher, noise, 3.0, sampler, sigmas, *conditioning, latent, disable_pbar=True, seed=seed, **given
    )


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_model_keeps_the_spread_of_true_samples(kind):
    """A re-noising by the wrong law would leave or remove noise: the residual D(x) - x at no noise would tell."""
    drawn = sample(mixture(kind))
    low = VARIANCE_EXPLODING.ratio(0.03)
    residual = picture_like().denoise(drawn.double(), low) - drawn
    assert residual.square().mean().sqrt() < 0.02
    assert drawn.std().item() == pytest.approx(1.0, abs=0.25)


@pytest.mark.parametrize("inner", [None, "euler", "dpmpp_2m_sde"])
def test_the_same_seed_draws_the_same_latent_and_another_seed_another(inner):
    first = sample(mixture("eps"), inner)
    torch.manual_seed(99)  # what another workflow leaves behind
    sample(mixture("flow"), inner, seed=1)
    assert torch.equal(sample(mixture("eps"), inner), first)
    assert not torch.allclose(sample(mixture("eps"), inner, seed=8), first, atol=1e-2)


@pytest.mark.parametrize("kind", ["eps", "flow"])
@pytest.mark.parametrize("item", [0, 2])
def test_an_item_is_the_same_alone_and_in_a_batch(kind, item):
    batch = sample(mixture(kind))
    alone = sample(mixture(kind), items=slice(item, item + 1))
    torch.testing.assert_close(alone[0], batch[item], atol=2e-4, rtol=0)


def test_items_that_start_from_the_same_latent_without_noise_still_part():
    """DisableNoise: the initial noise is zero, so only their order tells the items apart."""
    sigmas = schedule(mixture("eps"), denoise=0.5, intervals=[Interval(4, 1, 0.2, 0.8)])
    latent = picture_like().sample(1, seed=1).float().expand(4, -1, -1, -1)
    drawn = sample(mixture("eps"), latent=latent, noise=torch.zeros(4, 4, 16, 16), sigmas=sigmas)
    apart = (drawn[0] - drawn[1:]).square().flatten(1).mean(1)
    assert apart.min() > 0.01


def test_pictures_that_the_person_made_equal_stay_equal():
    """Latent Batch Seed Behavior "fixed", or a batch index twice: the same noise and the same latent, one picture."""
    noise = start_noise()[[1, 1, 2, 1]]
    patcher = mixture("eps")
    drawn = sample(patcher, noise=noise, same_label=True)
    for item in (1, 3):
        torch.testing.assert_close(drawn[item], drawn[0], atol=2e-4, rtol=0)
    assert (drawn[2] - drawn[0]).square().mean() > 0.1


def test_the_noise_of_a_jump_is_new_and_leaves_the_global_generator_alone():
    from fewstep.nodes.host.noise import ItemNoise

    start = start_noise()
    torch.manual_seed(3)
    state = torch.get_rng_state()
    draw = ItemNoise(7, start)
    first, second = draw(0.1, 2.0), draw(0.1, 2.0)
    assert torch.equal(torch.get_rng_state(), state)
    joint = torch.stack([start, first, second]).flatten(1)
    correlation = torch.corrcoef(joint) - torch.eye(3)
    assert correlation.abs().max() < 5 / joint.shape[1] ** 0.5
    assert joint.var(1) == pytest.approx([1, 1, 1], abs=0.15)


@pytest.mark.parametrize("kind", ["eps", "flow"])
def test_a_masked_latent_keeps_what_the_mask_protects(kind):
    latent = picture_like().sample(4, seed=1).float()
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., :8] = 1.0
    drawn = sample(mixture(kind), latent=latent, noise_mask=mask)
    torch.testing.assert_close(drawn[..., 8:], latent[..., 8:], atol=1e-5, rtol=0)
    assert (drawn - latent)[..., :8].square().mean() > 0.1


@pytest.mark.parametrize("kind", ["eps", "flow"])
def test_image_to_image_stays_near_the_picture(kind):
    latent = picture_like().sample(4, seed=1).float()
    patcher = mixture(kind)
    sigmas = schedule(patcher, steps=6, denoise=0.4, intervals=[Interval(3, 1, 0.05, 0.2)])
    drawn = sample(patcher, latent=latent, sigmas=sigmas)
    free = sample(patcher)
    assert (drawn - latent).square().mean() < 0.7 * (free - latent).square().mean()


def inner_samplers() -> list[str]:
    from support.host import start_host

    start_host()
    import comfy.samplers

    return list(comfy.samplers.SAMPLER_NAMES)


def test_every_sampler_of_the_host_runs_between_the_jumps():
    """dpm_fast and dpm_adaptive too, which other restart nodes cannot run."""
    patcher = mixture("eps")
    broken = []
    for name in inner_samplers():
        sigmas = schedule(patcher, intervals=[Interval(5, 1, 0.3, 1.5)])
        drawn = sample(patcher, name, sigmas=sigmas)
        if not drawn.isfinite().all() or not 0.5 < drawn.std() < 2:
            broken.append(name)
    assert broken == []


def test_a_schedule_without_jumps_is_the_inner_sampler_itself():
    import comfy.sample
    import comfy.samplers
    from support.host_mixture import label_conditioning

    patcher = mixture("eps")
    sigmas = comfy.samplers.calculate_sigmas(patcher.get_model_object("model_sampling"), "karras", 8)
    for name in ("dpmpp_2m", "euler_ancestral", "dpmpp_2m_sde"):
        plain = comfy.sample.sample_custom(
            patcher,
            start_noise(),
            3.0,
            comfy.samplers.sampler_object(name),
            sigmas,
            label_conditioning(LABELS),
            label_conditioning([-1] * 4),
            torch.zeros(4, 4, 16, 16),
            disable_pbar=True,
            seed=7,
        )
        assert torch.equal(sample(patcher, name, sigmas=sigmas), plain), name


def test_an_sde_sampler_draws_other_noise_in_every_run():
    """Two equal runs of the schedule; the same seed in both would draw one Brownian path twice."""
    from fewstep.nodes.host.sampler import HostSolver

    seeds = []

    class Recorder:
        extra_options: dict = {}

        @staticmethod
        def sampler_function(model, x, sigmas, extra_args, callback, disable):
            seeds.append(extra_args["seed"])
            return x

    run = HostSolver(Recorder(), None, {"seed": 2**64 - 1})
    for _ in range(3):
        run(lambda x, sigma: x, torch.zeros(1), torch.tensor([2.0, 1.0]))
    assert seeds[0] == 2**64 - 1 and len(set(seeds)) == 3


def test_progress_counts_solver_steps_and_ends_at_its_total():
    patcher = mixture("eps")
    sigmas = schedule(patcher)
    seen = []
    sample(patcher, sigmas=sigmas, callback=lambda step, denoised, x, total: seen.append((step + 1, total)))
    total = 8 + 2 * 3
    assert seen == [(i + 1, total) for i in range(total)]
    assert len(sigmas) - 1 == total + 2  # the two jumps


def test_cancelling_stops_at_the_next_model_call():
    import comfy.model_management
    from support.host_mixture import fail

    patcher = mixture("eps")
    fail(patcher, at=20, error=comfy.model_management.InterruptProcessingException())
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        sample(patcher)
    assert patcher.model.diffusion_model.failing.calls == 21


@pytest.mark.parametrize("shape", [(2, 16, 3, 8, 8), (2, 1, 500)], ids=["video", "packed"])
@pytest.mark.parametrize("law", [VARIANCE_EXPLODING, FLOW], ids=["ve", "flow"])
def test_latents_of_other_shapes(shape, law):
    """One Gaussian of variance 1 in every element, so any shape has an exact model."""
    from fewstep.nodes.host.noise import ItemNoise
    from fewstep.samplers.restart import restart
    from fewstep.schedulers.restart.plan import restart_plan, rho_grid

    def denoise(x: torch.Tensor, sigma: float) -> torch.Tensor:
        return x * law.alpha(sigma) / (law.alpha(sigma) ** 2 + sigma**2)

    sigmas = [law.sigma(r) for r in rho_grid(10.0, 0.02, 20)] + [0.0]
    plan = restart_plan(sigmas, [Interval(6, 2, 0.2, 2.0)], law)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    x = sigmas[0] * noise
    drawn = restart(denoise, x, torch.tensor(plan.sigmas), noise=ItemNoise(1, noise), law=law)
    assert drawn.shape == shape and drawn.std().item() == pytest.approx(1.0, abs=0.08)


def test_a_sampler_that_is_not_the_hosts_kind_is_refused_in_words():
    from fewstep.nodes.host.sampler import restart_sampler

    with pytest.raises(TypeError, match="cannot be restarted.*Connect another"):
        restart_sampler(object(), 1.0)


# ---------------------------------------------------------------------------------------------------------
# Sigmas from other nodes


@pytest.mark.parametrize("inner", [None, "euler", "dpmpp_2m_sde", "dpm_fast", "dpm_adaptive"])
@pytest.mark.parametrize("kind", ["eps", "flow"])
@pytest.mark.parametrize(
    "sigmas, words",
    [
        ([float("nan"), 0.5, 0.0], "Number 1 of the 3 sigmas is nan"),
        ([0.9, 0.5, float("inf")], "Number 3 of the 3 sigmas is inf"),
        ([0.9, 0.5, -0.5], "Number 3 of the 3 sigmas is -0.5"),
        ([1e30, 0.5, 0.0], r"Number 1 of the 3 sigmas is 1e\+30"),
    ],
)
def test_sigmas_that_are_no_schedule_are_refused_before_the_first_call(kind, inner, sigmas, words):
    from support.host_mixture import fail

    patcher = mixture(kind)
    fail(patcher, at=0, error=AssertionError("the model was called"))
    with pytest.raises(ValueError, match=words):
        sample(patcher, inner, sigmas=torch.tensor(sigmas))


def test_sigmas_of_another_kind_of_model_are_refused_on_a_flow_model():
    """dpm_fast and dpm_adaptive never came back from them."""
    for inner in (None, "dpm_fast", "dpm_adaptive"):
        with pytest.raises(ValueError, match="on a flow model 1 is the highest"):
            sample(mixture("flow"), inner, sigmas=torch.tensor([14.6, 3.0, 0.0]))


@pytest.mark.parametrize("inner", [None, "euler", "dpmpp_2m_sde", "dpmpp_sde", "dpm_adaptive"])
def test_whole_numbers_repeats_and_trailing_zeros_are_a_schedule(inner):
    plain = sample(mixture("eps"), inner, sigmas=torch.tensor([14.0, 7.0, 3.0, 1.0, 3.0, 1.0, 0.0]))
    for sigmas in (torch.tensor([14, 7, 3, 1, 3, 1, 0]), torch.tensor([14.0, 7, 7, 3, 1, 3, 3, 1, 1, 0, 0, 0])):
        drawn = sample(mixture("eps"), inner, sigmas=sigmas)
        torch.testing.assert_close(drawn, plain)


@pytest.mark.parametrize("inner", [None, "euler", "dpmpp_2m_sde", "dpmpp_sde"])
@pytest.mark.parametrize("kind", ["eps", "flow"])
def test_a_schedule_without_a_step_hands_the_latent_on(kind, inner):
    latent = picture_like().sample(4, seed=1).float()
    drawn = sample(mixture(kind), inner, latent=latent, noise=torch.zeros(4, 4, 16, 16), sigmas=torch.tensor([0.5]))
    torch.testing.assert_close(drawn, latent, atol=1e-5, rtol=0)
    assert torch.equal(sample(mixture(kind), inner, latent=latent, sigmas=torch.empty(0)), latent)


def test_a_restart_sampler_inside_another_is_what_is_inside_it():
    import comfy.samplers
    from fewstep.nodes.host.sampler import innermost, restart_sampler

    euler = comfy.samplers.sampler_object("euler")
    assert innermost(restart_sampler(restart_sampler(euler, 1.0), 1.0)) is euler
    assert innermost(restart_sampler(restart_sampler(None, 1.0), 1.0)) is None


@pytest.mark.parametrize("length", [1, 2])
def test_restart_samplers_in_a_circle_are_refused_in_words(length):
    import comfy.sample
    from fewstep.nodes.host.sampler import restart_sampler
    from support.host_mixture import label_conditioning

    circle = [restart_sampler(None, 1.0) for _ in range(length)]
    for number, sampler in enumerate(circle):
        sampler.extra_options["sampler"] = circle[number - 1]
    patcher = mixture("eps")
    with pytest.raises(ValueError, match="its own inner sampler. Connect an ordinary sampler"):
        conditioning = label_conditioning(LABELS), label_conditioning([-1] * 4)
        latent = torch.zeros(4, 4, 16, 16)
        comfy.sample.sample_custom(patcher, start_noise(), 1.0, circle[0], schedule(patcher), *conditioning, latent)


@pytest.mark.parametrize("inner", [None, "euler"])
def test_a_model_that_answers_nan_is_said_with_its_step(inner, caplog):
    from support.host_mixture import fail

    patcher = mixture("eps")
    fail(patcher, at=7)
    sample(patcher, inner)
    said = [record.message for record in caplog.records if "NaN" in record.message]
    assert len(said) == 1 and "at step " in said[0] and "items 0, 1, 2, 3" in said[0]
