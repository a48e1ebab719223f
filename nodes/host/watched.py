"""A GUIDER whose calls are counted and a SAMPLER whose seconds are taken, both otherwise what they were.

Each is a copy of a class made of its own: what the host, its wrappers and other packs look for on them is there, and
nothing of the person's objects is changed.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.samplers
import torch

from .guiders import fresh


@dataclass
class Watch:
    """What one run took. on_call: told of each guided prediction, before it is made."""

    on_call: Callable[[], None]
    calls: int = 0
    seconds: float = 0.0


def watched(guider: comfy.samplers.CFGGuider, watch: Watch) -> comfy.samplers.CFGGuider:
    """One call is one guided prediction, whatever the guider asks of the model for it. Stopped by the host's cancel.

    Timed is the sampler that runs in the end: Boost and its kin may have put another in the place of the given one.
    """
    kind: Any = type(guider)
    device = guider.model_patcher.load_device

    def call(self, *args, **given):
        comfy.model_management.throw_exception_if_processing_interrupted()
        watch.calls += 1
        watch.on_call()
        return kind.__call__(self, *args, **given)

    def inner_sample(self, noise, latent_image, on, sampler, *args, **given):
        return kind.inner_sample(self, noise, latent_image, on, timed(sampler, watch, device), *args, **given)

    return with_methods(fresh(guider), __call__=call, inner_sample=inner_sample)


def timed(sampler: Any, watch: Watch, device: torch.device) -> Any:
    """Of the sampler alone: the model is loaded and the prompts are ready when it begins."""
    kind: Any = type(sampler)

    def sample(self, *args, **given):
        wait_for(device)
        began = time.perf_counter()
        drawn = kind.sample(self, *args, **given)
        wait_for(device)
        watch.seconds += time.perf_counter() - began
        return drawn

    return with_methods(copy.copy(sampler), sample=sample)


def with_methods(made: Any, **methods: Callable) -> Any:
    kind = type(made)
    own = methods | {"__module__": kind.__module__, "__qualname__": kind.__qualname__}
    made.__class__ = type(kind.__name__, (kind,), own)
    return made


def wait_for(device: torch.device) -> None:
    """Until it has done what it was asked to: its answers are promises."""
    backend: Any = getattr(torch, device.type, None)
    if device.type != "cpu" and hasattr(backend, "synchronize"):
        backend.synchronize()
