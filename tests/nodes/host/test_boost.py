"""Boost around the host's own sampling, in this process: what it exchanges, what it keeps, and what it leaves alone."""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise

import pytest
import torch
from fewstep.nodes.host.progress import Report
from fewstep.nodes.measuring.interrupted import Parts
from support.mixture import picture_like

pytestmark = pytest.mark.usefixtures("host")
LABELS = [0, 3, 5, 1]


@pytest.fixture(scope="module", autouse=True)
def forgotten(host):
    """Models are not kept beyond this file."""
    yield
    model.cache_clear()
    searched.cache_clear()


@lru_cache(maxsize=4)
def model(kind: str = "eps"):
    from support.host_mixture import mixture_model

    return mixture_model(picture_like(), kind, 3.0 if kind == "flow" else 1.0)


@lru_cache(maxsize=1)
def searched():
    """A schedule of four steps of dpmpp_2m for the eps model."""
    from fewstep.nodes.measuring.search import Request, search_schedule
    from support.host_mixture import label_conditioning

    asked = (model(), label_conditioning([0]), label_conditioning([-1]), 3.0, torch.zeros(1, 4, 16, 16), 0)
    return search_schedule(Request(*asked, 4, "dpmpp_2m", 20, 2, polish=0), Parts(), None)


def noise() -> torch.Tensor:
    return torch.randn((4, 4, 16, 16), generator=torch.Generator().manual_seed(0))


def boosted(kind: str = "eps", **given):
    """A model with Boost, and the report of its node."""
    from fewstep.nodes.host import boost

    report = Report(None)
    return boost.boosted(given.pop("patcher", model(kind)), boost.Boost(report=report, **given)), report


def watched(patcher):
    """The model, and a list to which every sampling adds its sampler and sigmas, as they arrive there."""
    from comfy.patcher_extension import WrappersMP

    seen: list[tuple] = []

    def look(executor, guider, sigmas, *args, **given):
        seen.append((executor.class_obj, sigmas.tolist()))
        return executor(guider, sigmas, *args, **given)

    clone = patcher.clone()
    clone.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, "watch", look)
    return clone, seen


def counted(patcher):
    """The model, and a list of the sigma of every guided call."""
    sigmas: list[float] = []

    def count(args):
        sigmas.append(float(args["sigma"][0]))
        return args["denoised"]

    clone = patcher.clone()
    clone.set_model_sampler_post_cfg_function(count)
    return clone, sigmas


def sample(patcher, sampler="euler", scheduler="simple", steps=8, cfg=3.0, **given) -> torch.Tensor:
    """As the host's KSampler nodes do."""
    import comfy.sample
    from support.host_mixture import label_conditioning

    conditioning = label_conditioning(LABELS), label_conditioning([-1] * 4)
    start, latent = given.pop("noise", noise()), given.pop("latent", torch.zeros(4, 4, 16, 16))
    return comfy.sample.sample(
        patcher, start, steps, cfg, sampler, scheduler, *conditioning, latent, disable_pbar=True,
        **({"seed": 5} | given),
    )  # fmt: skip


def custom(patcher, sampler, sigmas, cfg=3.0, **given) -> torch.Tensor:
    """As SamplerCustom does."""
    import comfy.sample
    from support.host_mixture import label_conditioning

    conditioning = label_conditioning(LABELS), label_conditioning([-1] * 4)
    latent = given.pop("latent", torch.zeros(4, 4, 16, 16))
    start = given.pop("noise", noise())
    return comfy.sample.sample_custom(
        patcher, start, cfg, sampler, sigmas, *conditioning, latent, disable_pbar=True, seed=5, **given
    )


def host_sampler(name: str):
    import comfy.samplers

    return comfy.samplers.sampler_object(name)


def host_sigmas(kind: str, scheduler: str, steps: int) -> torch.Tensor:
    import comfy.samplers

    return comfy.samplers.calculate_sigmas(model(kind).get_model_object("model_sampling"), scheduler, steps)


def sampler_names() -> list[str]:
    import comfy.samplers

    return comfy.samplers.SAMPLER_NAMES


# ---------------------------------------------------------------------------------------------------------
# The table of samplers is what the host does


def test_what_gives_way_is_what_draws_no_noise_and_solves_the_same_equation():
    """Found by running every sampler of this host under two seeds."""
    from fewstep.nodes.host.boost import why_theirs

    for name in sampler_names():
        ends = [sample(model(), name, "normal", 5, seed=seed) for seed in (1, 2)]
        solves = torch.equal(*ends) and "cfg_pp" not in name and name != "dpm_adaptive"
        assert (not why_theirs(host_sampler(name))) == solves, name


@pytest.mark.parametrize("last", [0.0, 0.5])
def test_the_calls_of_every_one_of_them(last):
    from fewstep.nodes.host.boost import calls_of, why_theirs

    for name in sampler_names():
        for steps in range(2, 7):
            if why_theirs(host_sampler(name)) or (name == "dpm_fast" and last):
                continue
            patcher, calls = counted(model())
            custom(patcher, host_sampler(name), torch.linspace(5.0, last, steps + 1))
            assert calls_of(host_sampler(name), steps, last == 0) == len(calls), (name, steps)


def test_options_that_draw_noise_keep_a_sampler():
    import comfy.samplers
    from fewstep.nodes.host.boost import why_theirs

    churning = comfy.samplers.ksampler("euler", {"s_churn": 2.0})
    assert "draws noise" in why_theirs(churning) and not why_theirs(comfy.samplers.ksampler("euler", {"s_churn": 0.0}))


# ---------------------------------------------------------------------------------------------------------
# What is kept


@pytest.mark.parametrize("kind", ["eps", "v", "edm", "flow"])
@pytest.mark.parametrize(
    "given",
    [
        {}, {"denoise": 0.3}, {"denoise": 0.6}, {"denoise": 0.9}, {"start_step": 3}, {"last_step": 5},
        {"start_step": 2, "last_step": 6}, {"last_step": 5, "force_full_denoise": True},
        {"start_step": 3, "disable_noise": True},
    ],
    ids=str,
)  # fmt: skip
def test_ends_and_calls_are_those_that_came_in(kind, given):
    """All that denoise, start and end steps, and leftover noise are, lives in the first and the last sigma."""
    plain, before = watched(model(kind))
    sample(plain, **given)
    patcher, report = boosted(kind)
    patcher, after = watched(patcher)
    patcher, calls = counted(patcher)
    end = sample(patcher, **given)
    ((_, old),), ((_, new),) = before, after
    assert (new[0], new[-1], len(new)) == (old[0], old[-1], len(old)) and new != old
    assert all(high > low for high, low in pairwise(new))
    assert len(calls) == len(old) - 1 and end.isfinite().all()
    assert f"{len(old) - 1} steps of euler" in report.entry["text"] and "FewStep's DEIS" in report.entry["text"]


@pytest.mark.parametrize("sampler, calls", [("heun", 11), ("dpm_2", 11), ("heunpp2", 15), ("uni_pc", 6), ("euler", 6)])
def test_two_calls_a_step_give_way_to_as_many_single_calls(sampler, calls):
    patcher, made = counted(boosted()[0])
    plain, before = counted(model())
    sample(patcher, sampler, "karras", 6), sample(plain, sampler, "karras", 6)
    assert len(made) == len(before) == calls and len(set(made)) == calls


def test_what_a_mask_keeps_stays_and_the_rest_is_drawn():
    latent, mask = noise() * 0.3, torch.zeros(1, 1, 16, 16)
    mask[..., 8:] = 1
    drawn = sample(boosted()[0], latent=latent, noise_mask=mask, denoise=0.7)
    assert (drawn - latent)[..., :8].abs().max() < 1e-5
    assert (drawn[..., 8:] - latent[..., 8:]).abs().mean() > 0.1


def test_the_random_noise_under_a_mask_of_ddim_is_kept():
    patcher, seen = watched(boosted()[0])
    sample(patcher, "ddim")
    assert seen[0][0].inpaint_options == {"random": True}


def test_progress_counts_the_steps_that_are_made():
    steps: list[tuple[int, int]] = []
    sample(boosted()[0], "heun", steps=4, callback=lambda step, denoised, x, total: steps.append((step, total)))
    assert steps == [(i, 7) for i in range(7)]


@pytest.mark.parametrize("cut", [2, 4, 6])
def test_a_run_cut_in_two_is_the_run_over_both_schedules(cut):
    """KSamplerAdvanced pairs: base and refiner, high noise and low noise. Of first order, so that nothing is lost."""
    patcher, seen = watched(boosted(sampler=host_sampler("euler"), sigmas=tuple(host_sigmas("eps", "karras", 9)))[0])
    half = sample(patcher, last_step=cut)
    whole = sample(patcher, start_step=cut, disable_noise=True, latent=half, noise=torch.zeros(4, 4, 16, 16))
    first, second = (sigmas for _, sigmas in seen)
    assert first[-1] == second[0] == float(host_sigmas("eps", "simple", 8)[cut])
    by_hand = custom(model(), host_sampler("euler"), torch.tensor(first + second[1:]))
    assert (whole - by_hand).abs().max() < 1e-5
    assert (len(first), len(second)) == (cut + 1, 9 - cut)


@pytest.mark.parametrize("cut", [2, 4, 6])
def test_a_connected_sampler_of_first_order_is_the_same_in_two_parts(cut):
    patcher, _ = boosted("flow", sampler=host_sampler("euler"))
    half = sample(patcher, "dpmpp_2m", last_step=cut)
    parts = sample(patcher, "dpmpp_2m", start_step=cut, disable_noise=True, latent=half, noise=noise() * 0)
    whole = sample(patcher, "dpmpp_2m")
    assert (parts - whole).abs().max() < 1e-5 and torch.equal(whole, sample(model("flow"), "euler"))


# ---------------------------------------------------------------------------------------------------------
# What is left alone


@pytest.mark.parametrize(
    "sampler, words",
    [
        ("euler_ancestral", "draws noise on its way"),
        ("dpmpp_2m_sde", "draws noise on its way"),
        ("lcm", "draws noise on its way"),
        ("euler_cfg_pp", "an equation of its own"),
        ("dpm_adaptive", "chooses its own steps"),
    ],
)
def test_samplers_that_stay_the_persons_to_the_bit(sampler, words):
    patcher, report = boosted()
    assert torch.equal(sample(patcher, sampler, "karras"), sample(model(), sampler, "karras"))
    assert words in report.entry["text"] and "left as they are" in report.entry["text"]


def test_a_connected_sampler_takes_the_place_of_one_that_draws_noise():
    patcher, seen = watched(boosted(sampler=host_sampler("dpmpp_2m"))[0])
    drawn = sample(patcher, "euler_ancestral", "karras")
    assert torch.equal(drawn, sample(model(), "dpmpp_2m", "karras")) and len(seen) == 1


def test_connected_sigmas_are_used_with_the_persons_own_sampler():
    """The same number of steps: the schedule itself."""
    sigmas = host_sigmas("eps", "karras", 8)
    patcher, _ = boosted(sigmas=tuple(sigmas.tolist()))
    assert (sample(patcher, "dpmpp_2m", "simple") - sample(model(), "dpmpp_2m", "karras")).abs().max() < 1e-4
    drawn = sample(patcher, "euler_ancestral", "simple")
    assert (drawn - sample(model(), "euler_ancestral", "karras")).abs().max() < 1e-3


@pytest.mark.parametrize(
    "sigmas, words",
    [
        ([0.0, 1.0, 5.0, 14.0], "rise"),
        ([5.0, 2.0, 3.0, 0.0], "rise"),
        ([5.0, 0.0], "no step between"),
        ([5.0, 5.0, 5.0], "no step between"),
    ],
    ids=str,
)
def test_schedules_with_nothing_to_place_are_sampled_as_without_it(sigmas, words):
    patcher, report = boosted()
    given = host_sampler("euler"), torch.tensor(sigmas)
    assert torch.equal(custom(patcher, *given).nan_to_num(7), custom(model(), *given).nan_to_num(7))
    assert words in report.entry["text"]


@pytest.mark.parametrize("sigmas", [[5.0, float("nan"), 0.0], [float("inf"), 1.0, 0.0], [5.0, 2.0, -1.0]], ids=str)
def test_sigmas_that_are_none_are_passed_on_for_the_host_to_judge(sigmas):
    import comfy.samplers
    from fewstep.nodes.host.boost import Boost

    guider, given = comfy.samplers.CFGGuider(model()), torch.tensor(sigmas)
    report, euler = Report(None), host_sampler("euler")
    assert Boost(report=report).exchanged(guider, euler, given) == (euler, given)
    assert "of the 3 sigmas is" in report.entry["text"]


@pytest.mark.parametrize(
    "kind, sigmas",
    [
        ("eps", [0.9, 0.5, 0.0]),
        ("flow", [14.6, 3.0, 0.0]),
        ("flow", [0.2, 0.1, 0.0]),
        ("eps", []),
        ("eps", [14.6]),
        ("eps", [14.6, 3.0, 3.0, 0.0]),
        ("eps", [0.0, 14.6]),
        ("eps", [14.6, float("nan"), 0.0]),
    ],
    ids=str,
)
def test_a_schedule_of_another_kind_of_model_is_said_and_not_used(kind, sigmas):
    patcher, report = boosted(kind, sigmas=tuple(sigmas))
    assert torch.equal(sample(patcher), sample(model(kind)))
    assert "left as they are" in report.entry["text"]


def test_a_sampler_of_no_known_kind_passes_unless_another_is_connected():
    import comfy.samplers

    class Own(comfy.samplers.Sampler):
        def sample(self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, *args, **given):
            return noise * 0 + 2.0

    sigmas = host_sigmas("eps", "karras", 6)
    patcher, report = boosted()
    assert (custom(patcher, Own(), sigmas) == 2).all() and "does not know this sampler" in report.entry["text"]
    patcher, _ = boosted(sampler=host_sampler("euler"))
    assert torch.equal(custom(patcher, Own(), sigmas), custom(model(), host_sampler("euler"), sigmas))


def test_another_pack_s_function_of_a_known_name_is_not_taken_for_the_host_s():
    import comfy.samplers

    def sample_euler(model, x, sigmas, extra_args=None, callback=None, disable=None):
        return x * 0 + 3.0

    patcher, report = boosted()
    drawn = custom(patcher, comfy.samplers.KSAMPLER(sample_euler), host_sigmas("eps", "karras", 6))
    assert (drawn == 3).all() and "does not know this sampler" in report.entry["text"]


def test_samplers_of_ours_pass_and_measuring_does_not_see_it():
    from fewstep.nodes.host.guiders import guider_for
    from fewstep.nodes.host.identity import identify
    from fewstep.nodes.host.sampler import restart_sampler
    from fewstep.nodes.measuring.running import inside_sampling
    from support.host_mixture import label_conditioning

    patcher, report = boosted()
    given = restart_sampler(None, 1.0), host_sigmas("eps", "karras", 6)
    assert torch.equal(custom(patcher, *given), custom(model(), *given)) and "one of FewStep's" in report.entry["text"]
    report.say("")
    guider = guider_for(patcher, label_conditioning(LABELS), label_conditioning([-1] * 4), 3.0)
    asked = inside_sampling(guider, noise(), [5.0, 3.0, 1.0], lambda denoise, x: denoise(x, 3.0), 0)
    assert asked.isfinite().all() and report.entry["text"] == ""
    assert identify(patcher)["functions"] == identify(model())["functions"]


@pytest.mark.parametrize("steps", [4, 7])
def test_a_searched_schedule_brings_its_sampler_between_the_ends_of_the_run(steps):
    patcher, report = boosted(schedule=searched())
    patcher, seen = watched(patcher)
    sample(patcher, "euler", "simple", steps)
    ((sampler, sigmas),) = seen
    assert sampler.sampler_function.__name__ == "sample_dpmpp_2m" and len(sigmas) == steps + 1
    own = searched().sigmas[steps]
    assert (sigmas[0], sigmas[-1]) == (float(host_sigmas("eps", "simple", steps)[0]), 0.0)
    assert sigmas[2:-1] == pytest.approx(own[2:-1], rel=0.02)  # it may begin below the highest sigma, and end above 0
    assert f"-> {steps} calls of dpmpp_2m, sigmas" in report.entry["text"]


def test_a_searched_schedule_leaves_a_sampler_that_draws_noise_the_persons():
    patcher, seen = watched(boosted(schedule=searched())[0])
    sample(patcher, "euler_ancestral", "simple", 4)
    ((sampler, sigmas),) = seen
    assert sampler.sampler_function.__name__ == "sample_euler_ancestral" and sigmas[2] < 3


def test_what_a_schedule_was_searched_on_is_compared_with_the_model():
    from dataclasses import replace

    for changed, words in [({"model": "another"}, "another checkpoint"), ({"cfg": 9.0}, "at cfg 9.0, not 3.0")]:
        patcher, report = boosted(schedule=replace(searched(), facts=searched().facts | changed))
        sample(patcher, "euler", "simple", 4)
        assert words in report.entry["text"] and "4 calls of dpmpp_2m" in report.entry["text"]
    for changed, words in [
        ({"channels": 16}, "latents of 16 channels"),
        ({"is_flow": True}, "searched on a flow model"),
    ]:
        patcher, report = boosted(schedule=replace(searched(), facts=searched().facts | changed))
        assert torch.equal(sample(patcher, steps=4), sample(model(), steps=4))
        assert "left as they are" in report.entry["text"] and words in report.entry["text"]


# ---------------------------------------------------------------------------------------------------------
# On the MODEL line


def test_two_in_a_row_the_last_one_counts_and_a_clone_carries_it():
    first, before = boosted(sampler=host_sampler("euler"))
    second, report = boosted(patcher=first)
    assert torch.equal(sample(second.clone()), sample(boosted()[0]))
    assert "DEIS" in report.entry["text"] and before.entry["text"] == ""


def test_the_model_that_it_was_made_of_stays_as_it_was():
    plain = sample(model())
    boosted()
    assert torch.equal(sample(model()), plain)


def test_few_steps_without_guidance_are_told_of_distilled_models():
    patcher, report = boosted()
    sample(patcher, cfg=1.0, steps=4)
    assert "distilled" in report.entry["text"]
    report.say("")
    sample(patcher, cfg=3.0, steps=4)
    assert "distilled" not in report.entry["text"]


@pytest.mark.parametrize("cfg, steps, told", [(7.0, 8, True), (7.0, 16, False), (4.5, 8, False)])
def test_strong_guidance_in_few_steps_is_told_of(cfg, steps, told):
    patcher, report = boosted()
    sample(patcher, cfg=cfg, steps=steps)
    assert ("leads it astray on some models" in report.entry["text"]) == told


def test_the_node_that_samples_and_its_scheduler_are_named():
    from comfy_execution.utils import CurrentNodeContext

    patcher, report = boosted(nodes={"7": {"class_type": "KSampler"}})
    with CurrentNodeContext("prompt", "7"):
        sample(patcher, "uni_pc", "beta", 5)
    assert report.entry["text"].startswith("KSampler: 5 steps of uni_pc beta -> 5 calls of FewStep's DEIS, sigmas 14.6")
