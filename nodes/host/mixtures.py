"""How a mixture travels out of the host's model call.

A network that predicts mixtures answers the host with the mean, so that every sampler, preview and mask works on it.
Who wants the mixtures hangs a `Recorder` on the options of one call; the host hands these options down to the
network, which leaves its mixture there. A recorder lives as long as the call, and the model holds nothing of it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from uuid import uuid4

import comfy.model_patcher
import comfy.samplers
import torch
from comfy.patcher_extension import WrappersMP, add_wrapper
from torch import Tensor

from ...samplers.gmflow import Mixture, Prediction, x0_from_u
from ...samplers.gmflow.mixture import checked, mean

KEY = "fewstep_mixtures"
CUT_UP = (
    "GMFlow cannot follow how the picture is cut up here (context windows, tiles): it needs the mixture of the whole. "
    "Use CFG Guider and an ordinary sampler with this workflow; they take the model's mean."
)
NOT_ASKED = (
    "Something on the model (EasyCache?) answered in the network's place, and the GMFlow Guider needs the network's "
    "mixture at every call of an ordinary sampler. Use LazyCache, the GMFlow Sampler, or CFG Guider."
)
LEAST_WEIGHT = 1e-37  # where no prompt reaches, all components count the same: the host's answer there is 0


class MixtureNetwork:
    """What a diffusion model of the host is besides, when it predicts mixtures of the velocity u."""

    def answer(self, mixture: Mixture, transformer_options: dict[str, Any]) -> Tensor:
        """The mean, for the host. Where nobody listens, numbers that cannot be used are an error here."""
        recorder = transformer_options.get(KEY)
        if recorder is None:
            checked(mixture)
        else:
            recorder.record(mixture, transformer_options["uuids"])
        return mean(mixture)


def predicts_mixtures(model) -> bool:
    """Of a MODEL of the host."""
    return isinstance(model.get_model_object("diffusion_model"), MixtureNetwork)


class Recorder:
    """The mixtures of one guided model call.

    shape: of the x of this call.
    velocities: the mixture of u of every list of prompts; until the networks tell, that of the call before. Where a
        cache (LazyCache, EasyCache) answers in their place, it stays: the cache's answer is of that call too.
    sides: the mixture of x0 of every list of prompts that the guider asked for, the positive one first; None where it
        asked for nothing.
    prediction: what a guider that knows mixtures made of them.
    """

    def __init__(self, shape: torch.Size, velocities: list[Mixture | None] | None = None) -> None:
        self.shape = shape
        self.told: dict[Any, Mixture] = {}
        self.velocities: list[Mixture | None] = velocities or []
        self.sides: list[Mixture | None] = []
        self.prediction: Prediction | None = None

    @staticmethod
    def of(model_options: dict[str, Any]) -> Recorder | None:
        """The one that hangs on the options of a call."""
        return model_options.get("transformer_options", {}).get(KEY)

    def on(self, model_options: dict[str, Any]) -> dict[str, Any]:
        """A copy of the options with this recorder on it."""
        options = comfy.model_patcher.create_model_options_clone(model_options)
        options.setdefault("transformer_options", {})[KEY] = self
        add_wrapper(WrappersMP.CALC_COND_BATCH, self.listen, options, is_model_options=True)
        return options

    def record(self, mixture: Mixture, names: list) -> None:
        """The mixture of a batch of prompts, each with the name that the host knows it by."""
        parts = (t.chunk(len(names)) for t in (mixture.means, mixture.logweights, mixture.logstds))
        for name, *part in zip(names, *parts, strict=True):
            self.told[name] = Mixture(*part)

    def listen(self, executor, model, conds: list, x: Tensor, sigma: Tensor, model_options: dict[str, Any]) -> list:
        """Around the host's evaluation of all prompts: `sides` from what the networks tell meanwhile.

        Only the first evaluation is the guider's; what a patch of the model asks for after it is its own affair.
        Raises ValueError where x is cut up, into windows or tiles.
        """
        if self.sides:
            return executor(model, conds, x, sigma, model_options)
        if x.shape != self.shape:
            raise ValueError(CUT_UP)
        conds = named_apart(conds)
        answers = executor(model, conds, x, sigma, model_options)
        before, self.velocities = self.velocities, [self.velocity(side or [], x, sigma) for side in conds]
        for number, (side, answer) in enumerate(zip(conds, answers, strict=True)):
            self.sides.append(self.side(number, side or [], before, answer, x, sigma))
        self.told.clear()
        return answers

    def side(
        self, number: int, conds: list[dict], before: list[Mixture | None], answer: Tensor, x: Tensor, sigma: Tensor
    ) -> Mixture | None:
        """The mixture of x0 of one list of prompts, told now or before; None where no prompt is active.

        Raises ValueError where the network was not asked and never was before.
        """
        velocity = self.velocities[number]
        if velocity is not None:
            return x0_from_u(velocity, x, sigma)
        if all(comfy.samplers.get_area_and_mult(cond, x, sigma) is None for cond in conds):
            return None
        velocity = self.velocities[number] = before[number] if number < len(before) else None
        if velocity is None:
            raise ValueError(NOT_ASKED)
        return moved(x0_from_u(velocity, x, sigma), to=answer)

    def velocity(self, conds: list[dict], x: Tensor, sigma: Tensor) -> Mixture | None:
        """The mixture of u of one list of prompts. Raises ValueError where x was cut into other parts than areas."""
        told = [(self.told[c["uuid"]], c) for c in conds if c["uuid"] in self.told]
        if not told:
            return None
        mixture = told[0][0]
        if len(told) > 1 or mixture.means.shape[3:] != x.shape[2:]:
            placed = [(part, comfy.samplers.get_area_and_mult(cond, x, sigma)) for part, cond in told]
            mixture = joined([(part, entry.mult[:, :1], entry.area) for part, entry in placed], x)
        return mixture

    def from_earlier(self, x: Tensor, sigma: Tensor) -> Mixture | None:
        """The positive side at (x, sigma) by what was told before, where nobody asked this time."""
        velocity = self.velocities[0] if self.velocities else None
        return None if velocity is None else x0_from_u(velocity, x, sigma)


def moved(mixture: Mixture, to: Tensor) -> Mixture:
    """The same mixture with every component moved so that its mean is `to` (B, C, *S)."""
    return replace(mixture, means=mixture.means + (to - mean(mixture))[:, None])


def named_apart(sides: list[list[dict] | None]) -> list[list[dict] | None]:
    """All prompts, each with a name of its own: for areas the host copies some to the other side, with their names."""
    names = [c["uuid"] for side in sides for c in side or []]
    if len(set(names)) == len(names):
        return sides
    return [side and [{**c, "uuid": uuid4()} for c in side] for side in sides]


def joined(parts: list[tuple[Mixture, Tensor, list[int] | None]], x: Tensor) -> Mixture:
    """One mixture of several prompts: the components of all, by the weights that the host blends their means with.

    Of every part: its mixture, its weights (B, 1, *S) and the area (sizes, then corners) that both cover, or None for
    all of x (B, C, *S). The deviation is that of the mean variance, since a mixture has one.
    """
    means, weights, shares, variances = [], [], [], []
    for part, mult, area in parts:
        if part.means.shape[3:] != mult.shape[2:]:
            raise ValueError(CUT_UP)
        means.append(placed(part.means, area, x))
        weights.append(placed(part.weights * mult[:, None], area, x))
        shares.append(mult.flatten(1).sum(1).reshape(part.logstds.shape[0], *[1] * (part.logstds.ndim - 1)))
        variances.append((2 * part.logstds).exp())
    total = torch.stack(shares).sum(0).clamp(min=LEAST_WEIGHT)
    var = torch.stack([share * v for share, v in zip(shares, variances, strict=True)]).sum(0) / total
    logits = torch.cat(weights, 1).clamp(min=LEAST_WEIGHT).log()
    return Mixture.of_logits(torch.cat(means, 1), logits, var.clamp(min=LEAST_WEIGHT).log() / 2)


def placed(values: Tensor, area: list[int] | None, x: Tensor) -> Tensor:
    """values (B, K, N, *area) in the frame of x (B, C, *S): (B, K, N, *S), 0 outside."""
    if area is None:
        return values
    sizes, corners = area[: len(area) // 2], area[len(area) // 2 :]
    whole = values.new_zeros((*values.shape[:3], *x.shape[2:]))
    inside = whole
    for axis, (corner, size) in enumerate(zip(corners, sizes, strict=True), 3):
        inside = inside.narrow(axis, corner, size)
    inside.copy_(values)
    return whole
