"""Which noise a model of the host has: read off it at every shift, and of another strength than 1."""

from __future__ import annotations

import pytest
import torch
from fewstep.nodes.measuring.interrupted import Parts
from fewstep.samplers.noise_law import FLOW, NoiseLaw
from fewstep.samplers.restart import restart
from fewstep.schedulers.restart.plan import Interval
from fewstep.schedulers.restart.request import requested_plan
from support.mixture import picture_like

pytestmark = pytest.mark.usefixtures("host")
STRENGTH = 8.0  # HiDream-O1's
LABELS = [0, 3, 5, 1]
SHIFTS = [number / 100 for number in range(100, 10_001)]


def sampling_at(shift: float):
    import comfy.model_sampling

    class Sampling(comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.CONST):
        pass

    made = Sampling()
    made.set_parameters(shift=shift)
    return made


def rounded_up() -> list[float]:
    """The shifts at which the host's own highest sigma is above 1."""
    import comfy.model_sampling

    t = torch.tensor([1.0])
    return [s for s in SHIFTS if float(comfy.model_sampling.time_snr_shift(s, t)) > 1]


def scaled(patcher, strength: float = STRENGTH):
    """The model with noise of another strength, as ComfyUI's Model Noise Scale makes it (0.33 and newer)."""
    sampling = patcher.get_model_object("model_sampling")

    class Scaled(type(sampling)):  # type: ignore[misc]
        def noise_scaling(self, sigma, noise, latent_image, max_denoise=False):
            sigma = sigma.reshape(-1, *[1] * (noise.ndim - 1))
            return (1 - sigma) * latent_image + sigma * strength * noise

    own = Scaled(patcher.model.model_config)
    own.set_parameters(shift=sampling.shift)
    clone = patcher.clone()
    clone.add_object_patch("model_sampling", own)
    clone.model.diffusion_model.law = NoiseLaw(is_flow=True, scale=strength)
    return clone


def flow_model(shift: float = 3.0):
    from support.host_mixture import mixture_model

    return mixture_model(picture_like(), "flow", shift)


def draw(patcher, sampler, sigmas, count: int = 4, seed: int = 0, noise=None):
    import comfy.sample
    from support.host_mixture import label_conditioning

    noise = torch.randn((count, 4, 16, 16), generator=torch.Generator().manual_seed(seed)) if noise is None else noise
    labels = [LABELS[i % 4] for i in range(len(noise))]
    conditioning = label_conditioning(labels), label_conditioning([-1] * len(noise))
    latent = torch.zeros_like(noise)
    return comfy.sample.sample_custom(
        patcher, noise, 1.0, sampler, sigmas, *conditioning, latent, disable_pbar=True, seed=seed
    )


# ---------------------------------------------------------------------------------------------------------
# Rounding


def test_at_every_shift_the_hosts_first_sigma_can_be_stepped_from():
    """9,901 shifts; at the 79 that are rounded up, every place that takes the host's highest sigma."""
    import comfy.samplers
    from fewstep.nodes.host.noise_law import noise_law
    from fewstep.samplers.dpm_solver_v3 import Options, Statistics, make_plan
    from fewstep.samplers.sigmas import checked_sigmas

    found = rounded_up()
    assert 2.14 in found and len(found) > 50
    table = Statistics(torch.linspace(-5, 4, 2), *torch.full((3, 2, 1, 1, 1), 0.5))
    for shift in found:
        sampling = sampling_at(shift)
        assert float(sampling.sigma_max) > 1
        law = noise_law(sampling)
        sigmas = comfy.samplers.calculate_sigmas(sampling, "simple", 5)
        assert checked_sigmas(sigmas, law)[0] == 1.0
        for statistics in (Statistics.data_prediction(), table):
            steps = make_plan(sigmas, law, statistics, Options()).steps
            assert all(torch.as_tensor(step.table).isfinite().all() for step in steps), shift
        plan = requested_plan(sigmas.tolist(), law, "sd_cfg_5_to_8", "add_steps")
        assert plan.steps == 5 + 18


def test_at_such_a_shift_everything_that_draws_or_measures_runs():
    import comfy.samplers
    from fewstep.nodes.host.dpm_solver_v3 import Choice, dpm_solver_v3_sampler
    from fewstep.nodes.host.sampler import restart_sampler
    from fewstep.nodes.measuring import estimate, search, spread
    from fewstep.samplers.dpm_solver_v3 import Options
    from support.host_mixture import label_conditioning

    patcher = flow_model(2.14)
    sampling = patcher.get_model_object("model_sampling")
    assert float(sampling.sigma_max) > 1
    conditioning = label_conditioning(LABELS[:2]), label_conditioning([-1, -1])
    asked = (patcher, *conditioning, 1.0, torch.zeros(2, 4, 16, 16), 0)
    measured = estimate.estimate(estimate.Request(*asked, 4, 12, "global", "differences"), None, Parts(), None)
    assert set(measured.facts["check"]) == {"5", "8", "10", "20"}
    assert spread.measure_spread(spread.Request(*asked, 2, 6), None).values.isfinite().all()
    request = search.Request(*asked, 4, "dpm_solver_v3", 20, 2, polish=1, statistics=measured)
    assert search.search_schedule(request, Parts(), None).sigmas[4][0] <= float(sampling.sigma_max)
    sigmas = comfy.samplers.calculate_sigmas(sampling, "simple", 8)
    for sampler in (
        dpm_solver_v3_sampler(Choice(Options(), measured, "data", "when_checked", None)),
        restart_sampler(None, 1.0),
    ):
        assert draw(patcher, sampler, sigmas).std() == pytest.approx(1.0, abs=0.3)


# ---------------------------------------------------------------------------------------------------------
# Noise of another strength


def test_the_strength_is_read_off_the_model():
    from fewstep.nodes.host.noise_law import check_unit_noise, noise_law

    patcher = flow_model()
    assert noise_law(patcher.get_model_object("model_sampling")) is FLOW
    sampling = scaled(patcher).get_model_object("model_sampling")
    assert noise_law(sampling) == NoiseLaw(is_flow=True, scale=STRENGTH)
    with pytest.raises(ValueError, match="noise scale of this model is 8, .* Remove Model Noise Scale"):
        check_unit_noise(sampling)
    with pytest.raises(ValueError, match="noise scale of this model is 0, .* Set noise_scale above 0"):
        noise_law(scaled(flow_model(), 0.0).get_model_object("model_sampling"))


def test_the_hosts_own_noise_scale_is_read():
    sampling = sampling_at(3.0)
    if not hasattr(sampling, "set_noise_scale"):
        pytest.skip("this ComfyUI has no noise scale")
    from fewstep.nodes.host.noise_law import noise_law

    sampling.set_noise_scale(7.5)
    assert noise_law(sampling) == NoiseLaw(is_flow=True, scale=7.5)


def test_restart_draws_the_spread_of_true_samples_at_that_strength():
    """Noise of strength 1 at the jumps left the samples with a third of their variance."""
    from fewstep.nodes.host.noise_law import noise_law
    from fewstep.nodes.host.sampler import restart_sampler

    patcher = scaled(flow_model())
    law = noise_law(patcher.get_model_object("model_sampling"))
    ratios = torch.logspace(2.5, -1.5, 25, dtype=torch.float64)
    main = [1.0, *law.sigma(ratios).tolist(), 0.0]
    plan = requested_plan(main, law, "a1111", "add_steps", [Interval(8, 2, 0.3, 6.0)])
    drawn = draw(patcher, restart_sampler(None, 1.0), torch.tensor(plan.sigmas).float(), count=256)
    true = picture_like().sample(256, seed=3).var()
    assert drawn.var().item() == pytest.approx(true.item(), rel=0.12)


def test_a_model_of_any_strength_takes_the_same_way_in_y():
    """DPM-Solver-v3 with a table, Restart's jumps and the statistics' own coordinates: only sigma is another number."""
    from fewstep.samplers.dpm_solver_v3 import DPMSolverV3, Options, Statistics
    from support.mixture import GuidedMixture

    mixture = picture_like(channels=2, size=8, components=6)
    lam = torch.linspace(-3, 3, 25, dtype=torch.float64).view(-1, 1, 1, 1)
    table = Statistics(lam.flatten(), torch.sigmoid(-lam), -1.5 + lam / 8, lam / 20)
    noise = torch.randn((2, 2, 8, 8), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ratios, ends, jumps = torch.logspace(1, -1, 6, dtype=torch.float64), [], []
    for law in (FLOW, NoiseLaw(is_flow=True, scale=STRENGTH)):
        sigmas = law.sigma(ratios)
        x = law.alpha(float(sigmas[0])) * 10 * noise
        x = DPMSolverV3(law, table, Options(3))(GuidedMixture(mixture, law), x, sigmas)
        ends.append(x / law.alpha(float(sigmas[-1])))
        up = torch.stack([sigmas[-1], sigmas[2]])
        x = restart(GuidedMixture(mixture, law), x, up, noise=lambda *_: noise, law=law)
        jumps.append(x / law.alpha(float(up[-1])))
    torch.testing.assert_close(*ends, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(*jumps, rtol=1e-9, atol=1e-9)


def test_the_spread_of_a_model_does_not_depend_on_the_strength():
    from fewstep.nodes.measuring.spread import Request, measure_spread
    from support.host_mixture import label_conditioning

    found = []
    for patcher in (flow_model(), scaled(flow_model())):
        latent = picture_like().sample(16, seed=1).float()
        conditioning = label_conditioning([-1] * 16)
        for estimator in ("residual", "derivative"):
            request = Request(patcher, conditioning, conditioning, 1.0, latent, 0, 16, 8, estimator)
            found.append([measure_spread(request, None).at(ratio) for ratio in (0.1, 1.0, 5.0)])
    assert found[2] == pytest.approx(found[0], rel=0.05)
    assert found[3] == pytest.approx(found[1], rel=0.05)


def test_statistics_and_schedules_are_measured_at_the_strength_and_told_apart():
    from fewstep.nodes.host.noise_law import noise_law
    from fewstep.nodes.host.schedules import shift_of
    from fewstep.nodes.measuring import estimate, search
    from support.host_mixture import label_conditioning

    conditioning = label_conditioning(LABELS[:2]), label_conditioning([-1, -1])
    tables, requests = [], []
    for patcher in (flow_model(), scaled(flow_model())):
        asked = (patcher, *conditioning, 1.0, torch.zeros(2, 4, 16, 16), 0)
        requests.append(estimate.Request(*asked, 4, 16, "global", "differences"))
        tables.append(estimate.estimate(requests[-1], None, Parts(), None).statistics)
        sampling = patcher.get_model_object("model_sampling")
        assert shift_of(sampling, noise_law(sampling)) == pytest.approx(3.0, rel=1e-4)
        request = search.Request(*asked, 4, "euler", 20, 2, polish=1)
        found = search.search_schedule(request, Parts(), None)
        assert found.facts["errors"]["4"][0] < 0.5
    for lam in (-2.0, 0.0, 2.0):
        assert tables[1].l_at(lam).item() == pytest.approx(tables[0].l_at(lam).item(), abs=0.05)
    assert requests[1].facts["noise_scale"] == STRENGTH and "noise_scale" not in requests[0].facts


def test_a_search_weighs_the_nodes_by_the_size_of_the_latents_there():
    """sqrt(alpha^2 + c^2 sigma^2), so that errors at high noise do not count as much more."""
    from fewstep.schedulers.optimal_steps import Euler, Task, Teacher
    from fewstep.schedulers.optimal_steps.search import Promise

    law = NoiseLaw(is_flow=True, scale=STRENGTH)
    teacher = Teacher((0.5,), (), (), torch.zeros(1))
    task = Task(lambda x, sigma: x, Euler(), law, teacher, lambda sigma: torch.zeros(1))
    assert Promise(task, 1).scales == [pytest.approx((0.25 + 16) ** -0.5)]
