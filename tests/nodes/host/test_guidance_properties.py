"""Guidance and GMFlow at any options: an answer that can be used, or a sentence; no raw error, no silent NaN."""

from __future__ import annotations

import math

import pytest
import torch
from fewstep.samplers.gmflow import GMFlow, Mixture, Prediction, guided
from fewstep.samplers.guidance import MODES, ProbabilisticGuidance
from hypothesis import given
from hypothesis import strategies as st
from support.examples import many
from support.gmflow import normal
from torch import Tensor

pytestmark = pytest.mark.usefixtures("host")

shares = st.one_of(st.floats(0, 1), st.sampled_from([-0.1, 1.0, 1.1, math.nan]))
strengths = st.one_of(st.floats(0, 10), st.sampled_from([0.0, -1.0, 1e-30, 1e30, math.nan, math.inf]))
scales = st.sampled_from([0.0, 1e-20, 1e-6, 1.0, 1e3, 1e6])
seeds = st.integers(0, 2**31)
falling = st.lists(st.floats(0, 1), max_size=6).map(lambda s: sorted(s, reverse=True))
schedules = st.one_of(
    falling,
    falling.map(lambda s: [1.0000001, *s, 0.0]),
    st.lists(st.sampled_from([1.0, 0.5, 0.5000001, 1e-7, 1e-38, 0.0]), max_size=5).map(lambda s: sorted(s)[::-1]),
    st.lists(st.sampled_from([math.nan, math.inf, -1.0, 0.0, 0.3, 1.0, 1.1, 14.6]), max_size=4),
)


@many
@given(strengths, st.sampled_from([*MODES, "other"]), shares, st.floats(0, 100), scales, scales, scales, seeds)
def test_guidance_of_any_two_predictions(strength, mode, orthogonal, cfg, size, apart, spread, seed):
    try:
        guidance = ProbabilisticGuidance(strength, mode, orthogonal)
    except ValueError:
        return
    conditional = normal((2, 3, 4, 4), seed, torch.float32) * size
    unconditional = conditional + normal((2, 3, 4, 4), seed + 1, torch.float32) * apart
    drawn = guidance(conditional, unconditional, cfg, spread)
    assert drawn.isfinite().all()
    if cfg > 1:
        added = (drawn - conditional).double().square().mean((1, 2, 3)).sqrt()
        assert (added <= strength * spread * 1.01 + 1e-6 * conditional.abs().max()).all()


@many
@given(
    st.sampled_from(["ode", "sde"]),
    st.integers(0, 3),
    st.integers(-1, 6),
    st.one_of(st.floats(0, 1), st.sampled_from([math.nan, 1e-30, 2.0])),
    st.one_of(st.floats(0.01, 100), st.sampled_from([0.0, math.nan])),
    st.one_of(st.floats(0, 0.999), st.just(1.0)),
    schedules,
    scales,
    st.floats(-60, 20),
    seeds,
)
def test_gmflow_on_any_schedule_and_mixture(
    mode, order, substeps, temperature, shift, strength, sigmas, size, log, seed
):
    def mixture(number: int) -> Mixture:
        means = normal((2, 3, 2, 3, 3), number, torch.float32) * size
        return Mixture.of_logits(
            means, normal((2, 3, 1, 3, 3), number + 1, torch.float32), torch.full((2, 1, 1, 1, 1), log)
        )

    def predict(x: Tensor, sigma: float) -> Prediction:
        return guided(mixture(seed), mixture(seed + 2), strength)

    noise = torch.Generator().manual_seed(seed)
    x = normal((2, 2, 3, 3), seed + 5, torch.float32)
    try:
        solver = GMFlow(mode, order, substeps, temperature, shift)
        drawn = solver(predict, x, torch.tensor(sigmas), noise=lambda *_: torch.randn(x.shape, generator=noise))
    except ValueError:
        return
    assert drawn.isfinite().all()


@pytest.fixture(scope="module")
def demos(host) -> dict[str, tuple]:
    """The bundled model's variants, each with two prompts."""
    from fewstep.nodes.models.demo import VARIANTS, load_clip, load_model

    clip = load_clip()
    prompts = [clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in ("red apple", "")]
    return {variant: (load_model(variant), *prompts) for variant in VARIANTS}


def sampled(guider, sampler, sigmas: list[float]) -> Tensor:
    noise = normal((1, 3, 8, 8), 0, torch.float32)
    return guider.sample(noise, torch.zeros_like(noise), sampler, torch.tensor(sigmas), disable_pbar=True, seed=0)


@many
@given(
    st.sampled_from(["ours", "cfg", "euler"]),
    st.sampled_from(["ode", "sde"]),
    st.integers(1, 2),
    st.integers(1, 4),
    st.floats(0.01, 1),
    st.one_of(st.floats(0, 0.99), st.just(1.0)),
    shares,
    shares,
    shares,
    schedules,
)
def test_gmflow_in_the_host(demos, who, mode, order, substeps, temperature, strength, orthogonal, start, end, sigmas):
    import comfy.samplers
    from fewstep.nodes.host.gmflow import Choice, Guidance, gmflow_guider, gmflow_sampler
    from fewstep.nodes.host.guiders import guider_for

    model, *prompts = demos["gmflow"]
    try:
        sampler = gmflow_sampler(Choice(mode, order, substeps, temperature, False))
        if who == "cfg":
            guider = guider_for(model, prompts[0], prompts[1], 1 + 10 * strength)
        else:
            guider = gmflow_guider(model, prompts[0], prompts[1], Guidance(strength, orthogonal, start, end))
        drawn = sampled(guider, comfy.samplers.sampler_object("euler") if who == "euler" else sampler, sigmas)
    except ValueError as error:
        assert len(str(error)) > 40
        return
    if len(sigmas) > 1 and sigmas[-1] < 1 and who != "euler":
        assert drawn.isfinite().all()


@many
@given(
    st.sampled_from(["eps", "flow"]),
    strengths,
    st.sampled_from(MODES),
    shares,
    shares,
    shares,
    st.floats(0, 100),
    st.lists(st.floats(0, 1), min_size=2, max_size=4).map(lambda s: sorted(s)[::-1]),
)
def test_guidance_in_the_host(demos, variant, strength, mode, orthogonal, start, end, cfg, sigmas):
    import comfy.samplers
    from fewstep.nodes.host.guidance import guided_model
    from fewstep.nodes.host.guiders import guider_for

    model, *prompts = demos[variant]
    sigmas = [s * (0.99 if variant == "flow" else 14.6) for s in sigmas]
    try:
        guided_one, _ = guided_model(model, ProbabilisticGuidance(strength, mode, orthogonal), start, end, None)
        drawn = sampled(
            guider_for(guided_one, prompts[0], prompts[1], cfg), comfy.samplers.sampler_object("euler"), sigmas
        )
    except ValueError as error:
        assert len(str(error)) > 40
        return
    plain = sampled(guider_for(model, prompts[0], prompts[1], cfg), comfy.samplers.sampler_object("euler"), sigmas)
    assert drawn.isfinite().all() or not plain.isfinite().all()
