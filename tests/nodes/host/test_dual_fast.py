"""DualFast around the host's samplers: nothing at strength 0, and the host's own relative of it."""

from __future__ import annotations

import pytest
import torch
from fewstep.nodes.host.progress import Report
from support.field import dual_fast, hosts, model, sample, schedule, start_noise

pytestmark = pytest.mark.usefixtures("host")


@pytest.mark.parametrize("name", ["euler", "heun", "dpmpp_2m", "uni_pc", "dpmpp_2m_sde", "dpm_adaptive", "lcm"])
def test_at_strength_0_it_is_the_sampler_itself_to_the_bit(name):
    assert torch.equal(sample(dual_fast(name, 0.0, "linear")), sample(hosts(name)))


@pytest.mark.parametrize("kind", ["eps", "flow"])
def test_a_constant_strength_around_euler_is_the_hosts_gradient_estimation(kind):
    """But for the last step: the host's ends with the prediction. So of a schedule that ends above 0."""
    sigmas = schedule(model(kind))[:-1]
    theirs = sample(hosts("gradient_estimation", ge_gamma=1.4), kind, sigmas=sigmas)
    mixed = sample(dual_fast("euler", 0.4, "constant"), kind, sigmas=sigmas)
    torch.testing.assert_close(mixed, theirs, rtol=0, atol=1e-3)
    assert (mixed - sample(hosts("euler"), kind, sigmas=sigmas)).abs().max() > 0.05


def test_nothing_of_a_run_is_left_for_the_next():
    sampler = dual_fast("euler", 0.5, "constant", "first")
    first = sample(sampler)
    sample(sampler, seed=8, noise=start_noise(seed=3))
    assert torch.equal(sample(sampler), first)


def test_around_restart_every_fall_begins_anew():
    """And it may be around or inside: a jump is where nothing earlier is known."""
    from fewstep.nodes.host.sampler import restart_sampler

    sigmas = torch.tensor([14.6, 3.0, 0.8, 0.2, 2.0, 0.6, 0.0])
    around = sample(dual_fast(restart_sampler(hosts("euler"), 1.0), 0.5, "constant"), sigmas=sigmas)
    inside = sample(restart_sampler(dual_fast("euler", 0.5, "constant"), 1.0), sigmas=sigmas)
    torch.testing.assert_close(around, inside, rtol=0, atol=1e-4)


def test_a_sampler_is_wrapped_as_what_it_is_and_stays_what_it_was():
    from fewstep.nodes.host.sampler import StepCountingSampler, restart_sampler

    theirs = restart_sampler(None, 1.0)
    theirs.inpaint_options = {"random": True}
    before = dict(vars(theirs))
    mixed = dual_fast(theirs, 0.5, "linear")
    assert isinstance(mixed, StepCountingSampler) and mixed.inpaint_options == {"random": True}
    assert vars(theirs) == before and mixed.sampler_function is not theirs.sampler_function


@pytest.mark.parametrize(
    "name, strength, words",
    [
        ("euler", 0.5, ""),
        ("heun", 0.25, ""),
        ("dpmpp_2m", 0.25, "looks back"),
        ("gradient_estimation", 0.1, "looks back"),
        ("ipndm", 0.1, "looks back"),
        ("uni_pc", 0.1, "looks back"),
        ("dpmpp_2m_sde", 0.5, "draws noise"),
        ("ipndm", 0.0, ""),
    ],
)
def test_who_has_little_to_gain_is_told(name, strength, words):
    report = Report(None)
    dual_fast(name, strength, "linear", "previous", report)
    text = report.ui["fewstep"][0]["text"]
    assert words in text and bool(text) == bool(words)


def test_what_is_no_ksampler_is_refused_in_words():
    with pytest.raises(TypeError, match="not built on ComfyUI's KSAMPLER"):
        dual_fast(object(), 0.5, "linear")


def test_sigmas_that_rise_are_refused_in_words():
    with pytest.raises(ValueError, match="needs sigmas that fall"):
        sample(dual_fast("euler", 0.5, "linear"), sigmas=torch.tensor([1.0, 3.0, 0.0]))
