"""A schedule searched on a MODEL with prompt and guidance, for a solver; and compared on seeds it does not know."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...samplers.choices import check_choice
from ...samplers.contract import Denoiser
from ...samplers.dpm_solver_v3 import Options
from ...samplers.dpm_solver_v3.measured import Measured
from ...samplers.noise_law import NoiseLaw
from ...samplers.streams import Streams
from ...schedulers.optimal_steps import (
    V3,
    Euler,
    Found,
    Multistep2M,
    Objective,
    Replay,
    Student,
    Task,
    Teacher,
    follow,
    in_turn,
    most_calls,
    polish,
    search,
)
from ...schedulers.optimal_steps.schedules import Schedules
from ..host.dpm_solver_v3 import NEAR_THE_END, Choice, beyond_check, solver_for, table_for
from ..host.guiders import identify_guided
from ..host.identity import conditioning_digest
from ..host.schedules import check_share, rivals, shift_of, sigma_at
from .asked import Asked, Range, times_of, where_it_stands
from .interrupted import Parts, Works
from .running import Counter, HostDenoiser, check_reached, inside_sampling
from .trajectories import batch_of, begun, own_noise, split, store_for

SOLVERS = ("euler", "dpmpp_2m", "dpm_solver_v3")
STARTS = ("auto", "sigma_max")
BUDGETS = 10  # all numbers of steps up to this, or up to the one asked for, as far as the teacher has nodes for them
STEPS, TEACHER_STEPS, TRAJECTORIES, POLISH = Range(1, 100), Range(20, 1000), Range(2, 256), Range(0, 20)
# Of a layer, nodes that are gone on from, and paths at each. What DPM-Solver-v3 predicts is mended by the next call, so
# the path that is nearest at a node before that call is often not the best there.
BREADTH = {"euler": (15, 1), "dpmpp_2m": (15, 1), "dpm_solver_v3": (5, 3)}
HIGHEST, LOWEST = 150.0, 0.003  # of noise-to-signal, of the teacher's nodes
ENDS = (0.03, 0.02, 0.01, 0.005)  # of noise-to-signal, where a schedule may end besides 0
DENSE = 4096  # places among which the teacher's nodes are chosen
PLACES = 4  # where polished nodes may stand, for each step of the teacher
FINALISTS = 6  # of the host's schedules: those that run on all latents
TOGETHER = 4  # latents of a part, which is made by one host
GEOMETRIC = Objective()
Tried = dict[str, tuple[tuple[float, ...], Tensor]]  # by name: sigmas, and the error of every latent and stream


@dataclass(frozen=True, eq=False)
class Request(Asked):
    """What a person asked for. latent: all zeros, or the pictures to start from at a denoise below 1."""

    steps: int
    solver: str
    teacher_steps: int = 100
    trajectories: int = 8
    start: str = "auto"
    polish: int = 4
    denoise: float = 1.0
    statistics: Measured | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        STEPS.check("steps", self.steps)
        check_choice("solver", self.solver, SOLVERS)
        TEACHER_STEPS.check("teacher_steps", self.teacher_steps)
        TRAJECTORIES.check("trajectories", self.trajectories)
        self.check_all_dealt("trajectories", self.trajectories)
        check_choice("start", self.start, STARTS)
        POLISH.check("polish", self.polish)
        check_denoise(self)
        if self.teacher_steps < 2 * self.steps:
            raise ValueError(
                f"teacher_steps is {self.teacher_steps}; for {self.steps} steps it must be {2 * self.steps} or more, "
                "because the schedule is made of every second of its nodes. Raise teacher_steps."
            )

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What is kept with the result; a search of equal facts is the same search."""
        latent = conditioning_digest([self.latent]) if self.from_references else "empty"
        return self.asked | {
            "latent": [*self.latent.shape[1:], latent],
            "steps": self.steps,
            "solver": self.solver,
            "statistics": conditioning_digest([vars(self.statistics.statistics)]) if self.statistics else "none",
            "teacher_steps": self.teacher_steps,
            "trajectories": self.trajectories,
            "start": self.start,
            "polish": self.polish,
            "denoise": self.denoise,
            "shift_factor": shift_of(self.sampling, self.law),
            "is_flow": self.law.is_flow,
        }


def check_denoise(request: Request) -> None:
    """Raises ValueError for a share of noise that is none, or has no pictures to be put on."""
    check_share(request.denoise)
    if request.denoise < 1 and not request.from_references:
        raise ValueError(
            f"denoise is {request.denoise:g}, which starts from pictures, but the latent is empty. Connect encoded "
            "pictures of the kind you will work on, or set denoise to 1."
        )


# ---------------------------------------------------------------------------------------------------------
# The plan: nodes, and what it costs


@dataclass(frozen=True, eq=False)
class Grid:
    """Where a teacher's nodes may stand: ratios, falling, and at each how far it is, from 0 to 1.

    Half of that goes evenly in lambda, half in the model's own time.
    """

    ratios: np.ndarray
    share: np.ndarray

    @classmethod
    def between(cls, sampling, law: NoiseLaw, highest: float, lowest: float) -> Grid:
        dense = torch.logspace(math.log10(highest), math.log10(lowest), DENSE, dtype=torch.float64)
        time = np.array([float(t) for t in times_of(sampling, law.sigma(dense))])
        return cls(dense.numpy(), np.linspace(0, 1, DENSE) / 2 + (time[0] - time) / (time[0] - time[-1]) / 2)

    def nodes(self, count: int) -> Tensor:
        """So many of the ratios."""
        return torch.from_numpy(np.exp(np.interp(np.linspace(0, 1, count), self.share, np.log(self.ratios))))


def teacher_sigmas(request: Request) -> list[float]:
    """The teacher's nodes, where the model stands itself: more than were asked for, where too many of them are one.

    Raises ValueError where the model knows too few.
    """
    sampling, law = request.sampling, request.law
    top = sigma_at(sampling, request.denoise)
    highest = min(law.ratio(top), HIGHEST) if top < 1 or not law.is_flow else HIGHEST
    lowest = max(law.ratio(float(sampling.sigma_min)), LOWEST)
    sigmas = [top]
    if lowest < highest:
        grid, count = Grid.between(sampling, law, highest, lowest), request.teacher_steps
        sigmas = standing(request, grid, count, top)
        while budgets_of(request, sigmas) < request.steps and count < TEACHER_STEPS.most:
            count = min(count * 5 // 4, TEACHER_STEPS.most)
            sigmas = standing(request, grid, count, top)
    if budgets_of(request, sigmas) < request.steps:
        raise ValueError(
            f"denoise is {request.denoise:g}, below which the model knows too few levels of noise for a schedule of "
            f"{request.steps} steps. Set steps to {budgets_of(request, sigmas)}"
            + (", or raise denoise." if request.denoise < 1 else ".")
        )
    return sigmas


def standing(request: Request, grid: Grid, count: int, top: float) -> list[float]:
    """`top`, and below it so many nodes of the grid, or as many as the model tells apart."""
    sigmas = request.law.sigma(grid.nodes(count))
    if not request.law.is_flow:  # a model of discrete time steps answers for the nearest of them
        sigmas = where_it_stands(request.sampling, sigmas)
    inner = torch.unique(sigmas).flip(0)
    return [top, *inner[inner < top * (1 - 1e-6)].tolist()]


def budgets_of(request: Request, sigmas: Sequence[float]) -> int:
    """Up to how many steps are searched: a schedule has no more than there are nodes, every second of the teacher's."""
    return min(max(request.steps, BUDGETS), len(sigmas[::2]))


def places_of(request: Request, sigmas: Sequence[float]) -> list[float]:
    """Where polished nodes may stand: the teacher's nodes, and further ones between them; the ends too."""
    law = request.law
    lam = law.lam(torch.tensor([min(s, 1 - 1e-6) if law.is_flow else s for s in sigmas], dtype=torch.float64))
    fine = np.interp(np.linspace(0, 1, PLACES * len(sigmas)), np.linspace(0, 1, len(sigmas)), lam.numpy())
    between = law.sigma(torch.exp(-torch.from_numpy(fine))).tolist()
    return sorted({*between, *sigmas, *ends_of(request)}, reverse=True)


def ends_of(request: Request) -> list[float]:
    return [*(request.law.sigma(ratio) for ratio in ENDS), 0.0]


def calls_of(request: Request, sigmas: Sequence[float], schedules: dict[str, tuple[float, ...]]) -> dict[str, int]:
    """Guided calls of one latent, at most, in every phase."""
    few, count, nodes = qualifying(request), request.trajectories, len(sigmas[::2])
    teacher = 2 * count * len(sigmas)
    rivals = few * sum(len(schedule) - 1 for schedule in schedules.values()) + 2 * count * FINALISTS * request.steps
    width, contenders = BREADTH[request.solver]
    budgets = budgets_of(request, sigmas)
    first = min(width, nodes) if starts_freely(request) else 1
    searched = count * (first + contenders * sum(min(width, nodes - k) for k in range(1, budgets)))
    polished = count * most_calls(request.steps, request.polish, starts_freely(request))
    checked = count * (sum(range(1, budgets + 1)) + 2 * request.steps)
    return {"teacher": teacher, "rivals": rivals, "search": searched, "polish": polished, "check": checked}


def qualifying(request: Request) -> int:
    """On how many latents all of the host's schedules are tried, before the best of them run on all."""
    return max(request.trajectories // 2, 2)


def starts_freely(request: Request) -> bool:
    """Whether a schedule may begin below the highest sigma: there the noise is put on with less strength."""
    return request.start == "auto" and request.denoise >= 1


# ---------------------------------------------------------------------------------------------------------
# The search


@dataclass(frozen=True, eq=False)
class Bench:
    """Everything that the phases share. noise and latent: of all trajectories, those for the search first.

    announce: told which schedule the next calls are of. enter: told, in words, what they are for.
    together: makes works that do not need each other.
    """

    request: Request
    denoise: Denoiser
    student: Student
    noise: Tensor
    latent: Tensor
    announce: Callable[[Sequence[float]], None] = lambda sigmas: None
    enter: Callable[[str], None] = lambda phase: None
    deal: Callable[[Denoiser, Sequence[int]], Denoiser] = lambda denoise, prompts: denoise
    together: Callable[[Works], list[Any]] = in_turn

    def ask(self, part: slice) -> Denoiser:
        """The model, for some of the trajectories, each under its own prompt; those kept out begin with the first."""
        count = self.request.trajectories
        numbers = [number % count for number in range(2 * count)]
        return self.deal(self.denoise, self.request.dealt(numbers[part]))

    def start(self, sigma: float, part: slice) -> Tensor:
        """The latents as the host begins to sample them at a sigma."""
        return begun(self.request, sigma, self.noise[part], self.latent[part])

    def task(self, teacher: Teacher, part: slice) -> Task:
        """The search, or a comparison, on some of the trajectories."""
        request = self.request
        nodes = range(len(teacher.sigmas)) if starts_freely(request) else (0,)
        lowest = float(request.sampling.sigma_min) if not request.law.is_flow else 0.0
        return Task(
            self.ask(part),
            self.student,
            request.law,
            replace(teacher, end=teacher.end[part]),
            partial(self.start, part=part),
            nodes,
            ends_of(request),
            lowest=lowest * (1 - 1e-4),
            objective=Objective(streams=request.streams),
            announce=self.announce,
            together=self.together,
            name=which(part),
        )

    def replay(self, teacher: Teacher, part: slice) -> Replay:
        """Of schedules, on some of the trajectories."""
        return Replay(*[self.task(teacher, few) for few in parts_of(part)])


def parts_of(trajectories: slice) -> list[slice]:
    first, stop = trajectories.start, trajectories.stop
    return [slice(at, min(at + TOGETHER, stop)) for at in range(first, stop, TOGETHER)]


def which(part: slice) -> str:
    return f"of latents {part.start + 1} to {part.stop}"


def search_schedule(request: Request, kept: Parts, node_id: str | None) -> Schedules:
    """Search, polish and compare. kept is filled phase by phase, so that what was finished survives a cancel.

    Raises ValueError where the model knows too few levels of noise, and where its answers make no sense.
    """
    sigmas = teacher_sigmas(request)
    start = None if request.denoise >= 1 else sigmas[0]
    rival_schedules = rivals(request.sampling, request.law, request.steps, start)
    batch = batch_of(request, 2 * request.trajectories)
    count, shape = 2 * request.trajectories, request.latent.shape[1:]
    megabytes = len(sigmas) * request.trajectories * math.prod(shape) * 4 / 1e6
    kept.expected = sum(calls_of(request, sigmas, rival_schedules).values())
    counter = Counter(
        kept.expected,
        node_id,
        f"Searching ({megabytes:.0f} MB of latents)",
        by_latent=True,
    )
    noise = torch.stack([own_noise(request, number) for number in range(count)])
    latent = request.latents[torch.arange(count) % len(request.latent)]

    def enter(phase: str) -> None:
        counter.phase = phase

    def work(denoise: HostDenoiser, x: Tensor) -> Schedules:
        in_batches = split(counter.watch(denoise), batch)
        student = student_of(request)
        told = denoise.announce, enter, denoise.deal, kept.shared
        bench = Bench(request, in_batches, student, noise.to(x), latent.to(x), *told)
        return phases(bench, kept, sigmas, rival_schedules)

    found = inside_sampling(request.guidance(), noise[:batch], [*sigmas, 0.0], work, request.seed, request.streams)
    counter.finish()
    return found


def student_of(request: Request) -> Student:
    """The sampler that the schedule is for, as it will be used."""
    if request.solver != "dpm_solver_v3":
        return Euler() if request.solver == "euler" else Multistep2M()
    choice = Choice(Options(), request.statistics, "data", "when_checked", None)
    item = request.latent.shape[1:]
    here = identify_guided(request.guided)
    given = request.statistics
    beyond = beyond_check(given, request.steps, request.sampling) if given else ""
    streams = request.streams
    table, order, _ = table_for(choice, request.steps, here, tuple(item), beyond, streams)
    solver = solver_for(table, Options(order), request.sampling, torch.tensor([1.0, 0.0]).double(), streams=streams)
    ends_below = math.inf if table is None else NEAR_THE_END * float(request.sampling.sigma_min)
    return V3(solver, item, ends_below)


def phases(
    bench: Bench, kept: Parts, sigmas: Sequence[float], rival_schedules: dict[str, tuple[float, ...]]
) -> Schedules:
    """Teacher, rivals, search, polish, and the comparison on the trajectories that were kept out of it."""
    request, count = bench.request, bench.request.trajectories
    seen, unseen = slice(0, count), slice(count, 2 * count)
    calls = calls_of(request, sigmas, rival_schedules)
    bench.enter("following the teacher")
    teacher = kept.joined("teacher", teachers(bench, sigmas), partial(whole_teacher, bench))
    bench.enter("trying ComfyUI's schedules")
    tried = kept.once("rivals", calls["rivals"], lambda: tried_rivals(bench, teacher, rival_schedules))
    width, contenders = BREADTH[request.solver]
    budgets = budgets_of(request, sigmas)
    bench.enter("searching")
    searching = partial(search, bench.task(teacher, seen), budgets, width=width, contenders=contenders)
    found = kept.once("search", calls["search"], searching)
    begin = min([found[request.steps], *best_of(tried, seen)], key=lambda schedule: schedule.cost)
    places = places_of(request, sigmas)
    bench.enter("polishing")
    rounds, free = request.polish, starts_freely(request)
    polishing = partial(polish, bench.replay(teacher, seen), begin.sigmas, places, rounds, start_moves=free)
    polished = kept.once("polish", calls["polish"], polishing)
    bench.enter("comparing")
    check = bench.replay(teacher, unseen)
    return compared(request, check, found, polished, {name: (s, e[unseen]) for name, (s, e) in tried.items()})


def teachers(bench: Bench, sigmas: Sequence[float]) -> dict[str, tuple[int, Callable[[], Teacher]]]:
    """The works that follow the trajectories of all latents, those that are searched on first."""
    count = bench.request.trajectories
    each = [*parts_of(slice(0, count)), *parts_of(slice(count, 2 * count))]
    calls = len(sigmas)
    return {f"teacher {which(p)}": (calls * (p.stop - p.start), partial(taught, bench, sigmas, p)) for p in each}


def taught(bench: Bench, sigmas: Sequence[float], part: slice) -> Teacher:
    """The trajectories of some latents; their states only of those that are searched on."""
    x, count = bench.start(sigmas[0], part), bench.request.trajectories
    store = store_for(len(sigmas) * count, x)
    seen = len(x) if part.stop <= count else 0
    return follow(bench.ask(part), x, bench.request.law, sigmas, every=2, keep=lambda x: x[:seen].to(store))


def whole_teacher(bench: Bench, parts: Sequence[Teacher]) -> Teacher:
    """Kept where the first part is: memory may have been found elsewhere for the next, or by another host.

    Raises ValueError where the model's answers lead nowhere.
    """
    states = joined([part.states for part in parts])
    denoised = joined([part.denoised for part in parts])
    teacher = Teacher(parts[0].sigmas, states, denoised, torch.cat([part.end for part in parts]))
    what = f"The teacher of {bench.request.teacher_steps} steps, at cfg {bench.request.cfg:g},"
    cure = "Lower the cfg, check the model's shift, or raise teacher_steps."
    check_reached(teacher.end, what, cure, bench.request.streams)
    return teacher


def joined(parts: Sequence[Sequence[Tensor]]) -> tuple[Tensor, ...]:
    """Node by node, on the device of the first."""
    device = parts[0][0].device
    return tuple(torch.cat([part.to(device) for part in at]) for at in zip(*parts, strict=True))


def tried_rivals(bench: Bench, teacher: Teacher, schedules: dict[str, tuple[float, ...]]) -> Tried:
    """The host's best schedules on all latents: those that did best on some of them."""
    lowest_ends = ends_of(bench.request)
    families = {name: with_ends(name, sigmas, lowest_ends) for name, sigmas in schedules.items()}
    first = tried_on(bench.replay(teacher, slice(0, qualifying(bench.request))), families)
    best = {name: min(found.cost for found in best_of(tried, slice(None))) for name, tried in first.items()}
    finalists = sorted(best, key=lambda name: best[name])[:FINALISTS]
    whole = bench.replay(teacher, slice(0, 2 * bench.request.trajectories))
    found = tried_on(whole, {name: families[name] for name in finalists})
    return {name: one for tried in found.values() for name, one in tried.items()}


def with_ends(name: str, sigmas: tuple[float, ...], ends: Sequence[float]) -> dict[str, tuple[float, ...]]:
    """A schedule with its own end, and with each of `ends`, which costs no further call."""
    others = [end for end in ends if end not in (0.0, sigmas[-1]) and end < sigmas[-2]]
    return {name: sigmas} | {f"{name}, to {end:.3g}": (*sigmas[:-1], end) for end in others}


def tried_on(replay: Replay, families: dict[str, dict[str, tuple[float, ...]]]) -> dict[str, Tried]:
    errors = replay.by_stream([list(family.values()) for family in families.values()])
    return {
        name: {one: (family[one], own) for one, own in zip(family, found, strict=True)}
        for (name, family), found in zip(families.items(), errors, strict=True)
    }


def best_of(tried: Tried, part: slice) -> list[Found]:
    return [Found(sigmas, float(GEOMETRIC.reduce(errors[part].mean(1)))) for sigmas, errors in tried.values()]


def compared(
    request: Request,
    check: Replay,
    found: dict[int, Found],
    polished: Found,
    tried: Tried,
) -> Schedules:
    """All schedules of the asked number of steps on the latents of `check`; the best is the answer."""
    entries = {"searched": found[request.steps].sigmas, "searched and polished": polished.sigmas}
    apart = on_unseen(check, entries) | {k: e for k, (_, e) in tried.items()}
    errors = {name: three_means(e.mean(1)) for name, e in apart.items()}
    entries |= {name: sigmas for name, (sigmas, _) in tried.items()}
    chosen = min(errors, key=lambda name: errors[name][0])
    sigmas = {n: one.sigmas for n, one in found.items()} | {request.steps: entries[chosen]}
    by_budget = on_unseen(check, {str(n): schedule for n, schedule in sigmas.items()})
    budgets = {n: three_means(e.mean(1)) for n, e in by_budget.items()}
    facts = request.facts | {"compared": errors, "chosen": chosen, "errors": budgets}
    if request.streams.is_pack:
        facts["compared_by_stream"] = named(request.streams, apart)
        facts["errors_by_stream"] = named(request.streams, by_budget)
    return Schedules(sigmas, facts)


def on_unseen(check: Replay, schedules: dict[str, tuple[float, ...]]) -> dict[str, Tensor]:
    found = check.by_stream([[sigmas] for sigmas in schedules.values()])
    return {name: errors for name, (errors,) in zip(schedules, found, strict=True)}


def named(streams: Streams, apart: dict[str, Tensor]) -> dict[str, dict[str, list[float]]]:
    """Of errors (B, streams): three means of each stream, by its name."""
    return {key: streams.named([three_means(own) for own in errors.unbind(1)]) for key, errors in apart.items()}


def three_means(errors: Tensor) -> list[float]:
    """Geometric mean, mean and median."""
    return [float(Objective(reduction=name).reduce(errors)) for name in ("geometric", "mean", "median")]
