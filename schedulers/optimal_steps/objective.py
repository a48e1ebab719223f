"""How far a student is from its teacher."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...samplers.choices import check_choice
from ...samplers.streams import ALONE, Streams

REDUCTIONS = ("geometric", "mean", "median")
SPACES = ("x", "x0")
SMALLEST, LARGEST = 1e-30, 1e30


@dataclass(frozen=True)
class Objective:
    """mean |x - target|^p over a latent, and one number for a batch. Of several streams the mean of theirs.

    channels: only the first so many; frames: only so many, evenly spread (video). reduction: over the latents of a
    batch; with "geometric" the few that fall into another picture do not outweigh the rest.
    space: where a path that is on its way is compared, "x", or "x0", the model's answer there.
    Raises ValueError for what is not allowed.
    """

    p: float = 2.0
    channels: int | None = None
    frames: int | None = None
    reduction: str = "geometric"
    space: str = "x"
    streams: Streams = ALONE

    def __post_init__(self) -> None:
        check_choice("reduction", self.reduction, REDUCTIONS)
        check_choice("space", self.space, SPACES)
        if self.p <= 0:
            raise ValueError(f"The norm is {self.p:g}; it must be above 0. 2 is the mean square.")

    def errors(self, x: Tensor, target: Tensor) -> Tensor:
        """One number a latent, (B,)."""
        return self.by_stream(x, target).mean(1)

    def by_stream(self, x: Tensor, target: Tensor) -> Tensor:
        """One number a latent and stream, (B, streams)."""
        away = self.part(x) - self.part(target)
        powered = away.square() if self.p == 2 else away.abs().pow(self.p)
        return self.streams.in_own_size(powered, self.p)

    def part(self, x: Tensor) -> Tensor:
        """What is compared of x (B, C, ..., H, W); all of a pack, which has neither channels nor frames."""
        if self.streams.is_pack:
            return x
        if self.channels is not None:
            x = x[:, : self.channels]
        if self.frames is not None and x.ndim == 5:
            chosen = torch.linspace(0, x.shape[2] - 1, self.frames, dtype=torch.float64).floor().long()
            x = x[:, :, chosen.to(x.device)]
        return x

    def reduce(self, errors: Tensor) -> Tensor:
        """(..., B) -> (...), float64 on the CPU. NaN counts as very bad."""
        errors = errors.detach().cpu().double().nan_to_num(LARGEST).clamp(max=LARGEST)
        if self.reduction == "geometric":
            return errors.clamp(min=SMALLEST).log().mean(-1).exp()
        return errors.mean(-1) if self.reduction == "mean" else errors.quantile(0.5, dim=-1)
