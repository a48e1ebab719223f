"""What a tuning found, for all its numbers of calls, as a file."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...samplers.calibration import Calibration
from ...samplers.facts import guidance_in, is_budget
from ...samplers.table import Row, Table

KIND = "tuning"
SIGMAS, ROWS = "sigmas ", "rows "  # names of a budget's tensors begin so
TUNED, UNMEASURED = "tuned", "unmeasured"
NAMES = {UNMEASURED: "Boost without Tune"}  # for a person
SHOWN = 12  # lines of the check, on a node
LEAST = 1e-30  # of errors, before a logarithm
HIGHEST_OF_FLOW = 1 + 1e-5  # 1, and the host's rounding


@dataclass(frozen=True, eq=False)
class Tuning:
    """tables: by number of calls. facts: on what they were found; see nodes.measuring.tune.

    facts["check"] maps a name to a map from numbers of calls to [geometric mean, mean, median] of the errors on latents
    that no table was fitted to: "tuned", "unmeasured" (the recipe of Boost), and samplers of the host.
    """

    tables: dict[int, Table]
    facts: dict[str, Any]

    @cached_property
    def used(self) -> tuple[int, ...]:
        """The numbers of calls at which the table won its check."""
        found = ((calls, self.error(TUNED, calls), self.error(UNMEASURED, calls)) for calls in self.tables)
        return tuple(calls for calls, tuned, without in found if tuned is not None and tuned < or_infinite(without))

    def checked(self, name: str) -> dict[int, float]:
        """The geometric means of a name that were checked, by number of calls, rising."""
        found = {int(calls): errors[0] for calls, errors in self.facts["check"].get(name, {}).items()}
        return dict(sorted(found.items()))

    def error(self, name: str, calls: int) -> float | None:
        """The geometric mean that was checked; between numbers of calls by a power law, beyond them the nearest's."""
        checked = self.checked(name)
        if calls in checked or not checked:
            return checked.get(calls)
        at, errors = np.log(list(checked)), np.log([max(error, LEAST) for error in checked.values()])
        if len(at) > 1:
            inside = np.clip(np.log(calls), at[0], at[-1])
            return float(np.exp(np.interp(inside, at, errors)))
        return float(np.exp(errors[0]))

    @property
    def rivals(self) -> list[str]:
        return [name for name in self.facts["check"] if name not in (TUNED, UNMEASURED) and self.checked(name)]

    def reaches(self, calls: int, rival: str) -> float | None:
        """How many calls the rival would need for what the table of so many calls reaches; None where it never did.

        Between the checked numbers of calls by a power law.
        """
        checked, ours = {n: max(error, LEAST) for n, error in self.checked(rival).items()}, self.error(TUNED, calls)
        for fewer, more in pairwise(checked):
            if ours is not None and checked[fewer] >= max(ours, LEAST) >= checked[more]:
                whole = math.log(checked[fewer] / checked[more])
                share = math.log(checked[fewer] / max(ours, LEAST)) / max(whole, 1e-12)
                return fewer * (more / fewer) ** share
        return None

    def sentence(self) -> str:
        """The one a person needs."""
        for calls in (8, 6, 10, *self.used):
            for rival in [*self.rivals, UNMEASURED] if calls in self.used else ():
                checked, theirs = self.checked(rival), self.reaches(calls, rival)
                most, name = max(checked, default=0), NAMES.get(rival, rival)
                if theirs and theirs > calls:
                    return f"{calls} calls now reach what {name} reaches with {theirs:.0f}."
                if most > calls and or_infinite(self.error(TUNED, calls)) < checked[most]:
                    return f"{calls} calls now come nearer than {name} with {most}."
        return "" if self.used else "No table won its check: nothing was gained on this model."

    def describe(self) -> str:
        """For the node: what it is worth, at every number of calls."""
        facts = self.facts
        prompts = f", {facts['prompts']} prompts" if "prompts" in facts else ""
        head = f"{facts['effort']}: {facts['calls']} model calls of one latent, {guidance_in(facts)}{prompts}"
        lines = [*filter(None, (self.sentence(), head)), ""]
        for calls in sorted(self.tables)[:SHOWN]:
            tuned, without = self.error(TUNED, calls), self.error(UNMEASURED, calls)
            verdict = "used" if calls in self.used else "not used"
            about = "" if str(calls) in facts["check"].get(UNMEASURED, {}) else "about "
            lines.append(f"{calls} calls: error {told(tuned)}, without Tune {about}{told(without)}: {verdict}")
        further = [str(calls) for calls in sorted(self.tables)[SHOWN:] if calls in self.used]
        return "\n".join([*lines, f"used too: {', '.join(further)} calls"] if further else lines)

    def calibration(self) -> Calibration:
        tensors: dict[str, Tensor] = {}
        for calls, table in self.tables.items():
            tensors[f"{SIGMAS}{calls}"] = torch.tensor(table.sigmas, dtype=torch.float64)
            tensors[f"{ROWS}{calls}"] = packed(table)
        return Calibration(KIND, tensors, self.facts)


def or_infinite(error: float | None) -> float:
    """The same number; infinity where nothing was checked, or what was checked diverged."""
    return math.inf if error is None or math.isnan(error) else error


def told(error: float | None) -> str:
    return "unknown" if error is None else f"{error:.1e}"


def packed(table: Table) -> Tensor:
    """(steps, 1 + parts order): kept, then the weights of x0, then of push, with 0 for answers not there yet."""
    rows = torch.zeros(len(table.rows), 1 + table.parts * table.order, dtype=torch.float64)
    for number, row in enumerate(table.rows):
        rows[number, 0] = row.kept
        for part, weights in enumerate(row.weights):
            begin = 1 + part * table.order
            rows[number, begin : begin + len(weights)] = torch.tensor(weights, dtype=torch.float64)
    return rows


def unpacked(sigmas: Tensor, rows: Tensor, parts: int) -> Table:
    """Raises ValueError for tensors that are no table."""
    order, rest = divmod(rows.shape[-1] - 1, parts) if rows.ndim == 2 else (0, 0)
    if rest or order < 1 or not (rows.isfinite().all() and sigmas.isfinite().all()):
        raise ValueError("These rows belong to no table.")
    made = []
    for number, (kept, *weights) in enumerate(rows.tolist()):
        known = min(number + 1, order)
        made.append(Row(kept, tuple(tuple(weights[p * order : p * order + known]) for p in range(parts))))
    return Table(tuple(sigmas.flatten().tolist()), tuple(made))


def load_tuning(path: Path) -> Tuning:
    """From a file of `Tuning.calibration`. Raises ValueError in words for what is not one, or holds nonsense."""
    calibration = Calibration.load(path, KIND)
    tables: dict[int, Table] = {}
    for name, sigmas in calibration.tensors.items():
        calls = name.removeprefix(SIGMAS)
        rows = calibration.tensors.get(f"{ROWS}{calls}")
        if not name.startswith(SIGMAS) or rows is None or not is_budget(calls):
            continue
        try:
            tables[int(calls)] = unpacked(sigmas, rows, calibration.facts["parts"])
        except ValueError as error:
            raise ValueError(f"{path.name} holds no table for {calls} calls; tune again.") from error
        if len(rows) != int(calls) or (calibration.facts["is_flow"] and float(sigmas.max()) > HIGHEST_OF_FLOW):
            raise ValueError(f"{path.name} holds a table of other calls or sigmas than {calls}; tune again.")
    if not tables:
        raise ValueError(f"{path.name} holds no table; tune again.")
    return Tuning(dict(sorted(tables.items())), calibration.facts)
