"""The pictures of a comparison as parts, where several hosts draw them: each is drawn by one, and all are given it."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import NamedTuple

import comfy.model_management

from .. import crew
from .entries import Candidate
from .shelf import Picture, Shelf
from .side import Side, key_of

log = logging.getLogger(__name__)


class Planned(NamedTuple):
    """Who is drawn on which side. probed: once more, to tell whether it draws noise."""

    side: Side
    candidate: Candidate
    probed: bool


class Part(NamedTuple):
    """calls: of one latent, that are expected. keys: on the shelf, of the pictures that `draw` makes."""

    calls: int
    keys: list[str]
    draw: Callable[[], list[Picture]]


def starts_of(planned: Iterable[Planned]) -> list[tuple[Side, float]]:
    """From where converged pictures are solved."""
    each = [(side, side.start_of(candidate)) for side, candidate, _ in planned]
    return list({(id(side), start): (side, start) for side, start in each}.values())


def share(planned: list[Planned], images: int, expected: int, shelf: Shelf) -> None:
    """Put on the shelf what is missing.

    What fails is drawn once more by every host, which then says why.
    """
    parts = dict([*converged_parts(planned, images), *drawn_parts(planned, images, shelf)])
    works = {name: (part.calls, partial(or_none, part.draw)) for name, part in parts.items()}
    key = key_of({"keys": sorted(itertools.chain(*(part.keys for part in parts.values())))})
    for name, pictures in crew.made(f"compare-{key}", expected, works) if works else ():
        for one, picture in zip(parts[name].keys, pictures or (), strict=pictures is not None):
            shelf.put(one, picture)


def converged_parts(planned: list[Planned], images: int) -> Iterator[tuple[str, Part]]:
    for side, start in starts_of(planned):
        for part in side.parts(start, images):
            keys = [side.reference_key(start, image) for image in part]
            name = f"converged pictures {[image + 1 for image in part]} from {start:.4g} ({keys[0][:8]})"
            yield name, Part(len(part) * side.calls_to_converge, keys, partial(side.solved, start, part))


def drawn_parts(planned: list[Planned], images: int, shelf: Shelf) -> Iterator[tuple[str, Part]]:
    for side, candidate, probed in planned:
        seeds = [(image, None) for image in range(images)] + ([(0, side.other_seed)] if probed else [])
        for image, seed in seeds:
            key = side.key(candidate, image, seed)
            if key not in shelf:
                name = f"{candidate.label}, {candidate.steps} steps, picture {image + 1} ({key[:8]})"
                yield name, Part(candidate.expected_calls, [key], partial(drawn, side, candidate, image, seed))


def drawn(side: Side, candidate: Candidate, image: int, seed: int | None) -> list[Picture]:
    return [side.draw(candidate, image, seed)]


def or_none(draw: Callable[[], list[Picture]]) -> list[Picture] | None:
    """None for what fails, unless by a cancel."""
    try:
        return draw()
    except comfy.model_management.InterruptProcessingException:
        raise
    except Exception as error:  # samplers and guiders of other packs raise what they like
        log.warning("A part of the comparison failed: %s", error)
        return None
