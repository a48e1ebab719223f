"""What one run of a sampler tells of its guidance. Kept on the model's device, and read back when the run is over."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ....samplers.noise_law import NoiseLaw
from ..noise_law import noise_law
from ..progress import Report, complain

WHO = "Probabilistic guidance"
ANSWERS = ("cond_denoised", "uncond_denoised", "denoised")
NOTHING_TO_DO = (
    "It does nothing at cfg 1: it needs a negative prompt and a cfg above 1. Models with distilled guidance (FLUX dev) "
    "want their own guidance low and a true cfg instead; Turbo and Lightning models want none, and NAG for a negative "
    "prompt."
)
ZEROED = (
    "The negative prompt is zeroed out. SDXL was trained with that; most other models were not, and are guided away "
    "from what they never saw. Connect an empty text prompt instead."
)


class Places(NamedTuple):
    """Where parts of a model's time begin, and its noise law."""

    to_sigma: Callable[[float], float]
    law: NoiseLaw


def places_of(sampling) -> Places:
    return Places(cache(sampling.percent_to_sigma), noise_law(sampling))


class Run:
    """sigmas: the schedule of this run, for naming a call. One for each guidance of a run."""

    def __init__(self, sigmas: Sequence[float], report: Report | None = None):
        self.sigmas, self.report = sigmas, report
        self.calls, self.idle = 0, 0
        self.broken: list[tuple[Tensor, Tensor]] = []  # of every call sigma, and which items broke at it, (B,)
        self.acting: list[Tensor] = []  # of every bounded call the cfg that it came to, in the mean over the items
        self.zeroed: Tensor | None = None
        self.cfg = 1.0
        self.places: dict[int, Places] = {}

    def places_of(self, sampling) -> Places:
        """Asked for once: the host may read a place from the device."""
        if id(sampling) not in self.places:
            self.places[id(sampling)] = places_of(sampling)
        return self.places[id(sampling)]

    def hear(self, args: dict[str, Any]) -> None:
        """One call, before anything is bounded."""
        self.calls += 1
        self.idle += args.get("uncond") is None or float(args["cond_scale"]) == 1
        self.broken.append((args["sigma"].max(), broken_items(args)))
        if self.zeroed is None and args.get("uncond"):
            self.zeroed = is_zeroed(args["uncond"])

    def bounded(self, cfg: float, acting: Tensor) -> None:
        """acting: the cfg that one call came to, a single number."""
        self.cfg = cfg
        self.acting.append(acting)

    def tell(self) -> None:
        """On the node, and in the console what is wrong."""
        if text := self.where_broken():
            complain(self.report, WHO, text)
        if self.calls and self.idle == self.calls:
            complain(self.report, WHO, NOTHING_TO_DO)
        elif self.zeroed is not None and bool(self.zeroed):
            complain(self.report, WHO, ZEROED)
        if self.report and (text := self.what_it_did()):
            self.report.add(text)

    def where_broken(self) -> str:
        """The items of which the model answers NaN or infinity, at the call where it begins, in words."""
        if not self.broken:
            return ""
        sigmas, items = (torch.stack(part).cpu() for part in zip(*self.broken, strict=True))
        at = items.any(1).nonzero().flatten().tolist()
        if not at:
            return ""
        sigma, wrong = float(sigmas[at[0]]), items[at[0]].nonzero().flatten().tolist()
        where = f"sigma {sigma:.4g}{self.call_at(sigma)}, in item {wrong} of the batch"
        return f"The model answered with NaN or infinite numbers at {where}."

    def call_at(self, sigma: float) -> str:
        """Which step of the run this is, for a message."""
        near = [number for number, other in enumerate(self.sigmas, 1) if math.isclose(other, sigma, rel_tol=1e-5)]
        return f" (step {near[0]} of {len(self.sigmas) - 1})" if near else ""

    def what_it_did(self) -> str:
        """The cfg that was left over, along the run."""
        if not self.acting:
            return ""
        left = torch.stack(self.acting).cpu().tolist()
        places = dict.fromkeys((0, len(left) // 2, len(left) - 1))
        return (
            f"Cfg {self.cfg:g} acted as {', '.join(f'{left[place]:.3g}' for place in places)} at the first, middle and "
            f"last of {len(left)} calls."
        )


def broken_items(args: dict[str, Any]) -> Tensor:
    """Which items the model answers with NaN or infinity, though what it was asked of was sound, (B,)."""
    given = [args[name] for name in ANSWERS if torch.is_tensor(args.get(name))]
    wrong = torch.stack([~finite_items(answer) for answer in given]).any(0)
    return wrong & finite_items(args["input"])


def finite_items(x: Tensor) -> Tensor:
    """Of every item whether all its numbers are finite, (B,)."""
    return x.flatten(1).isfinite().all(1)


def is_zeroed(prompt: Sequence[dict[str, Any]]) -> Tensor | None:
    """Whether all numbers of a text prompt are 0, as the host's Conditioning Zero Out makes it. None: has no text."""
    texts = [part["cross_attn"] for part in prompt if torch.is_tensor(part.get("cross_attn"))]
    return torch.stack([~text.any() for text in texts]).all() if texts else None
