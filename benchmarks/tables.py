"""`python3 run.py python benchmarks/tables.py`: the tables of the pages, made anew from benchmarks/results.

A table stands in a page between the lines <!-- table: NAME --> and <!-- end of table -->. A test says where pages and
results differ, so a figure is changed by measuring again. What a page says in sentences: claims.py.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from record import rows_of

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).with_name("results")
PAGES = [ROOT / "README.md", ROOT / "demo" / "README.md", *sorted((ROOT / "benchmarks").rglob("*.md"))]
TABLE = re.compile(r"(<!-- table: (.+?) -->\n).*?(<!-- end of table -->)", re.DOTALL)
ANY_TABLE = re.compile(r"^(\|.*)\n\|[-| :]+\|\n((?:\|.*(?:\n|$))+)", re.MULTILINE)
NO_FIGURE = re.compile(r"`[^`]*`|\]\([^)]*\)")  # digits in commands and in addresses
Rows = list[dict[str, Any]]


def results(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def rows(*names: str) -> Rows:
    """Of several results, one after the other."""
    return [row for name in names for row in rows_of(results(name))]


def unmeasured(name: str) -> str:
    """Boost with nothing connected: a row a network and cfg, a column a number of calls, and what it comes to."""
    import boost

    found = rows(name)
    return f"{boost.summary(found)}\n\n{boost.table(found)}"


def ordered() -> str:
    """What Boost's second order gains and costs: a row a network and number of calls."""
    import boost

    return boost.order_table(rows("boost_orders"))


def tuned(part: str) -> str:
    """Tune at effort normal: a row a network and cfg, a column a number of calls."""
    import tune

    return tune.table(results("tune")[part]["rows"], "normal")


def efforts() -> str:
    import tune

    found = results("tune")
    return tune.efforts({"bundled": found["demo"]["rows"], "mixtures": found["mixture"]["rows"]})


def field() -> str:
    import field

    return field.summary(rows("field"))


def searched(found: Rows) -> str:
    """A searched schedule against the best of the host's: a row a solver and a number of calls."""
    import optimal_steps

    return optimal_steps.table([optimal_steps.Row(**row) for row in found])


def searched_by_calls(found: Rows) -> str:
    import optimal_steps

    return optimal_steps.wide([optimal_steps.Row(**row) for row in found])


def guided(found: Rows, made: str = "table") -> str:
    """Kinds of guidance: a row a place on a curve."""
    import guidance_pictures

    return getattr(guidance_pictures, made)([guidance_pictures.Row(**row) for row in found])


def guided_exactly() -> str:
    import guidance

    return guidance.by_kind([guidance.Row(**row) for row in rows("guidance")])


def of_gmflow() -> str:
    import gmflow

    return gmflow.table(rows("gmflow_mixture"))


def measured_by_amounts() -> str:
    import dpm_solver_v3

    return dpm_solver_v3.amounts(rows("statistics_amounts"))


def statistics_used(found: Rows) -> str:
    import dpm_solver_v3

    return dpm_solver_v3.shares([dpm_solver_v3.Row(**row) for row in found])


def evaluated(made: str, name: str = "demo") -> str:
    """Of the bundled model: a table that the demo's own script makes."""
    sys.path.append(str(ROOT / "demo"))  # scripts that stand beside each other, outside of any package
    import evaluate

    return getattr(evaluate, made)(rows(name))


def restarted() -> str:
    import restart

    return restart.table(results("restart")["results"])


def known() -> str:
    """Pictures of which something is known: a row a way to draw the rest."""
    import inverse

    return inverse.table(rows("inverse"))


def built() -> str:
    """The host's families at full size: what our nodes cost there."""
    import architectures

    return architectures.table(results("architectures"))


def dealt_out() -> str:
    import dealt

    return dealt.table(rows("dealt"))


BY_HAND = {
    ("README.md", "| what | costs, in pictures of 20 steps | gains |"): "claims.py",
    ("README.md", "| node | what it gives |"): "claims.py",
    ("benchmarks/README.md", "| you have | use | what it gains | what it costs | where it loses |"): "claims.py",
    ("benchmarks/README.md", "| command | what it measures |"): "no figures but those of the commands",
    ("benchmarks/figures/gmflow.md", "| model, sampler, guidance | 4 calls | 8 calls |"): "results/few_calls.json",
    (
        "benchmarks/figures/dpm_solver_v3.md",
        "| problem | 5 calls | 6 calls | 8 calls | 10 calls | 12 calls | 20 calls |",
    ): "two hours of two cores; DPM-Solver-v3 on the bundled model makes it, once measured on a GPU",
    (
        "benchmarks/figures/optimal_steps.md",
        "| problem, sampler | 4 calls | 5 calls | 6 calls | 8 calls | 10 calls |",
    ): "hours of two cores; Search on the bundled model makes it, once measured on a GPU",
    ("benchmarks/figures/guidance.md", "| guidance | cfg 3 | cfg 5 | cfg 8 | cfg 12 |"): "kinds not measured since",
    ("benchmarks/figures/guidance.md", "| mode | named | likeness | distance | clipped | chroma |"): "the same",
    ("benchmarks/second/README.md", "| | bundled network | second network |"): "sizes",
}  # pages and tables whose figures no result makes, and why not
TABLES: dict[str, Callable[[], str]] = {
    "Boost on mixtures": lambda: unmeasured("boost_mixtures"),
    "Boost on the bundled model": lambda: unmeasured("boost_bundled"),
    "Boost on the second network": lambda: unmeasured("boost_second"),
    "the order of Boost": ordered,
    "Tune by effort": efforts,
    "Tune on the bundled network": lambda: tuned("demo"),
    "Tune on mixtures": lambda: tuned("mixture"),
    "the field's samplers": field,
    "guidance on mixtures": guided_exactly,
    "guidance by cfg": lambda: guided(rows("guidance_pictures"), "by_guidance"),
    "prompt_cfg": lambda: guided(rows("guidance_pictures"), "others"),
    "GMFlow on a mixture": of_gmflow,
    "GMFlow on the bundled model": lambda: evaluated("few_calls_table", "few_calls"),
    "pictures of the bundled model": lambda: evaluated("quality_table"),
    "velocity of the bundled model": lambda: evaluated("velocity_table"),
    "Search on mixtures": lambda: searched_by_calls(rows("optimal_steps_mixtures")),
    "Search on the bundled model": lambda: searched_by_calls(rows("optimal_steps_bundled")),
    "Search on the second network": lambda: searched(results("second")["optimal_steps"]),
    "guidance on the second network": lambda: guided(results("second")["guidance"]),
    "DPM-Solver-v3 on mixtures": lambda: statistics_used(rows("dpm_solver_v3_mixtures")),
    "how much must be measured": measured_by_amounts,
    "DPM-Solver-v3 on the bundled model": lambda: statistics_used(rows("dpm_solver_v3_bundled")),
    "DPM-Solver-v3 on the second network": lambda: statistics_used(results("second")["dpm_solver_v3"]["rows"]),
    "Restart": restarted,
    "networks at full size": built,
    "many workers": dealt_out,
    "inverse problems": known,
}


def by_hand(page: str) -> list[str]:
    """The first lines of the tables with figures that no result makes."""
    tables = ANY_TABLE.findall(TABLE.sub("", page))
    return [head for head, body in tables if re.search(r"\d", NO_FIGURE.sub("", body))]


def not_listed() -> list[str]:
    """Tables by hand that BY_HAND does not name, and names in it that no table has."""
    found = [(path.relative_to(ROOT).as_posix(), head) for path in PAGES for head in by_hand(path.read_text("utf-8"))]
    return [f"{page}: {head}" for page, head in sorted({*found} ^ {*BY_HAND})]


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
