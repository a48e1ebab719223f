"""Statistics together with what is known of them: where they were measured, and at which budgets they helped."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..calibration import Calibration
from ..facts import guidance_in
from ..streams import Streams, in_order, streams_in
from .statistics import Statistics
from .sums import SUMMED, Sums, continued

KIND = "statistics"
WINDOW = 0.3  # of lambda: half width of all smoothing
BUDGETS = (5, 8, 10, 20)


@dataclass(frozen=True, eq=False)
class Measured:
    """statistics: the table. facts: see nodes.host.identity. sums: what it was made from, None for the authors' files.

    facts["check"] maps a budget of model calls to the errors, on latents that the table was not made from: "1" and "2",
    with it at these orders, and "without" it (geometric means of the squared distance to the converged latent).
    Of several streams facts["streams"] has the shapes, and facts["check_by_stream"] the same errors of each.
    """

    statistics: Statistics
    facts: dict[str, Any] = field(default_factory=dict)
    sums: Sums | None = None

    @classmethod
    def of(cls, sums: Sums, facts: dict[str, Any]) -> Measured:
        return cls(continued(sums.statistics(WINDOW, WINDOW)), facts, sums)

    def best_order(self, calls: int) -> int | None:
        """1 or 2, the highest order that the table is good for at so many calls; None where it is good for nothing.

        As found at the checked budget nearest to `calls`. Unchecked tables are trusted.
        """
        check = self.facts.get("check")
        if not check:
            return 2
        nearest = min(check, key=lambda budget: abs(math.log(int(budget) / max(calls, 1))))
        return best_of(check[nearest])

    @property
    def fewest_calls(self) -> int:
        """The smallest budget that was checked, or would have been."""
        return min(map(int, self.facts.get("check") or BUDGETS))

    @property
    def fewest_good_calls(self) -> int:
        """The smallest budget at which the table was found good, or the smallest of all."""
        check = self.facts.get("check") or {}
        return min((int(budget) for budget, error in check.items() if best_of(error)), default=self.fewest_calls)

    def remarks_on(self, streams: Streams, remedy: str) -> list[str]:
        """What differs in the streams of a latent. Raises ValueError where its numbers belong to no stream here."""
        own, here = ([shape[0] for shape in one.shapes if one.is_pack] for one in (streams_in(self.facts), streams))
        if own == here:
            return []
        if self.statistics.features.numel() == 1:
            return ["The statistics were measured on latents of one stream, and one number is taken for all streams."]
        told = [f"{len(c)} streams of {' and '.join(map(str, c))} channels" if c else "one stream" for c in (own, here)]
        raise ValueError(f"The statistics were measured on latents of {told[0]}; this latent has {told[1]}. {remedy}")

    def describe(self) -> str:
        """For the node: where from, and the check, a line a budget."""
        facts = self.facts
        if "source" in facts:
            return f"{facts['source']}: {len(self.statistics.lam)} levels, not checked"
        lines = [f"{facts['images']} images, {facts['levels']} levels, {guidance_in(facts)}, {facts['derivative']}"]
        for budget, error in sorted(facts.get("check", {}).items(), key=lambda entry: int(entry[0])):
            order = best_of(error)
            with_it = min(error["1"], error["2"])
            verdict = f"used, order {order}" if order else "not used"
            lines.append(f"{budget} calls: error {with_it:.1e}, without {error['without']:.1e}: {verdict}")
            for stream, one in in_order(facts, facts.get("check_by_stream", {}).get(budget, {})):
                with_it = one[str(order)] if order else min(one["1"], one["2"])
                lines.append(f"  {stream}: error {with_it:.1e}, without {one['without']:.1e}")
        return "\n".join(lines if facts.get("check") else [*lines, "not checked"])

    def calibration(self) -> Calibration:
        """As a file. Raises ValueError for tables that were not measured here."""
        if self.sums is None:
            raise ValueError("Only measured statistics are saved; the authors' files are files already.")
        return Calibration(KIND, dict(vars(self.sums)), self.facts)


def best_of(error: dict[str, float]) -> int | None:
    """The order with the smallest error in one entry of a check, or None where it is smallest without the table."""
    best = min(error, key=lambda name: error[name])
    return None if best == "without" else int(best)


def load_measured(path: Path) -> Measured:
    """From a file of `Measured.calibration`. Raises ValueError in words for what is not one, or holds nonsense."""
    calibration = Calibration.load(path, KIND)
    names = ("lam", *SUMMED)
    missing = [name for name in names if name not in calibration.tensors]
    if missing:
        raise ValueError(f"{path.name} lacks {', '.join(missing)}; measure again.")
    tensors = [calibration.tensors[name] for name in names]
    if not all(tensor.isfinite().all() for tensor in tensors):
        raise ValueError(f"{path.name} holds NaN or infinite numbers; measure again.")
    try:
        measured = Measured.of(Sums(*tensors), calibration.facts)
    except (RuntimeError, IndexError, TypeError) as error:
        raise ValueError(f"The tables of {path.name} do not fit together; measure again.") from error
    channels = calibration.facts.get("channels", measured.statistics.features[0])
    streams = streams_in(calibration.facts)
    allowed = (len(streams.shapes), streams.channels) if streams.is_pack else (1, channels)
    if 0 in measured.statistics.features or measured.statistics.features[0] not in allowed:
        raise ValueError(f"The tables of {path.name} are not of {channels} channels; measure again.")
    return measured


def load_published(folder: Path, lam_first: float, lam_last: float) -> Measured:
    """The authors' l.npz (l) and sb.npz (s, b), (N + 1, C, H, W) each, on N + 1 levels uniform in lambda.

    The files do not hold their levels: those of the model are lam_first (most noise) to lam_last (least).
    Raises ValueError for files that lack an array, and never unpickles.
    """
    tables: dict[str, torch.Tensor] = {}
    for name, keys in (("l.npz", ("l",)), ("sb.npz", ("s", "b"))):
        try:
            with np.load(folder / name, allow_pickle=False) as file:
                tables |= {key: real_table(file[key]) for key in keys}
        except Exception as error:  # what numpy, zipfile and zlib raise for broken bytes is no contract
            said = "it claims more than the memory holds" if isinstance(error, MemoryError) else error
            raise ValueError(f"{folder.name}/{name} cannot be read ({said}). Copy the authors' file again.") from error
    if len({table.shape for table in tables.values()}) > 1:
        shapes = ", ".join(f"{key} {tuple(table.shape)}" for key, table in tables.items())
        raise ValueError(f"The arrays in {folder.name} do not fit together: {shapes}. Copy the authors' files again.")
    lam = torch.linspace(lam_first, lam_last, len(tables["l"]), dtype=torch.float64)
    return Measured(Statistics(lam, **tables), {"source": f"the authors' {folder.name}"})


def real_table(array: np.ndarray) -> torch.Tensor:
    """Float64. Raises ValueError for what is no table (levels, C, H, W) of numbers."""
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu" or array.ndim != 4 or 0 in array.shape:
        raise ValueError("it holds no numbers of the form (levels, channels, height, width)")
    return torch.from_numpy(array.astype(np.float64))
