"""Probabilistic guidance inside the host, in this process: the measured spread, chaining, intervals, what is said."""

from __future__ import annotations

import logging
import re
from functools import cache

import pytest
import torch
from fewstep.samplers.guidance import ProbabilisticGuidance
from fewstep.samplers.noise_law import FLOW, VARIANCE_EXPLODING
from fewstep.samplers.spread import Spread
from support.mixture import GuidedMixture, picture_like
from support.recording import watched_counters
from torch.utils._python_dispatch import TorchDispatchMode

pytestmark = pytest.mark.usefixtures("host")
KINDS = ["eps", "v", "edm", "flow"]


def model(kind: str = "eps"):
    from support.host_mixture import mixture_model

    return mixture_model(picture_like(), kind, shift=3.0)


def measured(patcher, **changed) -> Spread:
    from fewstep.nodes.measuring.spread import Request, measure_spread
    from support.host_mixture import label_conditioning

    given = {
        "model": patcher,
        "positive": label_conditioning([0]),
        "negative": label_conditioning([-1]),
        "cfg": 1.0,
        "latent": torch.zeros(8, 4, 16, 16),
        "seed": 0,
        "images": 8,
        "levels": 12,
    }
    return measure_spread(Request(**(given | changed)), None)


def guided(patcher, guidance=None, spread=None, start=0.0, end=1.0):
    from fewstep.nodes.host.guidance import guided_model

    return guided_model(patcher, guidance or ProbabilisticGuidance(), start, end, spread)


def sample(patcher, cfg: float = 7.5, steps: int = 6, count: int = 3) -> torch.Tensor:
    import comfy.sample
    import comfy.samplers
    from support.host_mixture import label_conditioning

    sigmas = comfy.samplers.calculate_sigmas(patcher.get_model_object("model_sampling"), "simple", steps)
    noise = torch.randn((count, 4, 16, 16), generator=torch.Generator().manual_seed(0))
    labels = [[0, 3, 5][:count], [-1] * count]
    conditioning = [label_conditioning(part) for part in labels]
    latent, sampler = torch.zeros_like(noise), comfy.samplers.sampler_object("euler")
    return comfy.sample.sample_custom(
        patcher, noise, cfg, sampler, sigmas, *conditioning, latent, disable_pbar=True, seed=0
    )


def exact_square(kind: str, ratio: float, count: int = 1024) -> float:
    """E |x0 - E[x0 | x, class 0]|^2 / d of the mixture, from true draws of the class."""
    mixture = picture_like()
    law = FLOW if kind == "flow" else VARIANCE_EXPLODING
    x0 = mixture.sample(count, 1, label=0)
    sigma = law.sigma(ratio)
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    denoise = GuidedMixture(mixture, law, torch.zeros(count, dtype=torch.long))
    return float((x0 - denoise(law.alpha(sigma) * x0 + sigma * noise, sigma)).square().mean())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("estimator", ["residual", "derivative"])
def test_the_measured_spread_is_that_of_the_posterior(kind, estimator):
    """Within 3 % at every level, from references that the model draws itself."""
    spread = measured(model(kind), images=256, levels=8, latent=torch.zeros(64, 4, 16, 16), estimator=estimator)
    for ratio, value in zip(spread.ratios.tolist(), spread.values.tolist(), strict=True):
        assert value == pytest.approx(exact_square(kind, ratio) ** 0.5, rel=0.03)
    assert spread.facts["check"] < 0.05


def test_given_pictures_are_the_references():
    pictures = picture_like().sample(4, seed=2).float()
    spread = measured(model("flow"), latent=pictures, images=4)
    again = measured(model("flow"), latent=pictures, images=4)
    assert torch.equal(spread.values, again.values) and spread.facts["references"] != "drawn"


def test_the_known_number_of_calls(monkeypatch):
    from fewstep.nodes.measuring import spread as module

    counters = watched_counters(monkeypatch, module)
    measured(model("flow"), latent=torch.zeros(3, 4, 16, 16))
    measured(model("eps"), latent=torch.zeros(1, 4, 16, 16), images=2, estimator="derivative")
    assert [counter.done for counter in counters] == [counter.total for counter in counters]
    assert counters[0].total == 3 * (20 + 12)


def test_nan_is_said():
    from support.host_mixture import fail

    patcher = model("flow")
    fail(patcher, at=25)
    with pytest.raises(ValueError, match="NaN or infinite"):
        measured(patcher)


# ---------------------------------------------------------------------------------------------------------
# The guidance


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_guidance_by_the_pure_function(kind):
    """One euler step to 0 gives the guided prediction itself."""
    patcher, spread = model(kind), measured(model(kind))
    guidance = ProbabilisticGuidance(0.6, "cap")
    asked: dict = {}

    def keep(args):
        asked.update(args)
        return args["denoised"]

    with_it, remarks = guided(patcher, guidance, spread)
    with_it.set_model_sampler_post_cfg_function(keep)
    drawn = sample(with_it, steps=1)
    sigma = float(asked["sigma"][0])
    law = FLOW if kind == "flow" else VARIANCE_EXPLODING
    ratio = law.ratio(sigma) if law.alpha(sigma) else torch.inf
    wanted = guidance(asked["cond_denoised"], asked["uncond_denoised"], 7.5, spread.at(ratio))
    torch.testing.assert_close(drawn, wanted.cpu(), rtol=1e-3, atol=1e-4)
    assert remarks == []


def test_the_model_itself_is_left_as_it_was():
    patcher = model()
    before = sample(patcher)
    with_it, remarks = guided(patcher)
    assert not torch.equal(sample(with_it), before) and torch.equal(sample(patcher), before)
    assert "No spread is connected" in remarks[0]


def test_it_chains_with_the_hosts_apg():
    """APG works on the predictions before guidance, ours after it: both count, in either order of the nodes."""
    from comfy_extras.nodes_apg import APG

    patcher = model()
    one = guided(APG.execute(patcher, 0.0, 5.0, 0.0).args[0])[0]
    other = APG.execute(guided(patcher)[0], 0.0, 5.0, 0.0).args[0]
    drawn = sample(one)
    torch.testing.assert_close(drawn, sample(other))
    assert drawn.isfinite().all() and not torch.equal(drawn, sample(guided(patcher)[0]))


def test_it_has_the_direction_of_the_hosts_apg():
    """Without the part along the prediction and without momentum. The length is APG's own, or ours by the noise."""
    from comfy_extras.nodes_apg import APG

    patcher, cfg = model("eps"), 7.5
    conditional = sample(patcher, 1.0, steps=1)
    biases = [
        sample(APG.execute(patcher, 0.0, 0.2, 0.0).args[0], cfg, steps=1) - conditional,
        sample(guided(patcher, ProbabilisticGuidance(0.3, "fixed"))[0], cfg, steps=1) - conditional,
    ]
    theirs, ours = (bias / bias.flatten(1).norm(dim=1).view(-1, 1, 1, 1) for bias in biases)
    torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=2e-4)


def test_outside_of_its_percents_the_hosts_guidance_stays():
    patcher = model("flow")
    nowhere, everywhere = guided(patcher, start=1.0)[0], guided(patcher)[0]
    assert torch.equal(sample(nowhere), sample(patcher))
    late = sample(guided(patcher, start=0.1)[0])
    assert not torch.equal(late, sample(patcher)) and not torch.equal(late, sample(everywhere))


def test_at_cfg_1_it_says_that_it_does_nothing(caplog):
    patcher = model()
    with caplog.at_level(logging.WARNING):
        assert torch.equal(sample(guided(patcher)[0], cfg=1.0), sample(patcher, cfg=1.0))
    assert caplog.text.count("does nothing at cfg 1") == 1


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("side", ["cond_denoised", "uncond_denoised"])
@pytest.mark.parametrize("cfg", [1.0, 7.5])
def test_what_the_model_answers_broken_is_said_once_and_touches_no_other_item(caplog, value, side, cfg):
    """At the call where it begins; the calls after it get what it made of the latent."""

    def break_it(args):
        if len(calls) == 2 and args.get(side) is not None:
            args[side][1, 0, 0, 0] = value
            args["denoised"][1] = value
        calls.append(1)
        return args["denoised"]

    patcher, calls = model(), []
    ill = patcher.clone()
    ill.set_model_sampler_post_cfg_function(break_it, disable_cfg1_optimization=True)
    with caplog.at_level(logging.WARNING):
        drawn = sample(guided(ill)[0], cfg)
    assert caplog.text.count("NaN or infinite numbers at sigma") == 1
    assert "(step 3 of 6), in item [1] of the batch" in caplog.text
    torch.testing.assert_close(drawn[[0, 2]], sample(guided(patcher)[0], cfg)[[0, 2]])


def test_a_sigma_that_is_no_number_is_said():
    from fewstep.nodes.host.percents import check_numbers, within

    with pytest.raises(ValueError, match="sigma of this run is no number.*Look at the SIGMAS"):
        check_numbers([1.0, float("nan")])
    assert within(
        model("flow").get_model_object("model_sampling").percent_to_sigma, 1.0000001, 0.0, 1.0
    )  # at some shifts


def reported(patcher, guidance: ProbabilisticGuidance) -> str:
    """What the node says after a run."""
    report, one = told_by(patcher, guidance)
    sample(one)
    return report.entry["text"]


def told_by(patcher, guidance: ProbabilisticGuidance | None = None):
    from fewstep.nodes.host.guidance import guided_model
    from fewstep.nodes.host.progress import Report

    report = Report(None)
    return report, guided_model(patcher, guidance or ProbabilisticGuidance(), 0.0, 1.0, None, report)[0]


def test_the_node_says_what_the_cfg_came_to():
    told = reported(model("flow"), ProbabilisticGuidance(0.3, "cap", 1.0, 5.0))
    found = re.fullmatch(r"Cfg 7.5 acted as (\S+), (\S+), (\S+) at the first, middle and last of 6 calls\.", told)
    assert found
    first, middle, last = map(float, found.groups())
    assert 7.5 > first > middle >= last >= 1
    assert reported(model("flow"), ProbabilisticGuidance(10.0, orthogonal=0.0)).startswith("Cfg 7.5 acted as 7.5, ")


def test_prompt_cfg_counts_in_the_first_part_alone():
    """The first step is plain cfg, but for what would leave the range; the last is bounded."""
    patcher = model("flow")
    seen: list[list[torch.Tensor]] = []
    for guidance in (None, ProbabilisticGuidance(0.3), ProbabilisticGuidance(0.3, "cap", 1.0, 7.5)):
        one = patcher.clone() if guidance is None else guided(patcher, guidance)[0]
        calls: list[torch.Tensor] = []
        one.set_model_sampler_post_cfg_function(lambda args, calls=calls: calls.append(args["denoised"]) or calls[-1])
        sample(one, steps=8)
        seen.append(calls)
    plain, bounded, both = seen
    low, high = both[0].amin((2, 3), keepdim=True), both[0].amax((2, 3), keepdim=True)
    torch.testing.assert_close(both[0], plain[0].clamp(low, high))
    assert not torch.allclose(both[0], bounded[0], atol=1e-2) and not torch.allclose(both[-1], plain[-1], atol=1e-2)


@pytest.mark.parametrize("zeroed", [True, False])
def test_a_zeroed_negative_prompt_is_said(zeroed):
    from fewstep.nodes.host.guidance.told import ZEROED

    patcher, positive, negative = demo("flow")
    if zeroed:
        negative = [[torch.zeros_like(negative[0][0]), negative[0][1]]]
    report, one = told_by(patcher)
    draw(one, positive, negative, steps=2)
    assert (ZEROED in report.entry["text"]) is zeroed


@pytest.mark.parametrize("bands", ["4", "8"])
@pytest.mark.parametrize("estimator", ["residual", "derivative"])
def test_a_spread_by_bands_is_parts_of_the_whole_at_the_same_calls(monkeypatch, bands, estimator):
    from fewstep.nodes.measuring import spread as module

    counters = watched_counters(monkeypatch, module)
    whole, parts = (measured(model("flow"), estimator=estimator, bands=count) for count in ("1", bands))
    assert parts.by_band is not None and len(parts.by_band) == int(bands)
    assert counters[0].done == counters[1].done
    torch.testing.assert_close(parts.squares, whole.squares, rtol=1e-4, atol=1e-6)
    shares = parts.by_band / parts.by_band.sum(0)
    assert shares[-1, 0] < shares[-1, -1]  # little noise leaves grain undecided
    by_band, as_whole = (sample(guided(model("flow"), spread=spread)[0]) for spread in (parts, whole))
    assert by_band.isfinite().all() and not torch.allclose(by_band, as_whole, atol=1e-3)


@pytest.mark.parametrize("mode", ["magnitude", "frequency", "zero_star"])
def test_a_rival_guides_in_the_host(mode):
    from fewstep.samplers.rivals import Rival

    patcher = model("flow")
    one, remarks = guided(patcher, Rival(mode, 0.5))
    drawn = sample(one)
    assert remarks == [] and drawn.isfinite().all() and not torch.allclose(drawn, sample(patcher), atol=1e-3)


# ---------------------------------------------------------------------------------------------------------
# The device is not waited for


class Reads(TorchDispatchMode):
    """How often a number is taken out of a tensor: on a GPU each waits until all that was asked for is computed."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("mode", ["cap", "soft", "fixed"])
@pytest.mark.parametrize("with_spread", [False, True])
def test_a_call_reads_nothing_back(mode, with_spread):
    """The model sampling is asked once a run; after that a call takes no number out of a tensor."""
    from fewstep.nodes.host.guidance.after import AfterGuidance
    from fewstep.nodes.host.guidance.told import Run

    patcher, run = model("flow"), Run([1.0, 0.7, 0.0])
    args: dict = {name: torch.randn(2, 4, 16, 16) for name in ("denoised", "cond_denoised", "uncond_denoised", "input")}
    args |= {"cond": 1, "uncond": [{"cross_attn": torch.ones(1, 3)}], "cond_scale": 7.0}
    args |= {"sigma": torch.full((2,), 0.7), "model": patcher.model, "model_options": {}}
    guidance, spread = ProbabilisticGuidance(0.3, mode, 1.0, 5.0), measured(patcher) if with_spread else None
    after = AfterGuidance(guidance, spread, 0.1, 0.9, run=run)
    after(args)
    with Reads() as reads:
        for _ in range(3):
            after(args)
    assert reads.count == 0
    with Reads() as reads:
        run.tell()
    assert 0 < reads.count < 10


# ---------------------------------------------------------------------------------------------------------
# Beside the host's own guidance nodes, on the bundled model, in both orders

CFG, STRENGTH = 12.0, 0.5
BEFORE_GUIDANCE = ["APG", "TCFG", "FreSca"]
INSTEAD_OF_GUIDANCE = ["RescaleCFG", "CFGNorm pre_cfg", "VideoLinearCFGGuidance", "PerpNeg", "CFGOverride"]
BY_CFG = ["Mahiro", "CFGZeroStar"]
ON_THE_RESULT = ["CFGNorm", "PerturbedAttentionGuidance", "SelfAttentionGuidance", "Epsilon Scaling", "TSR"]


def demo(variant: str = "eps"):
    """The bundled model and two prompts."""
    from fewstep.nodes.models.demo import load_clip, load_model

    clip = load_clip()
    return load_model(variant), *(clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in ("violin", ""))


def others_node(name: str):
    """model -> model, by one of the host's nodes; skips where this host has none."""
    import importlib

    where, cls, given = {
        "APG": ("apg", "APG", (0.5, 5.0, 0.0)),
        "TCFG": ("tcfg", "TCFG", ()),
        "FreSca": ("fresca", "FreSca", (1.0, 1.5, 20)),
        "RescaleCFG": ("model_advanced", "RescaleCFG", (0.7,)),
        "CFGNorm pre_cfg": ("cfg", "CFGNorm", (1.0, True)),
        "VideoLinearCFGGuidance": ("video_model", "VideoLinearCFGGuidance", (1.0,)),
        "PerpNeg": ("perpneg", "PerpNeg", (demo()[2], 1.0)),
        "CFGOverride": ("custom_sampler", "CFGOverride", (10.0, 0.0, 1.0)),
        "Mahiro": ("mahiro", "Mahiro", ()),
        "CFGZeroStar": ("cfg", "CFGZeroStar", ()),
        "CFGNorm": ("cfg", "CFGNorm", (1.0,)),
        "PerturbedAttentionGuidance": ("pag", "PerturbedAttentionGuidance", (3.0,)),
        "SelfAttentionGuidance": ("sag", "SelfAttentionGuidance", (0.5, 2.0)),
        "Epsilon Scaling": ("eps", "EpsilonScaling", (1.005,)),
        "TSR": ("eps", "TemporalScoreRescaling", (0.95, 1.0)),
    }[name]
    node = getattr(importlib.import_module(f"comfy_extras.nodes_{where}"), cls, None)
    if node is None or (name == "CFGNorm pre_cfg" and "pre_cfg" not in str(node.define_schema().inputs[-1].id)):
        pytest.skip(f"this ComfyUI has no {name}")
    if hasattr(node, "execute"):
        return lambda model: node.execute(model, *given).args[0]
    return lambda model: node().patch(model, *given)[0]


def ours(model):
    return guided(model, ProbabilisticGuidance(STRENGTH))[0]


def draw(patcher, positive, negative, *, steps: int = 6, cfg: float = CFG) -> tuple[torch.Tensor, list[tuple]]:
    """The picture in [0, 1], and of every call sigma, the model's own answer under the prompt, and the guided one."""
    import comfy.samplers
    from comfy.patcher_extension import WrappersMP
    from fewstep.nodes.host.guiders import guider_for
    from fewstep.nodes.models.demo import load_vae

    own, calls = [], []

    def listen(executor, model, conds, *given):
        answers = executor(model, conds, *given)
        if len(conds) == 2:
            own.append(answers[0].clone())
        return answers

    @torch.no_grad()
    def euler(model, x, sigmas, extra_args=None, callback=None, disable=None):
        for sigma, sigma_next in zip(sigmas[:-1], sigmas[1:], strict=True):
            denoised = model(x, sigma.expand(len(x)), **extra_args)
            calls.append((float(sigma), own[-1], denoised))
            x = denoised + (x - denoised) * (sigma_next / sigma)
        return x

    watched = patcher.clone()
    watched.add_wrapper(WrappersMP.CALC_COND_BATCH, listen)
    guider = guider_for(watched, positive, negative, cfg)
    sigmas = comfy.samplers.calculate_sigmas(patcher.get_model_object("model_sampling"), "simple", steps)
    noise = torch.randn((1, 3, 64, 64), generator=torch.Generator().manual_seed(0))
    latent = guider.sample(
        noise, torch.zeros_like(noise), comfy.samplers.KSAMPLER(euler), sigmas, disable_pbar=True, seed=0
    )
    return load_vae().decode(latent), calls


def assert_bounded(model, calls: list[tuple]) -> None:
    """At every call what was added is at most strength times spread in root mean square, and across the prediction."""
    from fewstep.nodes.host.noise_law import noise_law
    from fewstep.samplers.spread import prior

    law = noise_law(model.get_model_object("model_sampling"))
    for sigma, conditional, denoised in calls:
        added = denoised - conditional
        ratio = law.ratio(sigma) if law.alpha(sigma) > 0 else torch.inf
        assert float(added.square().mean().sqrt()) <= STRENGTH * prior(ratio, (64, 64)) * 1.001 + 1e-5
        assert abs(float((added * conditional).mean())) < 1e-3


def clipped(picture: torch.Tensor) -> float:
    """Share of the values at the ends of the range."""
    return float(((picture <= 0) | (picture >= 1)).float().mean())


@cache
def clipped_alone() -> tuple[float, float]:
    """With our guidance, and with the host's."""
    model, *prompts = demo()
    return clipped(draw(ours(model), *prompts)[0]), clipped(draw(model, *prompts)[0])


@pytest.mark.parametrize("name", [*BEFORE_GUIDANCE, *INSTEAD_OF_GUIDANCE, *BY_CFG])
@pytest.mark.parametrize("order", ["before", "after"])
def test_with_another_guidance_node_before_or_after_the_sum_is_bounded(name, order):
    model, *prompts = demo()
    other = others_node(name)
    both = ours(other(model)) if order == "before" else other(ours(model))
    picture, calls = draw(both, *prompts)
    assert_bounded(model, calls)
    bounded, burnt = clipped_alone()
    assert clipped(picture) < bounded + 0.05 < burnt


@pytest.mark.parametrize("name", [*BEFORE_GUIDANCE, *INSTEAD_OF_GUIDANCE])
def test_their_order_makes_no_difference(name):
    model, *prompts = demo("flow")
    other = others_node(name)
    one, two = draw(ours(other(model)), *prompts)[0], draw(other(ours(model)), *prompts)[0]
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ON_THE_RESULT)
def test_what_works_on_the_result_is_bounded_before_it_and_stays_whole_after_it(name):
    model, *prompts = demo()
    other = others_node(name)
    assert_bounded(model, draw(ours(other(model)), *prompts)[1])
    after, seen = other(ours(model)), {}
    *_, ours_in_place, theirs = after.model_options["sampler_post_cfg_function"]

    def between(args):
        seen.update(args)
        return args["denoised"]

    def at_the_end(args):
        torch.testing.assert_close(args["denoised"], theirs(seen))
        assert not torch.equal(args["denoised"], seen["denoised"])
        return args["denoised"]

    after.model_options["sampler_post_cfg_function"] = [ours_in_place, between, theirs, at_the_end]
    assert_bounded(model, [(s, own, seen["denoised"]) for s, own, _ in draw(after, *prompts, steps=1)[1]])


def test_two_of_ours_for_two_parts_of_the_run_do_not_meet():
    """The second sees what the first has bounded, and bounds nothing a second time."""
    model, *prompts = demo()
    early = guided(model, ProbabilisticGuidance(STRENGTH), end=0.4)[0]
    both = guided(early, ProbabilisticGuidance(STRENGTH), start=0.4)[0]
    torch.testing.assert_close(draw(both, *prompts)[0], draw(ours(model), *prompts)[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "read", [dict, lambda args: {**args}, lambda args: args.copy(), lambda args: list(args.items())]
)
def test_who_copies_the_arguments_has_read_the_cfg(read):
    from fewstep.nodes.host.guidance.others import WatchedArguments

    watched = WatchedArguments({"cond_scale": 7.0, "denoised": 1})
    assert watched["denoised"] == watched.get("denoised") == 1 and watched.get("absent") is None
    assert not watched.cfg_was_read
    assert dict(read(watched))["cond_scale"] == 7.0 and watched.cfg_was_read


def test_a_spread_of_another_model_is_said():
    from fewstep.nodes.host.identity import identify

    spread = measured(model("flow"))
    _, remarks = guided(model("eps"), spread=spread)
    assert any("on a model of type FLOW, not EPS" in remark for remark in remarks)
    other = Spread(spread.ratios, spread.squares, spread.counts, identify(model("eps")) | {"channels": 16})
    with pytest.raises(ValueError, match="latents of 16 channels"):
        guided(model("eps"), spread=other)
