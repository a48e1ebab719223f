"""Samplers and schedules side by side on a MODEL: the same noise, and the distance to where that converges.

Every picture is drawn alone, as a person would draw it: so its seconds are those of a picture, and it is kept, by what
it was drawn of, for the next comparison.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import comfy.model_management
import torch
from torch import Tensor

from ...samplers.contract import Denoiser
from ...schedulers.tuning.tuning import Tuning
from ..host.boost import has_boost
from ..host.guiders import check_guider
from . import crew
from .asked import Asked, Range
from .comparing.entries import Candidate, of_person, ours, used
from .comparing.figures import ODE, SDE, Row, geometric, sliced_energy_distance
from .comparing.shared import Planned, share, starts_of
from .comparing.shelf import Picture, Shelf
from .comparing.side import Side
from .running import Counter

CALLS, IMAGES, REFERENCE_STEPS = Range(1, 200), Range(1, 64), Range(20, 1000)
MOST_BUDGETS = 12
log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Request(Asked):
    """What a person asked for. entries: theirs; rivals: whether what people use, and ours, run too, at `calls` steps.

    given: the latent as it came in, which may be nested.
    """

    given: Any
    reference_steps: int
    entries: Sequence[Any] = ()
    calls: tuple[int, ...] = (6, 8, 12)
    images: int = 4
    rivals: bool = True
    tuning: Tuning | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        REFERENCE_STEPS.check("reference_steps", self.reference_steps)
        IMAGES.check("images", self.images)
        self.check_all_dealt("images", self.images)
        if not self.rivals and not self.entries:
            raise ValueError("There is nothing to compare. Connect an Entry, or switch rivals on.")

    def of_guider(self, guider: Any) -> Request:
        """The same on an entry's own guidance. Raises ValueError for a guider that does not fit."""
        check_guider(guider)
        return replace(self, guider=guider, prompts=(), latent=self.given)

    @property
    def candidates(self) -> list[Candidate]:
        found = of_person(self.entries, self.law)
        if not self.rivals:
            return found
        return [*found, *ours(self.guided, self.calls, self.tuning), *used(self.model, self.calls)]


def budgets(text: Any) -> tuple[int, ...]:
    """The numbers of a text such as "4, 6, 8". Raises ValueError, in words, for any other text."""
    words = [word for word in re.split(r"[\s,;]+", str(text)) if word]
    if not words or not all(word.isascii() and word.isdigit() for word in words) or len(words) > MOST_BUDGETS:
        raise ValueError(
            f"calls is {str(text)[:60]!r}; it must be whole numbers from {CALLS.least} to {CALLS.most} with commas "
            f"between them, such as 4, 6, 8, and at most {MOST_BUDGETS} of them."
        )
    for word in words:
        CALLS.check("calls", int(word[:9]))
    return tuple(sorted(set(map(int, words))))


@dataclass(frozen=True, eq=False)
class Compared:
    """rows: in the order of the candidates. ends: of every row that was drawn, its latents (n, ...), as the host gives
    them. converged: those of the request itself, in the host's scale too, and known to `known`, a mean square."""

    request: Request
    rows: list[Row]
    ends: list[Tensor]
    converged: Tensor | None
    known: float
    facts: dict[str, Any]
    remarks: list[str]

    @property
    def drawn(self) -> list[Row]:
        """In the order of `ends`."""
        return [row for row in self.rows if row.is_drawn]


class Work(Counter):
    """Calls done, of about as many as there will be: samplers make as many as they like."""

    def calls(self, number: int) -> str:
        return f"about {number} model calls of one latent"

    def expect(self, more: int) -> None:
        self.total = max(self.total + more, self.done, 1)

    def tick(self) -> None:
        self.count(1)


def compare(request: Request, shelf: Shelf, node_id: str | None) -> Compared:
    """Draw what the shelf does not have, and measure. Raises ValueError where nothing could be drawn."""
    bench = Bench(request, shelf)
    bench.begin(node_id)
    if crew.is_shared():
        share(list(bench.planned()), request.images, bench.counter.total, shelf)
    rows, ends = [], []
    for candidate in bench.candidates:
        row, end = bench.measured(candidate)
        rows.append(row)
        ends += [] if end is None else [end]
    bench.counter.finish()
    if not ends:
        why = "\n".join(f"{row.label}: {row.refused}" for row in rows)
        raise ValueError(f"Nothing could be compared.\n{why}")
    return Compared(request, rows, ends, bench.converged, bench.known, bench.main.facts, bench.remarks)


class Bench:
    """A comparison at work: its sides, its converged pictures, and what was told."""

    def __init__(self, request: Request, shelf: Shelf):
        self.request, self.shelf = request, shelf
        self.candidates = request.candidates
        self.counter: Work
        self.main = self.side(request)
        self.own: dict[int, Side | ValueError] = {}  # by the id of an entry's guider
        self.references: dict[tuple[int, float], list[Picture] | Exception] = {}
        self.kinds: dict[tuple[str, bool], bool] = {}  # by sampler, and whether its sigmas rise: draws it noise?
        self.remarks: list[str] = []
        if any(has_boost(model) for model in request.models):
            self.remarks.append("Boost on the model is left out: every entry runs as itself.")

    def side(self, request: Request, keeps_boost: bool = False) -> Side:
        return Side(request, self.shelf, request.reference_steps, self.watch, self.tick, keeps_boost)

    def watch(self, denoise: Denoiser) -> Denoiser:
        return self.counter.watch(denoise)

    def tick(self) -> None:
        self.counter.tick()

    def begin(self, node_id: str | None) -> None:
        """With what is to be done, as far as it is known."""
        self.counter = Work(max(self.expected(), 1), node_id, "Comparing", by_latent=True)

    def expected(self) -> int:
        """Model calls of one latent."""
        planned, images = list(self.planned()), self.request.images
        total = 0
        for side, candidate, probed in planned:
            missing = [n for n in range(images) if side.key(candidate, n) not in self.shelf]
            total += candidate.expected_calls * (len(missing) + probed)
        return total + sum(len(s.missing(at, images)) * s.calls_to_converge for s, at in starts_of(planned))

    def planned(self) -> Iterator[Planned]:
        """Of those that can be drawn."""
        probed: set[tuple[str, bool]] = set()
        for candidate in self.candidates:
            try:
                side = self.side_of(candidate)
            except ValueError:
                continue
            if candidate.refused:
                continue
            sort = side.sort_of(candidate)
            yield Planned(side, candidate, sort not in probed and side.key(candidate, 0) not in self.shelf.draws_noise)
            probed.add(sort)

    def side_of(self, candidate: Candidate) -> Side:
        """Raises ValueError, in words, for a guider that does not fit."""
        if candidate.guider is None:
            return self.main
        number = id(candidate.guider)
        if number not in self.own:
            try:
                self.own[number] = self.side(self.request.of_guider(candidate.guider), keeps_boost=True)
            except ValueError as error:
                self.own[number] = error
        found = self.own[number]
        if isinstance(found, ValueError):
            raise found
        return found

    # -----------------------------------------------------------------------------------------------------

    def measured(self, candidate: Candidate) -> tuple[Row, Tensor | None]:
        """The row of a candidate and its latents; a refused row where it cannot run. A cancel goes through."""
        row = Row(candidate.label, candidate.steps, own=candidate.own, ours=candidate.ours, sigmas=candidate.sigmas)
        if candidate.refused:
            return replace(row, refused=candidate.refused), None
        done = self.counter.done
        try:
            return self.row_of(row, candidate)
        except comfy.model_management.InterruptProcessingException:
            raise
        except Exception as error:  # samplers and guiders of other packs raise what they like
            log.warning("Compare leaves %s out: %s", candidate.label, error, exc_info=not isinstance(error, ValueError))
            self.counter.expect(done - self.counter.done - candidate.expected_calls * self.request.images)
            return replace(row, refused=reason(error)), None

    def row_of(self, row: Row, candidate: Candidate) -> tuple[Row, Tensor]:
        side = self.side_of(candidate)
        converged = self.references_of(side, side.start_of(candidate))
        kind = self.kind_of(side, candidate)
        pictures = self.pictures(side, candidate)
        ends = torch.stack([picture.end for picture in pictures])
        if not ends.isfinite().all():
            raise ValueError("its pictures hold NaN or infinite numbers.")
        inside = side.in_models_scale(ends).cpu()
        target = torch.stack([picture.end for picture in converged])
        errors = self.request.streams.square_errors(inside.double(), target.double()).mean(1)
        distance = sliced_energy_distance(inside, target) if len(ends) > 1 else None
        made = sorted(picture.calls for picture in pictures)
        row = replace(
            row, kind=kind, calls=made[len(made) // 2], errors=tuple(errors.tolist()), distance=distance,
            seconds=tuple(picture.seconds for picture in pictures),
        )  # fmt: skip
        return row, ends

    def references_of(self, side: Side, start: float) -> list[Picture]:
        """Solved once a side and start; where that failed it is not tried again."""
        place = (id(side), start)
        if place not in self.references:
            self.counter.phase = "solving the reference"
            try:
                self.references[place] = side.converge(start, self.request.images)
            except comfy.model_management.InterruptProcessingException:
                raise
            except Exception as error:
                self.references[place] = error
        found = self.references[place]
        if isinstance(found, Exception):
            raise found
        return found

    def kind_of(self, side: Side, candidate: Candidate) -> str:
        """Told once a sampler, at the first of its numbers of steps."""
        sort, known = side.sort_of(candidate), self.shelf.draws_noise
        if sort not in self.kinds:
            self.counter.phase = f"drawing {candidate.label}"
            key = side.key(candidate, 0)
            if key not in known:
                known[key] = side.draws_noise(candidate, lambda: self.picture(side, candidate, 0))
            self.kinds[sort] = known[key]
        if self.kinds[sort]:
            return SDE
        return candidate.kind if side.request.cfg != 1 else ODE

    def pictures(self, side: Side, candidate: Candidate) -> list[Picture]:
        self.counter.phase = f"drawing {candidate.label}"
        return [self.picture(side, candidate, image) for image in range(self.request.images)]

    def picture(self, side: Side, candidate: Candidate, image: int) -> Picture:
        def draw() -> Picture:
            drawn = side.draw(candidate, image)
            self.counter.expect(drawn.calls - candidate.expected_calls)
            return drawn

        return self.shelf.once(side.key(candidate, image), draw)

    # -----------------------------------------------------------------------------------------------------

    @cached_property
    def solved(self) -> list[Picture]:
        """Of the request itself: from the highest sigma that was run from."""
        mine = {start: found for (number, start), found in self.references.items() if number == id(self.main)}
        good = {start: found for start, found in mine.items() if isinstance(found, list)}
        return good[max(good)] if good else []

    @property
    def converged(self) -> Tensor | None:
        return self.main.in_hosts_scale(torch.stack([p.end for p in self.solved])) if self.solved else None

    @property
    def known(self) -> float:
        """What the converged pictures moved when their steps were doubled, the geometric mean of all that were used."""
        found = [p.difference for those in self.references.values() if isinstance(those, list) for p in those]
        return geometric(found) if found else 0.0


def reason(error: Exception) -> str:
    """Why an entry has no figures, in one line."""
    out_of_memory = comfy.model_management.OOM_EXCEPTION
    if out_of_memory is not Exception and isinstance(error, out_of_memory):
        comfy.model_management.soft_empty_cache()
        return "there was not enough memory on the device for it."
    said = " ".join(str(error).split()) or type(error).__name__
    return said if isinstance(error, ValueError) else f"it stopped with {type(error).__name__}: {said}"
