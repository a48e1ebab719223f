"""Heavy Tail Noise as the host's NOISE: the host's own of the seed, and one number a picture."""

from __future__ import annotations

import pytest
import torch
from fewstep.nodes.host.progress import Report
from support.field import hosts, sample

pytestmark = pytest.mark.usefixtures("host")


def heavy(dimension: int, seed: int = 5, count: int = 3, report=None, **latent):
    from fewstep.nodes.host.heavy_tail import HeavyTailNoise

    samples = latent.pop("samples", torch.zeros(count, 4, 8, 8))
    return HeavyTailNoise(seed, dimension, report).generate_noise({"samples": samples} | latent)


def ordinary(seed: int = 5, count: int = 3):
    import comfy.sample

    return comfy.sample.prepare_noise(torch.zeros(count, 4, 8, 8), seed)


def test_it_is_the_hosts_noise_and_one_number_a_picture():
    made = heavy(64)
    share = made / ordinary()
    torch.testing.assert_close(share, share[:, :1, :1, :1].expand_as(share))
    strengths = share[:, 0, 0, 0]
    assert strengths.unique().numel() == 3 and (strengths - 1).abs().max() > 0.01
    assert torch.equal(made, heavy(64)) and not torch.equal(made, heavy(64, seed=6))
    torch.testing.assert_close(heavy(10**9), ordinary(), rtol=1e-3, atol=0)


def test_a_picture_of_a_batch_alone_has_its_own_noise():
    """As Latent From Batch asks for it."""
    alone = heavy(64, samples=torch.zeros(1, 4, 8, 8), batch_index=[2])
    assert torch.equal(alone[0], heavy(64)[2])


def test_the_global_generator_gives_the_same_whatever_the_dimension():
    first, _ = heavy(2), torch.rand(1)
    torch.manual_seed(99)
    assert torch.equal(heavy(2), first)


def test_below_the_latents_own_dimension_it_says_what_to_expect():
    report = Report(None)
    heavy(64, report=report)
    text = report.ui["fewstep"][0]["text"]
    assert "At dimension 64" in text and "9.9%" in text and "256 numbers by 4.4%" in text
    quiet = Report(None)
    heavy(256, report=quiet)
    assert quiet.ui["fewstep"][0]["text"] == ""


def test_a_latent_of_several_streams_has_one_strength():
    from comfy.nested_tensor import NestedTensor

    parts = [torch.zeros(2, 4, 1, 4, 4), torch.zeros(2, 3, 5)]
    made, plain = heavy(64, samples=NestedTensor(parts)).unbind(), heavy(10**9, samples=NestedTensor(parts)).unbind()
    shares = [(one / other).flatten(1) for one, other in zip(made, plain, strict=True)]
    assert [tuple(one.shape) for one in made] == [tuple(part.shape) for part in parts]
    torch.testing.assert_close(shares[0][:, :1], shares[1][:, :1])


def test_an_empty_batch_is_empty():
    assert heavy(64, samples=torch.zeros(0, 4, 8, 8)).shape == (0, 4, 8, 8)


def test_it_samples():
    noise = heavy(2048, samples=torch.zeros(4, 4, 16, 16))
    assert sample(hosts("euler"), noise=noise).isfinite().all()
