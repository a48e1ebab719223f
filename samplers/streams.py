"""Latents of several streams, such as a video and its sound, which the host samples as one row of numbers.

It packs streams (B, *shape) one behind the other to (B, 1, N). A mean over the pack would be that of the video, which
has hundreds of times the numbers of its sound; so means are taken stream by stream, and then every stream counts alike.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor

Value = TypeVar("Value")
FRAMES_ROWS_COLUMNS = 4  # axes of one latent of a video, its channels among them


@dataclass(frozen=True)
class Streams:
    """shapes: of one latent of each stream. scales: how many times its own size each is carried at; all 1 by default.

    A latent of one stream is no pack: it stays as it is, and every mean is the ordinary one.
    """

    shapes: tuple[tuple[int, ...], ...]
    scales: tuple[float, ...] = ()

    @property
    def is_pack(self) -> bool:
        return len(self.shapes) > 1

    @cached_property
    def sizes(self) -> list[int]:
        """How many numbers each stream has."""
        return [math.prod(shape) for shape in self.shapes]

    @cached_property
    def names(self) -> list[str]:
        """What a person calls them, told by their axes: the host has no names for them."""
        axes = [len(shape) for shape in self.shapes]
        if len(axes) == 2 and axes[0] == FRAMES_ROWS_COLUMNS > axes[1]:
            return ["video", "audio"]
        return [f"stream {number + 1}" for number in range(len(axes))]

    def apart(self, x: Tensor) -> list[Tensor]:
        """The streams (B, *shape) of x (B, 1, N); x itself where there is one."""
        if not self.is_pack:
            return [x]
        parts = x.split(self.sizes, -1)
        return [part.reshape(len(x), *shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def means(self, x: Tensor) -> Tensor:
        """Of every latent and stream, (B, streams)."""
        return torch.stack([part.flatten(1).mean(1) for part in self.apart(x)], 1)

    def square_errors(self, x: Tensor, target: Tensor) -> Tensor:
        """Mean squares of x - target, of every latent and stream, in the stream's own size, (B, streams)."""
        return self.in_own_size((x - target).square())

    def in_own_size(self, powered: Tensor, p: float = 2.0) -> Tensor:
        """`means` of the p-th powers of what is carried, (B, streams)."""
        means = self.means(powered)
        return means / means.new_tensor(self.scales) ** p if self.scales else means

    def named(self, values: Sequence[Sequence[float]]) -> dict[str, list[float]]:
        """Values (streams, ...) by the names of the streams."""
        return {name: list(own) for name, own in zip(self.names, values, strict=True)}

    @property
    def channels(self) -> int:
        """Of all streams together."""
        return sum(shape[0] for shape in self.shapes)

    def feature_of(self, features: Sequence[int]) -> Tensor:
        """Which of the features F each number of a pack has, (N,): (streams, 1, 1), or (channels of all, 1, 1).

        Raises ValueError for another F.
        """
        if tuple(features) == (len(self.shapes), 1, 1):
            counts = self.sizes
        elif tuple(features) == (self.channels, 1, 1):
            counts = [math.prod(shape[1:]) for shape in self.shapes for _ in range(shape[0])]
        else:
            raise ValueError(
                f"The statistics are of the form {' x '.join(map(str, features))}; this latent has {len(self.shapes)} "
                f"streams of {self.channels} channels together. Measure them on this model, by channel or global."
            )
        return torch.arange(features[0]).repeat_interleave(torch.tensor(counts))

    @property
    def fact(self) -> list[list[int]]:
        """As a JSON value."""
        return [list(shape) for shape in self.shapes]


def streams_in(facts: dict[str, Any]) -> Streams:
    """Those that something was measured on."""
    shapes = facts.get("streams")
    return Streams(tuple(map(tuple, shapes))) if shapes else ALONE


def in_order(facts: dict[str, Any], by_name: dict[str, Value]) -> Iterator[tuple[str, Value]]:
    """What facts hold by names of streams, in the order of the streams; a file has them in that of the alphabet."""
    return ((name, by_name[name]) for name in streams_in(facts).names if name in by_name)


ALONE = Streams(((),))  # one stream, whatever its shape
