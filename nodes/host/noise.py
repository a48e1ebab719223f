"""Seeded noise of every picture's own: the same alone, in a batch, and whatever ran before."""

from __future__ import annotations

import zlib
from collections import Counter

import numpy as np
import torch
from torch import Tensor

OFFSET = 0x57E9  # keeps these draws apart from the initial noise, which the host draws from the seed itself


def derived_seed(seed: int, *keys: int) -> int:
    """A seed of 32 bits that depends on all keys; the same on every machine."""
    return int(np.random.SeedSequence([seed, OFFSET, *keys]).generate_state(1)[0])


def seeded(seed: int, *keys: int) -> torch.Generator:
    """A source of random numbers that depends on all keys."""
    return torch.Generator().manual_seed(derived_seed(seed, *keys))


def identity_of(item: Tensor) -> int:
    """A picture of a batch by its own numbers, in whatever place of whatever batch."""
    return zlib.crc32(item.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())


class ItemNoise:
    """The Noise of samplers.contract: unit Gaussian draws, one generator an item.

    An item is known by its initial noise, so picture 3 of a batch, drawn again alone (Latent From Batch), gets
    its own noise, and items that the person made equal (Latent Batch Seed Behavior) stay equal. Items to which no noise
    was added are told apart by their order.
    """

    def __init__(self, seed: int, initial: Tensor, *keys: int):
        self.like = initial
        seen: Counter[int] = Counter()
        self.generators = []
        for item in initial.detach().to("cpu", torch.float32):
            identity = identity_of(item)
            self.generators.append(seeded(seed, identity, seen[identity], *keys))
            seen[identity] += not item.any()

    def __call__(self, sigma_from: float, sigma_to: float) -> Tensor:
        draws = [torch.randn(self.like.shape[1:], generator=generator) for generator in self.generators]
        return torch.stack(draws).to(self.like.device, self.like.dtype, non_blocking=True)
