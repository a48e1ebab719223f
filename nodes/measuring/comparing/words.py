"""A comparison as a person reads it: sentences, a table; and as CSV and JSON. Pure: nothing here knows of the host."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from .figures import ODE, SDE, Curve, Row, at_calls, curves, shown_calls

YARDSTICK = "euler simple"  # what others are told in, where it was drawn
FAR_ENOUGH = 4.0  # times what is known of the reference: nearer to it, errors are the reference's own
FEW = 16  # pictures below which a distance of sets is mostly chance
COLUMNS = ("entry", "calls", "error", "median", "lowest", "highest", "seconds", "as a set")
KINDS = {SDE: "draws noise", "other": "CFG++"}


@dataclass(frozen=True)
class Told:
    """What was compared on, beside the rows. known: mean square, how well the converged pictures are."""

    images: int
    seed: int
    cfg: float
    reference_steps: int
    known: float
    device: str = ""


def sentences(rows: Sequence[Row], told: Told) -> list[str]:
    """What a person needs first."""
    found = [*nearest(rows), *same_time(rows), *own_times(rows), known(rows, told), *sets(rows, told)]
    refused = [f"{row.label}{at(row)} was left out: {row.refused}" for row in rows if not row.is_drawn]
    return [*found, *refused]


def nearest(rows: Sequence[Row]) -> list[str]:
    """The best at one number of calls, and what the yardstick needs for as much."""
    calls = shown_calls(rows)
    if calls is None:
        return ["Every entry draws noise of its own: there is no one picture to be near to."]
    best = at_calls(rows)[calls][0]
    found = f"At {calls} calls {best.label} is nearest to the converged picture: error {short(best.error)}."
    yardstick = next((curve for curve in curves(rows) if curve.label == YARDSTICK), None)
    if yardstick is None or best.label == YARDSTICK:
        return [found]
    needs = yardstick.calls_for(best.error)
    most = yardstick.rows[-1].calls
    if needs is None:
        return [f"{found} {YARDSTICK} is not there with {most} calls: {short(yardstick.rows[-1].error)}."]
    return [f"{found} {YARDSTICK} needs {needs:.3g} calls for that."]


def same_time(rows: Sequence[Row]) -> list[str]:
    """All that can be read at the seconds of the yardstick at that number of calls, the nearest first."""
    calls, all_curves = shown_calls(rows), curves(rows)
    if calls is None:
        return []
    level = at_calls(rows)[calls]
    (row, *_) = [row for row in level if row.label == YARDSTICK] or level
    read = in_time(all_curves, row.time)
    if len(read) < 2:
        return []
    listed = ", ".join(f"{label} {short(error)}" for label, error in read[:4])
    return [f"In the same time, {seconds(row.time)} ({row.label}, {calls} calls): {listed}."]


def in_time(all_curves: Sequence[Curve], time: float) -> list[tuple[str, float]]:
    read = [(curve.label, curve.error_at(time)) for curve in all_curves]
    return sorted(((label, error) for label, error in read if error is not None), key=lambda pair: pair[1])


def own_times(rows: Sequence[Row]) -> list[str]:
    """Of every entry of the person's that is a single point: where the others are in its time."""
    all_curves = curves(rows)
    found = []
    for curve in all_curves:
        (row, *more) = curve.rows
        if more or not row.own:
            continue
        others = in_time([other for other in all_curves if other is not curve and len(other.rows) > 1], row.time)
        if others:
            label, error = others[0]
            found.append(
                f"{row.label} takes {seconds(row.time)} for {short(row.error)}; {label} has {short(error)} by then."
            )
    return found


def known(rows: Sequence[Row], told: Told) -> str:
    """On what it was measured, and how far that can be trusted."""
    last = (told.seed + told.images - 1) % 2**64
    seeds = f"seed {told.seed}" if told.images == 1 else f"seeds {told.seed} to {last}"
    pictures = "1 picture" if told.images == 1 else f"{told.images} pictures"
    steps = f"{told.reference_steps} and {told.reference_steps // 2} steps differ by that"
    text = f"{pictures}, {seeds}, cfg {told.cfg:g}. The converged picture is known to {short(told.known)}: {steps}."
    errors = [row.error for row in rows if row.is_drawn and row.kind == ODE]
    if errors and min(errors) < FAR_ENOUGH * told.known:
        text += " The smallest errors are no larger than that: raise reference_steps."
    return text


def sets(rows: Sequence[Row], told: Told) -> list[str]:
    names = {kind: list(dict.fromkeys(r.label for r in rows if r.is_drawn and r.kind == kind)) for kind in KINDS}
    found = []
    if names[SDE]:
        found.append(f"{', '.join(names[SDE])}: drawing noise on the way, each run ends at a picture of its own.")
    if names["other"]:
        found.append(f"{', '.join(names['other'])}: CFG++ follows another equation, to another picture.")
    if found:
        few = f" With fewer than {FEW} pictures it is mostly chance." if told.images < FEW else ""
        found.append(f"So these are told as a set, by the sliced energy distance to the converged ones.{few}")
    return found


def at(row: Row) -> str:
    return f" at {row.steps} steps" if row.steps else ""


# ---------------------------------------------------------------------------------------------------------
# The table


def table(rows: Sequence[Row]) -> str:
    """In Markdown, and readable as it is: by calls, the nearest first."""
    lines = [COLUMNS, *(cells(row) for row in ordered(rows))]
    widths = [max(len(line[column]) for line in lines) for column in range(len(COLUMNS))]
    padded = [[cell.ljust(w) if not i else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))]
              for line in lines]  # fmt: skip
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join(f"| {' | '.join(line)} |" for line in [padded[0], rule, *padded[1:]])


def ordered(rows: Sequence[Row]) -> list[Row]:
    return sorted((row for row in rows if row.is_drawn), key=lambda r: (r.calls, r.kind != ODE, r.error))


def cells(row: Row) -> tuple[str, ...]:
    distance = "" if row.distance is None else short(row.distance)
    middle = (short(row.error), short(median(row.errors)), short(min(row.errors)), short(max(row.errors)))
    errors = middle if row.kind == ODE else (KINDS[row.kind], "", "", "")
    return (row.label.replace("|", "/"), str(row.calls), *errors, f"{row.time:.3g}", distance)


def short(number: float) -> str:
    """Two digits, as few characters as they need."""
    if number and not 1e-3 <= abs(number) < 1e4:
        return f"{number:.1e}"
    return f"{number:.2g}" if abs(number) < 100 else f"{number:.0f}"


def seconds(time: float) -> str:
    return f"{time:.2g} s" if time < 10 else f"{time:.0f} s"


# ---------------------------------------------------------------------------------------------------------
# Files


FIELDS = (
    "label", "steps", "kind", "calls", "error", "median", "lowest", "highest", "seconds", "distance", "own", "refused"
)  # fmt: skip


def figures(row: Row) -> dict[str, Any]:
    """A row by name, with what cannot be said of it as None."""
    drawn = row.is_drawn
    errors = row.errors if drawn and row.kind == ODE else ()
    return {
        "label": row.label,
        "steps": row.steps,
        "kind": row.kind if drawn else None,
        "calls": row.calls if drawn else None,
        "error": row.error if errors else None,
        "median": median(errors) if errors else None,
        "lowest": min(errors) if errors else None,
        "highest": max(errors) if errors else None,
        "seconds": row.time if drawn else None,
        "distance": row.distance,
        "own": row.own,
        "refused": row.refused or None,
    }


def as_csv(rows: Sequence[Row]) -> str:
    """A line a row; what cannot be said of one is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(figures(row) for row in rows)
    return text.getvalue()


def as_json(rows: Sequence[Row], told: Told, facts: dict[str, Any]) -> str:
    """All that is known: of every row also its sigmas, and the error and the seconds of every picture."""
    each = [
        figures(row) | {"sigmas": row.sigmas, "errors_of_pictures": row.errors, "seconds_of_pictures": row.seconds}
        for row in rows
    ]
    return json.dumps({"compared": vars(told) | facts, "rows": each}, indent=1, default=str)
