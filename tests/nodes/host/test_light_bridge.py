"""Light Bridge on latents: channels move to the other set's, everything else in a picture stays."""

from __future__ import annotations

import pytest
import torch

pytestmark = pytest.mark.usefixtures("host")


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def latents(count: int, mean: float, spread: float, seed: int = 0, size: int = 6) -> torch.Tensor:
    """Pictures whose channels have about these means and deviations."""
    return mean + 0.2 * noise(count, 3, 1, 1, seed=seed + 50) + spread * noise(count, 3, size, size, seed=seed)


def moved(source: torch.Tensor, target: torch.Tensor, components: int = 2, eps: float = 0.1, seed: int = 0):
    from fewstep.nodes.host.light_bridge import bridged

    return bridged({"samples": source}, {"samples": target}, components, eps, seed, None)


def test_channels_get_the_other_sets_means_and_deviations():
    source, target = latents(40, 0.0, 1.0), latents(30, 2.0, 0.4, seed=1, size=9)
    made, said = moved(source, target)
    assert made["samples"].shape == source.shape and made["samples"].dtype == source.dtype
    for look in (lambda z: z.mean((2, 3)), lambda z: z.std((2, 3))):
        torch.testing.assert_close(look(made["samples"]).mean(0), look(target).mean(0), rtol=0.1, atol=0.05)
    assert "40 -> 30 pictures" in said


def test_what_is_in_a_picture_stays():
    """A channel is shifted and stretched, nothing else."""
    source = latents(8, 0.0, 1.0)
    made = moved(source, latents(8, 2.0, 0.4, seed=1))[0]["samples"]
    before, after = (one.flatten(2) - one.flatten(2).mean(2, keepdim=True) for one in (source, made))
    alike = torch.nn.functional.cosine_similarity(before, after, dim=2)
    torch.testing.assert_close(alike, torch.ones_like(alike))


def test_little_noise_keeps_the_order_and_much_does_not():
    source, target = latents(60, 0.0, 1.0), latents(60, 3.0, 1.0, seed=1)
    ranks = []
    for eps in (0.01, 100.0):
        made = moved(source, target, 1, eps)[0]["samples"]
        pairs = torch.stack([one.mean((2, 3)).flatten() for one in (source, made)])
        ranks.append(float(torch.corrcoef(pairs)[0, 1]))
    assert ranks[0] > 0.9 and abs(ranks[1]) < 0.3


def test_a_picture_has_its_own_chance_and_a_seed_another():
    from fewstep.nodes.host.light_bridge import draws_for

    source, target = latents(4, 0.0, 1.0), latents(4, 1.0, 0.5, seed=1)
    uniform, normal = draws_for(source, 5)
    alone = draws_for(source[2:3], 5)
    assert alone[0][0] == uniform[2] and torch.equal(alone[1][0], normal[2])
    one, same, other = (moved(source, target, 1, seed=seed)[0]["samples"] for seed in (5, 5, 6))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_one_picture_a_side_takes_the_targets_look():
    target = latents(1, 3.0, 0.2, seed=1)
    made = moved(latents(1, 0.0, 1.0), target, 1, 0.01)[0]["samples"]
    torch.testing.assert_close(made.mean((2, 3)), target.mean((2, 3)), rtol=0, atol=0.1)


def test_pictures_of_one_colour_videos_and_sound_pass():
    flat = torch.zeros(3, 3, 4, 4)
    assert moved(flat, latents(3, 1.0, 0.5))[0]["samples"].isfinite().all()
    video = moved(noise(2, 3, 2, 4, 4), noise(2, 3, 1, 4, 4, seed=1))[0]["samples"]
    assert video.shape == (2, 3, 2, 4, 4) and moved(noise(2, 3, 9), noise(2, 3, 9))[0]["samples"].shape == (2, 3, 9)


def test_what_else_is_in_the_latent_is_kept():
    from fewstep.nodes.host.light_bridge import bridged

    given = {"samples": latents(2, 0.0, 1.0), "batch_index": [4, 5]}
    assert bridged(given, {"samples": latents(2, 1.0, 1.0)}, 1, 0.1, 0, None)[0]["batch_index"] == [4, 5]


@pytest.mark.parametrize(
    "source, target, words",
    [
        (torch.zeros(1, 3, 4, 4), torch.zeros(1, 4, 4, 4), "source has 3 channels and target 4"),
        (torch.zeros(0, 3, 4, 4), torch.zeros(1, 3, 4, 4), "source is no LATENT"),
        (torch.zeros(1, 3, 4, 4), torch.full((1, 3, 4, 4), torch.nan), "target holds NaN"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(source, target, words):
    with pytest.raises(ValueError, match=words):
        moved(source, target)
