"""What a search found, for all its numbers of steps, as a file."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from ...samplers.calibration import Calibration

KIND = "schedule"
NEEDED = ("solver", "steps", "shift_factor", "is_flow")


@dataclass(frozen=True, eq=False)
class Schedules:
    """sigmas: of each number of steps. facts: for what they were searched; see nodes.measuring.search.

    facts["errors"] maps a number of steps to [geometric mean, mean, median] over latents that the search did not see;
    facts["compared"] the name of every schedule that was tried at facts["steps"] to the same; facts["chosen"] is the
    name of the best.
    """

    sigmas: dict[int, tuple[float, ...]]
    facts: dict[str, Any]

    def nearest(self, steps: int) -> int:
        """The number of steps there is that is nearest to `steps`, the higher of two."""
        return min(self.sigmas, key=lambda n: (abs(n - steps), -n))

    def best(self, count: int) -> list[tuple[str, list[float]]]:
        """The best of the compared, and their errors."""
        return sorted(self.facts["compared"].items(), key=lambda entry: entry[1][0])[:count]

    def describe(self) -> str:
        """For the node: the choice, what it was compared with, and the other numbers of steps."""
        facts = self.facts
        lines = [f"{facts['solver']}, {facts['steps']} calls, cfg {facts['cfg']:g}: {facts['chosen']}"]
        lines += [f"error {errors[0]:.1e} {name}" for name, errors in self.best(5)]
        others = (f"{n}: {errors[0]:.1e}" for n, errors in facts["errors"].items())
        lines.append("by calls " + ", ".join(others))
        lines.append("sigmas " + " ".join(f"{sigma:.4g}" for sigma in self.sigmas[facts["steps"]]))
        return "\n".join(lines)

    def calibration(self) -> Calibration:
        tensors = {str(n): torch.tensor(sigmas, dtype=torch.float64) for n, sigmas in self.sigmas.items()}
        return Calibration(KIND, tensors, self.facts)


def load_schedules(path: Path) -> Schedules:
    """From a file of `Schedules.calibration`. Raises ValueError in words for what is not one, or holds nonsense."""
    calibration = Calibration.load(path, KIND)
    missing = [name for name in NEEDED if name not in calibration.facts]
    if missing or not calibration.tensors:
        raise ValueError(f"{path.name} lacks {', '.join(missing) or 'its sigmas'}; search again.")
    sigmas = {}
    for name, tensor in calibration.tensors.items():
        values = tensor.double().flatten().tolist()
        falls = all(high > low >= 0 for high, low in pairwise(values))
        if not name.isdigit() or len(values) != int(name) + 1 or not falls or not tensor.isfinite().all():
            raise ValueError(f"{path.name} holds no falling sigmas for {name} steps; search again.")
        sigmas[int(name)] = tuple(values)
    return Schedules(dict(sorted(sigmas.items())), calibration.facts)
