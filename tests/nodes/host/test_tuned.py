"""A tuning inside the host's sampling: when its tables run, what runs else, and what guidance and masks do to them."""

from __future__ import annotations

import importlib
import math
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fewstep.nodes.host.progress import Report
from fewstep.samplers.table import Row, Table, step_by_table
from fewstep.schedulers.tuning.tuning import Tuning
from support.mixture import GuidedMixture
from support.nodes import executed

from ..measuring import test_guiders as guiders
from ..measuring import test_requests as small
from ..measuring import test_tune as measuring
from ..measuring.test_tune import counted

pytestmark = pytest.mark.usefixtures("host")
KINDS = pytest.mark.parametrize("kind", ["EPS", "FLOW"])
CALLS = 4


@pytest.fixture(scope="module", autouse=True)
def forgotten(host):
    """Models are not kept beyond this file."""
    yield
    model.cache_clear()
    tuning.cache_clear()


@lru_cache(maxsize=4)
def model(kind: str = "FLOW"):
    return small.model(kind)


@lru_cache(maxsize=4)
def tuning(kind: str = "FLOW", cfg: float = 3.0) -> Tuning:
    """Of 3, 4 and 5 calls."""
    found = measuring.tuned(model(kind), cfg=cfg)
    assert found.used == (3, 4, 5)
    return found


def losing(of: Tuning, *calls: int) -> Tuning:
    """The same, with a check that the tables of some numbers of calls did not win."""
    check = {
        "tuned": {str(n): [1.0 if n in calls else 1e-4] * 3 for n in of.tables},
        "unmeasured": {str(n): [1e-2] * 3 for n in of.tables},
    }
    return replace(of, facts=of.facts | {"check": check})


def noise(count: int = 2) -> torch.Tensor:
    return torch.randn((count, 4, 8, 8), generator=torch.Generator().manual_seed(0))


def scheduled(kind: str, scheduler: str, steps: int) -> torch.Tensor:
    import comfy.samplers

    return comfy.samplers.calculate_sigmas(model(kind).get_model_object("model_sampling"), scheduler, steps)


def custom(patcher, sampler, sigmas, cfg: float = 3.0, **given) -> torch.Tensor:
    """As Sampler Custom does."""
    import comfy.sample

    start, latent = given.pop("noise", noise()), given.pop("latent", torch.zeros(2, 4, 8, 8))
    prompts = guiders.prompt(0), guiders.prompt(-1)
    return comfy.sample.sample_custom(
        patcher, start, cfg, sampler, torch.as_tensor(sigmas), *prompts, latent, disable_pbar=True, seed=5, **given
    )


def drawn(of: Tuning, patcher=None, calls: int = CALLS, report=None, sigmas=None, **given) -> torch.Tensor:
    from fewstep.nodes.host.tuned import tuned_sampler

    own = of.tables[calls].sigmas if sigmas is None else sigmas
    kind = "FLOW" if of.facts["is_flow"] else "EPS"
    return custom(patcher or model(kind), tuned_sampler(of, report), own, **given)


def ksampled(patcher, sampler="euler", scheduler="simple", steps=CALLS, cfg=3.0, **given) -> torch.Tensor:
    """As KSampler does."""
    import comfy.sample

    start, latent = given.pop("noise", noise()), given.pop("latent", torch.zeros(2, 4, 8, 8))
    prompts = guiders.prompt(0), guiders.prompt(-1)
    return comfy.sample.sample(
        patcher, start, steps, cfg, sampler, scheduler, *prompts, latent, disable_pbar=True, seed=5, **given
    )


def boosted(of: Tuning | None, patcher=None, **given):
    from fewstep.nodes.host.boost import Boost, boosted

    report = Report(None)
    kind = "FLOW" if of is None or of.facts["is_flow"] else "EPS"
    return boosted(patcher or model(kind), Boost(tuning=of, report=report, **given)), report


def node(kind: str, patcher, steps: int, denoise: float = 1.0, of: Tuning | None = None):
    """What Tuned Sampler gives: sampler, sigmas, and what it says."""
    from fewstep.nodes.tune import FewStepTunedSampler

    hidden = {"hidden": SimpleNamespace(unique_id=None)}
    made: Any = type("Tuned", (FewStepTunedSampler,), hidden)
    output = made.execute(of or tuning(kind), patcher, steps, denoise)
    return *output.args, output.ui["fewstep"][0]


def by_hand(of: Tuning, calls: int, cfg: float, start: torch.Tensor) -> torch.Tensor:
    """The table on the exact model, in double precision."""
    from fewstep.nodes.host.noise_law import noise_law

    sampling = model("FLOW" if of.facts["is_flow"] else "EPS").get_model_object("model_sampling")
    law, labels = noise_law(sampling), torch.zeros(len(start), dtype=torch.long)

    def ask(x, sigma):
        guided = GuidedMixture(small.mixture(), law, labels, cfg)(x, sigma)
        return guided, guided - GuidedMixture(small.mixture(), law)(x, sigma)

    table = of.tables[calls]
    top = torch.tensor([table.sigmas[0]], dtype=torch.float64)
    return step_by_table(ask, sampling.noise_scaling(top, start.double(), torch.zeros(1), True), table)


# ---------------------------------------------------------------------------------------------------------
# When a table runs


@KINDS
@pytest.mark.parametrize("cfg", [1.0, 3.0])
@pytest.mark.parametrize("calls", [3, 5])
def test_it_is_the_table_on_the_hosts_own_model(kind, cfg, calls):
    report = Report(None)
    patcher, made = counted(model(kind))
    end = drawn(tuning(kind, cfg), patcher, calls, report, cfg=cfg)
    assert (end - by_hand(tuning(kind, cfg), calls, cfg, noise())).abs().max() < 2e-3
    assert made == [2] * calls and report.entry["text"] == ""


@KINDS
@pytest.mark.parametrize("scheduler", ["simple", "karras", "beta", "sgm_uniform", "normal"])
def test_boost_brings_the_table_to_a_plain_ksampler(kind, scheduler):
    """Also where the scheduler's first sigma is the highest but for rounding: no call is made twice."""
    patcher, report = boosted(tuning(kind))
    patcher, made = counted(patcher)
    end = ksampled(patcher, "dpmpp_2m", scheduler)
    assert len(made) == CALLS and "4 calls of Tuned Sampler, sigmas" in report.entry["text"]
    assert (end - by_hand(tuning(kind), CALLS, 3.0, noise())).abs().max() < 5e-3
    without = ksampled(boosted(None, model(kind))[0], "dpmpp_2m", scheduler)
    assert (end - without).abs().max() > 1e-2  # it is not what runs without a tuning


def test_the_first_sigma_is_asked_at_as_the_run_has_it_and_once():
    sigmas = list(tuning("EPS").tables[CALLS].sigmas)
    sigmas[0] *= 1 + 2e-4
    asked: list[float] = []
    clone = model("EPS").clone()

    def look(args):
        asked.append(float(args["sigma"][0]))
        return args["denoised"]

    clone.set_model_sampler_post_cfg_function(look)
    drawn(tuning("EPS"), clone, sigmas=torch.tensor(sigmas))
    assert asked == torch.tensor(sigmas[:-1]).tolist()


@pytest.mark.parametrize("sampler, steps, calls", [("heun", 3, 5), ("dpm_2", 2, 3), ("euler", 4, 4), ("uni_pc", 5, 5)])
def test_a_sampler_of_two_calls_a_step_gives_way_to_the_table_of_as_many_calls(sampler, steps, calls):
    patcher, report = boosted(tuning())
    patcher, made = counted(patcher)
    ksampled(patcher, sampler, steps=steps)
    assert len(made) == calls and f"{calls} calls of Tuned Sampler" in report.entry["text"]


@KINDS
def test_tuned_sampler_gives_what_boost_runs(kind):
    sampler, sigmas, said = node(kind, model(kind), CALLS)
    assert said["text"] == "4 calls by table." and sigmas.dtype == torch.float32 and len(sigmas) == CALLS + 1
    boost = boosted(tuning(kind), model(kind))[0]
    assert (custom(model(kind), sampler, sigmas) - ksampled(boost)).abs().max() < 1e-4


def test_the_preview_sees_every_step():
    seen: list[tuple] = []
    patcher, _ = boosted(tuning())

    def callback(step, denoised, x, total):
        seen.append((step, total, denoised.clone(), x.clone()))

    ksampled(patcher, callback=callback)
    assert [(step, total) for step, total, _, _ in seen] == [(n, CALLS) for n in range(CALLS)]
    assert all(denoised.shape == x.shape == (2, 4, 8, 8) for _, _, denoised, x in seen)
    rms = [float((one - two).square().mean().sqrt()) for (_, _, one, _), (_, _, two, _) in pairwise(seen)]
    assert 0 < rms[-1] < 1


# ---------------------------------------------------------------------------------------------------------
# When none does


def recipe_of(kind: str, **given) -> torch.Tensor:
    return ksampled(boosted(None, model(kind))[0], **given)


@KINDS
@pytest.mark.parametrize(
    "given, words",
    [
        ({"steps": 6}, "tables for 3, 4, 5 calls; this run has 6"),
        ({"steps": 8, "denoise": 0.5}, "is of whole runs, sigma {whole} to 0; this is {first} to 0"),
        ({"last_step": 2}, "is of whole runs, sigma {whole} to 0; this is {whole} to {last}"),
        ({"start_step": 1}, "is of whole runs, sigma"),
        ({"sampler": "heun", "steps": 4}, "this run has 7"),
    ],
    ids=str,
)
def test_for_other_runs_what_needs_no_measurement_runs_and_it_says_why(kind, given, words):
    patcher, report = boosted(tuning(kind))
    patcher, made = counted(patcher)
    assert torch.equal(ksampled(patcher, **given), recipe_of(kind, **given))
    sampling = model(kind).get_model_object("model_sampling")
    steps, whole = given.get("steps", CALLS), f"{float(sampling.sigma_max):.4g}"
    there = {"whole": whole, "first": "", "last": ""}
    if "denoise" in given:
        there["first"] = f"{float(scheduled(kind, 'simple', int(steps / given['denoise']))[-(steps + 1)]):.4g}"
    if "last_step" in given:
        there["last"] = f"{float(scheduled(kind, 'simple', steps)[given['last_step']]):.4g}"
    assert words.format(**there) in report.entry["text"]
    assert "What needs no measurement runs." in report.entry["text"]
    assert "calls of FewStep's DEIS" in report.entry["text"]


@KINDS
def test_a_table_that_did_not_win_its_check_does_not_run(kind):
    of = losing(tuning(kind), 4)
    patcher, report = boosted(of)
    assert torch.equal(ksampled(patcher), recipe_of(kind))
    assert "At 4 calls the table did not win its check; it did at 3, 5." in report.entry["text"]
    sampler, sigmas, said = node(kind, model(kind), 4, of=of)
    assert "At 4 calls the table did not win" in said["text"] and "by table" not in said["text"]
    assert (custom(model(kind), sampler, sigmas) - recipe_of(kind)).abs().max() < 1e-4
    none, report = boosted(losing(tuning(kind), 3, 4, 5))
    assert torch.equal(ksampled(none), recipe_of(kind))
    assert "No table of the tuning won its check. What needs no" in report.entry["text"]


@KINDS
@pytest.mark.parametrize("steps, denoise, words", [(6, 1.0, "this run has 6"), (4, 0.5, "is of whole runs, sigma")])
def test_tuned_sampler_without_a_table_is_the_recipe(kind, steps, denoise, words):
    sampler, sigmas, said = node(kind, model(kind), steps, denoise)
    assert words in said["text"]
    patcher, made = counted(model(kind))
    end = custom(patcher, sampler, sigmas)
    assert len(made) == steps and len(sigmas) == steps + 1
    assert f"{steps} steps without a table: its sigmas are those of no table" in said["text"]
    if denoise == 1.0:
        assert (end - recipe_of(kind, steps=steps)).abs().max() < 1e-4


@pytest.mark.parametrize("by", [1e-3, -1e-3, 0.05])
def test_sigmas_that_are_nearly_a_tables_are_not_its(by):
    sigmas = list(tuning().tables[CALLS].sigmas)
    sigmas[2] *= 1 + by
    report = Report(None)
    patcher, made = counted(model())
    assert drawn(tuning(), patcher, report=report, sigmas=sigmas).isfinite().all()
    assert len(made) == CALLS and "4 steps without a table" in report.entry["text"]


def test_sigmas_with_a_step_that_goes_nowhere_are_the_table_still():
    first, *others = tuning().tables[CALLS].sigmas
    patcher, made = counted(model())
    report = Report(None)
    end = drawn(tuning(), patcher, report=report, sigmas=[first, first, *others])
    assert len(made) == CALLS and torch.equal(end, drawn(tuning())) and report.entry["text"] == ""


@pytest.mark.parametrize("sigmas", [[0.1, 0.5, 1.0], [1.0, 0.2, 0.6, 0.0]], ids=str)
def test_sigmas_that_rise_are_refused_in_words(sigmas):
    with pytest.raises(ValueError, match="needs sigmas that fall"):
        drawn(tuning(), sigmas=sigmas)


def test_where_guidance_is_off_a_table_of_two_parts_does_not_run_and_no_call_is_lost():
    report = Report(None)
    patcher, made = counted(model())
    end = drawn(tuning(), patcher, report=report, cfg=1.0)
    assert len(made) == CALLS
    assert "4 steps without a table: this guidance asks for no answer without the prompt" in report.entry["text"]
    from fewstep.nodes.host.deis import deis_sampler
    from fewstep.schedulers.recipe import recipe

    own = recipe(CALLS, True, 3.0)
    plain = deis_sampler(own.answers, own.order, own.corrector, own.ends_denoised)
    theirs = custom(model(), plain, tuning().tables[CALLS].sigmas, cfg=1.0)
    assert (end - theirs).abs().max() < 1e-4


def test_a_table_of_one_part_runs_at_any_cfg_and_says_so():
    patcher, report = boosted(tuning(cfg=1.0))
    patcher, made = counted(patcher)
    end = ksampled(patcher, cfg=3.0)
    assert len(made) == CALLS and "Tuned at cfg 1.0, not 3.0." in report.entry["text"]
    assert (end - by_hand(tuning(cfg=1.0), CALLS, 3.0, noise())).abs().max() < 2e-3


# ---------------------------------------------------------------------------------------------------------
# On another model


def test_another_cfg_lora_shift_and_checkpoint_are_told():
    import comfy.model_sampling

    def shifted(patcher):
        clone = patcher.clone()

        class Sampling(comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.CONST):
            pass

        sampling = Sampling(patcher.model.model_config)
        sampling.set_parameters(shift=5.0)
        clone.add_object_patch("model_sampling", sampling)
        return clone

    def patched(patcher):
        clone = patcher.clone()
        clone.patches = {"diffusion_model.some": [(1.0, (torch.ones(1),), 1.0, None, None)]}
        return clone

    def watched(patcher):
        clone = patcher.clone()
        clone.set_model_sampler_post_cfg_function(lambda args: args["denoised"] * 0.99)
        return clone

    from fewstep.nodes.host.identity import identify
    from fewstep.nodes.host.tuned import choose
    from fewstep.samplers.noise_law import FLOW

    def remarks(patcher, **here) -> str:
        return " ".join(choose(tuning(), identify(patcher) | here, FLOW, 3.0, (1.0, 0.0), CALLS).remarks)

    assert remarks(model()) == remarks(model(), cfg=3.0) == ""
    assert remarks(model(), cfg=5.0) == "Tuned at cfg 3.0, not 5.0."
    assert "Tuned at shift 3.0, not 5.0." in remarks(shifted(model()))
    assert "Tuned with other LoRAs or patches." in remarks(patched(model()))
    assert "Tuned with functions on the model: nothing, not" in remarks(watched(model()))
    assert "Tuned on another checkpoint." in remarks(model(), model="another")


def test_what_is_told_is_told_on_boost_where_the_table_still_runs():
    patcher, report = boosted(tuning())
    patcher, made = counted(patcher)
    ksampled(patcher, cfg=5.0)
    assert "4 calls of Tuned Sampler" in report.entry["text"] and "Tuned at cfg 3.0, not 5.0." in report.entry["text"]


@pytest.mark.parametrize(
    "changed, words",
    [
        ({"channels": 16}, "latents of 16 channels; this model has .* of 4. Tune this model"),
        (
            {"is_flow": False},
            "This tuning is of an eps, v or EDM model, and the model is a flow model. Tune this model",
        ),
    ],
)
def test_a_tuning_of_another_kind_of_model_is_refused_in_words(changed, words):
    of = replace(tuning(), facts=tuning().facts | changed)
    with pytest.raises(ValueError, match=words):
        node("FLOW", model(), CALLS, of=of)
    patcher, report = boosted(None)
    from fewstep.nodes.host.boost import Boost
    from fewstep.nodes.host.boost import boosted as boost

    patcher = boost(model(), Boost(tuning=of, report=report))
    assert torch.equal(ksampled(patcher), ksampled(model()))
    assert "left as they are: This" in report.entry["text"]


# ---------------------------------------------------------------------------------------------------------
# Boost: what stays the person's


@pytest.mark.parametrize(
    "sampler, words",
    [("euler_ancestral", "draws noise"), ("dpmpp_2m_sde", "draws noise"), ("euler_cfg_pp", "CFG++")],
)
def test_samplers_that_stay_the_persons_stay_to_the_bit(sampler, words):
    patcher, report = boosted(tuning())
    assert torch.equal(ksampled(patcher, sampler), ksampled(model(), sampler))
    assert words in report.entry["text"]


def test_a_connected_sampler_or_sigmas_come_before_a_tuning():
    import comfy.samplers

    heun = comfy.samplers.sampler_object("euler")
    assert torch.equal(ksampled(boosted(tuning(), sampler=heun)[0], "dpmpp_2m"), ksampled(model(), "euler"))
    sigmas = tuple(scheduled("FLOW", "beta", CALLS).tolist())
    with_sigmas = ksampled(boosted(tuning(), sigmas=sigmas)[0], "dpmpp_2m")
    assert (with_sigmas - ksampled(model(), "dpmpp_2m", "beta")).abs().max() < 1e-4


def test_the_persons_model_and_its_options_stay_as_they_are():
    patcher = model().clone()
    patcher.set_model_sampler_post_cfg_function(lambda args: args["denoised"])
    patcher.model_options["transformer_options"] = {"own": 1}

    def state() -> Any:
        options = patcher.model_options
        return list(options["sampler_post_cfg_function"]), dict(options["transformer_options"]), set(options)

    before = state()
    drawn(tuning(), patcher)
    ksampled(boosted(tuning(), patcher)[0])
    assert state() == before


# ---------------------------------------------------------------------------------------------------------
# The parts of an answer


def asked_in_parts(patcher, sigmas, cfg: float = 3.0, guider=None, **given) -> tuple[list[torch.Tensor], list[dict]]:
    """Answers in parts at some sigmas along a run, and what a function between the guidance and us was told."""
    import comfy.samplers
    from fewstep.nodes.host.answers import InParts

    answers: list[torch.Tensor] = []
    told: list[dict] = []

    def function(model, x, sigmas, extra_args=None, callback=None, disable=None):
        ask = InParts(model, extra_args or {})
        for sigma in sigmas[:-1].tolist():
            answers.append(ask(x * sigma / float(sigmas[0]), sigma))
        return x

    clone = patcher.clone()

    def look(args):  # not at the cfg: who reads that is taken for guidance by ours
        told.append({"denoised": args["denoised"], "uncond_denoised": args.get("uncond_denoised")})
        return args["denoised"]

    clone.set_model_sampler_post_cfg_function(look)
    if guider is None:
        custom(clone, comfy.samplers.KSAMPLER(function), sigmas, cfg, **given)
    else:
        own = guider(clone)
        own.sample(noise(), torch.zeros(2, 4, 8, 8), comfy.samplers.KSAMPLER(function), torch.tensor(sigmas), seed=1)
    return answers, told


SIGMAS = [1.0, 0.7, 0.3, 0.0]


def on_top(name: str, patcher):
    """A node that changes the guided answer, of the host's or ours."""
    if name == "ours":
        from fewstep.nodes.host.guidance import guided_model
        from fewstep.samplers.guidance import ProbabilisticGuidance

        return guided_model(patcher, ProbabilisticGuidance(0.6, "cap"), 0.0, 1.0, None)[0]
    module, node_name, given = {
        "RescaleCFG": ("nodes_model_advanced", "RescaleCFG", (0.7,)),
        "CFGNorm": ("nodes_cfg", "CFGNorm", (1.0,)),
        "APG": ("nodes_apg", "APG", (1.0, 2.0, 0.0)),
    }[name]
    found = getattr(importlib.import_module(f"comfy_extras.{module}"), node_name)
    if not hasattr(found, "execute"):
        return found().patch(patcher, *given)[0]
    return executed(found, patcher, *given)


@pytest.mark.parametrize("name", ["RescaleCFG", "CFGNorm", "APG", "ours"])
def test_what_other_guidance_does_is_in_the_push(name):
    """x0 is the answer with all that works on it, and x0 minus the push is the one without the prompt."""
    changed, told = asked_in_parts(on_top(name, guiders.model()), SIGMAS, cfg=7.5)
    plain, _ = asked_in_parts(guiders.model(), SIGMAS, cfg=7.5)
    assert len(told) == 3
    for answer, args in zip(changed, told, strict=True):
        assert answer.shape == (2, 2, 4, 8, 8) and torch.equal(answer[:, 0], args["denoised"])
        assert (answer[:, 0] - answer[:, 1] - args["uncond_denoised"]).abs().max() < 1e-5
    assert max(float((one[:, 0] - two[:, 0]).abs().max()) for one, two in zip(changed, plain, strict=True)) > 1e-3


@pytest.mark.parametrize("name", ["RescaleCFG", "CFGNorm", "ours"])
def test_a_run_under_other_guidance_is_the_table_on_its_answers(name):
    patcher = on_top(name, model())
    end = drawn(tuning(), patcher)
    sigmas = list(tuning().tables[CALLS].sigmas)
    sampled: list[torch.Tensor] = []

    import comfy.samplers
    from fewstep.nodes.host.answers import InParts

    def function(host_model, x, sigmas, extra_args=None, callback=None, disable=None):
        ask = InParts(host_model, extra_args or {})
        answers: list[torch.Tensor] = []
        for row, sigma in zip(tuning().tables[CALLS].rows, sigmas.tolist(), strict=False):
            answers.insert(0, ask(x, sigma))
            x = row.kept * x + sum(
                w * answers[n][:, part] for part, ws in enumerate(row.weights) for n, w in enumerate(ws)
            )
        sampled.append(x)
        return x

    custom(patcher, comfy.samplers.KSAMPLER(function), sigmas)
    assert (end - sampled[0]).abs().max() < 2e-3
    assert (end - drawn(tuning())).abs().max() > 2e-2


def test_at_cfg_1_an_answer_is_of_one_part_unless_a_function_asks_for_both():
    answers, told = asked_in_parts(model(), SIGMAS, cfg=1.0)
    assert all(answer.shape == (2, 1, 4, 8, 8) for answer in answers)
    clone = model().clone()
    clone.set_model_sampler_post_cfg_function(lambda args: args["denoised"], disable_cfg1_optimization=True)
    answers, told = asked_in_parts(clone, SIGMAS, cfg=1.0)
    for answer, args in zip(answers, told, strict=True):
        assert (answer[:, 1] - (args["denoised"] - args["uncond_denoised"])).abs().max() < 1e-6


@guiders.EVERY_KIND
def test_every_guider_is_asked_in_one_part_or_two(kind):
    answers, _ = asked_in_parts(guiders.model(), SIGMAS, guider=guiders.KINDS[kind])
    assert {answer.shape[0] for answer in answers} == {2} and {answer.shape[1] for answer in answers} <= {1, 2}
    assert len({answer.shape[1] for answer in answers}) == 1 and all(answer.isfinite().all() for answer in answers)


def test_a_guider_of_several_passes_has_no_one_push():
    import comfy.samplers

    class Twice(comfy.samplers.CFGGuider):
        def predict_noise(self, *args, **named):
            return (super().predict_noise(*args, **named) + super().predict_noise(*args, **named)) / 2

    def guider(patcher):
        made = Twice(patcher)
        made.set_conds(guiders.prompt(0), guiders.prompt(-1))
        made.set_cfg(3.0)
        return made

    answers, _ = asked_in_parts(model(), SIGMAS, guider=guider)
    assert [answer.shape[1] for answer in answers] == [1, 1, 1]


@pytest.mark.parametrize("kind", ["dual_cfg", "perp_neg"])
def test_what_was_tuned_through_a_guider_is_drawn_through_it(kind):
    from fewstep.nodes.host.tuned import tuned_sampler

    patcher = guiders.model()
    of = measuring.tuned(patcher, measuring.SMALLEST | {"budgets": (CALLS,)}, guider=guiders.KINDS[kind](patcher))
    sigmas = torch.tensor(of.tables[CALLS].sigmas)
    assert CALLS in of.used
    report = Report(None)
    guider = guiders.KINDS[kind](patcher)
    end = guider.sample(noise(), torch.zeros(2, 4, 8, 8), tuned_sampler(of, report), sigmas, disable_pbar=True, seed=1)
    assert report.entry["text"] == ""
    fine = scheduled("FLOW", "beta", 60)
    import comfy.samplers

    ends = {
        name: guider.sample(
            noise(), torch.zeros(2, 4, 8, 8), comfy.samplers.sampler_object("dpmpp_2m"), s, disable_pbar=True, seed=1
        )
        for name, s in {"fine": fine, "few": scheduled("FLOW", "beta", CALLS)}.items()
    }
    assert (end - ends["fine"]).square().mean() < 0.5 * (ends["few"] - ends["fine"]).square().mean()


@pytest.mark.parametrize("cfgs", [(1.0, 3.0), (3.0, 1.0)])
def test_experts_of_which_one_does_not_guide_are_drawn_by_their_table(cfgs):
    from fewstep.nodes.host.tuned import tuned_sampler
    from support.nodes import of_the_pack

    patcher, report = guiders.model(), Report(None)
    given = (patcher, patcher.clone(), guiders.prompt(0), guiders.prompt(-1), *cfgs, 0.6)
    guider = executed(of_the_pack()["FewStepTwoExperts"], *given)
    of = measuring.tuned(patcher, measuring.SMALLEST | {"budgets": (CALLS,)}, guider=guider)
    sigmas = torch.tensor(of.tables[CALLS].sigmas)
    drawn = guider.sample(noise(), torch.zeros(2, 4, 8, 8), tuned_sampler(of, report), sigmas, seed=1)
    assert drawn.isfinite().all() and report.entry["text"] == "" and CALLS in of.used


def test_it_works_inside_restart():
    """Each falling run gets what its sigmas have; a whole run among them gets the table."""
    from fewstep.nodes.host.sampler import restart_sampler
    from fewstep.nodes.host.tuned import tuned_sampler

    report = Report(None)
    whole = list(tuning().tables[CALLS].sigmas)
    patcher, made = counted(model())
    restarting = restart_sampler(tuned_sampler(tuning(), report), 1.0)
    assert (custom(patcher, restarting, whole) - drawn(tuning())).abs().max() < 1e-4 and report.entry["text"] == ""
    made.clear()
    end = custom(patcher, restarting, [1.0, 0.8, 0.4, 0.1, 0.6, 0.3, 0.0])
    assert end.isfinite().all() and len(made) == 5
    assert "3 steps without a table" in report.entry["text"] and "2 steps without a table" in report.entry["text"]


def test_nan_is_said_with_its_step():
    from support.host_mixture import fail

    patcher, report = small.model("FLOW"), Report(None)
    fail(patcher, at=2)
    drawn(tuning(), patcher, report=report, cfg=3.0)
    assert "NaN or infinity at step 2" in report.entry["text"] or "NaN or infinity at step 3" in report.entry["text"]


# ---------------------------------------------------------------------------------------------------------
# Masks


def masks() -> dict[str, torch.Tensor]:
    hard = torch.zeros(1, 1, 8, 8)
    hard[..., 4:] = 1
    return {"hard": hard, "soft": torch.linspace(0, 1, 8).expand(1, 1, 8, 8).clone()}


def picture() -> torch.Tensor:
    return small.mixture().sample(2, seed=3).float()


def differential(patcher):
    found = importlib.import_module("comfy_extras.nodes_differential_diffusion").DifferentialDiffusion
    return executed(found, patcher)


@pytest.mark.parametrize("name", ["hard", "soft"])
def test_under_a_mask_both_parts_of_an_answer_are_held_alike(name):
    """Where the mask holds the latent, the push is 0; where it is between, both are weighed by it."""
    mask = masks()[name]
    answers, told = asked_in_parts(model(), SIGMAS, noise_mask=mask, latent=picture())
    for answer, args in zip(answers, told, strict=True):
        push = args["denoised"] - args["uncond_denoised"]
        assert (answer[:, 1] - mask * push).abs().max() < 1e-5
        assert (answer[:, 0] - (mask * args["denoised"] + (1 - mask) * picture())).abs().max() < 1e-5
        assert push[..., :4].abs().max() > 1e-3


def test_the_mask_of_differential_diffusion_is_that_of_each_step():
    answers, told = asked_in_parts(differential(model()), SIGMAS, noise_mask=masks()["soft"], latent=picture())
    shares = []
    for answer, args in zip(answers, told, strict=True):
        push = args["denoised"] - args["uncond_denoised"]
        held = (answer[:, 0] - picture()).abs().amax((0, 1, 2)) < 1e-6
        assert answer[..., held][:, 1].abs().max() == 0 if held.any() else True
        assert (answer[:, 1] - push)[..., ~held].abs().max() < 1e-5
        shares.append(int(held.sum()))
    assert shares[0] > shares[1] > shares[2]


@KINDS
@pytest.mark.parametrize("name", ["hard", "soft"])
def test_what_a_mask_holds_is_held_to_the_end(kind, name):
    """Though the weights of a table do not add up to 1."""
    latent, mask = picture(), masks()[name]
    for end in (
        ksampled(boosted(tuning(kind))[0], latent=latent, noise_mask=mask),
        drawn(tuning(kind), latent=latent, noise_mask=mask),
    ):
        held = (mask == 0).expand_as(end)
        assert (end - latent)[held].abs().max() < 1e-5
        assert (end - latent)[(mask == 1).expand_as(end)].abs().mean() > 0.1
    off = [abs(table.rows[-1].kept + sum(table.rows[-1].weights[0]) - 1) for table in tuning(kind).tables.values()]
    assert max(off) > 1e-4


def test_what_differential_diffusion_holds_is_held_to_the_end():
    mask = masks()["soft"].clone()
    mask[..., :3] = 0
    patcher = differential(model())
    end = drawn(tuning(), patcher, latent=picture(), noise_mask=mask)
    assert (end - picture())[..., :3].abs().max() < 1e-5 and (end - picture())[..., 7].abs().mean() > 0.1


def test_a_mask_that_holds_nothing_is_none():
    whole = drawn(tuning(), latent=picture() * 0, noise_mask=torch.ones(1, 1, 8, 8))
    assert (whole - drawn(tuning())).abs().max() < 1e-4


def test_the_random_noise_under_a_mask_of_ddim_is_kept():
    from comfy.patcher_extension import WrappersMP

    patcher, seen = boosted(tuning())[0], []

    def look(executor, guider, sigmas, *args, **given):
        seen.append(executor.class_obj)
        return executor(guider, sigmas, *args, **given)

    patcher.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, "watch", look)
    ksampled(patcher, "ddim")
    assert seen[0].inpaint_options == {"random": True}
    assert seen[0].sampler_function.__name__ == "sample_tuned"


# ---------------------------------------------------------------------------------------------------------
# By hand


def test_a_table_with_the_weights_of_euler_is_the_hosts_euler():
    import comfy.samplers

    sigmas = (1.0, 0.8, 0.5, 0.2, 0.0)
    rows = tuple(Row(t / s, ((1 - t / s,),)) for s, t in pairwise(sigmas))
    facts = tuning().facts | {"parts": 1, "check": {"tuned": {"4": [1e-3]}}}
    euler = drawn(Tuning({4: Table(sigmas, rows)}, facts), sigmas=sigmas)
    theirs = custom(model(), comfy.samplers.sampler_object("euler"), sigmas)
    assert (euler - theirs).abs().max() < 1e-5 and not math.isnan(float(euler.sum()))
