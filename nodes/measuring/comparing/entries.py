"""What is compared: the person's entries, what people use, and what Boost runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import comfy.samplers
import torch

from ....samplers.noise_law import NoiseLaw
from ....samplers.sigmas import checked_sigmas
from ....schedulers.tuning.tuning import Tuning
from ...host.boost import Boost, Instead, Run, calls_of, check_run, function_of, name_of
from .figures import ODE, OTHER

# What workflows of the field run; those that a host does not have are left out.
USED = (
    ("euler", "simple"),
    ("uni_pc", "simple"),
    ("dpmpp_2m", "karras"),
    ("dpmpp_2m", "beta"),
    ("res_multistep", "simple"),
    ("er_sde", "simple"),
    ("cfgpp_ud10_ab", "simple"),
)
BEGINNING = USED[0]  # what Boost is put before
OTHER_EQUATIONS = ("cfg_pp", "cfgpp")  # of a sampler's name: CFG++ ends at another picture by design
LONGEST = 60  # letters of a label


@dataclass(frozen=True, eq=False)
class Entry:
    """A person's. sigmas: as they came in; looked at where they are compared, so that one bad entry stops no other."""

    label: str
    sampler: Any
    sigmas: Any
    guider: Any = None


@dataclass(frozen=True, eq=False)
class Candidate:
    """What is run and how it is told. refused: why it cannot be, in words."""

    label: str
    sampler: Any = None
    sigmas: tuple[float, ...] = ()
    guider: Any = None
    own: bool = False
    ours: bool = False
    refused: str = ""
    steps_asked: int = 0  # where there are no sigmas

    @property
    def steps(self) -> int:
        return max(len(self.sigmas) - 1, 0) or self.steps_asked

    @property
    def expected_calls(self) -> int:
        """Before it was run."""
        return calls_of(self.sampler, self.steps, not self.sigmas or self.sigmas[-1] == 0)

    @property
    def kind(self) -> str:
        """As far as the name tells."""
        name = f"{name_of(self.sampler)} {getattr(function_of(self.sampler), '__name__', '')}"
        return OTHER if any(word in name for word in OTHER_EQUATIONS) else ODE


def of_person(entries: Iterable[Any], law: NoiseLaw) -> list[Candidate]:
    """Those that are connected, in their order; two of one label at one number of steps are told apart."""
    found: list[Candidate] = []
    for number, entry in enumerate(entries, 1):
        made = candidate(entry, number, law)
        same = [other for other in found if other.label == made.label and other.steps == made.steps]
        found.append(replace(made, label=f"{made.label} ({len(same) + 1})") if same else made)
    return found


def candidate(entry: Any, number: int, law: NoiseLaw) -> Candidate:
    """Of an entry, which is refused in words where it is none."""
    if not isinstance(entry, Entry):
        return Candidate(f"entry {number}", own=True, refused=f"it is a {type(entry).__name__}. Connect an Entry.")
    label = label_of(entry, number)
    try:
        check_sampler(entry.sampler)
        sigmas = sigmas_of(entry.sigmas, law)
    except ValueError as error:
        return Candidate(label, own=True, refused=str(error))
    return Candidate(label, entry.sampler, sigmas, entry.guider, own=True)


def label_of(entry: Entry, number: int) -> str:
    """The person's, on one line; the sampler's name where there is none."""
    given = " ".join(str(entry.label).split())
    printable = "".join(letter for letter in given if letter.isprintable())
    return printable[:LONGEST] or f"{number}: {name_of(entry.sampler)}"


def check_sampler(sampler: Any) -> None:
    if not callable(getattr(sampler, "sample", None)):
        raise ValueError(f"its sampler is a {type(sampler).__name__}. Connect a SAMPLER.")


def sigmas_of(given: Any, law: NoiseLaw) -> tuple[float, ...]:
    """Raises ValueError, in words, for what is no schedule of this model's."""
    if not torch.is_tensor(given):
        raise ValueError(f"its sigmas are a {type(given).__name__}. Connect SIGMAS.")
    checked = checked_sigmas(given, law)
    if len(checked) < 2:
        raise ValueError(f"it has {len(checked)} sigmas; a schedule has two or more. Connect a scheduler.")
    return tuple(given.detach().cpu().double().tolist())


# ---------------------------------------------------------------------------------------------------------
# Beside the person's


def used(model: Any, calls: Sequence[int]) -> list[Candidate]:
    """What people use, at so many steps each, as KSampler makes their sigmas."""
    known = [(name, scheduler) for name, scheduler in USED if name in comfy.samplers.SAMPLER_NAMES]
    return [used_at(model, name, scheduler, steps) for name, scheduler in known for steps in calls]


def used_at(model: Any, name: str, scheduler: str, steps: int) -> Candidate:
    label = f"{name} {scheduler}"
    try:
        sigmas = comfy.samplers.KSampler(model, steps, model.load_device, name, scheduler).sigmas
    except Exception as error:  # schedulers fail in ways of their own at few steps
        return Candidate(label, steps_asked=steps, refused=f"{scheduler} has no {steps} steps ({error}).")
    return Candidate(label, comfy.samplers.sampler_object(name), tuple(sigmas.double().tolist()))


def ours(guider: Any, calls: Sequence[int], tuning: Tuning | None) -> list[Candidate]:
    """What Boost runs in the place of the first of those, without a tuning and with it."""
    boosts = {"Boost (FewStep)": Boost()}
    if tuning is not None:
        boosts = {"Boost, tuned (FewStep)": Boost(tuning=tuning)} | boosts
    return [boosted_at(guider, label, boost, steps) for label, boost in boosts.items() for steps in calls]


def boosted_at(guider: Any, label: str, boost: Boost, steps: int) -> Candidate:
    start = used_at(guider.model_patcher, *BEGINNING, steps)
    try:
        chosen = exchanged(guider, boost, start)
    except ValueError as error:
        return Candidate(label, ours=True, steps_asked=steps, refused=str(error))
    return Candidate(label, chosen.sampler, chosen.sigmas, ours=True)


def exchanged(guider: Any, boost: Boost, start: Candidate) -> Instead:
    """Raises ValueError, in words, where Boost would leave it as it is."""
    if start.refused:
        raise ValueError(start.refused)
    run = Run(guider, start.sampler, start.sigmas)
    check_run(run)
    return boost.chosen(run)
