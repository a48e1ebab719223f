"""Denoisers that watch, and denoisers that fail."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from fewstep.samplers.contract import Denoiser
from torch import Tensor


@dataclass
class Recording:
    """Counts the calls of a denoiser and keeps where they were made."""

    denoise: Denoiser
    sigmas: list[float] = field(default_factory=list)

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        self.sigmas.append(float(sigma))
        return self.denoise(x, sigma)

    @property
    def calls(self) -> int:
        return len(self.sigmas)


@dataclass
class Failing:
    """Behaves until call `at` (from 0), then raises `error`, or answers NaN when there is none."""

    denoise: Denoiser
    at: int
    error: BaseException | None = None
    calls: int = 0

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        self.calls += 1
        if self.calls - 1 < self.at:
            return self.denoise(x, sigma)
        if self.error is not None:
            raise self.error
        return torch.full_like(x, float("nan"))


def watched_counters(monkeypatch, module: Any) -> list[Any]:
    """All counters of calls that a measuring module of the pack makes from now on."""
    made: list[Any] = []

    class Watched(module.Counter):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            made.append(self)

    monkeypatch.setattr(module, "Counter", Watched)
    return made
