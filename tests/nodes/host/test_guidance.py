"""Probabilistic guidance inside the host, in this process: the measured spread, chaining, intervals, what is said."""

from __future__ import annotations

import logging

import pytest
import torch
from fewstep.samplers.guidance import ProbabilisticGuidance
from fewstep.samplers.noise_law import FLOW, VARIANCE_EXPLODING
from fewstep.samplers.spread import Spread
from support.mixture import GuidedMixture, picture_like

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

    counters = []

    class Watched(module.Counter):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            counters.append(self)

    monkeypatch.setattr(module, "Counter", Watched)
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


def test_it_works_on_what_others_have_made_of_the_guidance():
    """Before and after it: a function that adds to the result, and one in place of the host's guidance."""
    patcher = model()

    def brighter(args):
        return args["denoised"] + 0.25

    def halved(args):  # the host wants the noise part
        return args["input"] - (args["cond_denoised"] + args["uncond_denoised"]) / 2

    plain = sample(guided(patcher)[0], steps=1)
    first, last = patcher.clone(), guided(patcher)[0]
    first.set_model_sampler_post_cfg_function(brighter)
    last.set_model_sampler_post_cfg_function(brighter)
    for chained in (guided(first)[0], last):
        torch.testing.assert_close(sample(chained, steps=1), plain + 0.25, rtol=1e-4, atol=1e-4)
    other = patcher.clone()
    other.set_model_sampler_cfg_function(halved)
    chained, _ = guided(other)
    assert chained.model_options["sampler_cfg_function"] is halved
    difference = sample(other, steps=1) - sample(patcher, steps=1)
    torch.testing.assert_close(sample(chained, steps=1), plain + difference, rtol=1e-3, atol=1e-3)


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


def test_an_item_with_nan_is_named_and_touches_no_other(caplog):
    patcher = model()

    def broken(args):
        args["cond_denoised"][1, 0, 0, 0] = torch.nan
        return args["denoised"]

    ill = patcher.clone()
    ill.set_model_sampler_post_cfg_function(broken)
    with caplog.at_level(logging.WARNING):
        drawn = sample(guided(ill)[0], steps=1)
    assert "NaN in item [1] of the batch" in caplog.text
    torch.testing.assert_close(drawn[[0, 2]], sample(guided(patcher)[0], steps=1)[[0, 2]])


def test_a_spread_of_another_model_is_said():
    from fewstep.nodes.host.identity import identify

    spread = measured(model("flow"))
    _, remarks = guided(model("eps"), spread=spread)
    assert any("on a model of type FLOW, not EPS" in remark for remark in remarks)
    other = Spread(spread.ratios, spread.squares, spread.counts, identify(model("eps")) | {"channels": 16})
    with pytest.raises(ValueError, match="latents of 16 channels"):
        guided(model("eps"), spread=other)
