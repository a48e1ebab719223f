"""The schedules that the host itself has, as rivals of a searched one; and what its models say of time."""

from __future__ import annotations

import importlib
import logging
import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise

import comfy.samplers
import torch
from torch import Tensor

from ...samplers.noise_law import FLOW, NoiseLaw
from ...schedulers.optimal_steps.curve import Curve
from ...schedulers.optimal_steps.published import PUBLISHED

SD_SIGMA_MAX = 14.6146  # the tables of AYS and GITS are for the noise schedule of SD 1 and SDXL
WIDEST = 150.0  # noise-to-signal: above it everything is noise
MOST_STEPS = 400  # of a whole schedule whose lower part is taken
log = logging.getLogger(__name__)

Schedule = Callable[[int], Tensor]  # of a number of steps: sigmas


def shift_of(sampling, law: NoiseLaw) -> float:
    """The factor in t = shift u / (1 + (shift - 1) u) of a flow model, however the host writes it; 1 for others."""
    middle = float(sampling.percent_to_sigma(0.5))
    return FLOW.ratio(middle) if law.is_flow else 1.0


def check_share(denoise: float) -> None:
    """Raises ValueError for what is no share of the noise."""
    if not isinstance(denoise, (int, float)) or not 0 < denoise <= 1:
        raise ValueError(f"denoise is {denoise!r}; it must be a number above 0 and at most 1.")


def sigma_at(sampling, denoise: float) -> float:
    """Where the share `denoise` of the model's own time is left: the same noise for every scheduler and step count.

    Raises ValueError for what is no share.
    """
    check_share(denoise)
    highest = float(sampling.sigma_max)
    return highest if denoise >= 1 else min(float(sampling.percent_to_sigma(1 - denoise)), highest)


def rivals(sampling, law: NoiseLaw, steps: int, start: float | None) -> dict[str, tuple[float, ...]]:
    """Falling sigmas by name, of `steps` steps. start: the sigma to begin at, None for each one's own.

    Each one also comes with a step more and without the last, so that it ends at a small sigma instead of 0.
    """
    found = {}
    for name, schedule in schedules_of(sampling, law):
        for cut in (0, 1):
            try:
                sigmas = begun_at(schedule, steps + cut, start)
            except Exception as error:  # a scheduler of another pack may refuse what it likes
                log.debug("%s gives no schedule of %s steps: %s", name, steps + cut, error)
                continue
            sigmas = sigmas[:-1] if cut else sigmas
            if falls(sigmas) and len(sigmas) == steps + 1:
                found[f"{name}, cut" if cut else name] = sigmas
    return found


def schedules_of(sampling, law: NoiseLaw) -> Iterator[tuple[str, Schedule]]:
    """Every scheduler that the host knows, other packs' too, and the tables where they apply."""
    for name in comfy.samplers.SCHEDULER_NAMES:
        yield name, partial(comfy.samplers.calculate_sigmas, sampling, name)
    yield "uniform log-SNR", partial(uniform_log_snr, sampling, law)
    if law.is_flow:
        shift = shift_of(sampling, law)
        for name, table in PUBLISHED.items():
            yield name, partial(stretched, Curve(table.sigmas, law, table.shift), shift)
    elif math.isclose(float(sampling.sigma_max), SD_SIGMA_MAX, rel_tol=0.01):
        for kind in ("SD1", "SDXL"):
            yield f"AYS {kind}", partial(from_node, "nodes_align_your_steps.AlignYourStepsScheduler", kind)
        yield "GITS", partial(from_node, "nodes_gits.GITSScheduler", 1.2)


def stretched(curve: Curve, shift: float, steps: int) -> Tensor:
    return torch.tensor(curve.resampled(steps, shift))


def from_node(path: str, choice: str | float, steps: int) -> Tensor:
    """What one of the host's own scheduler nodes gives."""
    module, name = path.split(".")
    node = getattr(importlib.import_module(f"comfy_extras.{module}"), name)
    return node.execute(choice, steps, 1.0).args[0]


def uniform_log_snr(sampling, law: NoiseLaw, steps: int) -> Tensor:
    """The model's highest sigma, nodes of equal distance in lambda, and 0."""
    highest = min(law.ratio(float(sampling.sigma_max)), WIDEST) if not law.is_flow else WIDEST
    ratios = torch.logspace(math.log10(highest), math.log10(law.ratio(float(sampling.sigma_min))), steps)
    return torch.tensor([float(sampling.sigma_max), *law.sigma(ratios)[1:].tolist(), 0.0])


def begun_at(schedule: Schedule, steps: int, start: float | None) -> tuple[float, ...]:
    """The schedule, or its part below `start`, in which so many steps lie with the one from there."""
    if start is None:
        return tuple(schedule(steps).tolist())
    for whole in range(steps, MOST_STEPS):
        below = [sigma for sigma in schedule(whole).tolist() if sigma < start * (1 - 1e-4)]
        if len(below) >= steps:
            return (start, *below)
    return ()


def falls(sigmas: tuple[float, ...]) -> bool:
    return len(sigmas) > 1 and all(high > low >= 0 and high < math.inf for high, low in pairwise(sigmas))
