"""The last layer of a pi-Flow adapter, arXiv 2510.14974, with the published state-dict names.

It stands in the place of a transformer's own: tokens and the embedding of time go in, and out comes what the network
would answer a sampler that knows no policies. The answer itself, all components or points of it, stays in `told` until
it is taken.

| key                                | shape                 |                                                        |
|------------------------------------|-----------------------|--------------------------------------------------------|
| norm_out.linear                    | (2 width, width)      | scale, then shift, of the normed tokens; bias or none  |
| proj_out_means                     | (K P, width)          | P values a token: channels x 4 pixels                  |
| proj_out_logweights                | (4 K, width)          | a weight for each of the four pixels                   |
| proj_out_logstds.1, .3 (or .1)     | (n, width), (1, n)    | of the embedding; without it s = 0                     |
| proj_out                           | (N P, width)          | of a DX policy, instead of the three                   |
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from .checkpoint import SUPPORTED, check_state_dict, shape_of
from .mixture import Mixture
from .policy import Answer, DXLaw, Points

PIXELS = 4  # of the latent in a token
NORM_EPS = 1e-6
NO_DEVIATION = -18.0  # log s of a head without deviations: its square is a number in float32
POLICIES = ("GMFlow", "DX")
NORM, MEANS, WEIGHTS, DEVIATIONS, VALUES = (
    "norm_out.linear",
    "proj_out_means",
    "proj_out_logweights",
    "proj_out_logstds",
    "proj_out",
)


# ---------------------------------------------------------------------------------------------------------
# What a file says


@dataclass(frozen=True)
class HeadConfig:
    """Sizes of a head. law: of a DX policy, or None for a mixture. count: K or N. values: P."""

    width: int
    values: int
    count: int
    law: DXLaw | None = None
    norm_bias: bool = True
    deviations: tuple[int, ...] = ()  # outputs of the layers, the last 1

    @classmethod
    def of_state_dict(cls, state: Mapping[str, Tensor], values: int, policy: str | None = None) -> HeadConfig:
        """From a file's shapes, for a model of `values` values a token, and the JSON of its policy_config.

        Raises ValueError for what is no policy, with the key that tells.
        """
        law = law_of(state, policy)
        width = shape_of(state, f"{NORM}.weight", 2)[1]
        outputs = shape_of(state, f"{VALUES if law else MEANS}.weight", 2)[0]
        count, rest = divmod(outputs, values)
        if rest or not count or (not law and shape_of(state, f"{WEIGHTS}.weight", 2)[0] != count * PIXELS):
            raise ValueError(
                f"This pi-Flow adapter gives {outputs} values a token, and the connected model has {values}. Connect "
                f"the model that the adapter was made for. {SUPPORTED}"
            )
        layers = [] if law else sorted(k for k in state if k.startswith(f"{DEVIATIONS}.") and k.endswith(".weight"))
        deviations = tuple(shape_of(state, key, 2)[0] for key in layers)
        return cls(width, values, count, law, f"{NORM}.bias" in state, deviations)


def law_of(state: Mapping[str, Tensor], policy: str | None) -> DXLaw | None:
    """The law of a DX policy; None for a GMFlow policy, which old files are without saying so."""
    try:
        config = json.loads(policy) if policy else {"type": "GMFlow"} if f"{MEANS}.weight" in state else None
    except ValueError:
        config = None
    if not isinstance(config, dict) or config.get("type") not in POLICIES:
        raise ValueError(
            f"This file does not say which policy it holds: {MEANS}.weight is missing, and so is a policy_config of "
            f"type {' or '.join(POLICIES)} in its metadata. {SUPPORTED}"
        )
    return DXLaw.of_json(config) if config["type"] == "DX" else None


def is_of_head(key: str) -> bool:
    """Whether a key of an adapter belongs to its last layer."""
    return "lora" not in key and key.startswith(
        (f"{NORM}.", f"{MEANS}.", f"{WEIGHTS}.", f"{DEVIATIONS}.", f"{VALUES}.")
    )


# ---------------------------------------------------------------------------------------------------------
# The layer


class Modulation(nn.Module):
    """Tokens (B, T, width), normed, then scaled and shifted by an embedding (B, width)."""

    def __init__(self, config: HeadConfig, factory: dict[str, Any], operations):
        super().__init__()
        self.linear = operations.Linear(config.width, 2 * config.width, bias=config.norm_bias, **factory)

    def forward(self, tokens: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.linear(functional.silu(embedding))[:, None].chunk(2, 2)
        normed = functional.layer_norm(tokens, tokens.shape[2:], eps=NORM_EPS)
        return normed * (1 + scale) + shift


@dataclass(frozen=True, eq=False)
class Told:
    """A head's answer, token by token: values (B, T, n, P); logits (B, T, K, 4) and logstds (B,) of a mixture."""

    values: Tensor
    logits: Tensor | None = None
    logstds: Tensor | None = None


class PolicyHead(nn.Module):
    """Called with tokens (B, T, width) and an embedding (B or more, width); in float32 throughout.

    Gives (B, T, P): the mean of the mixture, or the value of the DX policy at the call.
    """

    def __init__(self, config: HeadConfig, dtype=None, device=None, operations=nn):
        super().__init__()
        self.config = config
        self.told: Told | None = None
        factory: dict[str, Any] = {"dtype": dtype, "device": device}
        self.norm_out = Modulation(config, factory, operations)
        if config.law:
            self.proj_out = operations.Linear(config.width, config.count * config.values, **factory)
            return
        self.proj_out_means = operations.Linear(config.width, config.count * config.values, **factory)
        self.proj_out_logweights = operations.Linear(config.width, config.count * PIXELS, **factory)
        layers, width = [], config.width
        for outputs in config.deviations:
            layers += [nn.SiLU(), operations.Linear(width, outputs, **factory)]
            width = outputs
        self.proj_out_logstds = nn.Sequential(*layers)

    @classmethod
    def of_state_dict(
        cls, state: Mapping[str, Tensor], values: int, policy: str | None = None, **factory
    ) -> PolicyHead:
        """With the weights of an adapter. Raises ValueError, naming keys, where they are no head for the model."""
        head = cls(HeadConfig.of_state_dict(state, values, policy), **factory)
        own = {key: value for key, value in state.items() if is_of_head(key)}
        check_state_dict(head, own, "last layer of a pi-Flow adapter", f"Download it again. {SUPPORTED}")
        head.load_state_dict(own)
        return head.requires_grad_(False)

    def forward(self, tokens: Tensor, embedding: Tensor, *rest, **more) -> Tensor:
        embedding = (embedding[:, 0] if embedding.ndim == 3 else embedding)[: len(tokens)].float()
        hidden = self.norm_out(tokens.float(), embedding)
        self.told = told = self.points(hidden) if self.config.law else self.components(hidden, embedding)
        return self.at_call(told).to(tokens.dtype)

    def points(self, hidden: Tensor) -> Told:
        return Told(self.proj_out(hidden).unflatten(2, (self.config.count, -1)))

    def components(self, hidden: Tensor, embedding: Tensor) -> Told:
        means = self.proj_out_means(hidden).unflatten(2, (self.config.count, -1))
        logits = self.proj_out_logweights(hidden).unflatten(2, (self.config.count, -1))
        none = hidden.new_full((len(hidden), 1), NO_DEVIATION)
        return Told(means, logits, (self.proj_out_logstds(embedding) if self.config.deviations else none).flatten())

    def at_call(self, told: Told) -> Tensor:
        if told.logits is None:
            grid = self.config.law is not None and self.config.law.mode == "grid"
            return told.values[:, :, -1 if grid else 0]
        weights = told.logits.softmax(2)[:, :, :, None]
        return (weights * told.values.unflatten(3, (-1, PIXELS))).sum(2).flatten(2)

    def answer(self, told: Told, shape: tuple[int, ...], patch: int) -> Answer:
        """In the frame (B, n, C, *S) of a latent of `shape`, whose tokens are patch x patch of its pixels.

        patch 2: C and S are the latent's. patch 1: the four pixels lie in the latent's channels; S is (4, *latent's).
        """
        values = in_space(told.values, shape, patch)
        if told.logits is None or told.logstds is None:
            assert self.config.law
            return Points(values, self.config.law)
        logits = in_space(told.logits, shape, patch)
        return Mixture.of_logits(values, logits, told.logstds.reshape(-1, *[1] * (values.ndim - 1)))


def in_space(values: Tensor, shape: tuple[int, ...], patch: int) -> Tensor:
    """values (B, T, n, C x 4) of tokens -> (B, n, C, *S). Tokens after those of the latent are left out."""
    frames = tuple(shape[2:-2])
    rows, columns = (-(-n // patch) for n in shape[-2:])
    grid = values[:, : rows * columns * math.prod(frames)]
    grid = grid.reshape(len(grid), *frames, rows, columns, grid.shape[2], -1, PIXELS)
    grid = grid.movedim((-3, -2, -1), (1, 2, 3))  # (B, n, C, 4, *frames, rows, columns)
    if patch == 1:
        return grid
    grid = grid.unflatten(3, (2, 2)).movedim((3, 4), (-3, -1))
    return grid.reshape(*grid.shape[:-4], 2 * rows, 2 * columns)[..., : shape[-2], : shape[-1]]


def frame_of(shape: tuple[int, ...], patch: int) -> tuple[int, ...]:
    """(B, C, *S) of a latent's own shape in the frame of `PolicyHead.answer`: a reshape leads there."""
    return tuple(shape) if patch != 1 else (shape[0], shape[1] // PIXELS, PIXELS, *shape[2:])
