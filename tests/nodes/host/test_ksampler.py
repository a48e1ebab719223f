"""Restart KSampler in this process: the host's KSampler to the bit without restarts, and what restarts add to it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from fewstep.samplers.noise_law import VARIANCE_EXPLODING
from fewstep.schedulers.restart.plan import rho_grid
from fewstep.schedulers.restart.written import Place
from support.mixture import picture_like

pytestmark = pytest.mark.usefixtures("host")
KINDS = ["eps", "v", "edm", "flow"]
LISTED = "[4, 2, 0.2, 0.8]"  # sigmas that every kind of model has: 6 steps


def mixture(kind: str):
    from support.host_mixture import mixture_model

    return mixture_model(picture_like(), kind, shift=3.0)


def prompts(count: int = 2) -> tuple[list, list]:
    from support.host_mixture import label_conditioning

    return label_conditioning([0, 3, 5, 1][:count]), label_conditioning([-1] * count)


def empty(count: int = 2) -> dict[str, Any]:
    return {"samples": torch.zeros(count, 4, 16, 16)}


def node(name: str):
    from fewstep.nodes import restart

    hidden = {"hidden": SimpleNamespace(unique_id=None)}
    return type(name, (getattr(restart, name),), hidden)


def ours(patcher, segments="", latent=None, **given):
    """The output of Restart KSampler."""
    asked = {"seed": 7, "steps": 8, "cfg": 3.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0} | given
    positive, negative = prompts()
    linked = {"positive": positive, "negative": negative, "latent_image": latent or empty()}
    restarts = {"segments": segments, "restart_scheduler": asked.pop("restart_scheduler", "karras")}
    return node("FewStepRestartKSampler").execute(patcher, **asked, **linked, **restarts)


def advanced(patcher, segments="", latent=None, **given):
    """The output of Restart KSampler Advanced."""
    asked = {"add_noise": "enable", "noise_seed": 7, "steps": 8, "cfg": 3.0, "sampler_name": "euler"}
    asked |= {"scheduler": "normal", "start_at_step": 0, "end_at_step": 10000}
    asked |= {"return_with_leftover_noise": "disable", "restart_scheduler": "karras"} | given
    positive, negative = prompts()
    linked = {"positive": positive, "negative": negative, "latent_image": latent or empty()}
    return node("FewStepRestartKSamplerAdvanced").execute(patcher, segments=segments, **asked, **linked)


def samples(output, number: int = 0) -> torch.Tensor:
    return output.args[number]["samples"]


def said(output) -> str:
    return output.ui["fewstep"][0]["text"]


def hosts(patcher, latent=None, **given) -> torch.Tensor:
    """What the host's KSampler nodes call, as they call it."""
    import comfy.sample

    asked = {"steps": 8, "cfg": 3.0, "sampler_name": "euler", "scheduler": "normal"} | given
    latent = latent or empty()
    start, seed = comfy.sample.fix_empty_latent_channels(patcher, latent["samples"]), asked.setdefault("seed", 7)
    drawn = comfy.sample.prepare_noise(start, seed, latent.get("batch_index"))
    noise = torch.zeros_like(start) if asked.get("disable_noise") else drawn
    return comfy.sample.sample(
        patcher,
        noise,
        positive=prompts()[0],
        negative=prompts()[1],
        latent_image=start,
        noise_mask=latent.get("noise_mask"),
        **asked,
    )


def counted(patcher) -> tuple[Any, list[float]]:
    """The model, and the sigmas at which it is asked, one for a batch with both prompts in it."""
    asked: list[float] = []
    clone = patcher.clone()

    def wrapper(apply_model, given):
        asked.append(float(given["timestep"][0]))
        return apply_model(given["input"], given["timestep"], **given["c"])

    clone.set_model_unet_function_wrapper(wrapper)
    return clone, asked


# ---------------------------------------------------------------------------------------------------------
# Without restarts


def sampler_names() -> list[str]:
    from support.host import start_host

    start_host()
    import comfy.samplers

    return list(comfy.samplers.SAMPLER_NAMES)


@pytest.mark.parametrize("sampler", sampler_names())
def test_without_restarts_it_is_the_hosts_to_the_bit(sampler):
    patcher = mixture("eps")
    given = {"sampler_name": sampler, "steps": 5}
    assert torch.equal(samples(ours(patcher, **given)), hosts(patcher, **given))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("denoise", [1.0, 0.6, 0.0])
def test_on_every_kind_of_model_and_over_a_picture(kind, denoise):
    patcher, mask = mixture(kind), torch.zeros(1, 1, 16, 16)
    mask[..., :8] = 1.0
    picture = {"samples": picture_like().sample(2, seed=1).float(), "noise_mask": mask, "batch_index": [3, 1]}
    for latent in (picture, empty()):
        given = {"latent": latent, "denoise": denoise}
        assert torch.equal(samples(ours(patcher, **given)), hosts(patcher, **given))
    assert ours(patcher, latent=picture).args[0]["batch_index"] == [3, 1]


def test_restarts_that_do_not_fit_leave_it_the_hosts_and_say_so():
    output = ours(mixture("eps"), "[3, 1, 2, 5]", denoise=0.2)
    assert torch.equal(samples(output), hosts(mixture("eps"), denoise=0.2))
    assert "8 steps: 8 main, 0 in 0 restarts\n2 to 5 (noise-to-signal) dropped" in said(output)


CUTS = [(0, 10000), (0, 5), (3, 10000), (2, 6), (0, 0), (8, 10000), (9000, 10000), (5, 3)]


@pytest.mark.parametrize("leftover", ["enable", "disable"])
@pytest.mark.parametrize("noise", ["enable", "disable"])
@pytest.mark.parametrize("start, end", CUTS)
def test_advanced_is_the_hosts_advanced_to_the_bit(start, end, noise, leftover):
    patcher = mixture("eps")
    latent = {"samples": picture_like().sample(2, seed=1).float()}
    span = {"start_at_step": start, "end_at_step": end, "return_with_leftover_noise": leftover, "add_noise": noise}
    theirs = hosts(
        patcher,
        latent,
        disable_noise=noise == "disable",
        start_step=start,
        last_step=end,
        force_full_denoise=leftover == "disable",
    )
    assert torch.equal(samples(advanced(patcher, latent=latent, **span)), theirs)


def test_a_connected_sampler_stands_in_for_the_named_one():
    import comfy.samplers

    patcher, mine = mixture("flow"), comfy.samplers.sampler_object("dpmpp_2m")
    assert torch.equal(
        samples(advanced(patcher, sampler=mine, sampler_name="uni_pc")), hosts(patcher, sampler_name="dpmpp_2m")
    )
    assert "8 model calls of dpmpp_2m" in said(advanced(patcher, sampler=mine, sampler_name="uni_pc"))


# ---------------------------------------------------------------------------------------------------------
# With restarts


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sampler, calls", [("euler", 14), ("heun", 27), ("dpmpp_2m", 14), ("heunpp2", 36)])
def test_as_many_model_calls_as_it_says(kind, sampler, calls):
    patcher, asked = counted(mixture(kind))
    output = ours(patcher, LISTED, sampler_name=sampler, cfg=1.0)
    assert f"{len(asked)} model calls of {sampler}, sigmas " in said(output)
    assert "14 steps: 8 main, 6 in 2 restarts" in said(output)
    assert sampler == "heunpp2" or len(asked) == calls
    assert samples(output).isfinite().all()


def test_no_number_of_calls_where_the_sampler_is_not_known():
    text = said(ours(mixture("eps"), LISTED, sampler_name="dpmpp_sde"))
    assert "model calls" not in text and "\nby dpmpp_sde, sigmas 14.6" in text


def test_the_model_is_asked_where_the_plan_says():
    """Karras of 6 steps, and one restart: at the node next to 0.5 back up to 2."""
    patcher, asked = counted(mixture("edm"))
    sampling = patcher.get_model_object("model_sampling")
    ours(patcher, "[3, 1, 0.5, 2.0]", steps=6, scheduler="karras", cfg=1.0)
    main = rho_grid(float(sampling.sigma_max), float(sampling.sigma_min), 6)
    node = min(range(6), key=lambda i: abs(main[i] - 0.5))
    again = rho_grid(2.0, main[node], 3)[:-1]
    np.testing.assert_allclose(asked, [*main[:node], *again, *main[node:]], rtol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_restarted_pictures_keep_the_spread_of_true_samples(kind):
    """A re-noising by the wrong law would leave or remove noise."""
    drawn = samples(ours(mixture(kind), "[6, 2, 0.2, 0.8]", steps=20, sampler_name="dpmpp_2m", scheduler="simple"))
    low = VARIANCE_EXPLODING.ratio(0.03)
    residual = picture_like().denoise(drawn.double(), low) - drawn
    assert residual.square().mean().sqrt() < 0.03
    assert drawn.std().item() == pytest.approx(1.0, abs=0.3)


def test_they_equal_restart_schedule_and_sampler_on_the_same_sigmas():
    """The same plan through the pack's own two nodes; karras on a variance-exploding model is its grid."""
    import comfy.sample
    import comfy.samplers
    from fewstep.nodes.host.sampler import restart_sampler
    from fewstep.schedulers.restart.plan import Interval, restart_plan

    patcher = mixture("eps")
    sampling = patcher.get_model_object("model_sampling")
    main = comfy.samplers.calculate_sigmas(sampling, "normal", 8).tolist()
    plan = restart_plan(main, [Interval(4, 2, 0.2, 0.8)], VARIANCE_EXPLODING)
    sampler = restart_sampler(comfy.samplers.sampler_object("euler"), 1.0)
    noise = comfy.sample.prepare_noise(empty()["samples"], 7)
    theirs = comfy.sample.sample_custom(
        patcher, noise, 3.0, sampler, torch.tensor(plan.sigmas), *prompts(), empty()["samples"], seed=7
    )
    torch.testing.assert_close(samples(ours(patcher, LISTED)), theirs, atol=2e-3, rtol=0)


def test_a_seed_draws_the_same_again_and_another_another():
    patcher = mixture("flow")
    first = samples(ours(patcher, LISTED))
    assert torch.equal(samples(ours(patcher, LISTED)), first)
    assert (samples(ours(patcher, LISTED, seed=8)) - first).square().mean() > 0.1
    assert (hosts(patcher) - first).square().mean() > 1e-3


def test_restarts_of_the_parts_are_those_that_lie_in_them():
    """A cut at 5 of 20 steps: the upper restart is in the first part, the lower one in the second."""
    both = "[3, 1, 4, 8], [3, 1, 0.2, 0.8]"
    given = {"steps": 20, "return_with_leftover_noise": "enable"}
    first = said(advanced(mixture("eps"), both, end_at_step=5, **given))
    second = said(advanced(mixture("eps"), both, start_at_step=5, add_noise="disable", steps=20))
    assert "7 steps: 5 main, 2 in 1 restart" in first and "0.2 to 0.8 (noise-to-signal) dropped" in first
    assert "17 steps: 15 main, 2 in 1 restart" in second and "4 to 8 (noise-to-signal)" in second


def test_leftover_noise_and_the_prediction_under_it():
    patcher = mixture("eps")
    output = advanced(patcher, "[3, 1, 4, 8]", end_at_step=5, steps=20, return_with_leftover_noise="enable")
    noisy, predicted = samples(output), samples(output, 1)
    assert noisy.std() > 2 * predicted.std() and predicted.std() < 1.5
    done = advanced(patcher, "", steps=20)
    torch.testing.assert_close(samples(done), samples(done, 1), atol=1e-5, rtol=0)


# ---------------------------------------------------------------------------------------------------------
# Noise levels and the way down


@pytest.mark.parametrize("kind", ["eps", "v"])
def test_a_timestep_is_the_models_own(kind):
    from fewstep.nodes.host.ksampler import sigma_at

    sampling = mixture(kind).get_model_object("model_sampling")
    for step in (0, 250, 999):
        assert sigma_at(sampling, Place(float(step), "timestep")) == pytest.approx(float(sampling.sigmas[step]))


@pytest.mark.parametrize("kind", KINDS)
def test_a_share_of_the_run_is_the_hosts(kind):
    from fewstep.nodes.host.ksampler import sigma_at

    sampling = mixture(kind).get_model_object("model_sampling")
    assert sigma_at(sampling, Place(30.0, "percent")) == sampling.percent_to_sigma(0.3)
    assert sigma_at(sampling, Place(100.0, "percent")) == 0
    assert sigma_at(sampling, Place(0.4)) == 0.4


def test_timesteps_of_a_flow_model_are_thousandths_of_its_time():
    from fewstep.nodes.host.ksampler import sigma_at

    sampling = mixture("flow").get_model_object("model_sampling")
    assert sigma_at(sampling, Place(500.0, "timestep")) == pytest.approx(0.75)  # shift 3
    assert sigma_at(sampling, Place(0.0, "timestep")) == 0


@pytest.mark.parametrize("points", [2, 5, 40])
def test_karras_between_two_ends_is_karras(points):
    from fewstep.nodes.host.ksampler import grid_of

    grid = grid_of(mixture("eps").get_model_object("model_sampling"), VARIANCE_EXPLODING, "karras")
    np.testing.assert_allclose(grid(2.0, 0.1, points), rho_grid(2.0, 0.1, points), rtol=1e-3)


def test_exponential_between_two_ends_is_exponential():
    from fewstep.nodes.host.ksampler import grid_of

    grid = grid_of(mixture("eps").get_model_object("model_sampling"), VARIANCE_EXPLODING, "exponential")
    np.testing.assert_allclose(grid(2.0, 0.125, 5), [2.0, 1.0, 0.5, 0.25, 0.125], rtol=1e-3)


def test_normal_between_two_timesteps_is_even_in_timesteps():
    from fewstep.nodes.host.ksampler import grid_of

    sampling = mixture("eps").get_model_object("model_sampling")
    top, bottom = float(sampling.sigmas[600]), float(sampling.sigmas[200])
    found = grid_of(sampling, VARIANCE_EXPLODING, "normal")(top, bottom, 5)
    np.testing.assert_allclose(found, sampling.sigmas[[600, 500, 400, 300, 200]].tolist(), rtol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_every_scheduler_goes_down_from_end_to_end(kind):
    import comfy.samplers
    from fewstep.nodes.host.ksampler import grid_of
    from fewstep.nodes.host.noise_law import noise_law

    sampling = mixture(kind).get_model_object("model_sampling")
    for name in comfy.samplers.SCHEDULER_NAMES:
        grid = grid_of(sampling, noise_law(sampling), name)
        for bottom in (0.0, 0.05, 0.4):
            found = grid(0.9, bottom, 7)
            assert (found[0], found[-1], len(found)) == (0.9, bottom, 7)
            assert (np.diff(found) < 0).all(), name


def test_same_is_the_scheduler_of_the_main_steps():
    patcher = mixture("flow")
    same, beta, other = (
        said(ours(patcher, LISTED, scheduler="beta", restart_scheduler=name))
        for name in ("same", "beta", "exponential")
    )
    assert same == beta != other


def test_points_where_a_scheduler_has_none_are_refused(monkeypatch):
    """A schedule of another pack that ends high says nothing of what is below."""
    import comfy.samplers

    handler = comfy.samplers.SchedulerHandler(lambda sampling, steps: torch.linspace(14, 10, steps + 1))
    monkeypatch.setitem(comfy.samplers.SCHEDULER_HANDLERS, "high", handler)
    monkeypatch.setattr(comfy.samplers, "SCHEDULER_NAMES", [*comfy.samplers.SCHEDULER_NAMES, "high"])
    with pytest.raises(ValueError, match="restart_scheduler high has no 4 points between sigma 0.8 and 0.029"):
        ours(mixture("eps"), "[4, 1, 0.2, 0.8]", restart_scheduler="high")


# ---------------------------------------------------------------------------------------------------------
# What cannot be sampled


@pytest.mark.parametrize(
    "given, words",
    [
        ({"segments": "[3, 2]"}, "has 2 parts, and four are needed"),
        ({"segments": "[4, 1, 1.09, 1.92]"}, "where a flow model has nothing left of the picture"),
        ({"restart_scheduler": "simple_test"}, "restart_scheduler is 'simple_test'; choose one of"),
        ({"scheduler": "elsewhere"}, "^scheduler is 'elsewhere'; choose one of"),
        ({"sampler_name": "elsewhere"}, "sampler_name is 'elsewhere'; choose one of"),
        ({"steps": 0}, "steps is 0; it must be a whole number from 1 to 10000"),
        ({"denoise": 1.5}, "denoise is 1.5; it must be a number from 0 to 1"),
        ({"denoise": 1e-9}, "Raise denoise, or set it to 0"),
        ({"cfg": -1.0}, "cfg is -1"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_bad_input_is_answered_in_words(given, words):
    with pytest.raises(ValueError, match=words):
        ours(mixture("flow"), **given)


def test_what_cannot_be_read_is_told_before_anything_runs():
    kind = node("FewStepRestartKSampler")
    assert kind.validate_inputs("default") is True and kind.validate_inputs(None) is True
    assert "cannot be read from '[3,' on" in kind.validate_inputs("[3,")
