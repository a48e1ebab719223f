"""`python3 run.py python benchmarks/gmflow.py`: GMFlow's solvers on a mixture whose posterior is known exactly.

Three peaks in two dimensions; sliced energy distance from the true law to what 8,000 starts come to. What is left is
the solver's, for the model makes no mistake. On the bundled network: `demo/evaluate.py --few-calls`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fewstep.samplers.gmflow.solver import GMFlow
from record import record
from support.gmflow import distance_to_three_peaks, true_distance_to_three_peaks

CALLS = (4, 6, 8)
SOLVERS = {
    "Euler on the mean": GMFlow("ode", order=1, substeps=1),
    **{f"GM-ODE, order {order}, 32 sub-steps": GMFlow("ode", order, 32) for order in (1, 2)},
    **{
        f"GM-SDE, order {order}, ending on a draw, as the authors'": GMFlow("sde", order, sample_last=True)
        for order in (1, 2)
    },
    **{f"GM-SDE, order {order}, ending on the mean, as the node does": GMFlow("sde", order) for order in (1, 2)},
}


def table(rows: list[dict[str, Any]]) -> str:
    """Distances x 1000: a row a solver, a column a number of calls."""
    lines = [f"| solver | {' | '.join(f'{calls} calls' for calls in CALLS)} |", "|---" * (1 + len(CALLS)) + "|"]
    for name in dict.fromkeys(row["solver"] for row in rows):
        found = {row["calls"]: row["distance"] for row in rows if row["solver"] == name}
        lines.append(f"| {name} | {' | '.join(f'{1000 * found[calls]:.2f}' for calls in CALLS)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gmflow.json"), help="all figures, as JSON")
    args = parser.parse_args()
    rows = [
        {"solver": name, "calls": calls, "distance": distance_to_three_peaks(solver, calls)}
        for name, solver in SOLVERS.items()
        for calls in CALLS
    ]
    record(args.out, true_draws=true_distance_to_three_peaks(), rows=rows)
    print(table(rows))


if __name__ == "__main__":
    main()
