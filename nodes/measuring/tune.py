"""Tables for all numbers of calls, measured on a MODEL with prompt and guidance, and checked on seeds they do not know.

A few converged runs of a teacher; on these, for every number of calls, where to step (schedulers/tuning/propose.py, at
no call) and by which weights (fit.py, as many calls as the run has). A table is used where it was nearer, on latents
that no table saw, than what needs no measurement.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import comfy.model_management
import comfy.samplers
import numpy as np
import torch
from torch import Tensor

from ...samplers.choices import check_choice
from ...samplers.contract import Denoiser
from ...samplers.table import Answers, Table, step_by_table
from ...schedulers.optimal_steps.students import Multistep2M, State
from ...schedulers.recipe import Recipe, recipe
from ...schedulers.tuning.fit import fit_table
from ...schedulers.tuning.path import Path, followed, teacher
from ...schedulers.tuning.propose import Places, Response, best_of_families, ranked, rules, seen_response, shadow
from ...schedulers.tuning.tuning import TUNED, UNMEASURED, Tuning, or_infinite
from ..host.answers import apart
from ..host.schedules import shift_of
from .asked import Asked
from .interrupted import Parts
from .running import Counter, HostDenoiser, check_reached, inside_sampling
from .search import three_means
from .trajectories import SHARE_OF_DEVICE, batch_of, own_noise, split, store_for

EVERY = tuple(range(3, 13))  # numbers of calls
COPIES = 2  # of the teacher's latents, while they are put together


@dataclass(frozen=True)
class Effort:
    """What is spent. teacher: its steps. fitted, checked: latents, each of which costs a teacher's run.

    budgets: numbers of calls for which a table is made. tried: those at which `places` rules for the steps are fitted,
    the best of which serves its neighbours too; at the others one is. unmeasured, rival: numbers of calls at which
    those run, on the latents of the check.
    """

    teacher: int
    fitted: int
    checked: int
    budgets: tuple[int, ...]
    tried: tuple[int, ...]
    places: int
    unmeasured: tuple[int, ...]
    rival: tuple[int, ...]

    @property
    def latents(self) -> int:
        return self.fitted + self.checked

    @property
    def calls(self) -> int:
        """Guided calls of one latent."""
        fits = sum(self.budgets) + (self.places - 1) * sum(self.tried)
        checks = sum(self.budgets) + sum(self.unmeasured) + sum(self.rival)
        return self.latents * self.teacher + self.fitted * fits + self.checked * checks


EFFORTS = {
    "quick": Effort(30, 2, 1, (4, 5, 6, 8, 10, 12), (), 1, (4, 12), ()),
    "normal": Effort(40, 3, 2, (*EVERY, 15, 20), (5, 10), 3, (3, 6, 10, 20), (6, 8, 20)),
    "thorough": Effort(60, 12, 8, (*EVERY, 15, 20, 30), EVERY, 4, (*EVERY, 15, 20, 30), (4, 6, 8, 10, 12, 15, 20, 30)),
}


@dataclass(frozen=True, eq=False)
class Request(Asked):
    """What a person asked for. latent: its shape counts."""

    effort: str

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("effort", self.effort, EFFORTS)
        if self.spent.fitted < len(self.each):
            raise ValueError(
                f"There are {len(self.each)} prompts, and effort {self.effort} measures on {self.spent.fitted} "
                "latents, one prompt each. Raise effort, or connect fewer prompts."
            )

    @property
    def spent(self) -> Effort:
        return EFFORTS[self.effort]

    @cached_property
    def shift(self) -> float:
        return shift_of(self.sampling, self.law)

    @property
    def first(self) -> float:
        return float(self.sampling.sigma_max)

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What is kept with the result; a tuning of equal facts is the same tuning."""
        own = {"latent": list(self.latent.shape[1:]), "effort": self.effort}
        return self.asked | own | {"shift_factor": self.shift, "is_flow": self.law.is_flow}

    def recipe(self, calls: int) -> Recipe:
        """What needs no measurement."""
        return recipe(calls, self.law.is_flow, self.shift)


@dataclass(frozen=True, eq=False)
class Bench:
    """Everything that the work shares. x: of all latents, those for the fits first."""

    request: Request
    ask: Denoiser  # in parts, see nodes.host.answers
    x: Tensor
    deal: Callable[[Denoiser, Sequence[int]], Denoiser]
    announce: Callable[[Sequence[float]], None]
    enter: Callable[[str], None]
    batch: int  # latents that are run at a time
    parts: int = 2  # of an answer that are told apart: as many as the teacher was answered at any sigma

    @property
    def fitted(self) -> slice:
        return slice(0, self.request.spent.fitted)

    @property
    def checked(self) -> slice:
        return slice(self.request.spent.fitted, self.request.spent.latents)

    def answers(self, part: slice, sigmas: Sequence[float]) -> Answers:
        """The model, for some of the latents, each under its own prompt. The next calls are of a schedule."""
        return apart(self.dealt(part, sigmas), self.parts)

    def denoise(self, part: slice, sigmas: Sequence[float]) -> Denoiser:
        ask = self.dealt(part, sigmas)
        return lambda x, sigma: ask(x, sigma)[:, 0]

    def dealt(self, part: slice | Sequence[int], sigmas: Sequence[float]) -> Denoiser:
        self.announce(sigmas)
        numbers = np.array([*range(self.request.spent.fitted), *range(self.request.spent.checked)])
        return self.deal(self.ask, self.request.dealt(numbers[part].tolist()))  # the check begins with the first again


def tune(request: Request, kept: Parts, node_id: str | None) -> Tuning:
    """Measure, fit and check. kept is filled part by part, so that what was finished survives a cancel.

    Raises ValueError where the model's answers make no sense.
    """
    spent = request.spent
    check_memory(request)
    kept.expected = spent.calls
    what = f"Tuning, {request.effort} ({bytes_of(request, spent) / 1e6:.0f} MB of latents)"
    counter = Counter(spent.calls - kept.calls, node_id, what, by_latent=True)
    noise = torch.stack([own_noise(request, number) for number in range(spent.latents)])
    batch = batch_of(request, spent.latents)

    def enter(phase: str) -> None:
        counter.phase = phase

    def work(denoise: HostDenoiser, x: Tensor) -> Tuning:
        ask = split(counter.watch(denoise.in_parts), batch)
        bench = Bench(request, ask, started(request, noise.to(x)), denoise.deal, denoise.announce, enter, batch)
        return phases(bench, kept)

    levels = [request.first, 0.0]
    found = inside_sampling(request.guidance(), noise[:batch], levels, work, request.seed, request.streams)
    counter.finish()
    return found


def bytes_of(request: Request, spent: Effort) -> int:
    """Of the teacher's states and answers, float32."""
    return 2 * spent.teacher * spent.latents * math.prod(request.latent.shape[1:]) * 4


def max_free(device: torch.device) -> float:
    """Bytes where latents can be kept, see `store_for`."""
    free = comfy.model_management.get_free_memory
    return max(free(torch.device("cpu")), free(device) / SHARE_OF_DEVICE)


def check_memory(request: Request) -> None:
    """Raises ValueError where the teacher's runs would not fit, with what would."""
    free = max_free(request.model.load_device)
    needs = {name: bytes_of(request, spent) * COPIES for name, spent in EFFORTS.items()}
    if needs[request.effort] <= free:
        return
    fit = [name for name in EFFORTS if needs[name] <= free]
    cure = f"Set effort to {fit[-1]}" if fit else "Take a smaller latent_image, or fewer frames"
    raise ValueError(
        f"Effort {request.effort} keeps {needs[request.effort] / 1e9:.1f} GB of latents of this size, and "
        f"{free / 1e9:.1f} GB of memory are free. {cure}, or close other programs."
    )


def started(request: Request, noise: Tensor) -> Tensor:
    """The latents as the host begins to sample them. Its noise_scaling may work in place."""
    top = torch.tensor([request.first]).to(noise)
    return request.sampling.noise_scaling(top, noise.clone(), torch.zeros_like(noise), True)


# ---------------------------------------------------------------------------------------------------------
# The parts


def phases(bench: Bench, kept: Parts) -> Tuning:
    """The teacher, a first student that shows J, the tables, and the check."""
    request, spent = bench.request, bench.request.spent
    path, parts = taught(bench, kept)
    bench = replace(bench, parts=parts)
    fits = fitted(bench, kept, replace(path, states=path.states[bench.fitted], answers=path.answers[bench.fitted]))
    tables = {calls: fits[calls].table for calls in spent.budgets}
    names = {str(calls): fit.places.name for calls, fit in fits.items()}
    check = checked(bench, kept, path.end[bench.checked], tables)
    found = {"check": check, "places": names, "parts": parts, "calls": spent.calls}
    return Tuning(tables, request.facts | found)


@dataclass(frozen=True, eq=False)
class Runs:
    """Converged. parts: of an answer, at most."""

    path: Path
    parts: int


def taught(bench: Bench, kept: Parts) -> tuple[Path, int]:
    """The converged runs of all latents, and how many parts the answers had, at most. Raises as `tune` does."""
    every = range(bench.request.spent.latents)

    def work(numbers: Sequence[int]) -> tuple[int, Callable[[], Runs]]:
        return len(numbers) * bench.request.spent.teacher, lambda: followed_by(bench, numbers)

    at_a_time = [every[first : first + bench.batch] for first in every[:: bench.batch]]
    runs = kept.all_of({f"teacher of {[number + 1 for number in part]}": work(part) for part in at_a_time})
    path = runs[0].path
    if len(runs) > 1:
        states = torch.cat([one.path.states for one in runs])
        path = replace(path, states=states, answers=torch.cat([one.path.answers for one in runs]))
    return path, max(one.parts for one in runs)


def followed_by(bench: Bench, numbers: Sequence[int]) -> Runs:
    """Raises ValueError where the model's answers lead nowhere."""
    request, spent, chosen = bench.request, bench.request.spent, list(numbers)
    bench.enter("following the teacher")
    store = store_for(2 * spent.teacher * len(chosen), bench.x)
    sigmas, _ = teacher(request.law, request.first, spent.teacher, request.shift)
    ask, parts = bench.dealt(chosen, sigmas), {1}

    def denoise(x: Tensor, sigma: float) -> Tensor:
        answer = ask(x, sigma)
        parts.add(answer.shape[1])
        return answer[:, 0]

    path = followed(denoise, bench.x[chosen], request.law, spent.teacher, request.first, request.shift, store)
    what = f"The teacher of {spent.teacher} steps, at cfg {request.cfg:g},"
    check_reached(path.end, what, "Lower the cfg, and check the model's shift.", request.streams)
    return Runs(path, max(parts))


@dataclass(frozen=True, eq=False)
class Fit:
    """error: of the latents it was made on. seen: pairs of noise-to-signal and J."""

    places: Places
    table: Table
    error: float
    seen: tuple[tuple[float, float], ...]


def fitted(bench: Bench, kept: Parts, path: Path) -> dict[int, Fit]:
    """The best table for every number of calls.

    Those at which rules compete come first, one after the other, as each may learn from those before it; the rest
    follow the nearest.
    """
    request, spent = bench.request, bench.request.spent
    small, response = shadow(path), Response.unknown()
    fits: dict[int, Fit] = {}
    for calls in spent.tried or spent.budgets:
        order = ranked(small, rules(request.law, request.shift), calls, request.recipe(calls).answers, response)
        works = dict(work_of(bench, path, calls, one) for one in best_of_families(order, spent.places))
        fits[calls] = min(kept.all_of(works), key=lambda fit: or_infinite(fit.error))
        if response.is_unknown and len(fits[calls].seen) > 1:
            response = Response.of(fits[calls].seen)
    rest = [calls for calls in spent.budgets if calls not in fits]
    nearest = {calls: min(fits, key=lambda other: abs(math.log(other / calls))) for calls in rest}
    works = dict(work_of(bench, path, calls, fits[nearest[calls]].places) for calls in rest)
    return fits | dict(zip(rest, kept.all_of(works), strict=True))


def work_of(bench: Bench, path: Path, calls: int, places: Places) -> tuple[str, tuple[int, Callable[[], Fit]]]:
    name, spent = f"fit {calls} {places.name}", bench.request.spent
    return name, (spent.fitted * calls, lambda: fit(bench, path, calls, places))


def fit(bench: Bench, path: Path, calls: int, places: Places) -> Fit:
    request, seen = bench.request, []
    bench.enter(f"fitting {calls} calls")
    sigmas = places.sigmas(request.law, request.first, calls)
    ask = bench.answers(bench.fitted, sigmas)

    def watched(x: Tensor, sigma: float) -> Sequence[Tensor]:
        answer = ask(x, sigma)
        seen.append(seen_response(path, sigma, x, answer[0]))
        return answer

    table, end = fit_table(watched, bench.x[bench.fitted], sigmas, path, request.recipe(calls).answers)
    error = three_means(errors_of(request, end, path.end))[0]
    return Fit(places, table, error, tuple(one for one in seen if one))


def errors_of(request: Request, end: Tensor, target: Tensor) -> Tensor:
    """Of every latent; all streams alike."""
    return request.streams.square_errors(end.cpu().float(), target.cpu().float()).mean(1)


# ---------------------------------------------------------------------------------------------------------
# The check


def checked(bench: Bench, kept: Parts, target: Tensor, tables: dict[int, Table]) -> dict[str, dict[str, list[float]]]:
    """Facts of `Tuning`: errors by name and number of calls, on latents that no table saw."""
    request, spent = bench.request, bench.request.spent
    scheduler = "simple" if request.law.is_flow else "karras"
    runs: dict[str, tuple[Callable[[int], Tensor], Sequence[int]]] = {
        TUNED: (lambda calls: drawn_by_table(bench, tables[calls]), tuple(tables)),
        UNMEASURED: (lambda calls: drawn_by_recipe(bench, calls), spent.unmeasured),
        f"dpmpp_2m {scheduler}": (lambda calls: drawn_by_2m(bench, scheduler, calls), spent.rival),
    }

    def work(draw: Callable[[int], Tensor], calls: int) -> Callable[[], list[float]]:
        def error() -> list[float]:
            bench.enter("checking the tables")
            return three_means(errors_of(request, draw(calls), target))

        return error

    wanted = [(name, calls) for name, (_, numbers) in runs.items() for calls in numbers]
    works = {f"check {name} {calls}": (spent.checked * calls, work(runs[name][0], calls)) for name, calls in wanted}
    errors = dict(zip(wanted, kept.all_of(works), strict=True))
    return {name: {str(n): errors[name, n] for n in numbers} for name, (_, numbers) in runs.items() if numbers}


def drawn_by_table(bench: Bench, table: Table) -> Tensor:
    return step_by_table(bench.answers(bench.checked, table.sigmas), bench.x[bench.checked], table)


def drawn_by_recipe(bench: Bench, calls: int) -> Tensor:
    request = bench.request
    own = request.recipe(calls)
    sigmas = own.sigmas(request.law, request.first, 0.0, calls)
    return own.solver(request.law)(bench.denoise(bench.checked, sigmas), bench.x[bench.checked], sigmas)


def drawn_by_2m(bench: Bench, scheduler: str, calls: int) -> Tensor:
    """What the host's dpmpp_2m draws."""
    sigmas = comfy.samplers.calculate_sigmas(bench.request.sampling, scheduler, calls).tolist()
    denoise, student = bench.denoise(bench.checked, sigmas), Multistep2M()
    state = State((sigmas[0],), bench.x[bench.checked])
    for sigma in sigmas[1:]:
        state = student.move(student.know(state, denoise(state.x, state.sigmas[-1])), sigma)
    return state.x
