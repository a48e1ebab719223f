"""What a search found, for all its numbers of steps, as a file."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from ...samplers.calibration import Calibration
from ...samplers.facts import guidance_in, is_budget
from ...samplers.streams import in_order

KIND = "schedule"
HIGHEST = 1e6  # of a sigma
HIGHEST_OF_FLOW = 1 + 1e-5  # 1, and the host's rounding


@dataclass(frozen=True, eq=False)
class Schedules:
    """sigmas: of each number of steps. facts: for what they were searched; see nodes.measuring.search.

    facts["errors"] maps a number of steps to [geometric mean, mean, median] over latents that the search did not see;
    facts["compared"] the name of every schedule that was tried at facts["steps"] to the same; facts["chosen"] is the
    name of the best. Of latents of several streams facts["errors_by_stream"] and facts["compared_by_stream"] have the
    same of each stream, by its name.
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
        lines = [f"{facts['solver']}, {facts['steps']} calls, {guidance_in(facts)}: {facts['chosen']}"]
        lines += [f"error {errors[0]:.1e} {name}{self.by_stream(name)}" for name, errors in self.best(5)]
        by_calls = sorted(facts["errors"].items(), key=lambda entry: int(entry[0]))
        others = (f"{n}: {errors[0]:.1e}" for n, errors in by_calls)
        lines.append("by calls " + ", ".join(others))
        streams = facts.get("errors_by_stream", {})
        for stream, _ in in_order(facts, streams.get(str(facts["steps"]), {})):
            own = ((n, streams[n][stream]) for n, _ in by_calls if stream in streams.get(n, {}))
            lines.append(f"of {stream} " + ", ".join(f"{n}: {errors[0]:.1e}" for n, errors in own))
        lines.append("sigmas " + " ".join(f"{sigma:.4g}" for sigma in self.sigmas[facts["steps"]]))
        return "\n".join(lines)

    def by_stream(self, name: str) -> str:
        """Of one of the compared: what each stream's error is; empty where there is one stream."""
        streams = self.facts.get("compared_by_stream", {}).get(name, {})
        told = ", ".join(f"{stream} {errors[0]:.1e}" for stream, errors in in_order(self.facts, streams))
        return f" ({told})" if told else ""

    def calibration(self) -> Calibration:
        tensors = {str(n): torch.tensor(sigmas, dtype=torch.float64) for n, sigmas in self.sigmas.items()}
        return Calibration(KIND, tensors, self.facts)


def load_schedules(path: Path) -> Schedules:
    """From a file of `Schedules.calibration`. Raises ValueError in words for what is not one, or holds nonsense."""
    calibration = Calibration.load(path, KIND)
    sigmas = {}
    for name, tensor in calibration.tensors.items():
        values = tensor.flatten().tolist()
        falls = all(high > low >= 0 for high, low in pairwise(values)) and all(v < HIGHEST for v in values)
        if not is_budget(name) or len(values) != int(name) + 1 or not falls:
            raise ValueError(f"{path.name} holds no falling sigmas for {name[:40]} steps; search again.")
        sigmas[int(name)] = tuple(values)
    if calibration.facts["steps"] not in sigmas:
        raise ValueError(f"{path.name} lacks the sigmas for its {calibration.facts['steps']} steps; search again.")
    if calibration.facts["is_flow"] and max(values[0] for values in sigmas.values()) > HIGHEST_OF_FLOW:
        raise ValueError(f"{path.name} holds sigmas above 1, which a flow model has not; search again.")
    return Schedules(dict(sorted(sigmas.items())), calibration.facts)
