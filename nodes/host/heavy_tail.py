"""The noise of PFGM++ as the host's NOISE: the host's own of the seed, and one number a picture."""

from __future__ import annotations

import math
from typing import Any

import comfy.sample
import torch
from torch import Tensor

from ...samplers.heavy_tail import check_dimension, spread_of_norm, stretch
from .noise import derived_seed, identity_of
from .progress import Report, complain
from .streams import is_nested, nested, packed, streams_of

TAIL = 0x7A11  # keeps these draws apart from those of samplers


class HeavyTailNoise:
    """A NOISE of the host. Every picture is told by its ordinary noise: it is the same alone and in a batch."""

    def __init__(self, seed: int, dimension: int, report: Report | None = None):
        check_dimension(dimension)
        self.seed, self.dimension, self.report = seed, dimension, report

    def generate_noise(self, input_latent: dict[str, Any]) -> Any:
        """Of the latent's shape, on the CPU, of unit scale."""
        latent = input_latent["samples"]
        ordinary = comfy.sample.prepare_noise(latent, self.seed, input_latent.get("batch_index"))
        streams = streams_of(ordinary, None) if is_nested(ordinary) else None
        together = packed(ordinary)
        if self.dimension < (numbers := math.prod(together.shape[1:])):
            complain(self.report, "Heavy Tail Noise", narrow(numbers, self.dimension))
        strengths = [stretch(self.dimension, self.seed_of(item)) for item in together]
        strength = torch.tensor(strengths, dtype=torch.float64).view(-1, *[1] * (together.ndim - 1))
        stretched = (together * strength).to(together.dtype)
        return nested(stretched, streams) if streams else stretched

    def seed_of(self, item: Tensor) -> int:
        return derived_seed(self.seed, identity_of(item), TAIL)


def narrow(numbers: int, dimension: int) -> str:
    """What to expect of a dimension below that of the latent."""
    ordinary, heavy = spread_of_norm(numbers), spread_of_norm(numbers, dimension)
    return (
        f"At dimension {dimension} the strength of the noise differs by {heavy:.1%} from picture to picture, that of "
        f"ordinary noise of {numbers} numbers by {ordinary:.1%}. Only PFGM++ models of this dimension want that."
    )
