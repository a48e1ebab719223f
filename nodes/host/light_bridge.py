"""A light Schroedinger bridge between two sets of latents: of what every picture's channels are like, not of pictures.

The code of a picture is the mean and the logarithm of the standard deviation of each channel: its colours, its
brightness and its contrast. The picture keeps everything else.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import comfy.model_management
import comfy.utils
import numpy as np
import torch
from torch import Tensor

from ...samplers.facts import number, whole
from ...samplers.light_bridge import STEPS, energy_distance, fit
from .noise import derived_seed, identity_of
from .progress import Report, show_text
from .streams import is_nested

BRIDGE = 0xB21D  # keeps these draws apart from those of samplers
MOST_COMPONENTS, LEAST_NOISE, MOST_NOISE, MOST_SEED = 64, 0.01, 100.0, 0xFFFFFFFFFFFFFFFF
FLAT = 1e-6  # least standard deviation of a channel, of a picture of one colour


def bridged(
    source: Any, target: Any, components: int, noise: float, seed: int, report: Report | None
) -> tuple[dict[str, Any], str]:
    """The source with the channels of each picture moved over, and what to know. Raises ValueError, in words."""
    check_numbers(components, noise, seed)
    latents, others = (checked(name, one) for name, one in (("source", source), ("target", target)))
    if latents.shape[1] != others.shape[1]:
        raise ValueError(
            f"source has {latents.shape[1]} channels and target {others.shape[1]}. Encode both with the same VAE."
        )
    x, y = code_of(latents), code_of(others)
    middle, unit = scale_of(x, y)
    x, y, began = (x - middle) / unit, (y - middle) / unit, time.monotonic()
    bridge = fit(x, y, components, noise, STEPS, watched(report))
    drawn = bridge.draw(x, *draws_for(latents, seed))
    made = with_code(latents, drawn * unit + middle)
    said = (
        f"{len(x)} -> {len(y)} pictures, fitted in {time.monotonic() - began:.1f} s. The channels of both sets were "
        f"{energy_distance(x, y):.2f} apart, and are {energy_distance(drawn, y):.2f} (0: alike)."
    )
    return source | {"samples": made.to(latents.dtype)}, said


def check_numbers(components: int, noise: float, seed: int) -> None:
    whole(1, MOST_COMPONENTS).check("components", components)
    number(LEAST_NOISE, MOST_NOISE).check("noise", noise)
    whole(0, MOST_SEED).check("seed", seed)


def checked(name: str, latent: Any) -> Tensor:
    """The samples of a LATENT. Raises ValueError for what has no channels of several numbers."""
    samples: Any = latent.get("samples") if isinstance(latent, dict) else None
    if not isinstance(samples, Tensor) or is_nested(samples) or samples.ndim < 3 or not samples.numel():
        raise ValueError(f"{name} is no LATENT of pictures. Connect encoded ones (VAE Encode, Latent Batch).")
    if not samples.isfinite().all():
        raise ValueError(f"{name} holds NaN or infinite numbers. Encode the pictures again.")
    return samples


def code_of(latents: Tensor) -> Tensor:
    """(B, C, ...) -> (B, 2 C), float64 on the CPU: means, then logarithms of standard deviations."""
    flat = latents.detach().to("cpu", torch.float64).flatten(2)
    return torch.cat([flat.mean(2), flat.std(2, correction=0).clamp(min=FLAT).log()], 1)


def with_code(latents: Tensor, code: Tensor) -> Tensor:
    """The same pictures with channels of these means and deviations."""
    own = code_of(latents)
    (mean, log_std), (to, log_to) = own.chunk(2, 1), code.chunk(2, 1)
    shape = (*mean.shape, *[1] * (latents.ndim - 2))
    moved = (latents.to("cpu", torch.float64) - mean.view(shape)) * (log_to - log_std).exp().view(shape)
    return (moved + to.view(shape)).to(latents.device)


def scale_of(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Of every number of the code: its middle, and its deviation within a set, the unit in which noise is meant.

    Of sets of one picture, or of pictures all alike, there is none: a tenth of how far the sets are apart.
    """
    both = torch.cat([x, y])
    within = (x.var(0, correction=0) + y.var(0, correction=0)) / 2
    return both.mean(0), torch.maximum(within, both.var(0, correction=0) / 100).sqrt().clamp(min=FLAT)


def draws_for(latents: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Of every picture's own: in whatever place of a batch, it has the same ones. (B,) and (B, 2 C), float64."""
    uniform, normal = [], []
    for item in latents:
        source = np.random.default_rng(derived_seed(seed, identity_of(item), BRIDGE))
        uniform.append(source.random())
        normal.append(source.standard_normal(2 * latents.shape[1]))
    return torch.tensor(uniform, dtype=torch.float64), torch.from_numpy(np.stack(normal))


def watched(report: Report | None) -> Callable[[int], None]:
    """Progress, and an end where the person cancels."""
    bar, node_id = comfy.utils.ProgressBar(STEPS), report.node_id if report else None

    def on_step(step: int) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        if step % 50 == 49:
            bar.update_absolute(step + 1, STEPS)
            show_text(node_id, f"Fitting: {step + 1} of {STEPS} steps")

    return on_step
