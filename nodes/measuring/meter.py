"""A schedule run on a MODEL with prompt and guidance: where its steps err, and how curved the model's path is."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor

from ...samplers.sigmas import checked_sigmas
from ...schedulers.inspection import told
from ...schedulers.meters import STUDENTS, Fine, Meter, Metered, calls_of, finer
from ...schedulers.restart.plan import plural
from ..host.noise import seeded
from .asked import Asked, Range, where_it_stands
from .comparing.words import short
from .running import Counter, HostDenoiser, check_reached, inside_sampling
from .trajectories import batch_of, begun, own_noise, split, store_for

STEPS, LATENTS = Range(1, 200), Range(1, 64)
STRAIGHT = 1e-4  # curvature: what is left of 0 in float32 and half precision
EVEN = 1.5  # times its part, before a step is said to err more than others
GROWS = 2.0  # times what the steps add, before it is said that errors grow, or undo each other
CURE = "Lower the cfg, and check the model's shift and the first of the sigmas."
JUMP = 1  # what random numbers are for, besides the start


@dataclass(frozen=True, eq=False)
class Request(Asked):
    """What a person asked for. latent: as many as are run, all zeros or pictures to begin from. schedule: of the node.

    Raises ValueError for a schedule that has nothing to measure.
    """

    schedule: tuple[float, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        LATENTS.check("The number of latents in latent_image", len(self.latent))
        checked_sigmas(self.schedule, self.law)
        steps = sum(len(fine.at) - 1 for fine in self.fine)
        if not steps:
            raise ValueError("sigmas has no step that falls, so there is nothing to measure. Connect a scheduler node.")
        STEPS.check("The number of steps in sigmas", steps)

    @cached_property
    def fine(self) -> list[Fine]:
        """The finer runs. A model of discrete time steps answers for the nearest of them: it is asked there."""
        sampling, law = self.sampling, self.law

        def stands(sigmas: Sequence[float]) -> list[float]:
            return where_it_stands(sampling, torch.tensor(sigmas)).tolist() if sigmas else []

        least = 0.0 if law.is_flow else float(sampling.sigma_min)
        return finer(checked_sigmas(self.schedule, law), law, least, list if law.is_flow else stands)

    def size_at(self, sigma: float) -> float:
        """Root mean square of a latent of variance 1 with its noise."""
        return math.hypot(self.law.alpha(sigma), self.law.deviation(sigma))


def measured(request: Request, node_id: str | None) -> Metered:
    """Raises ValueError where the model answers with NaN, or leads nowhere."""
    fine, count = request.fine, len(request.latent)
    counter = Counter(calls_of(fine) * count, node_id, "Measuring the schedule", by_latent=True)
    noise, batch = torch.stack([own_noise(request, number) for number in range(count)]), batch_of(request, count)

    def work(denoise: HostDenoiser, x: Tensor) -> Metered:
        start = begun(request, fine[0].sigmas[0], noise.to(x), request.latents.to(x))
        store = store_for(2 * count * max(len(one.sigmas) for one in fine), x)
        ask = split(counter.watch(denoise), batch)
        return Meter(ask, request.law, fine, partial(put_on, request), request.streams, store, denoise.announce)(start)

    found = inside_sampling(request.guidance(), noise[:batch], fine[0].sigmas, work, request.seed, request.streams)
    check_reached(found.end / request.size_at(fine[-1].sigmas[-1]), "The finer run", CURE, request.streams)
    return found


def put_on(request: Request, jump: int) -> Tensor:
    """The noise of a jump, by its number, of every latent its own."""
    sources = [seeded(request.seed, number, JUMP, jump) for number in range(len(request.latent))]
    return torch.stack([torch.randn(request.latent.shape[1:], generator=source) for source in sources])


# ---------------------------------------------------------------------------------------------------------
# In words


def in_words(found: Metered) -> Iterator[str]:
    """Sentences: how curved the path is, and for each sampler where it errs."""
    yield f"Measured on {plural(len(found.end), 'latent')}, on the model's path with this prompt and guidance:"
    if found.curvature < STRAIGHT:
        yield "The model's path is straight (curvature 0): one step would do."
        return
    yield f"The model's path has a curvature of {short(found.curvature)} (0: straight, one step would do)."
    for name in STUDENTS:
        yield of_sampler(name, found)


def of_sampler(name: str, found: Metered) -> str:
    """Its error, which step makes most of it, and what becomes of the steps' errors on the way."""
    whole, added, (number, share) = found.whole[name], found.added(name), found.worst(name)
    step, count = found.steps[number - 1], len(found.steps)
    said = [f"{name} ends with an error of {short(whole)}; its steps by themselves add {short(added)}."]
    if count > 1 and share * count > EVEN:
        place = f"from {told(step.begin)} to {told(step.end)}"
        said.append(f"{share:.0%} of that is made in step {number} of {count}, {place}.")
    elif count > 1:
        said.append("They err alike.")
    if whole > GROWS * added:
        said.append("What is wrong early grows on the way.")
    elif whole * GROWS < added:
        said.append("In part they undo each other.")
    return " ".join(said)


def in_numbers(found: Metered) -> Iterator[str]:
    """A line for every step: what each sampler adds there, and how far the model's answer turns."""
    yield "step  from      to        " + "".join(f"{name:10}" for name in STUDENTS) + "turn"
    for number, step in enumerate(found.steps, 1):
        errors = "".join(f"{short(step.errors[name]):10}" for name in STUDENTS)
        yield f"{number:4}  {told(step.begin):10}{told(step.end):10}{errors}{step.turn:.2g}"
