"""The second network of the benchmarks: its data, its training, and the host's model of it."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(os.environ["FEWSTEP_ROOT"])
SECOND = ROOT / "benchmarks" / "second"
WEIGHTS = SECOND / "icons.safetensors"
weights = pytest.mark.skipif(
    not WEIGHTS.exists(), reason="benchmarks/second/icons.safetensors is not there: train it with its train.py"
)
APPLE = [("Foods", "apple one red")]


def module(name: str):
    """One of the scripts, which stand beside each other outside of any package."""
    for folder in (SECOND, ROOT / "benchmarks"):
        if str(folder) not in sys.path:
            sys.path.append(str(folder))
    return importlib.import_module(name)


# ---------------------------------------------------------------------------------------------------------
# Data and training


def test_the_shares_of_a_picture_are_its_colours():
    icons = module("icons")
    found = icons.load()
    some = icons.Icons(found.shares[:5], found.names[:5], found.categories[:5])
    drawn, colours = icons.pictures(some), icons.palettes()
    assert drawn.shape == (50, 3, 64, 64) and np.abs(drawn).max() <= 1
    filled = found.shares[3, 1] == 255
    assert filled.any()
    np.testing.assert_allclose(drawn[37][:, filled], colours[7, 1][:, None].repeat(filled.sum(), 1), atol=1e-6)
    empty = found.shares[3].sum(0) == 0
    np.testing.assert_allclose(drawn[39][:, empty], colours[9, 4][:, None].repeat(empty.sum(), 1), atol=1e-6)


def test_every_name_fits_a_prompt_and_is_there_once():
    icons, network = module("icons"), module("icon_network")
    found = icons.load()
    assert len(found) == len(set(found.names)) > 1000
    assert max(len(name.split()) for name in found.names) < network.CONTEXT_WORDS
    assert set(found.categories.tolist()) == set(range(len(icons.CATEGORIES)))


def started(folder: Path, rate: float = 1e-3):
    """A run on four icons that goes on from the folder's checkpoint."""
    train = module("train")
    given = {"data": train.icons.ICONS, "out": folder, "state": folder, "minutes": 1.0, "share": 0.25, "batch": 4}
    return train.Run(argparse.Namespace(**given, device="cpu", rate=rate, icons=4, save_every=60, log_every=100))


def test_training_goes_on_from_its_checkpoint_as_if_it_had_not_stopped(tmp_path):
    whole = started(tmp_path)
    for _ in range(2):
        whole.advance("autoencoder", 0.5)
    whole.averaged("autoencoder")
    whole.encode_all()
    whole.advance("transformer", 0.1)
    whole.save()
    again = started(tmp_path)
    again.averaged("autoencoder")
    again.encode_all()
    assert again.steps == {"autoencoder": 2, "transformer": 1} and again.seconds > whole.spent
    torch.testing.assert_close(again.latents, whole.latents, atol=1e-3, rtol=0)
    again.latents = whole.latents
    losses = [[float(run.advance("transformer", 0.2)) for _ in range(2)] for run in (whole, again)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    for name, value in whole.averages["transformer"].items():
        torch.testing.assert_close(again.averages["transformer"][name], value, atol=1e-4, rtol=1e-3)


def test_both_parts_learn(tmp_path):
    run = started(tmp_path, rate=1e-2)  # of which the warm-up lets through a tenth here
    losses = [float(run.advance("autoencoder", 0.0)) for _ in range(16)]
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])
    run.averaged("autoencoder")
    run.encode_all()
    assert run.latents.mean((0, 2, 3)).abs().max() < 1e-3
    torch.testing.assert_close(run.latents.std((0, 2, 3)), torch.ones(4), atol=1e-3, rtol=0)
    losses = [float(run.advance("transformer", 0.0)) for _ in range(30)]
    assert sum(losses[-5:]) < 0.95 * sum(losses[:5])


def test_captions_drop_words_and_classes(tmp_path):
    pictures = started(tmp_path).pictures
    chosen = torch.zeros(2000, dtype=torch.long)
    words, labels = pictures.partly_told(chosen, torch.Generator().manual_seed(0))
    told, label = pictures.told(chosen)
    assert ((words == told) | (words == 0)).all() and ((labels == label) | (labels == 0)).all()
    named, coloured = (words[:, :-1] > 0).any(1), words[:, -1] > 0
    none = ~named & ~coloured
    assert 0.08 < none.float().mean() < 0.13
    assert 0.03 < (coloured & ~named).float().mean() < 0.08
    assert 0.12 < (named & ~coloured).float().mean() < 0.22
    assert 0.6 < (labels[none] == 0).float().mean() < 0.8  # nothing at all is told often enough for guidance
    assert 0.1 < (labels[~none] == 0).float().mean() < 0.2


def test_the_rate_ends_at_zero():
    rate = module("train").rate
    assert rate(0, 0.0, 1.0, 0.3) == pytest.approx(1 / 200)
    assert rate(500, 0.5, 1.0, 0.3) == 1.0
    assert rate(500, 0.85, 1.0, 0.3) == pytest.approx(0.5)
    assert rate(500, 1.1, 1.0, 0.3) == 0.0


# ---------------------------------------------------------------------------------------------------------
# The host's model


@pytest.fixture(scope="module")
def second(host):
    return module("icon_model")


def denoised(second, variant: str, ratio: float, y: torch.Tensor, prompts=APPLE) -> torch.Tensor:
    """One model call in float32 at noise-to-signal ratio `ratio`, in y = x / alpha."""
    import comfy.model_management

    patcher = second.load_model(variant)
    comfy.model_management.load_models_gpu([patcher])
    ((context, more),) = second.conditioning(prompts)
    sigma = torch.full((len(y),), ratio / (1 + ratio) if variant == "flow" else ratio)
    x = y / (1 + ratio) if variant == "flow" else y
    with torch.no_grad():
        told = {"c_crossattn": context.expand(len(y), -1, -1), "y": more["pooled_output"].expand(len(y), -1)}
        return patcher.model.apply_model(x, sigma, **told)


def noisy(ratio: float, *shape: int) -> torch.Tensor:
    return (1 + ratio**2) ** 0.5 * torch.randn(shape or (1, 4, 16, 16), generator=torch.Generator().manual_seed(0))


@weights
@pytest.mark.parametrize("index", [20, 300, 600, 990])
def test_eps_v_and_flow_are_one_network(second, index):
    """At the nodes of the discrete schedule the change of variables is exact."""
    import comfy.model_sampling

    ratio = comfy.model_sampling.ModelSamplingDiscrete().sigmas[index].item()
    flow = denoised(second, "flow", ratio, noisy(ratio))
    scale = max(flow.abs().max().item(), 1)
    for variant in ("eps", "v"):
        assert (denoised(second, variant, ratio, noisy(ratio)) - flow).abs().max() < 2e-3 * scale


@weights
def test_class_and_words_both_count_and_the_order_of_words_does_not(second):
    def at(label: str, words: str) -> torch.Tensor:
        return denoised(second, "flow", 3.0, noisy(3.0), [(label, words)])

    whole = at("Foods", "apple one red")
    assert (at("Foods", "red one apple") - whole).abs().max() < 1e-4
    for words in ("apple one blue", "banana red", ""):
        assert (at("Foods", words) - whole).square().mean().sqrt() > 0.01, words
    for label in ("", "Weather"):
        assert (at(label, "") - at("Foods", "")).square().mean().sqrt() > 0.01, label


@weights
@pytest.mark.parametrize("height, width", [(16, 16), (9, 13), (24, 8)])
def test_any_size(second, height, width):
    shape = (2, 4, height, width)
    answer = denoised(second, "eps", 1.0, noisy(1.0, *shape))
    assert answer.shape == shape and answer.isfinite().all()


@weights
def test_what_it_does_not_know_is_refused(second):
    with pytest.raises(ValueError, match="does not know .*qwertz"):
        second.conditioning([("Foods", "qwertz")])
    with pytest.raises(ValueError, match="does not know .*Spaceships"):
        second.conditioning([("Spaceships", "red")])


@weights
def test_the_autoencoder_returns_the_pictures(second):
    icons, evaluate = module("icons"), module("icon_evaluate")
    found = icons.load()
    some = slice(None, None, 40)
    data = torch.from_numpy(icons.pictures(icons.Icons(found.shares[some], found.names[some], found.categories[some])))
    data = data[::7]
    latents = evaluate.latents_of(data)
    assert evaluate.psnr(data) > 25
    assert 0.8 < latents.std() < 1.25 and latents.mean().abs() < 0.2


@weights
def test_it_draws_what_it_is_asked_for(second):
    icons, evaluate = module("icons"), module("icon_evaluate")
    found = icons.load()
    data = torch.from_numpy(icons.pictures(found))
    wanted = evaluate.spread(8, len(data)) + 13
    drawn = evaluate.draw("flow", [evaluate.caption(found, one) for one in wanted.tolist()], steps=12)
    assert evaluate.named(drawn, wanted, found, data)["icon"] >= 6


@weights
def test_the_problem_of_the_benchmarks(second):
    problems = module("problems")
    with torch.no_grad():
        problem = problems.second_problem("flow", 2.0, 2, steps=16)
    assert problem.name == "second flow cfg 2" and problem.end.shape == problem.noise.shape == (2, 4, 16, 16)
    assert problem.end_error < 0.05 and (problem.end - problem.noise).square().mean() > 0.1


@weights
def test_the_file_is_small_enough_to_be_cloned():
    assert WEIGHTS.stat().st_size <= 18e6
