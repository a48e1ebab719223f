"""How a mixture, or another policy, travels out of the host's model call.

A network that predicts them answers the host with the mean, so that every sampler, preview and mask works on it. Who
wants the whole answer hangs a `Recorder` on the options of one call; the host hands these options down to the network,
which leaves its answer there. A recorder lives as long as the call, and the model holds nothing of it.

The network is one of ours (`MixtureNetwork`), or one of the host's whose last layer is a `PolicyHead`: around that
stands `tell`. FLUX.2 keeps four pixels in the channels of one; its answers have them apart (`framed`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import uuid4

import comfy.model_patcher
import comfy.samplers
import torch
from comfy.patcher_extension import WrappersMP, add_wrapper
from torch import Tensor

from ...samplers.gmflow import Mixture, Prediction
from ...samplers.gmflow.doubts import settled
from ...samplers.gmflow.head import PolicyHead, frame_of
from ...samplers.gmflow.mixture import checked, mean
from ...samplers.gmflow.policy import (
    Answer,
    Points,
    chunks_of,
    doubt_answer,
    moved_by,
    space_of,
    value_of,
    x0_of,
)

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


HEADS = ("final_layer", "norm_out")  # what the host's transformers call their last layer


def head_of(find: Callable[[str], Any]) -> PolicyHead | None:
    """The head of an adapter in a network, by its attributes."""
    for name in HEADS:
        try:
            layer = find(name)
        except AttributeError:
            continue
        if isinstance(layer, PolicyHead):
            return layer
    return None


def head_in(network) -> PolicyHead | None:
    """Of the diffusion model of a run, its patches in place."""
    return head_of(lambda name: getattr(network, name))


def head_of_model(model) -> PolicyHead | None:
    """Of a MODEL of the host, whether its patches are in place or not."""
    return head_of(lambda name: model.get_model_object(f"diffusion_model.{name}"))


def predicts_mixtures(model) -> bool:
    """Of a MODEL of the host."""
    head = head_of_model(model)
    if head:
        return head.config.law is None
    return isinstance(model.get_model_object("diffusion_model"), MixtureNetwork)


def tell(executor, x: Tensor, t: Tensor, concat, context, control, options: dict[str, Any], **host) -> Tensor:
    """Around the host's apply_model: the head's answer to the recorder, or where nobody listens only looked at."""
    network = executor.class_obj.diffusion_model
    head = head_in(network)
    try:
        denoised = executor(x, t, concat, context, control, options, **host)
        if head and head.told:  # a cache may have answered in the network's place
            answer, recorder = head.answer(head.told, x.shape, patch_of(network)), options.get(KEY)
            if recorder is None:
                settled(doubt_answer, answer)
            else:
                recorder.record(answer, options["uuids"])
    finally:
        if head:
            head.told = None
    return denoised


def patch_of(network) -> int:
    """Latent pixels on a side of a token."""
    return getattr(network, "patch_size", 2)


def own_frame(network, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the frame in which the network's answers are, of a latent's own."""
    return frame_of(shape, patch_of(network)) if head_in(network) else tuple(shape)


def framed(x: Tensor, answer: Answer) -> Tensor:
    """x (B, ...) of the host in the frame of an answer."""
    return x.reshape(len(x), *space_of(answer))


class Recorder:
    """The answers of one guided model call: mixtures, or points of DX policies.

    shape: of the x of this call, the host's own.
    velocities: the answer in u of every list of prompts; until the networks tell, that of the call before. Where a
        cache (LazyCache, EasyCache) answers in their place, it stays: the cache's answer is of that call too.
    sides: the answer in x0 of every list of prompts that the guider asked for, the positive one first; None where it
        asked for nothing.
    prediction: what a guider that knows mixtures made of them.
    """

    def __init__(self, shape: torch.Size, velocities: list[Answer | None] | None = None) -> None:
        self.shape = shape
        self.told: dict[Any, Answer] = {}
        self.velocities: list[Answer | None] = velocities or []
        self.sides: list[Answer | None] = []
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

    def record(self, answer: Answer, names: list) -> None:
        """The answer of a batch of prompts, each with the name that the host knows it by."""
        self.told.update(zip(names, chunks_of(answer, len(names)), strict=True))

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
        self, number: int, conds: list[dict], before: list[Answer | None], answer: Tensor, x: Tensor, sigma: Tensor
    ) -> Answer | None:
        """The answer in x0 of one list of prompts, told now or before; None where no prompt is active.

        Raises ValueError where the network was not asked and never was before.
        """
        velocity = self.velocities[number]
        if velocity is not None:
            return x0_of(velocity, framed(x, velocity), sigma)
        if all(comfy.samplers.get_area_and_mult(cond, x, sigma) is None for cond in conds):
            return None
        velocity = self.velocities[number] = before[number] if number < len(before) else None
        if velocity is None:
            raise ValueError(NOT_ASKED)
        return moved(x0_of(velocity, framed(x, velocity), sigma), to=answer)

    def velocity(self, conds: list[dict], x: Tensor, sigma: Tensor) -> Answer | None:
        """The answer in u of one list of prompts. Raises ValueError where x was cut into other parts than areas."""
        told = [(self.told[c["uuid"]], c) for c in conds if c["uuid"] in self.told]
        if not told:
            return None
        answer = told[0][0]
        if len(told) > 1 or space_of(answer)[2 - x.ndim :] != x.shape[2:]:
            placed = [(part, comfy.samplers.get_area_and_mult(cond, x, sigma)) for part, cond in told]
            answer = joined([(part, entry.mult[:, :1], entry.area) for part, entry in placed], x)
        return answer

    def from_earlier(self, x: Tensor, sigma: Tensor) -> Answer | None:
        """The positive side at (x, sigma) by what was told before, where nobody asked this time."""
        velocity = self.velocities[0] if self.velocities else None
        return None if velocity is None else x0_of(velocity, framed(x, velocity), sigma)


def moved(answer: Answer, to: Tensor) -> Answer:
    """The same answer with all of it moved so that its value at the call is `to`, of the host's shape."""
    return moved_by(answer, framed(to, answer) - value_of(answer))


def named_apart(sides: list[list[dict] | None]) -> list[list[dict] | None]:
    """All prompts, each with a name of its own: for areas the host copies some to the other side, with their names."""
    names = [c["uuid"] for side in sides for c in side or []]
    if len(set(names)) == len(names):
        return sides
    return [side and [{**c, "uuid": uuid4()} for c in side] for side in sides]


def joined(parts: list[tuple[Answer, Tensor, list[int] | None]], x: Tensor) -> Answer:
    """One answer of several prompts, by the weights that the host blends their means with.

    Of every part: its answer, its weights (B, 1, *S) and the area (sizes, then corners) that both cover, or None for
    all of x (B, C, *S). Raises ValueError where x was cut up otherwise.
    """
    if any(space_of(answer)[2 - x.ndim :] != mult.shape[2:] for answer, mult, _ in parts):
        raise ValueError(CUT_UP)
    mixtures = [(answer, mult, area) for answer, mult, area in parts if isinstance(answer, Mixture)]
    if mixtures:
        return joined_mixtures(mixtures, x)
    return joined_points([(answer, mult, area) for answer, mult, area in parts if isinstance(answer, Points)], x)


def joined_points(parts: list[tuple[Points, Tensor, list[int] | None]], x: Tensor) -> Points:
    """The weighted mean, point by point: a DX policy is linear in them."""
    weighted = [placed(answer.values * beside(mult, answer.values), area, x) for answer, mult, area in parts]
    weights = [placed(beside(mult, answer.values), area, x) for answer, mult, area in parts]
    total = torch.stack(weights).sum(0).clamp(min=LEAST_WEIGHT)
    return Points(torch.stack(weighted).sum(0) / total, parts[0][0].law)


def joined_mixtures(parts: list[tuple[Mixture, Tensor, list[int] | None]], x: Tensor) -> Mixture:
    """The components of all. The deviation is that of the mean variance, since a mixture has one."""
    means, weights, shares, variances = [], [], [], []
    for part, mult, area in parts:
        means.append(placed(part.means, area, x))
        weights.append(placed(part.weights * beside(mult, part.weights), area, x))
        shares.append(mult.flatten(1).sum(1).reshape(part.logstds.shape[0], *[1] * (part.logstds.ndim - 1)))
        variances.append((2 * part.logstds).exp())
    total = torch.stack(shares).sum(0).clamp(min=LEAST_WEIGHT)
    var = torch.stack([share * v for share, v in zip(shares, variances, strict=True)]).sum(0) / total
    logits = torch.cat(weights, 1).clamp(min=LEAST_WEIGHT).log()
    return Mixture.of_logits(torch.cat(means, 1), logits, var.clamp(min=LEAST_WEIGHT).log() / 2)


def beside(mult: Tensor, values: Tensor) -> Tensor:
    """Weights (B, 1, *S) of the host for values (B, N, C, ..., *S)."""
    return mult.reshape(len(mult), *[1] * (values.ndim - mult.ndim + 1), *mult.shape[2:])


def placed(values: Tensor, area: list[int] | None, x: Tensor) -> Tensor:
    """values (B, K, N, ..., *area) in the frame of x (B, C, *S): (B, K, N, ..., *S), 0 outside."""
    if area is None:
        return values
    sizes, corners = area[: len(area) // 2], area[len(area) // 2 :]
    whole = values.new_zeros((*values.shape[: -len(sizes)], *x.shape[2:]))
    inside = whole
    for axis, (corner, size) in enumerate(zip(corners, sizes, strict=True), -len(sizes)):
        inside = inside.narrow(axis, corner, size)
    inside.copy_(values)
    return whole
