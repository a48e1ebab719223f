"""Several prompts in one measurement: dealt out over images and trajectories, each under its own conditioning."""

from __future__ import annotations

import pytest
import torch
from fewstep.nodes.measuring.interrupted import Parts

from .test_requests import NODES, SIZE, model, numbers_of, request, run

pytestmark = pytest.mark.usefixtures("host")


def prompt(label: int) -> list:
    from support.host_mixture import label_conditioning

    return label_conditioning([label])


def pair(label: int, **further) -> tuple[list, list]:
    return [[prompt(label)[0][0], further]], prompt(-1)


ENOUGH = {"estimate": {"images": 6}, "spread": {"images": 6}, "search": {"trajectories": 3}}


@pytest.mark.parametrize("name", NODES)
def test_one_prompt_is_to_the_bit_what_it_was(name):
    patcher = model("FLOW")
    assert request(name, patcher, prompts=()).facts == request(name, patcher).facts
    assert "prompts" not in request(name, patcher).facts
    assert numbers_of(run(name, patcher, prompts=())) == numbers_of(run(name, patcher))


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", NODES)
def test_the_same_prompt_thrice_is_that_prompt(name, batch):
    patcher, latent = model("FLOW"), torch.zeros(batch, 4, SIZE, SIZE)
    given = {**ENOUGH[name], "latent": latent, "cfg": 2.0}
    thrice = numbers_of(run(name, patcher, prompts=(pair(0), pair(0)), **given))
    assert thrice == pytest.approx(numbers_of(run(name, patcher, **given)), rel=1e-3, abs=1e-7)


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_every_image_is_measured_under_its_own_prompt(batch):
    """A spread of three prompts is the mean of what is measured on each prompt's images, found one by one."""
    patcher, prompts = model("FLOW"), (0, 3, 5)
    pictures = torch.randn((6, 4, SIZE, SIZE), generator=torch.Generator().manual_seed(3))
    from fewstep.nodes.measuring import spread

    def squares(label: int, parts: Parts) -> torch.Tensor:
        """(6, levels), of all images under one prompt."""
        asked = request("spread", patcher, positive=prompt(label), latent=pictures[:batch], images=6)
        spread.measure_spread(asked, None, parts)
        return torch.cat([parts.done[spread.images_of(numbers)].result for numbers in asked.batches])

    apart = [squares(label, Parts()) for label in prompts]
    parts = Parts()
    asked = request("spread", patcher, latent=pictures[:batch], images=6, prompts=(pair(3), pair(5)))
    spread.measure_spread(asked, None, parts)
    found = torch.cat([parts.done[spread.images_of(numbers)].result for numbers in asked.batches])
    for number in range(6):
        assert torch.allclose(found[number], apart[number % 3][number], rtol=1e-4)
    assert not torch.allclose(found[1], apart[0][1], rtol=1e-2)


def test_a_search_asks_about_every_trajectory_under_its_own_prompt():
    """Those that it compares on as well; and each is asked about under no other."""
    patcher, seen = model("FLOW"), dict[float, set[int]]()
    network = patcher.model.diffusion_model
    original = network.denoise

    def denoise(x, sigma, labels):
        if float(sigma[0]) == 1.0:
            for one, label in zip(x, labels.tolist(), strict=True):
                seen.setdefault(round(float(one.sum()), 3), set()).add(label)
        return original(x, sigma, labels)

    network.denoise = denoise
    run("search", patcher, trajectories=3, prompts=(pair(3),), start="sigma_max")
    assert sorted(map(sorted, seen.values())) == [[0], [0], [0], [0], [3], [3]]


def test_what_is_searched_on_several_prompts_is_another_schedule_and_checked_on_all():
    patcher = model("FLOW")
    one = run("search", patcher, trajectories=4, steps=3, cfg=3.0)
    several = run("search", patcher, trajectories=4, steps=3, cfg=3.0, prompts=(pair(3), pair(5), pair(1)))
    assert several.facts["prompts"] == 4 and several.facts["compared"] != one.facts["compared"]


@pytest.mark.parametrize("name", NODES)
def test_all_prompts_are_in_the_facts(name):
    patcher = model("FLOW")
    lists = [(), (pair(3),), (pair(5),), (pair(3), pair(5)), (pair(5), pair(3)), (pair(3, strength=0.5),)]
    facts = [request(name, patcher, prompts=prompts, **ENOUGH[name]).facts for prompts in lists]
    assert len({found["prompt"] for found in facts}) == len(lists)
    assert [found.get("prompts", 1) for found in facts] == [1, 2, 2, 3, 3, 2]
    assert facts[1] == request(name, patcher, prompts=(pair(3),), **ENOUGH[name]).facts


@pytest.mark.parametrize("name", NODES)
def test_prompts_come_with_an_ordinary_guider_too(name):
    from fewstep.nodes.host.guiders import guider_for

    patcher, given = model("FLOW"), {**ENOUGH[name], "prompts": (pair(3),), "cfg": 2.0}
    guider = guider_for(patcher, prompt(0), prompt(-1), 2.0)
    assert request(name, patcher, **given).facts == request(name, None, guider=guider, **given).facts
    assert numbers_of(run(name, None, guider=guider, **given)) == numbers_of(run(name, patcher, **given))


def test_areas_and_time_ranges_of_one_prompt_do_not_reach_another():
    """Each is prepared as the host prepares it alone: an area asks for its like in the negative of its own prompt."""
    from fewstep.nodes.host.guiders import guider_for
    from fewstep.nodes.host.prompts import ManyPrompts, dealt
    from fewstep.nodes.measuring.running import inside_sampling

    patcher = model("FLOW")
    patcher.model.diffusion_model.denoise = lambda x, sigma, labels: x * 0 + labels.view(-1, 1, 1, 1)
    with_area = [*pair(5)[0], [prompt(3)[0][0], {"area": (4, 8, 0, 0), "strength": 1.0}]]
    late = [[prompt(1)[0][0], {"start_percent": 0.5}], [prompt(7)[0][0], {"end_percent": 0.5}]]
    guiders = [guider_for(patcher, positive, prompt(-1), 2.0) for positive in (prompt(0), with_area, late)]
    noise = torch.randn((1, 4, SIZE, SIZE), generator=torch.Generator().manual_seed(0))
    sigmas = [1.0, 0.9, 0.2]

    def asked(denoise, x):
        return torch.stack([denoise(x, sigma) for sigma in sigmas])

    alone = [inside_sampling(guider, noise, sigmas, asked, 0) for guider in guiders]

    def together(denoise, x):
        both = dealt(denoise, denoise.guider, [2, 0, 1])
        return torch.stack([both(x.repeat(3, 1, 1, 1), sigma) for sigma in sigmas])

    found = inside_sampling(ManyPrompts(guiders), noise, sigmas, together, 0)
    for place, number in enumerate([2, 0, 1]):
        assert torch.equal(found[:, place], alone[number][:, 0])
    assert len({float(answer[:, 0].double().sum()) for answer in alone}) == 3


def test_the_nodes_chain_prompts():
    from fewstep.nodes.prompts import FewStepPromptList

    first = FewStepPromptList.execute(prompt(3), prompt(-1)).args[0]
    second = FewStepPromptList.execute(prompt(5), None, first).args[0]
    assert [len(first), len(second)] == [1, 2] and second[0] is first[0] and second[1][1] == []
    with pytest.raises(ValueError, match="positive is missing"):
        FewStepPromptList.execute(None)


def test_what_does_not_go_together_is_said():
    from .test_guiders import dual_cfg

    patcher = model("FLOW")
    many = tuple(pair(label) for label in (1, 3, 5))
    for name, value in (("estimate", "images is 2"), ("spread", "images is 2"), ("search", "trajectories is 2")):
        with pytest.raises(ValueError, match=f"{value}, and there are 4 prompts. Raise"):
            request(name, patcher, prompts=many)
    with pytest.raises(ValueError, match="Guider_DualCFG guides otherwise.*disconnect prompts"):
        request("search", None, guider=dual_cfg(patcher), prompts=many[:1])
    with pytest.raises(ValueError, match="negative is an empty list"):
        request("search", patcher, cfg=2.0, prompts=((prompt(3), []),))
