"""`python3 run.py python benchmarks/guidance.py`: probabilistic guidance against the host's other kinds of guidance.

On exact mixtures whose classes overlap, so that plain cfg overshoots: distance to the true law of the class, how well
the draws fit the class, and how much stronger than true draws they are. Each kind of guidance runs over a stated grid;
for each cfg its best setting by distance is shown, and then how much it overshoots where it fits the class as well as
plain cfg does.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import torch
from fewstep.samplers.guidance import MODES
from guidances import applied, drawn, spread_of
from record import record
from support.host_mixture import label_conditioning, mixture_model
from support.metrics import sliced_energy_distance
from support.mixture import Mixture
from torch import Tensor

LABEL, DRAWS, STEPS = 0, 1024, 25
CFGS = {"eps": (3.0, 5.0, 7.5, 12.0), "flow": (4.0,)}
STRENGTHS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
SHARES = (1.0, 0.5, 0.0)  # of the part along the prediction, which is taken out
GRID: dict[str, tuple[dict[str, Any], ...]] = {
    "cfg": ({},),
    **{
        f"ours {mode}": tuple({"strength": w, "orthogonal": share} for w, share in product(STRENGTHS, SHARES))
        for mode in MODES
    },
    "ours in an interval": tuple(
        {"strength": w, "low": low, "high": high} for w, low, high in product((0.1, 0.3), (0.0, 0.3), (1.5, 3.0))
    ),
    "APG": tuple({"eta": eta, "threshold": r} for eta, r in product((0.0, 1.0), (0.5, 1.0, 2.0, 5.0, 15.0))),
    "RescaleCFG": tuple({"multiplier": m} for m in (0.3, 0.5, 0.7, 1.0)),
    "CFGNorm": tuple({"strength": s} for s in (0.5, 1.0)),
    "CFG-Zero*": ({},),
    "TCFG": ({},),
    "interval": tuple({"low": low, "high": high} for low, high in product((0.0, 0.3), (1.5, 3.0, 6.0))),
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """distance: sliced energy, x 1000. fit: mean log p(class | x). amplitude: root mean square over that of true draws,
    less 1. outside: share of values beyond the 0.1 % quantiles of the true law, less that share."""

    problem: str
    cfg: float
    kind: str
    setting: str
    distance: float
    fit: float
    amplitude: float
    outside: float


@cache
def overlapping(components: int = 16, classes: int = 4, size: int = 8, share: float = 0.03) -> Mixture:
    """Classes whose means hold a small share of the variance: at any noise the model is in doubt."""
    generator = torch.Generator().manual_seed(3)
    f = torch.arange(size, dtype=torch.float64)
    power = 1 / (1 + f[:, None] ** 2 + f[None, :] ** 2)
    power = (power / power.mean()).expand(4, size, size)
    means = torch.randn((components, 4, size, size), generator=generator, dtype=torch.float64) * (power * share).sqrt()
    return Mixture(means, power * (1 - share), torch.arange(components) % classes)


def fit_of(x: Tensor) -> float:
    """The mean log-probability of the class, given x."""
    mixture = overlapping()
    away = mixture.to_frequency(x.double())[:, None] - mixture.means
    logits = -(away.square() / (2 * mixture.spectrum)).flatten(2).sum(2)
    own = logits.masked_fill(mixture.classes != LABEL, -torch.inf).logsumexp(1)
    return float((own - logits.logsumexp(1)).mean())


def measure(variant: str, cfgs: tuple[float, ...]) -> Iterator[Row]:
    model = mixture_model(overlapping(), variant, shift=1.0)
    conditioning, shape = (label_conditioning([LABEL]), label_conditioning([-1])), overlapping().spectrum.shape
    spread, truth = spread_of(model, conditioning, shape), overlapping().sample(4 * DRAWS, 1, LABEL)
    edge = truth.abs().flatten().kthvalue(int(0.999 * truth.numel())).values
    scheduler = "simple" if variant == "flow" else "karras"
    for kind, settings in GRID.items():
        for setting in settings:
            guided = applied(kind, model, spread, setting)
            for cfg in (1.5, 2.0, *cfgs) if kind == "cfg" else cfgs:
                x = drawn(guided, conditioning, (DRAWS, *shape), cfg, scheduler, STEPS).double()
                yield Row(
                    f"{variant}",
                    cfg,
                    kind,
                    " ".join(f"{k} {v:g}" for k, v in setting.items()),
                    1000 * sliced_energy_distance(x, truth),
                    fit_of(x),
                    float(x.square().mean().sqrt() / truth.square().mean().sqrt()) - 1,
                    float((x.abs() > edge).double().mean()) - 0.001,
                )


def of_true_draws() -> dict[str, float]:
    """What a row would have if the draws were true."""
    truth = overlapping().sample(DRAWS, 2, LABEL)
    distance = 1000 * sliced_energy_distance(truth, overlapping().sample(4 * DRAWS, 1, LABEL))
    return {"distance": distance, "fit": fit_of(truth)}


# ---------------------------------------------------------------------------------------------------------
# Tables


def by_distance(rows: list[Row]) -> str:
    """For each cfg every kind at its best setting."""
    lines = [
        "| model, cfg | guidance | setting | distance | fit | excess amplitude | outside |",
        "|---|---|---|---|---|---|---|",
    ]
    for problem, cfg in sorted({(r.problem, r.cfg) for r in rows if r.cfg >= 3}):
        here = [r for r in rows if (r.problem, r.cfg) == (problem, cfg)]
        best = [min((r for r in here if r.kind == kind), key=lambda r: r.distance) for kind in GRID]
        for r in sorted(best, key=lambda r: r.distance):
            figures = f"{r.distance:.1f} | {r.fit:.3f} | {r.amplitude:+.1%} | {r.outside:+.2%}"
            lines.append(f"| {problem}, {cfg:g} | {r.kind} | {r.setting} | {figures} |")
    return "\n".join(lines)


def by_kind(rows: list[Row]) -> str:
    """For a page: a row a kind at its best setting by distance, a column a cfg. In brackets the excess amplitude."""
    places = sorted({(r.problem, r.cfg) for r in rows if r.cfg >= 3})
    lines = [f"| guidance | {' | '.join(f'{problem}, cfg {cfg:g}' for problem, cfg in places)} |"]
    lines.append("|---" * (1 + len(places)) + "|")
    for kind in GRID:
        own = [[r for r in rows if (r.problem, r.cfg, r.kind) == (*place, kind)] for place in places]
        best = [min(here, key=lambda r: r.distance) for here in own]
        same = len({r.setting for r in best}) == 1
        name = f"{kind}, {best[0].setting}" if same and best[0].setting else kind
        cells = [f"{r.distance:.1f} ({r.amplitude:+.1%}){'' if same else f', {r.setting}'}" for r in best]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def at_equal_fit(rows: list[Row]) -> str:
    """Of every kind the amplitude nearest to the true one, among settings that fit the class as well as cfg does."""
    lines = ["| model, fit of cfg | " + " | ".join(GRID) + " |", "|---" * (1 + len(GRID)) + "|"]
    for problem in CFGS:
        for goal in (r for r in rows if r.problem == problem and r.kind == "cfg"):
            cells = []
            for kind in GRID:
                fitting = [r for r in rows if (r.problem, r.kind) == (problem, kind) and r.fit >= goal.fit - 1e-3]
                cells.append(f"{min((r.amplitude for r in fitting), key=abs):+.1%}" if fitting else "-")
            lines.append(f"| {problem}, {goal.fit:.3f} (cfg {goal.cfg:g}) | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", choices=list(CFGS), default=list(CFGS))
    parser.add_argument("--out", type=Path, default=Path("guidance.json"))
    args = parser.parse_args()
    rows: list[Row] = []
    true = of_true_draws()
    for variant in args.variants:
        rows += measure(variant, CFGS[variant])
        record(args.out, draws=DRAWS, steps=STEPS, true_draws=true, rows=[asdict(row) for row in rows])
    print(f"true draws: distance {true['distance']:.1f}, fit {true['fit']:.3f}")
    print(by_distance(rows), by_kind(rows), at_equal_fit(rows), sep="\n\n")


if __name__ == "__main__":
    main()
