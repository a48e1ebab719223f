"""The same picture to the bit, whatever ran before, beside it or was cancelled; and 200 draws leave nothing behind."""

from __future__ import annotations

import gc
from functools import cache

import psutil
import pytest
import torch
from support import field
from support.examples import LONG
from torch import Tensor

pytestmark = pytest.mark.usefixtures("host")
FIELD = ["deis tab", "deis rhork", "dual fast", "flow map ctm"]
WAYS = ["restart", "restart of an SDE sampler", "dpm_solver_v3", "gmflow ode", "gmflow sde", "guidance", *FIELD]
EVERY = pytest.mark.parametrize("way", WAYS)


@cache
def parts(variant: str) -> tuple:
    """The bundled model and two prompts."""
    from fewstep.nodes.models.demo import load_clip, load_model

    clip = load_clip()
    prompts = [clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in ("red apple", "")]
    return load_model(variant), *prompts


def sampler_of(way: str):
    import comfy.samplers
    from fewstep.nodes.host.dpm_solver_v3 import Choice, dpm_solver_v3_sampler
    from fewstep.nodes.host.gmflow import Choice as GMFlowChoice
    from fewstep.nodes.host.gmflow import gmflow_sampler
    from fewstep.nodes.host.sampler import restart_sampler
    from fewstep.samplers.dpm_solver_v3 import Options

    makers = {
        "restart": lambda: restart_sampler(None, 1.0),
        "restart of an SDE sampler": lambda: restart_sampler(comfy.samplers.sampler_object("dpmpp_2m_sde"), 1.0),
        "dpm_solver_v3": lambda: dpm_solver_v3_sampler(Choice(Options(), None, "data", "never", None)),
        "gmflow ode": lambda: gmflow_sampler(GMFlowChoice("ode", 2, 8, 1.0, False)),
        "gmflow sde": lambda: gmflow_sampler(GMFlowChoice("sde", 2, 0, 1.0, False)),
    }
    if way in FIELD:
        return field.ours()[way]
    return makers[way]() if way in makers else comfy.samplers.sampler_object("euler")


def guider_of(way: str, variant: str):
    from fewstep.nodes.host.gmflow import Guidance, gmflow_guider
    from fewstep.nodes.host.guidance import guided_model
    from fewstep.nodes.host.guiders import guider_for
    from fewstep.samplers.guidance import ProbabilisticGuidance

    model, positive, negative = parts(variant)
    if way.startswith("gmflow"):
        return gmflow_guider(model, positive, negative, Guidance(0.45))
    if way == "guidance":
        model = guided_model(model, ProbabilisticGuidance(0.5), 0.0, 1.0, None)[0]
    return guider_for(model, positive, negative, 3.0)


def noise(count: int = 3, size: int = 16) -> Tensor:
    return torch.randn((count, 3, size, size), generator=torch.Generator().manual_seed(0))


def draw(way: str, x: Tensor, seed: int = 7, euler: bool = False) -> Tensor:
    """As the host samples it; euler: the host's own sampler under the same guidance."""
    jumps = [0.8, 0.5] if way.startswith("restart") and not euler else []
    sigmas = torch.tensor([1.0, 0.8, 0.5, *jumps, 0.2, 0.0])
    sampler = sampler_of("euler" if euler else way)
    guider = guider_of(way, "gmflow" if way.startswith("gmflow") else "flow")
    return guider.sample(x, torch.zeros_like(x), sampler, sigmas, disable_pbar=True, seed=seed)


def as_equal_as_the_hosts(way: str, first, second) -> bool:
    """Whether two ways to draw agree as well as they do with the host's euler: what differs there is the network's."""
    ours, theirs = ((first(euler) - second(euler)).abs().max().item() for euler in (False, True))
    return ours == 0 if theirs == 0 else ours < max(10 * theirs, 1e-5)


@pytest.mark.parametrize("way", [way for way in WAYS if "SDE" not in way])  # whose noise the host draws for a batch
def test_another_place_in_the_batch_is_the_same_picture(way):
    order = [2, 0, 1]
    assert as_equal_as_the_hosts(
        way,
        lambda euler: draw(way, noise()[order], euler=euler),
        lambda euler: draw(way, noise(), euler=euler)[order],
    )


@EVERY
def test_what_was_drawn_before_changes_nothing(way):
    first = draw(way, noise())
    draw(way, noise(), seed=8)
    torch.manual_seed(99)  # what another node leaves behind
    for other in WAYS:
        draw(other, noise(1))
    assert torch.equal(draw(way, noise()), first)


@EVERY
def test_the_picture_after_a_cancelled_one_is_the_same(way):
    import comfy.model_management as management

    whole = draw(way, noise())
    model = parts("gmflow" if way.startswith("gmflow") else "flow")[0]
    network = model.model.diffusion_model
    original, calls = network.forward, []

    def cancelled(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise management.InterruptProcessingException()
        return original(*args, **kwargs)

    network.forward = cancelled
    try:
        with pytest.raises(management.InterruptProcessingException):
            draw(way, noise())
    finally:
        del network.forward
    assert torch.equal(draw(way, noise()), whole)


@EVERY
def test_the_number_of_threads_changes_no_more_than_the_hosts_own_picture(way):
    def with_threads(count: int):
        def drawn(euler: bool) -> Tensor:
            before = torch.get_num_threads()
            torch.set_num_threads(count)
            try:
                return draw(way, noise(), euler=euler)
            finally:
                torch.set_num_threads(before)

        return drawn

    assert as_equal_as_the_hosts(way, with_threads(1), with_threads(2))


def live_tensors() -> tuple[int, int]:
    """How many there are, and the numbers in them."""
    gc.collect()
    found = [thing for thing in gc.get_objects() if torch.is_tensor(thing)]
    return len(found), sum(tensor.numel() for tensor in found)


def test_many_draws_leave_nothing_behind():
    for way in WAYS:
        draw(way, noise(1))
        draw(way, noise(1))
    before, memory = live_tensors(), psutil.Process().memory_info().rss
    for number in range(200 if LONG else 50):
        draw(WAYS[number % len(WAYS)], noise(1), seed=number)
    assert live_tensors() == before
    assert psutil.Process().memory_info().rss - memory < 64 * 2**20
