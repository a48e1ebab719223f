"""`python3 run.py python benchmarks/tables.py`: the tables of the pages, made anew from benchmarks/results.

A table stands in a page between the lines <!-- table: NAME --> and <!-- end of table -->. A test says where pages and
results differ, so a figure is changed by measuring again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).with_name("results")
PAGES = [ROOT / "README.md", ROOT / "demo" / "README.md", *sorted((ROOT / "benchmarks").rglob("*.md"))]
TABLE = re.compile(r"(<!-- table: (.+?) -->\n).*?(<!-- end of table -->)", re.DOTALL)


def results(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def tuned(part: str) -> str:
    """Tune at effort normal: a row a network and cfg, a column a number of calls."""
    import tune

    return tune.table(results("tune")[part]["rows"], "normal")


def field() -> str:
    import field

    return field.summary(results("field"))


def searched(rows: list[dict[str, Any]]) -> str:
    """A searched schedule against the best of the host's: a row a solver and a number of calls."""
    import optimal_steps

    return optimal_steps.table([optimal_steps.Row(**row) for row in rows])


def guided(rows: list[dict[str, Any]]) -> str:
    """Kinds of guidance: a row a place on a curve."""
    import guidance_pictures

    return guidance_pictures.table([guidance_pictures.Row(**row) for row in rows])


def against_the_best(rows: list[dict[str, Any]], ours: str) -> str:
    """Our error by that of the best other sampler, a row a problem, a column a number of calls."""
    calls = sorted({row["calls"] for row in rows})
    lines = [f"| problem | {' | '.join(f'{n} calls' for n in calls)} |", "|---" * (len(calls) + 1) + "|"]
    for problem in dict.fromkeys(row["problem"] for row in rows):
        cells = []
        for n in calls:
            there = [row for row in rows if (row["problem"], row["calls"]) == (problem, n)]
            rivals = [
                row for row in there if row["sampler"].split()[0] != ours.split()[0]
            ]  # nor ours without statistics
            mine, theirs = (
                min(some, key=lambda row: row["geometric"])
                for some in ([row for row in there if row["sampler"] == ours], rivals)
            )
            share = mine["geometric"] / theirs["geometric"]
            cells.append(f"{mine['geometric']:.1e} / {theirs['geometric']:.1e} {theirs['sampler']} ({share:.0%})")
        lines.append(f"| {problem} | {' | '.join(cells)} |")
    return "\n".join(lines)


def known() -> str:
    """Pictures of which something is known: a row a way to draw the rest."""
    import inverse

    return inverse.table(results("inverse"))


def built() -> str:
    """The host's families at full size: what our nodes cost there."""
    import architectures

    return architectures.table(results("architectures"))


TABLES: dict[str, Callable[[], str]] = {
    "Tune on the bundled network": lambda: tuned("demo"),
    "Tune on mixtures": lambda: tuned("mixture"),
    "the field's samplers": field,
    "prompt_cfg": lambda: guided(results("guidance_pictures")["rows"]),
    "Search on the second network": lambda: searched(results("second")["optimal_steps"]),
    "guidance on the second network": lambda: guided(results("second")["guidance"]),
    "DPM-Solver-v3 on the second network": lambda: against_the_best(
        results("second")["dpm_solver_v3"]["rows"], "v3 when_checked"
    ),
    "networks at full size": built,
    "inverse problems": known,
}


def remade(page: str) -> str:
    """The text of a page with its tables made anew. Raises KeyError for a table that nobody makes."""
    return TABLE.sub(lambda found: f"{found[1]}{TABLES[found[2]]()}\n{found[3]}", page)


def main() -> None:
    for path in PAGES:
        page = path.read_text(encoding="utf-8")
        if (new := remade(page)) != page:
            path.write_text(new, encoding="utf-8")
            print(f"{path.relative_to(ROOT)} is made anew")


if __name__ == "__main__":
    main()
