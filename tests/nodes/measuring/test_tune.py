"""Tune inside the host, in this process: its calls, what it promises, cancel and resume, prompts, guiders, streams.

Most of it at an effort of its own, smaller than those a person chooses from.
"""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fewstep.nodes.measuring.interrupted import Parts
from support.mixture import GuidedMixture, converged
from support.recording import watched_counters

from . import test_guiders as guiders
from . import test_requests as small
from . import test_streams as streams

pytestmark = pytest.mark.usefixtures("host")
KINDS = pytest.mark.parametrize("kind", ["EPS", "FLOW"])
CFGS = pytest.mark.parametrize("cfg", [1.0, 5.0])
# Effort of two latents to fit on and two to check on, at 3 to 5 calls, with two rules tried at 4.
SMALL = {"teacher": 20, "fitted": 2, "checked": 2, "budgets": (3, 4, 5), "tried": (4,), "places": 2,
         "unmeasured": (3, 5), "rival": (4,)}  # fmt: skip
SMALLEST = SMALL | {"budgets": (3,), "tried": (), "places": 1, "unmeasured": (3,), "rival": ()}


def request(patcher, effort: str | dict[str, Any] = SMALL, **changed):
    """effort: one that a person chooses, or its numbers."""
    from fewstep.nodes.measuring import tune

    class Own(tune.Request):
        @property
        def spent(self):
            return tune.Effort(**effort) if isinstance(effort, dict) else super().spent

    name = effort if isinstance(effort, str) else "quick"
    return Own(**(small.given(patcher) | {"effort": name, "cfg": 3.0} | changed))


def tuned(patcher, effort: str | dict[str, Any] = SMALL, kept=None, **changed):
    from fewstep.nodes.measuring.tune import tune

    return tune(request(patcher, effort, **changed), kept or Parts(), None)


def result_of(tuning) -> tuple:
    """All that it found, to the bit."""
    return tuning.tables, tuning.facts["check"], tuning.facts["places"], tuning.facts["parts"]


def counted(patcher):
    """A clone, and a list of how many latents every guided call was about."""
    clone, calls = patcher.clone(), []

    def count(args):
        calls.append(len(args["denoised"]))
        return args["denoised"]

    clone.set_model_sampler_post_cfg_function(count)
    return clone, calls


# ---------------------------------------------------------------------------------------------------------
# Calls


@pytest.mark.parametrize(
    "effort, most, kind, cfg", [("quick", 250, "EPS", 5.0), ("normal", 1000, "FLOW", 1.0), (SMALL, 300, "FLOW", 3.0)]
)
def test_the_calls_are_those_that_were_announced_to_the_last_one(effort, most, kind, cfg, monkeypatch):
    from fewstep.nodes.measuring import tune

    counters = watched_counters(monkeypatch, tune)
    patcher, calls = counted(small.model(kind))
    found = tuned(patcher, effort, cfg=cfg)
    (counter,), spent = counters, request(patcher, effort).spent
    assert sum(calls) == counter.done == counter.total == spent.calls == found.facts["calls"] <= most
    assert tuple(found.tables) == tuple(sorted(spent.budgets)) and found.facts["parts"] == (1 if cfg == 1 else 2)
    assert {name: set(map(int, checked)) for name, checked in found.facts["check"].items()} == {
        name: set(numbers)
        for name, numbers in (
            ("tuned", spent.budgets),
            ("unmeasured", spent.unmeasured),
            (f"dpmpp_2m {'simple' if kind == 'FLOW' else 'karras'}", spent.rival),
        )
        if numbers
    }
    assert found.used and found.describe()


def test_every_call_finds_its_step_in_the_schedule_that_the_host_was_told():
    """Context windows, and models of the average velocity, look it up there."""
    patcher, calls = small.model("FLOW"), []

    def watch(apply_model, args):
        options = args["c"]["transformer_options"]
        calls.append((float(args["timestep"][0]), options["sample_sigmas"].tolist()))
        return apply_model(args["input"], args["timestep"], **args["c"])

    patcher.set_model_unet_function_wrapper(watch)
    tuned(patcher)
    for sigma, schedule in calls:
        assert sigma in schedule[:-1] and schedule == sorted(set(schedule), reverse=True) and schedule[-1] == 0
    assert {len(schedule) - 1 for _, schedule in calls} == {20, 3, 4, 5}


@pytest.mark.parametrize("batch", [1, 3])
def test_how_many_latents_the_model_takes_at_a_time_makes_no_difference(batch, monkeypatch):
    from fewstep.nodes.measuring import tune

    whole, calls = counted(small.model("FLOW"))
    together = tuned(whole)
    assert max(calls) == 4
    monkeypatch.setattr(tune, "batch_of", lambda request, most: batch)
    patcher, calls = counted(small.model("FLOW"))
    apart = tuned(patcher)
    assert max(calls) == batch and sum(calls) == together.facts["calls"]
    assert apart.facts["places"] == together.facts["places"]
    for name, checked in together.facts["check"].items():
        for number, errors in checked.items():
            assert apart.facts["check"][name][number] == pytest.approx(errors, rel=0.02)


def test_a_tuning_is_the_same_again_and_another_seed_is_another():
    patcher = small.model("EPS")
    first = tuned(patcher, SMALLEST)
    assert result_of(tuned(patcher, SMALLEST)) == result_of(first)
    assert tuned(patcher, SMALLEST, seed=1).tables != first.tables
    assert request(patcher).facts == request(patcher).facts != request(patcher, seed=1).facts


# ---------------------------------------------------------------------------------------------------------
# What it promises


def tables_end(patcher, tuning, calls: int, noise, cfg: float, label: int = 0) -> torch.Tensor:
    """What the host draws with it."""
    import comfy.sample
    from fewstep.nodes.host.tuned import tuned_sampler
    from support.host_mixture import label_conditioning

    sigmas = torch.tensor(tuning.tables[calls].sigmas)
    prompts = label_conditioning([label]), label_conditioning([-1])
    start, nothing = noise * 1, noise * 0
    sampler = tuned_sampler(tuning)
    return comfy.sample.sample_custom(
        patcher, start, cfg, sampler, sigmas, *prompts, nothing, disable_pbar=True, seed=0
    )


def mean_of_logs(errors: torch.Tensor) -> float:
    return float(errors.log().mean().exp())


@KINDS
@CFGS
def test_what_it_promises_is_what_the_host_draws(kind, cfg):
    """The error of the check, by the host's own sampling of those latents, against the exact solution."""
    from fewstep.nodes.measuring.trajectories import own_noise

    patcher = small.model(kind)
    found = tuned(patcher, SMALLEST | {"teacher": 40}, cfg=cfg)
    asked = request(patcher)
    noise = torch.stack([own_noise(asked, number) for number in (2, 3)])
    drawn = tables_end(patcher, found, 3, noise, cfg)
    highest = asked.first
    start = asked.sampling.noise_scaling(torch.tensor([highest]).double(), noise.double(), torch.zeros(1), True)
    exact = GuidedMixture(small.mixture(), asked.law, torch.zeros(2, dtype=torch.long), cfg)
    end = converged(exact, start, min(highest, 1 - 1e-6) if kind == "FLOW" else highest, 1e-7)
    error = mean_of_logs((drawn - end).square().flatten(1).mean(1))
    assert error == pytest.approx(found.facts["check"]["tuned"]["3"][0], rel=0.25)


@KINDS
@CFGS
def test_it_is_nearer_than_what_needs_no_measurement_on_seeds_of_its_check(kind, cfg):
    found = tuned(small.model(kind), SMALL | {"teacher": 40, "unmeasured": (3, 4, 5)}, cfg=cfg)
    assert found.used == (3, 4, 5)
    shares = [found.error("tuned", n) / found.error("unmeasured", n) for n in found.tables]
    assert math.prod(shares) ** (1 / 3) < 0.3


@pytest.mark.parametrize("kind", ["V_PREDICTION", "EDM", "V_PREDICTION_EDM", "FLUX", "IMG_TO_IMG"])
def test_other_kinds_of_model(kind):
    found = tuned(small.model(kind), SMALLEST)
    assert found.used == (3,) and found.facts["is_flow"] == (kind == "FLUX")


# ---------------------------------------------------------------------------------------------------------
# Cancel, and go on


def stopping(patcher, at: int):
    """A clone that is interrupted at guided call `at`, from 1, and the latents of the calls before it."""
    import comfy.model_management

    clone = patcher.clone()
    calls: list[int] = []

    def count(args):
        if len(calls) + 1 == at:
            raise comfy.model_management.InterruptProcessingException()
        calls.append(len(args["denoised"]))
        return args["denoised"]

    clone.set_model_sampler_post_cfg_function(count)
    return clone, calls


def parts_of(spent) -> list[int]:
    """Calls of one latent of each part, in order: the teacher, fits, checks."""
    fits = [(n, spent.places if n in spent.tried else 1) for n in (*spent.tried, *spent.budgets)]
    fits = list(dict(fits).items())
    checks = (*spent.budgets, *spent.unmeasured, *spent.rival)
    return [
        spent.latents * spent.teacher,
        *(spent.fitted * n for n, times in fits for _ in range(times)),
        *(spent.checked * n for n in checks),
    ]


@pytest.mark.parametrize("at", [1, 20, 21, 25, 33, 37, 44, 57, 60])
def test_interrupted_and_resumed_it_is_what_nothing_stopped_and_no_finished_part_is_made_twice(at, monkeypatch):
    import comfy.model_management
    from fewstep.nodes.measuring import tune

    counters, kept = watched_counters(monkeypatch, tune), Parts()
    patcher, calls = stopping(fresh_model(), at)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        tuned(patcher, kept=kept)
    finished = 0
    for part in parts_of(request(patcher).spent):
        if finished + part > sum(calls):
            break
        finished += part
    again, further = counted(fresh_model())
    found = tuned(again, kept=kept)
    assert result_of(found) == uninterrupted()
    total = request(patcher).spent.calls
    assert sum(parts_of(request(patcher).spent)) == total
    assert sum(further) == total - finished == counters[1].total == counters[1].done


KEPT: dict[str, Any] = {}


def fresh_model():
    """One for this file: what a run leaves on it is nothing."""
    return KEPT.setdefault("model", small.model("FLOW"))


def uninterrupted() -> tuple:
    if "result" not in KEPT:
        KEPT["result"] = result_of(tuned(fresh_model()))
    return KEPT["result"]


@pytest.fixture(scope="module", autouse=True)
def forgotten(host):
    yield
    KEPT.clear()


def test_the_node_goes_on_where_it_was_cancelled_and_finds_its_file(monkeypatch, tmp_path):
    import comfy.model_management
    import folder_paths
    from fewstep.nodes import tune as module
    from fewstep.schedulers.tuning.tuning import load_tuning
    from support.host_mixture import label_conditioning

    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
    known = {name: paths for name, paths in folder_paths.folder_names_and_paths.items() if name != "fewstep"}
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", known)
    module.interrupted.works.clear()
    node: Any = type(
        "Tune", (module.FewStepTune,), {"hidden": SimpleNamespace(unique_id=None, prompt=None, extra_pnginfo=None)}
    )
    patcher = small.model("FLOW")
    calls: list[int] = []
    network, at = patcher.model.diffusion_model, [0]
    original, spent = network.denoise, request(patcher, "quick").spent

    def denoise(x, sigma, labels):
        if len(calls) == at[0]:
            raise comfy.model_management.InterruptProcessingException()
        calls.append(len(x))
        return original(x, sigma, labels)

    network.denoise = denoise
    latent = {"samples": torch.zeros(1, 4, 8, 8)}
    given = {"model": patcher, "positive": label_conditioning([0]), "latent_image": latent}

    def queue(save_as: str):
        return node.execute(cfg=1.0, seed=0, effort="quick", save_as=save_as, **given)

    for stop in (spent.teacher - 2, spent.teacher + 5):  # the teacher is begun anew
        at[0] = len(calls) + stop
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            queue("mine")
    assert not list(Path(tmp_path).rglob("*.safetensors"))
    at[0], before = -1, len(calls)
    output = queue("mine")
    assert sum(calls[before:]) <= spent.calls - spent.latents * spent.teacher
    (file,) = Path(tmp_path).rglob("*.safetensors")
    assert file.name == "mine.safetensors" and load_tuning(file).tables == output.args[0].tables
    assert "models/fewstep/mine.safetensors" in output.ui["fewstep"][0]["text"]
    done = len(calls)
    assert queue("mine").args[0].tables == output.args[0].tables and len(calls) == done
    assert not module.interrupted.works


# ---------------------------------------------------------------------------------------------------------
# Prompts and guiders


def pair(label: int) -> tuple[list, list]:
    return guiders.prompt(label), guiders.prompt(-1)


def labels_at_first(patcher) -> dict[float, set[int]]:
    """Of every latent, told by its sum, the prompts that it was asked about at the highest sigma."""
    network, seen = patcher.model.diffusion_model, dict[float, set[int]]()
    original = network.denoise

    def denoise(x, sigma, labels):
        if float(sigma[0]) == 1.0:
            for one, label in zip(x, labels.tolist(), strict=True):
                seen.setdefault(round(float(one.sum()), 3), set()).add(label)
        return original(x, sigma, labels)

    network.denoise = denoise
    return seen


def test_prompts_are_dealt_over_the_latents_of_the_fits_and_of_the_check():
    patcher = small.model("FLOW")
    seen = labels_at_first(patcher)
    found = tuned(patcher, SMALLEST, cfg=1.0, prompts=(pair(3),))
    assert sorted(map(sorted, seen.values())) == [[0], [0], [3], [3]]
    assert found.facts["prompts"] == 2 and found.facts["prompt"] != request(patcher, cfg=1.0).facts["prompt"]


def test_the_same_prompt_twice_is_that_prompt():
    patcher = small.model("FLOW")
    one, twice = tuned(patcher, SMALLEST), tuned(patcher, SMALLEST, prompts=(pair(0),))
    assert twice.error("tuned", 3) == pytest.approx(one.error("tuned", 3), rel=0.02)
    assert result_of(tuned(patcher, SMALLEST, prompts=())) == result_of(one)


@pytest.mark.parametrize("effort", ["quick", "normal"])
def test_more_prompts_than_latents_are_refused_in_words(effort):
    patcher = small.model("FLOW")
    most = request(patcher, effort).spent.fitted
    assert len(request(patcher, effort, prompts=tuple(pair(3) for _ in range(most - 1))).each) == most
    words = (
        f"There are {most + 1} prompts, and effort {effort} measures on {most} latents.*Raise effort, or connect fewer"
    )
    with pytest.raises(ValueError, match=words):
        request(patcher, effort, prompts=tuple(pair(3) for _ in range(most)))


def test_a_guider_is_the_four_sockets_to_the_bit():
    patcher = guiders.model()
    four: dict[str, Any] = {"positive": guiders.prompt(0), "negative": guiders.prompt(-1), "cfg": 3.0}
    through: dict[str, Any] = {
        "model": None,
        "positive": None,
        "negative": None,
        "cfg": 99.0,
        "guider": guiders.plain(patcher, 3.0),
    }
    assert request(patcher, **through).facts == request(patcher, **four).facts
    assert result_of(tuned(patcher, SMALLEST, **through)) == result_of(tuned(patcher, SMALLEST, **four))


@guiders.EVERY_KIND
def test_every_kind_of_guider_is_measured_through_and_stays_as_it_is(kind):
    """What they do at these numbers is CFG: what is measured is as good, with a push of its own or without."""
    patcher = guiders.model()
    guider = guiders.KINDS[kind](patcher)
    before = dict(vars(guider))
    found = tuned(patcher, SMALLEST, guider=guider)
    assert vars(guider) == before
    assert found.facts["guider"].startswith(("cfg 3", "cfg1 3", "video_cfg 3"))
    plain = tuned(patcher, SMALLEST, guider=guiders.plain(patcher))
    assert found.error("unmeasured", 3) == pytest.approx(plain.error("unmeasured", 3), rel=0.05)
    assert found.error("tuned", 3) < found.error("unmeasured", 3)


@pytest.mark.parametrize("cfgs", [(1.0, 3.0), (3.0, 1.0), (1.0, 1.0)])
def test_two_experts_of_which_one_does_not_ask_without_the_prompt(cfgs):
    from support.nodes import executed, of_the_pack

    patcher = guiders.model()
    given = (patcher, patcher.clone(), guiders.prompt(0), guiders.prompt(-1), *cfgs, 0.6)
    found = tuned(patcher, SMALLEST, guider=executed(of_the_pack()["FewStepTwoExperts"], *given))
    assert found.facts["parts"] == (1 if cfgs == (1.0, 1.0) else 2)
    assert all(table.parts == found.facts["parts"] for table in found.tables.values())
    if found.facts["parts"] == 2:
        at_first = [table.rows[0].weights[1] for table in found.tables.values()]
        assert all(any(weights) == (cfgs[0] == 3.0) for weights in at_first)


def test_the_persons_model_stays_as_it_is():
    patcher = small.model("EPS")
    patcher.set_model_sampler_post_cfg_function(lambda args: args["denoised"])
    before = {name: list(one) if isinstance(one, list) else one for name, one in patcher.model_options.items()}
    tuned(patcher, SMALLEST)
    assert patcher.model_options == before


# ---------------------------------------------------------------------------------------------------------
# Streams


def test_latents_of_several_streams():
    """Both streams count alike: the check's error is the mean of what each model alone says of its stream."""
    from fewstep.nodes.measuring.trajectories import own_noise
    from fewstep.samplers.noise_law import FLOW

    patcher = streams.model()
    found = tuned(patcher, SMALLEST | {"teacher": 40}, latent=streams.empty(), cfg=1.0)
    assert found.facts["streams"] == [list(streams.VIDEO), list(streams.AUDIO)] and found.used == (3,)
    asked = request(patcher, latent=streams.empty())
    noise = torch.stack([own_noise(asked, number) for number in (2, 3)])
    drawn = tables_end(patcher, found, 3, streams.nested(noise), 1.0).unbind()
    errors = []
    for number, mixture in enumerate(streams.mixtures()):
        start = streams.square(streams.STREAMS.apart(noise)[number])
        exact = GuidedMixture(mixture, FLOW, torch.zeros(2, dtype=torch.long))
        end = converged(exact, start, 1.0 - 1e-6, 1e-7)
        errors.append((streams.square(drawn[number]) - end).square().flatten(1).mean(1))
    assert mean_of_logs(torch.stack(errors).mean(0)) == pytest.approx(found.facts["check"]["tuned"]["3"][0], rel=0.25)


def test_an_error_is_the_mean_over_streams_of_any_size():
    from fewstep.nodes.measuring.tune import errors_of

    asked = request(streams.model(), latent=streams.empty())
    x, target = streams.noise(3, 1), streams.noise(3, 2)
    target[..., -streams.SIZES[1] :] *= 5
    each = streams.STREAMS.square_errors(x, target)
    assert (errors_of(asked, x, target) - each.mean(1)).abs().max() < 1e-5
    assert (errors_of(asked, x, target) - (x - target).square().flatten(1).mean(1)).abs().max() > 1


def test_a_guided_latent_of_several_streams_is_in_two_parts():
    found = tuned(streams.model(), SMALLEST, latent=streams.empty(), cfg=3.0)
    assert found.facts["parts"] == 2 and found.error("tuned", 3) < found.error("unmeasured", 3)


# ---------------------------------------------------------------------------------------------------------
# What cannot be


@pytest.mark.parametrize("at, phase", [(5, "following the teacher"), (21, "fitting 4 calls"), (38, "checking")])
def test_a_model_that_answers_with_nan_is_said(at, phase):
    from support.host_mixture import fail

    patcher = small.model("FLOW")
    fail(patcher, at=at)
    with pytest.raises(ValueError, match=f"NaN or infinite numbers at model call {at + 1} while {phase}"):
        tuned(patcher, cfg=1.0)


@KINDS
def test_a_teacher_that_leads_nowhere_is_said(kind):
    patcher = small.model(kind)
    network = patcher.model.diffusion_model
    original = network.denoise
    network.denoise = lambda x, sigma, labels: 50 * original(x, sigma, labels)
    with pytest.raises(ValueError, match="The teacher of 20 steps, at cfg 3, did not reach a picture.*Lower the cfg"):
        tuned(patcher)


@pytest.mark.parametrize(
    "changed, words",
    [
        ({"effort": "extreme"}, "effort.*extreme.*quick, normal"),
        ({"cfg": math.nan}, "cfg is nan"),
        ({"seed": -1}, "seed is -1"),
        ({"positive": []}, "positive is an empty list"),
        ({"negative": None}, "negative is missing"),
        ({"latent": torch.zeros(1, 16, 8, 8)}, "latents are batch x 4 channels"),
        ({"latent": torch.full((1, 4, 8, 8), math.inf)}, "NaN or infinite"),
    ],
    ids=str,
)
def test_what_cannot_be_tuned_is_said_before_the_first_call(changed, words):
    patcher, calls = counted(small.model("FLOW"))
    with pytest.raises(ValueError, match=words):
        tuned(patcher, **({"effort": "quick"} | changed))
    assert not calls


@pytest.mark.parametrize(
    "free, cure",
    [(1e9, None), (4.2e6, "Set effort to normal"), (0.0, "Take a smaller latent_image, or fewer frames")],
)
def test_an_effort_that_does_not_fit_the_memory_says_what_would(free, cure, monkeypatch):
    import comfy.model_management
    from fewstep.nodes.measuring import tune as module

    patcher = small.model("FLOW")
    asked = request(patcher, "thorough", latent=torch.zeros(1, 4, 32, 32))
    needed = {name: module.bytes_of(asked, spent) * module.COPIES for name, spent in module.EFFORTS.items()}
    assert needed["normal"] <= 4.2e6 * 4 < needed["thorough"] <= 1e9
    monkeypatch.setattr(comfy.model_management, "get_free_memory", lambda device: free * 4)
    if cure is None:
        module.check_memory(asked)
        return
    with pytest.raises(ValueError, match=f"Effort thorough keeps .* GB of latents .* {cure}, or close other programs"):
        module.check_memory(asked)
