"""What holds for DEIS, DualFast and the flow maps alike: seeds, batches, masks, previews, odd schedules."""

from __future__ import annotations

import pytest
import torch
from support.field import flow_map, ours, sample
from support.mixture import picture_like

pytestmark = pytest.mark.usefixtures("host")
EVERY = pytest.mark.parametrize(
    "name", ["deis tab", "deis rhork", "deis ipndm", "dual fast", "flow map", "flow map ctm"]
)


@EVERY
@pytest.mark.parametrize("kind", ["eps", "flow"])
def test_the_same_seed_draws_the_same_and_an_item_alone_is_as_in_the_batch(name, kind):
    batch = sample(ours()[name], kind, 2.0)
    torch.manual_seed(99)
    assert torch.equal(sample(ours()[name], kind, 2.0), batch)
    alone = sample(ours()[name], kind, 2.0, items=slice(2, 3))
    torch.testing.assert_close(alone[0], batch[2], atol=5e-4, rtol=0)
    assert batch.dtype == torch.float32


def test_another_seed_is_other_noise_where_noise_is_drawn():
    drawn = [sample(flow_map("ctm", 0.9), "flow", seed=seed) for seed in (7, 8)]
    assert (drawn[0] - drawn[1]).square().mean() > 0.01


@EVERY
@pytest.mark.parametrize("kind", ["eps", "flow"])
def test_a_masked_latent_keeps_what_the_mask_protects(name, kind):
    latent = picture_like().sample(4, seed=1).float()
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., :8] = 1.0
    drawn = sample(ours()[name], kind, latent=latent, noise_mask=mask)
    torch.testing.assert_close(drawn[..., 8:], latent[..., 8:], atol=1e-4, rtol=0)
    assert (drawn - latent)[..., :8].square().mean() > 0.1


@EVERY
def test_previews_count_the_steps(name):
    seen: list[tuple[int, int]] = []
    sample(ours()[name], callback=lambda step, denoised, x, total: seen.append((step, total)))
    assert seen == [(step, 8) for step in range(8)]


@EVERY
@pytest.mark.parametrize("sigmas", [[], [3.0], [14.6, 14.6, 3.0, 0.0, 0.0]])
def test_schedules_without_a_step_and_with_steps_that_go_nowhere(name, sigmas):
    if not sigmas:
        return  # the host itself returns the latent
    assert sample(ours()[name], sigmas=torch.tensor(sigmas)).isfinite().all()
