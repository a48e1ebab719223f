"""Probabilistic guidance with one Gaussian a latent, and the spread that bounds it."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from fewstep.samplers.bands import parted
from fewstep.samplers.calibration import Calibration
from fewstep.samplers.guidance import ProbabilisticGuidance
from fewstep.samplers.rivals import Rival
from fewstep.samplers.spread import Spread, load_spread, prior
from support.goldens import Arrays

K1 = Arrays.load("gmflow/gm_ops_K1")


def pair(count: int = 3, seed: int = 0, shape: tuple[int, ...] = (4, 8, 8)) -> tuple[torch.Tensor, torch.Tensor]:
    """Two predictions that agree in part."""
    generator = torch.Generator().manual_seed(seed)
    conditional = torch.randn((count, *shape), generator=generator, dtype=torch.float64)
    return conditional, conditional + 0.3 * torch.randn((count, *shape), generator=generator, dtype=torch.float64)


def rms(x: torch.Tensor) -> torch.Tensor:
    return x.square().flatten(1).mean(1).sqrt()


@pytest.mark.parametrize("strength", [0.1, 0.3, 0.7, 0.9])
@pytest.mark.parametrize("orthogonal", [0, 0.5, 1])
def test_the_mode_fixed_is_gmflows_guidance_at_one_component(strength, orthogonal):
    """Recorded from the authors' code: the conditional mean plus their bias."""
    name = f"pg.w{strength}.o{orthogonal}"
    bias, guided = K1.tensor(f"{name}.bias"), K1.tensor(f"{name}.gauss.mean")
    spread = K1.tensor(f"{name}.avg_var").sqrt()
    ours = ProbabilisticGuidance(strength, "fixed", orthogonal)(guided - bias, K1.tensor("pg.uncond_mean"), 5.0, spread)
    torch.testing.assert_close(ours, guided, rtol=0, atol=1e-9)


def test_the_mode_cap_is_cfg_across_the_prediction_until_the_limit():
    conditional, unconditional = pair()
    free = ProbabilisticGuidance(1.0, "cap", 0.0)(conditional, unconditional, 3.0, 1e6)
    torch.testing.assert_close(free, unconditional + 3 * (conditional - unconditional))
    capped = ProbabilisticGuidance(0.5, "cap")(conditional, unconditional, 30.0, 0.2)
    torch.testing.assert_close(rms(capped - conditional), torch.full((3,), 0.1, dtype=torch.float64))
    along = ((capped - conditional) * conditional).flatten(1).sum(1)
    torch.testing.assert_close(along, torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-9)


def test_the_mode_soft_has_both_as_its_limits():
    conditional, unconditional = pair()
    for cfg, spread in ((1.05, 10.0), (200.0, 0.05)):
        soft, cap = (
            ProbabilisticGuidance(0.5, mode)(conditional, unconditional, cfg, spread) for mode in ("soft", "cap")
        )
        torch.testing.assert_close(soft, cap, rtol=1e-3, atol=1e-5)
    middle = ProbabilisticGuidance(0.5, "soft")(conditional, unconditional, 3.0, 1.0)
    assert (
        rms(middle - conditional) < rms(ProbabilisticGuidance(0.5)(conditional, unconditional, 3.0, 1.0) - conditional)
    ).all()


@pytest.mark.parametrize("mode", ["cap", "fixed", "soft"])
@pytest.mark.parametrize("shape", [(4, 8, 8), (16, 3, 5, 7), (4, 64)], ids=["image", "video", "line"])
def test_what_holds_in_every_mode(mode, shape):
    conditional, unconditional = pair(shape=shape)
    guidance = ProbabilisticGuidance(0.7, mode)
    assert torch.equal(guidance(conditional, unconditional, 1.0, 0.4), conditional)
    assert torch.equal(guidance(conditional, conditional.clone(), 7.0, 0.4), conditional)
    assert torch.equal(ProbabilisticGuidance(0.0, mode)(conditional, unconditional, 7.0, 0.4), conditional)
    whole = guidance(conditional, unconditional, 7.0, 0.4)
    assert (rms(whole - conditional) <= 0.7 * 0.4 * (1 + 1e-9)).all()
    torch.testing.assert_close(guidance(conditional[1:2], unconditional[1:2], 7.0, 0.4), whole[1:2])
    broken = unconditional.clone()
    broken[0, 0] = torch.nan
    assert torch.equal(guidance(conditional, broken, 7.0, 0.4)[1:], whole[1:])
    half = guidance(conditional.half(), unconditional.half(), 7.0, 0.4)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half.double(), whole, rtol=0, atol=1e-2)


@pytest.mark.parametrize(
    "given, words",
    [
        ((1.0, "fixed"), "below 1 in the mode fixed"),
        ((-0.1, "cap"), "must be 0 or more"),
        ((0.5, "hard"), "choose one of cap"),
        ((0.5, "cap", 1.5), "from 0 to 1"),
        ((0.5, "cap", 1.0, 0.5), "prompt_cfg is 0.5; it must be 1 or more"),
    ],
)
def test_what_cannot_be_is_said(given, words):
    with pytest.raises(ValueError, match=words):
        ProbabilisticGuidance(*given)


def test_early_plain_cfg_is_left_up_to_prompt_cfg():
    """Within the range of D_c, which predictions far inside of it do not meet."""
    conditional, unconditional = pair()
    conditional[:, :, 0, 0], conditional[:, :, 0, 1] = -9, 9
    unconditional[:, :, 0, :2] = conditional[:, :, 0, :2]
    guidance = ProbabilisticGuidance(0.1, "cap", 1.0, 4.0)
    bounded = guidance(conditional, unconditional, 7.0, 0.2)
    torch.testing.assert_close(bounded, ProbabilisticGuidance(0.1)(conditional, unconditional, 7.0, 0.2))
    plain = unconditional + 4 * (conditional - unconditional)
    torch.testing.assert_close(guidance(conditional, unconditional, 7.0, 0.2, True), plain)
    weak = unconditional + 2 * (conditional - unconditional)
    torch.testing.assert_close(guidance(conditional, unconditional, 2.0, 0.2, True), weak)
    early = torch.tensor([True, False, True]).view(3, 1, 1, 1)
    mixed = guidance(conditional, unconditional, 7.0, 0.2, early)
    torch.testing.assert_close(mixed, torch.where(early, plain, bounded))
    wide = ProbabilisticGuidance(1.0, "cap", 1.0, 4.0)(conditional, unconditional, 7.0, 1e6, True)
    torch.testing.assert_close(wide, unconditional + 7 * (conditional - unconditional))


def test_early_no_number_leaves_the_range_of_its_channel():
    conditional, unconditional = pair()
    guided = ProbabilisticGuidance(0.1, "cap", 1.0, 30.0)(conditional, unconditional, 30.0, 0.2, True)
    low, high = conditional.amin((2, 3), keepdim=True), conditional.amax((2, 3), keepdim=True)
    room = 0.05 * (high - low) + 1e-9
    assert (guided <= high + room).all() and (guided >= low - room).all()
    assert (guided > high).any() and (guided < low).any()


@pytest.mark.parametrize("mode", ["cap", "soft"])
def test_each_band_has_its_own_bound(mode):
    conditional, unconditional = pair()
    spread = torch.tensor([0.5, 0.02, 0.1, 0.0]).double().view(4, 1, 1, 1, 1)
    guidance = ProbabilisticGuidance(0.4, mode)
    added = guidance(conditional, unconditional, 50.0, spread) - conditional
    sizes = torch.stack([rms(part) for part in parted(added, 4)])
    assert (sizes <= 0.4 * spread.view(4, 1) * 1.001 + 1e-9).all() and (sizes[:3] > 0.3 * spread.view(4, 1)[:3]).all()
    free = ProbabilisticGuidance(0.4, "cap", 0.0)(conditional, unconditional, 5.0, torch.full((4, 1, 1, 1, 1), 1e6))
    torch.testing.assert_close(free, unconditional + 5 * (conditional - unconditional))


@pytest.mark.parametrize("shape", [(2, 3, 9, 12), (2, 3, 4, 8, 8), (2, 8, 31), (1, 2, 1, 1)])
@pytest.mark.parametrize("count", [1, 4, 8])
def test_bands_are_parts_of_the_whole_and_stand_across_each_other(shape, count):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    parts = parted(x, count)
    assert parts.shape == (count, *shape)
    torch.testing.assert_close(parts.sum(0), x)
    torch.testing.assert_close(parts.square().sum(), x.square().sum())


def test_the_last_band_is_above_half_of_the_highest_frequency():
    x = torch.arange(16).double()
    waves = [torch.cos(2 * math.pi * f * x).expand(16, 16)[None, None] for f in (0.0, 1 / 16, 3 / 16, 5 / 16, 0.5)]
    assert [int(parted(wave, 4).square().sum((1, 2, 3, 4)).argmax()) for wave in waves] == [0, 0, 2, 3, 3]


# ---------------------------------------------------------------------------------------------------------
# What it is compared with


def test_rivals_are_cfg_where_they_have_nothing_to_weigh():
    conditional, unconditional = pair()
    x, plain = conditional + 1, unconditional + 5 * (conditional - unconditional)
    later = torch.tensor(False)
    torch.testing.assert_close(Rival("magnitude", 0.0)(x, conditional, unconditional, 5.0, later), plain)
    torch.testing.assert_close(Rival("frequency", 1.0)(x, conditional, unconditional, 5.0, later), plain)
    for mode in ("magnitude", "frequency", "zero_star"):
        rival = Rival(mode, 0.5)(x, conditional, unconditional, 5.0, later)
        assert not torch.allclose(rival, plain, atol=1e-3)
        alone = Rival(mode, 0.5)(x[1:2], conditional[1:2], unconditional[1:2], 5.0, later)
        torch.testing.assert_close(alone, rival[1:2])


def test_the_weight_by_magnitude_is_the_papers():
    """r = |v_c - v_u| / |v_u| of 1/2: w = 1 + 4 exp(-10 0.2 / 2)."""
    x, unconditional = torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)
    guided = Rival("magnitude", 0.2)(x, unconditional + 0.5, unconditional, 5.0, torch.tensor(False))
    torch.testing.assert_close(guided, torch.full_like(x, 0.5 * (1 + 4 * math.exp(-1))))


def test_by_frequency_the_mean_is_guided_less_and_grain_in_full():
    flat, grain = torch.ones(1, 1, 8, 8), torch.ones(1, 1, 8, 8)
    grain[..., ::2] = -1
    for difference, cfg in ((flat, 1 + 0.25 * 4), (grain, 5.0)):
        guided = Rival("frequency", 0.25)(flat, difference, 0 * flat, 5.0, torch.tensor(False))
        torch.testing.assert_close(guided, cfg * difference, rtol=1e-3, atol=1e-3)


def test_zero_star_stands_still_at_the_beginning_and_scales_the_negative():
    """Core's scale: v_u s with s = <v_c, v_u> / |v_u|^2, and none of v_u is left where v_c stands across it."""
    x = torch.zeros(1, 1, 1, 2)
    conditional, unconditional = -torch.tensor([[[[1.0, 0.0]]]]), -torch.tensor([[[[0.0, 2.0]]]])
    assert torch.equal(Rival("zero_star", 0.0)(x, conditional, unconditional, 5.0, torch.tensor(True)), x)
    later = Rival("zero_star", 0.0)(x, conditional, unconditional, 5.0, torch.tensor(False))
    torch.testing.assert_close(later, 5 * conditional)


@pytest.mark.parametrize(
    "given, words", [(("cap", 0.5), "choose one of magnitude"), (("magnitude", -1.0), "0 or more")]
)
def test_a_rival_that_cannot_be_is_said(given, words):
    with pytest.raises(ValueError, match=words):
        Rival(*given)


# ---------------------------------------------------------------------------------------------------------
# Spread


FACTS = {"images": 8, "levels": 12, "cfg": 5.0, "estimator": "residual", "check": 0.1}


def gaussian_spread(levels: int = 12) -> Spread:
    """Of data N(0, 1): s^2 = r^2 / (1 + r^2)."""
    ratios = torch.logspace(2, -2, levels, dtype=torch.float64)
    return Spread(ratios, 8 * ratios**2 / (1 + ratios**2), torch.full_like(ratios, 8), FACTS)


def test_the_spread_between_and_beyond_its_levels():
    spread = gaussian_spread()
    for ratio in (300.0, 70.0, 3.3, 1.0, 0.21, 0.013, 0.004):
        assert spread.at(ratio) == pytest.approx(ratio / math.sqrt(1 + ratio**2), rel=0.02)
    assert spread.at(math.inf) == pytest.approx(1.0, rel=1e-3) and spread.at(0.0) == 0.0


def test_a_spread_never_rises_when_the_noise_falls():
    spread = Spread(torch.tensor([10.0, 1.0, 0.1]), torch.tensor([1.0, 1.5, 0.01]), torch.ones(3))
    values = [spread.at(ratio) for ratio in torch.logspace(-2, 2, 50).tolist()]
    assert all(high >= low * (1 - 1e-6) for low, high in pairwise(values))


def test_the_prior_lies_between_nothing_and_all():
    shape = (4, 32, 32)
    values = [prior(ratio, shape) for ratio in (0.0, 0.01, 0.1, 1.0, 10.0, math.inf)]
    assert values == sorted(values) and values[0] == 0 and values[-1] == pytest.approx(1, rel=1e-12)
    # A flat spectrum would have ratio / sqrt(1 + ratio^2); one like pictures has far less of it undecided.
    assert values[3] < 0.75 / math.sqrt(2)


def test_the_prior_is_that_of_a_spectrum_like_pictures():
    """Two columns: power 1 and 1/2, of mean 1. Rows count as columns do."""
    expected = math.sqrt(sum(p * 0.25 / (p + 0.25) for p in (4 / 3, 2 / 3)) / 2)
    assert prior(0.5, (4, 1, 2)) == pytest.approx(expected, rel=1e-12)
    for ratio in (0.1, 1.0):
        assert prior(ratio, (4, 6, 9)) == pytest.approx(prior(ratio, (4, 9, 6)), rel=1e-12)


def test_a_spread_by_bands_is_a_file_and_reaches_by_band(tmp_path):
    whole, path = gaussian_spread(), tmp_path / "bands.safetensors"
    shares = torch.tensor([0.7, 0.2, 0.1, 0.0], dtype=torch.float64)
    spread = Spread(whole.ratios, whole.squares, whole.counts, FACTS, shares[:, None] * whole.squares)
    spread.calibration().save(path)
    loaded = load_spread(path)
    ratio = torch.tensor([0.5, 3.0], dtype=torch.float64).view(2, 1, 1, 1)
    reach = loaded.reach(ratio)
    assert reach.shape == (4, 2, 1, 1, 1)
    torch.testing.assert_close(reach[:3], shares[:3].sqrt().view(3, 1, 1, 1, 1) * whole.at(ratio))
    assert whole.reach(ratio).shape == ratio.shape and "coarse to fine" in loaded.describe()
    parts = shares[:, None] * whole.squares
    for wrong in (parts[:1], parts[:, 1:], -parts, parts * torch.nan):
        Calibration("spread", {**whole.calibration().tensors, "by_band": wrong}, FACTS).save(path)
        with pytest.raises(ValueError, match="by bands that is none"):
            load_spread(path)


def test_of_a_tensor_of_ratios_each_has_its_own():
    spread = gaussian_spread()
    ratios = [math.inf, 300.0, 3.3, 0.21, 0.004, 0.0]
    at_once = spread.at(torch.tensor(ratios, dtype=torch.float64))
    assert at_once.tolist() == pytest.approx([spread.at(ratio) for ratio in ratios], rel=1e-12)
    assert prior(torch.tensor(ratios), (4, 6, 9)).tolist() == pytest.approx(
        [prior(r, (4, 6, 9)) for r in ratios], rel=1e-5
    )


def test_a_spread_is_a_file(tmp_path):
    spread, path = gaussian_spread(), tmp_path / "mine.safetensors"
    spread.calibration().save(path)
    loaded = load_spread(path)
    assert loaded.facts == spread.facts and torch.equal(loaded.ratios, spread.ratios)
    good = spread.calibration()
    for words, tensors in {
        "lacks counts": {"ratios": spread.ratios, "squares": spread.squares},
        "no spread over falling levels": good.tensors | {"ratios": spread.ratios.flip(0)},
        "holds no spread": good.tensors | {"squares": spread.squares * torch.nan},
    }.items():
        Calibration("spread", tensors, FACTS).save(path)
        with pytest.raises(ValueError, match=words):
            load_spread(path)


@pytest.mark.parametrize("mode", ["cap", "soft"])
def test_a_bound_beyond_all_numbers_is_none(mode):
    """Where both predictions agree, too, which the soft mode made NaN."""
    conditional = torch.randn((2, 3, 4, 4), generator=torch.Generator().manual_seed(0))
    guidance = ProbabilisticGuidance(1e30, mode, orthogonal=0.0)
    assert torch.equal(guidance(conditional, conditional.clone(), 5.0, 1000.0), conditional)
    plain = conditional * 0.5 + 5 * (conditional - conditional * 0.5)
    assert (guidance(conditional, conditional * 0.5, 5.0, 1000.0) - plain).abs().max() < 1e-4
