"""On what a person wants something measured, and the latents of it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import comfy.sample
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..host.identity import conditioning_digest, identify
from ..host.noise_law import noise_law


@dataclass(frozen=True, eq=False)
class Asked:
    """On what a person wants something measured. latent: all zeros, or pictures."""

    model: ModelPatcher
    positive: list
    negative: list
    cfg: float
    latent: Tensor
    seed: int

    @cached_property
    def from_references(self) -> bool:
        return bool(self.latent.count_nonzero())

    @property
    def asked(self) -> dict[str, Any]:
        """The part that every measurement keeps of it, as JSON values."""
        prompt = conditioning_digest(self.positive, self.negative)
        scale = noise_law(self.model.get_model_object("model_sampling")).scale
        noise = {} if scale == 1 else {"noise_scale": scale}
        return identify(self.model) | noise | {"cfg": self.cfg, "prompt": prompt, "seed": self.seed}

    @cached_property
    def latents(self) -> Tensor:
        """`latent` in the model's own scale. As in the host an empty one stays 0, whatever the format's shift."""
        return self.model.model.process_latent_in(self.latent) if self.from_references else self.latent

    @property
    def references(self) -> dict[str, Any]:
        """The latents it is measured on."""
        references = conditioning_digest([self.latent]) if self.from_references else "drawn"
        return {"latent": list(self.latent.shape[1:]), "references": references}


def latent_for(model: ModelPatcher, latent: dict[str, Any]) -> Tensor:
    """The samples of a LATENT, with the model's channels where it is empty. Raises ValueError for nested latents."""
    samples = comfy.sample.fix_empty_latent_channels(model, latent["samples"])
    if samples.is_nested:
        raise ValueError(
            "This latent holds several parts (picture and sound), which cannot be measured yet. Use DPM-Solver-v3 "
            "without statistics on this model."
        )
    return samples
