"""What test_tables asks of benchmarks/tables.py and claims.py, as JSON: a script, because they start a host."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path += [str(Path(os.environ["FEWSTEP_ROOT"], folder)) for folder in ("benchmarks", "demo")]
import claims  # noqa: E402
import record  # noqa: E402
import tables  # noqa: E402

HALF = "| of | share |\n|---|---|\n| euler | 50 % |\n"
MARKED = "<!-- table: the field's samplers -->\n| 1 |\n<!-- end of table -->"


def about_tables() -> dict[str, Any]:
    pages = {path.relative_to(tables.ROOT).as_posix(): path.read_text(encoding="utf-8") for path in tables.PAGES}
    return {
        "tables": sum(len(tables.TABLE.findall(page)) for page in pages.values()),
        "differ": [name for name, page in pages.items() if tables.remade(page) != page],
        "remade": tables.remade(MARKED),
        "not listed": tables.not_listed(),
        "by hand": tables.by_hand(HALF + "\n" + HALF.replace("50", "`50`")),
    }


def of_made_up_rows() -> dict[str, str]:
    """The tables of results that take long to measure: the first row of each."""
    import dpm_solver_v3
    import evaluate
    import guidance
    import optimal_steps

    drawn = {"variant": "flow", "sampler": "euler", "guidance": "cfg 3", "named_picture": 99, "its_subcategory": 100}
    schedules = {"beta": (0.5, 0.2, 0.04), "karras": (0.1, 0.1, 0.1), "searched": (0.25, 0.1, 0.01)}
    kinds = [
        guidance.Row("eps", cfg, kind, f"w {worse}", 1 + worse, -0.1, 0.02, 0.0)
        for cfg in (3.0, 5.0)
        for kind in guidance.GRID
        for worse in (0, 1)
    ]
    amounts = [
        {"cfg": 1, "amount": amount, "errors": {"5": 0.001, "8": 0.0002}}
        for amount in [None, *map(list, dpm_solver_v3.AMOUNTS)]
    ]
    made = {
        "few calls": evaluate.few_calls_table([drawn | {"calls": n, "to_the_nearest": n / 10} for n in (8, 4)]),
        "plans": optimal_steps.wide(
            [optimal_steps.Row("mixture", "euler", n, name, *row) for n in (4, 8) for name, row in schedules.items()]
        ),
        "kinds": guidance.by_kind(kinds),
        "amounts": dpm_solver_v3.amounts(amounts),
    }
    return {name: table.splitlines()[2] for name, table in made.items()}


def about_claims() -> dict[str, Any]:
    _, one = next(claims.of_constraint())
    broken, changed = one.replace(" ", "\n  ", 3), one.replace("a third", "a fifth")
    return {
        "claims": sum(1 for subject in claims.CLAIMS for _ in subject()),
        "missing": claims.missing(),
        "missing from": [len(claims.missing(lambda page, text=text: text)) for text in (one, broken, changed)],
        "words": [claims.word(0.31), claims.words([0.92, 0.28]), claims.short(0.00204), claims.span([0.5, 0.221])],
    }


def about_results() -> dict[str, Any]:
    asked = [str(tables.ROOT / "demo" / "evaluate.py"), "--few-calls", "--out", "x", "--data=y"]
    return {
        "machine": record.machine(),
        "command": record.command(asked),
        "results": {path.stem: list(tables.results(path.stem))[:3] for path in tables.RESULTS.glob("*.json")},
    }


sys.stdout.write(json.dumps(about_tables() | about_claims() | about_results() | {"made": of_made_up_rows()}) + "\n")
