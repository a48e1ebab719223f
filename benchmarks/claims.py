"""Sentences of the pages that rest on a measurement, with the figures that benchmarks/results has for them.

A page must hold each sentence as it is computed here; a test says where it does not. So a measurement that is made
again shows every sentence that it changes. Lines may break anywhere in a sentence.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from statistics import geometric_mean, mean
from typing import Any

from record import rows_of
from tables import ANY_TABLE, ROOT, TABLE, results

README, PAGE, FIGURES, HELP = "README.md", "benchmarks/README.md", "benchmarks/figures/", "web/docs/FewStep"
SHARES = {
    "a twentieth": 1 / 20, "a tenth": 1 / 10, "a sixth": 1 / 6, "a fifth": 1 / 5, "a quarter": 1 / 4, "a third": 1 / 3,
    "two fifths": 2 / 5, "half": 1 / 2, "three fifths": 3 / 5, "two thirds": 2 / 3, "three quarters": 3 / 4,
    "four fifths": 4 / 5, "nine tenths": 9 / 10,
}  # fmt: skip
NUMBERS = ("none", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
Rows = list[dict[str, Any]]
Claims = Iterator[tuple[str, str]]  # a page and a sentence


# ---------------------------------------------------------------------------------------------------------
# How figures are written


def percent(share: float, digits: int = 0) -> str:
    return f"{100 * share:.{digits}f} %"


def span(shares: Iterable[float]) -> str:
    """From the least to the largest."""
    found = sorted(shares)
    return f"{100 * found[0]:.0f} to {100 * found[-1]:.0f} %"


def word(share: float) -> str:
    """The nearest of the shares that have a name."""
    return min(SHARES, key=lambda name: abs(math.log(SHARES[name] / share)))


def words(shares: Iterable[float]) -> str:
    found = sorted(shares)
    return f"{word(found[0])} to {word(found[-1])}"


def short(figure: float) -> str:
    """Two digits that count: 0.016, 0.0020."""
    return f"{figure:.{max(1 - math.floor(math.log10(figure)), 0)}f}"


def dotted(figure: float) -> str:
    """.190, as the long pages write what lies below 1."""
    return f"{figure:.3f}".removeprefix("0")


def cells(*figures: str) -> str:
    return f"| {' | '.join(figures)} |"


# ---------------------------------------------------------------------------------------------------------
# Tables by hand: until a result makes them, sentences agree with what they say


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def by_hand(page: str, head: str) -> dict[str, dict[str, str]]:
    """The cells of the tables by hand whose first line begins so, by the row's name and the column's."""
    found: dict[str, dict[str, str]] = {}
    for first, body in ANY_TABLE.findall(TABLE.sub("", read(page))):
        if first.startswith(head):
            lines = (first, *body.splitlines())
            columns, *rows = ([cell.strip() for cell in line.strip("| ").split(" |")] for line in lines)
            found |= {name: dict(zip(columns[1:], cells, strict=True)) for name, *cells in rows}
    return found


def share_in(cell: str) -> float:
    """The first of a cell that has several."""
    return float(re.findall(r"(\d+)%", cell)[0]) / 100


# ---------------------------------------------------------------------------------------------------------
# Boost and Tune


def of_ninety(way: str, many: bool = False) -> list[float]:
    """Of the best of ninety pairs, at 4 to 10 calls or at 12 to 20, on the bundled network."""
    import tune

    return tune.shares(results("tune")["demo"]["rows"], way, tune.MANY_CALLS if many else tune.FEW_CALLS)


def tuned(way: str, many: bool = False) -> str:
    return percent(geometric_mean(of_ninety(way, many)))


def tuned_by(statistic: int) -> str:
    """Effort normal at few calls by the mean (1) or the median (2), against the same rival."""
    import tune

    rows = [row for row in results("tune")["demo"]["rows"] if row["calls"] in tune.FEW_CALLS]
    return percent(
        geometric_mean(row["ours"]["normal"][statistic] / min(row["host"].values())[statistic] for row in rows)
    )


def spent(way: str) -> int:
    import tune

    return tune.spent(results("tune")["demo"]["rows"], way)


def pictures(way: str) -> int:
    """Of 20 steps, that take as many calls as Tune; from 20 on to the next five."""
    found = spent(way) / 20
    return round(found) if found < 20 else 5 * round(found / 5)


def of_boost() -> Claims:
    import boost

    found, page = rows_of(results("boost_mixtures")) + rows_of(results("boost_bundled")), FIGURES + "boost.md"
    of_euler, behind = percent(boost.of_euler(found)), boost.behind(found)
    lost, rivals = f"in {len(behind)} of {len(found)} cells", "euler *simple*, uni_pc *simple* and dpmpp_2m *karras*"
    late = [row for row in behind if row["network"].endswith("eps") and row["cfg"] == 1 and row["calls"] >= 10]
    few, many = tuned("unmeasured"), tuned("unmeasured", True)
    worst = [percent(max(of_ninety("unmeasured", later))) for later in (False, True)]
    yield from of_boost_elsewhere()
    yield README, f"| Boost | 0 | {of_euler} of the error of euler *simple*, at the same calls;"
    yield README, f"it has {of_euler} of the error of euler *simple* in the geometric mean"
    yield README, f"is behind the best of {rivals} {lost}"
    yield PAGE, f"{of_euler} of the error of euler *simple*; about the best of ninety at 4 to 10 calls ({few})"
    yield PAGE, f"{many} of it from 12 on"
    yield PAGE, f"{lost}, {NUMBERS[len(late)]} of them at cfg 1 on eps from 10 calls on;"
    yield page, f"Over all {len(found)} cells it has {of_euler} of the error of euler *simple*"
    yield page, f"it has {few} of their error at 4 to 10 calls in the geometric mean, at worst {worst[0]}"
    yield page, f"and {many} at 12 to 20 ({worst[1]} on flow at cfg 1 and 20 calls)"


def of_boost_elsewhere() -> Claims:
    """On the second network, where it is far off at high cfg."""
    import boost

    found = rows_of(results("boost_second"))
    guided = [row for row in found if row["cfg"] >= 5]
    worst = f"{max(row['boost'] / row['euler simple'] for row in guided):.0f} times as far off as euler *simple*"
    lost = [row["calls"] for row in guided if boost.of_rival(row) > 1]
    below, first = f"4 to {max(lost)} calls", min(calls for calls in boost.CALLS if calls > max(lost))
    of_euler, cells = percent(boost.of_euler(found)), f"in {len(boost.behind(found))} of {len(found)}"
    yield README, f"on a second network {of_euler}, and a loss at cfg 5 and more below {first} calls |"
    yield README, f"it has {of_euler} and is behind {cells} cells: at cfg 5 and more with {below} it can be far off"
    yield README, f"and is ahead from {first} on."
    yield PAGE, f"on the second network {cells}, and far behind at cfg 5 and more with {below} |"
    yield FIGURES + "boost.md", f"it is up to {worst} at {below}, and ahead of the best of the three from {first} on."
    yield HELP + "Boost.md", f"it was up to {worst} with {below}, and ahead from {first} on."


def of_tune() -> Claims:
    quick, normal, pairs = tuned("quick"), tuned("normal"), "of the error of the best of 90 pairs"
    costs = f"{pictures('quick')} / {pictures('normal')}, once a model and cfg"
    yield README, f"| Tune, quick / normal | {costs} | {quick.removesuffix(' %')} / {normal} {pairs}"
    yield (
        README,
        f"the time of {pictures('quick')} pictures of 20 steps (effort quick) or {pictures('normal')} (normal)",
    )
    yield README, f"On the bundled network {normal} {pairs} of ComfyUI's samplers and schedules at 4 to 10 steps"
    yield PAGE, f"quick: {quick}, normal: {normal} of the best of ninety at 4 to 10 calls"
    yield PAGE, f"once {spent('quick')} ({pictures('quick')} pictures of 20 steps) or {spent('normal')} calls"
    medians = (
        f"By medians the bundled network stands at {tuned_by(2)} (normal, 4 to 10 calls), by means at {tuned_by(1)}"
    )
    yield FIGURES + "tune.md", medians


# ---------------------------------------------------------------------------------------------------------
# DualFast and Manifold Constraint


def in_field(name: str, of: str, cfg: float | None = None) -> float:
    """The error of one by another's, in the geometric mean over the cells that have both."""
    both = [row["errors"] for row in rows_of(results("field")) if cfg in (None, row["cfg"])]
    return geometric_mean(errors[name] / errors[of] for errors in both if {name, of} <= errors.keys())


def on_mixtures(name: str) -> list[str]:
    """At 8 calls: eps at cfg 1 and 5, flow at cfg 1 and 5."""
    rows = [row for row in rows_of(results("field")) if row["network"].startswith("mixture") and row["calls"] == 8]
    return [short(row["errors"][name]) for row in sorted(rows, key=lambda row: (row["network"], row["cfg"]))]


def of_dualfast() -> Claims:
    ours, page = "DualFast euler 0.5", HELP + "DualFast.md"
    boost, first, fifth = (f"{in_field(ours, 'Boost', cfg):.2f}" for cfg in (None, 1, 5))
    quarter, of_host = word(in_field(ours, "dpmpp_2m")), in_field(ours, "host's best")
    yield README, f"around euler it has {quarter} of dpmpp_2m's error"
    yield PAGE, f"around euler, .5 | {quarter} of dpmpp_2m's error"
    yield page, f"error is {boost} times that of *Boost* (at cfg 1: {first} times; at cfg 5: {fifth} times)"
    yield page, f"{of_host:.2f} times that of the best of ComfyUI's own"
    yield page, f"in each cell, and {quarter} of dpmpp_2m's."
    best = [row["schedules"][ours] == ("karras", "beta")["flow" in row["network"]] for row in rows_of(results("field"))]
    yield FIGURES + "deis_and_dualfast.md", f"which it had in {sum(best)} of the {len(best)} cells"
    for label, name in (
        ("euler", "euler"),
        ("euler with DualFast, constant 0.5", ours),
        ("euler with DualFast, linear 0.5", "DualFast euler 0.5 linear"),
        ("dpmpp_2m", "dpmpp_2m"),
        ("dpmpp_2m with DualFast, linear 0.25", "DualFast dpmpp_2m 0.25 linear"),
        ("*Boost*, nothing connected", "Boost"),
    ):
        yield page, cells(label, *on_mixtures(name))


def known(problem: str, way: str) -> dict[str, list[float]]:
    """Error and variance by the case."""
    return next(r for r in rows_of(results("inverse")) if (r["problem"], r["way"]) == (problem, way))["figures"]


def of_inpainting(way: str, figure: int = 0) -> list[float]:
    """Shares of the error of ComfyUI's own inpainting, a case each."""
    host = known("inpaint", "host")
    return [known("inpaint", way)[case][figure] / host[case][figure] for case in host]


def variances(steps: int, *ways: str) -> list[float]:
    """Of the draws by the posterior's: every case of so many steps of all that these ways were tried on."""
    found = [row["figures"] for row in rows_of(results("inverse")) if row["way"] in ways]
    return [figures[case][1] for figures in found for case in figures if case.endswith(f", {steps}")]


def published(problem: str) -> float:
    """MCG as published at the better of its scales, 20 steps."""
    return min(known(problem, f"paper, a {a}")["eps, euler_ancestral, 20"][0] for a in (1, 3))


def of_constraint() -> Claims:
    once, thrice = (span(of_inpainting(way)) for way in ("differences", "differences, 3 iterations"))
    problems, page = ("inpaint", "downsample 4", "grey"), HELP + "ManifoldConstraint.md"
    share = word(geometric_mean(of_inpainting("differences")))
    yield README, f"the mean of the drawings has {share} of the error of ComfyUI's inpainting"
    yield PAGE, f"{once} of the error of ComfyUI's inpainting, {thrice} with 3 iterations"
    yield FIGURES + "inverse_problems.md", f"{once} of the error of ComfyUI's, and {thrice} with 3 iterations"
    yield page, f"| ComfyUI's inpainting | {known('inpaint', 'host')['eps, euler, 20'][0]:.3f} |"
    for label, way in (
        ("only put in (scale 0)", "project"),
        ("this node", "differences"),
        ("this node, 3 iterations", "differences, 3 iterations"),
        ("this node, gradient: model", "model"),
    ):
        yield page, cells(label, *(f"{known(problem, way)['eps, euler, 20'][0]:.3f}" for problem in problems))
    ours, host = ("differences", "differences, 3 iterations"), "host"
    few, many = (f"{span(variances(steps, *ours)).removesuffix(' %')}" for steps in (8, 20))
    of_host = [span(variances(steps, host)) for steps in (8, 20)]
    yield FIGURES + "inverse_problems.md", f"have {few} % of the right variance at 8 steps and {many} % at 20"
    yield FIGURES + "inverse_problems.md", f"ComfyUI's inpainting has {of_host[0]} and {of_host[1]}"
    best = [f"{published(problem):.3f}" for problem in problems]
    yield page, f"The published method, with its own steps, has {best[0]}, {best[1]} and {best[2]} at best."


# ---------------------------------------------------------------------------------------------------------
# Guidance and GMFlow


def pictured(curve: str, dial: str = "") -> dict[str, Any]:
    rows = rows_of(results("guidance_pictures"))
    return next(row for row in rows if (row["curve"], row["dial"]) == (curve, dial))


def of_guidance() -> Claims:
    page, docs = FIGURES + "guidance.md", HELP + "ProbabilisticGuidance.md"
    none, cfg = pictured("no guidance"), {n: pictured("cfg", f"cfg {n}") for n in (3, 5, 8, 12)}
    ours = {n: pictured("ours, prompt_cfg 8", f"cfg {n}") for n in (3, 5, 8, 12)}
    burnt, held = percent(cfg[12]["clipped"]), percent(ours[12]["clipped"])
    assert {held} == {percent(row["clipped"]) for row in ours.values()}, "not one figure at any cfg"
    over, unguided = (f"{100 * chroma:.0f} %" for chroma in (mean(r["chroma"] for r in ours.values()), none["chroma"]))
    likeness = [dotted(row["margin"]) for row in (ours[8], cfg[3], cfg[5], cfg[8])]
    missed = [f"{100 * ours[n]['chroma']:+.1f} %" for n in (5, 3)]
    yield README, f"Pixels beyond the range: {burnt} with cfg 12 alone, {held} with it, at the likeness"
    yield PAGE, f"{held} of the pixels clipped at any cfg, where cfg 12 has {burnt}, at the likeness of the best cfg"
    yield PAGE, f"chroma {missed[0]} at cfg 5;"
    yield page, f"whatever the cfg, {held} of the pixels are clipped and chroma exceeds by {over}"
    yield page, f"where no guidance has {percent(none['clipped'], 1)} and {unguided};"
    yield page, f"cfg alone clips {percent(cfg[8]['clipped'])} at cfg 8 and {burnt} at cfg 12."
    yield page, f"picture ({dotted(ours[8]['distance'])}) is below that of no guidance ({dotted(none['distance'])})."
    early = pictured("ours, cap .5, plain cfg before", "0.1")["clipped"]
    yield page, f"with nothing to hold it, clips {percent(early)} (start_percent .1)."
    yield page, f"Missed: chroma {missed[0]} and {missed[1]} at cfg 5 and 3, where 5 % was the aim."
    yield docs, f"On the bundled model at cfg 8, {percent(cfg[8]['clipped'])} of the pixels are clipped;"
    yield docs, f"at its defaults {percent(ours[8]['clipped'])}, where no guidance has {percent(none['clipped'], 1)}."
    yield docs, f"(likeness {likeness[0]}; cfg 3 {likeness[1]}, cfg 5 {likeness[2]}, cfg 8 {likeness[3]})"


def of_gmflow() -> Claims:
    """Distances to the nearest picture at 2, 4, 6 and 8 calls, cfg 1.5."""
    found = {(row["variant"], row["sampler"], row["guidance"]): row for row in results("gmflow")["few_calls"]["rows"]}
    for label, variant, sampler in (
        ("sde, order 2", "gmflow", "GMFlow sde 2"),
        ("sde, order 1", "gmflow", "GMFlow sde 1"),
        ("ode, order 2", "gmflow", "GMFlow ode 2"),
        ("ode, order 1", "gmflow", "GMFlow ode 1"),
        ("euler, on the mixture's mean", "gmflow", "euler"),
        ("euler, flow model", "flow", "euler"),
    ):
        distances = found[variant, sampler, "cfg 1.5"]["calls"]
        yield HELP + "GMFlowSampler.md", cells(label, *(f"{distances[n][0]:.3f}" for n in ("2", "4", "6", "8")))
    pair = (("gmflow", "GMFlow sde 2", "cfg 3"), ("flow", "euler", "cfg 3"))
    ours, flow = (found[place]["calls"]["2"][0] for place in pair)
    yield HELP + "GMFlowSampler.md", f"level with the flow model's at 2 ({ours:.3f} to {flow:.3f})"


def of_mixtures() -> Claims:
    """What GMFlow's mixtures know of the model's next answer."""
    docs, page = HELP + "GMFlowSampler.md", FIGURES + "gmflow.md"
    first, *later = results("gmflow")["mixtures"]["rows"][:4]
    told, true, path = first["spread_told"], first["spread_true"], 100 * (1 - first["path_known"] / first["path_mean"])
    fresh = [f"{100 * (1 - row['pictures_known'] / row['pictures_mean']):.0f}" for row in (first, *later)]
    yield docs, f"they know of that is {path:.0f}% of the change from sigma 1 to 0.75"
    yield docs, f"though the mixture's spread is right within {100 * abs(told / true - 1):.0f}% at sigma 1."
    yield docs, f"a correlation of {first['neighbours']:.2f} at sigma 1)"
    yield page, f"the sub-steps know {path:.0f} % of the answer's change from sigma 1 to .75"
    yield page, f"({dotted(told)} told, {dotted(true)} true at sigma 1)"
    yield page, f"they know {', '.join(fresh[:3])} and {fresh[3]} % from sigma 1, .75, .5 and .25"


# ---------------------------------------------------------------------------------------------------------
# DPM-Solver-v3, Search, Restart


def of_rivals(rows: Rows, *calls: int, problem: str = "") -> list[float]:
    """DPM-Solver-v3's error by that of the best of its rivals, a cell each."""
    import dpm_solver_v3

    found = dpm_solver_v3.compared([dpm_solver_v3.Row(**row) for row in rows])
    return [ours.geometric / theirs.geometric for name, n, theirs, ours in found if n in calls and problem in name]


def of_solver() -> Claims:
    exact, second = results("dpm_solver_v3_mixtures")["rows"], results("second")["dpm_solver_v3"]["rows"]
    page, exactly = FIGURES + "dpm_solver_v3.md", words(of_rivals(exact, 8, 10))
    lost = sorted(of_rivals(second, 10, problem="flow"), reverse=True)
    bundled = by_hand(page, "| problem | 5 calls | 6 calls |").values()
    third = words(share_in(cells[calls]) for cells in bundled for calls in ("8 calls", "10 calls"))
    yield README, f"DPM-Solver-v3 has {third} of the error of ComfyUI's best combination on the bundled model"
    yield PAGE, f"{third} of the best of its seven rivals on the bundled network, {exactly} on mixtures"
    yield page, f"On the bundled model it has {third} of it at 8 and 10 calls."
    yield README, f"and {exactly} on models whose answer is known exactly."
    yield PAGE, f"{exactly} on mixtures, {words(of_rivals(second, 8))} at 8 calls on the second network"
    yield PAGE, f"10 calls on flow on the second ({100 * lost[1]:.0f} and {percent(lost[0])})"
    yield (
        page,
        f"At 5 to 10 calls it has {words(of_rivals(exact, 5, 8, 10))} of the host's best error on exact mixtures",
    )
    late = [round(share) for share in of_rivals(exact, 20, problem="flow")]
    yield page, f"of order four, is {NUMBERS[min(late)]} to {NUMBERS[max(late)]} times better on *beta* at 20 calls."
    yield page, f"far ahead at cfg 5 with 5 and 8 calls ({span(of_rivals(second, 5, 8, problem='cfg 5'))})"


def searched(rows: Rows, solver: str) -> list[float]:
    """The error on the searched schedule by that on the best of the host's, a cell each."""
    import optimal_steps

    found = optimal_steps.compared([optimal_steps.Row(**row) for row in rows])
    return [ours.geometric / best.geometric for ours, best in found if ours.solver == solver]


def on_the_bundled(row: str) -> list[float]:
    """The share of the searched schedule in every cell of the rows that begin and end so."""
    first, _, last = row.partition("*")
    found = by_hand(FIGURES + "optimal_steps.md", "| problem, sampler |")
    chosen = [cells for name, cells in found.items() if name.startswith(f"demo {first}") and name.endswith(f", {last}")]
    return [share_in(cell) for cells in chosen for cell in cells.values()]


def of_search() -> Claims:
    page, euler, multistep = FIGURES + "optimal_steps.md", on_the_bundled("*euler"), on_the_bundled("*dpmpp_2m")
    flow, eps, harmed = (on_the_bundled(f"{row}*dpm_solver_v3") for row in ("flow", "eps cfg 1", "eps cfg 5"))
    both = euler + multistep
    met = [sum(share <= aim for share in shares) for shares, aim in ((multistep, 0.8), (euler, 0.5))]
    worse = [share for share in harmed if share > 1]
    yield PAGE, f"with euler and dpmpp_2m {percent(geometric_mean(both))} of the error on ComfyUI's best schedule"
    yield PAGE, f"({span(both)}) on the bundled network;"
    yield page, f"the aim is met with dpmpp_2m in {met[0]} of {len(multistep)} cells."
    yield page, f"**With euler it is met in {met[1]} of {len(euler)}**"
    yield page, f"it helps on flow** ({span(flow)}) **and on eps at cfg 1** ({span(eps)})"
    yield page, f"({NUMBERS[len(worse)]} of five cells are at {span(worse)})."
    second = span(searched(results("second")["optimal_steps"], "euler"))
    yield PAGE, f"on the second network, where *beta* fits, {second} |"
    yield page, f"**There it gains little**: {second} of the error on *beta*"


def against_sde(row: dict[str, Any]) -> tuple[str, str]:
    """Restart against the better of the two samplers that draw noise: below, even or above, and the figures."""
    import restart

    figures = [row["restart"], *(row["rivals"][name] for name in ("dpmpp_2m_sde", "er_sde"))]
    ours, *both = (restart.Figure(**figure) for figure in figures)
    theirs = min(both, key=lambda figure: figure.mean)
    place = f"{row['problem']} at {row['calls']} calls"
    return restart.verdict(ours, theirs), f"{place}, {1e5 * ours.mean:.1f} to {1e5 * theirs.mean:.1f}"


def of_restart() -> Claims:
    rows, page = results("restart")["results"], FIGURES + "restart.md"
    found = [against_sde(row) for row in rows]
    verdicts = [verdict for verdict, _ in found]
    even, of, behind = (NUMBERS[n] for n in (verdicts.count("even"), len(found), verdicts.count("above")))
    lost = "; ".join(text for verdict, text in found if verdict == "above")
    first = rows[0]
    alone, with_one = (f"{1e5 * mean(first[name]['distances']):.1f}" for name in ("alone", "restart"))
    yield PAGE, f"against the better of two SDE samplers even in {even} of {of} rows, behind in {behind} |"
    yield page, f"the better of the two it is even in {even} of {of} rows and behind in {behind} ({lost})."
    yield page, f"a restart takes most of the distance away ({alone} to {with_one})."


# ---------------------------------------------------------------------------------------------------------
# What it costs


def waits(sampler: str, where: str = "ours") -> list[int]:
    """How often a run waited for the GPU, a network each."""
    found = [row["samplers"] for row in results("architectures")["rows"]]
    return [cells[name]["waits"][where] for cells in found for name in cells if name.split(",")[0] == sampler]


def of_costs() -> Claims:
    page, ours = FIGURES + "full_size.md", ("DPM-Solver-v3", "DEIS", "Boost", "Restart", "Probabilistic Guidance")
    host, behind = sorted(waits("dpmpp_2m", "elsewhere")), sorted(waits("Boost", "elsewhere"))
    counts = ", ".join(f"{name} {max(waits(name))}" for name in ours)
    slow = next(row["samplers"] for row in results("architectures")["rows"] if row["family"] == "SDXL")
    twice = [dotted(slow[name]["seconds"])[:-1] for name in ("dpmpp_2m", "dpmpp_2m, cfg 5")]
    yield page, f"in our files: {counts}, none of them more"
    yield page, f"In the host's files it waited {host[0]} to {host[-1]} times with dpmpp_2m"
    yield page, f"and {behind[0]} to {behind[-1]} times behind Boost"
    yield page, f"the very same dpmpp_2m took {twice[0]} s, and {twice[1]} s a few seconds later."


def of_many_workers() -> Claims:
    """What a table of calls means where a guided call takes 20 s."""
    page, calls = FIGURES + "many_workers.md", {row["measurement"]: row for row in rows_of(results("dealt"))}

    def hours(measurement: str, workers: int = 1) -> str:
        row = calls[measurement]
        found = (row["longest"][str(workers)] if workers > 1 else row["calls"]) * 20 / 3600
        return f"{60 * found:.0f} minutes" if found < 1 else f"{found:.1f}" if found < 6 else f"{found:.0f}"

    estimate, search, compare = (
        next(name for name in calls if name.startswith(kind) and "default" in name)
        for kind in ("Estimate", "Search", "Compare")
    )
    tune, images, latents = "Tune, normal", "Estimate Statistics, 64 images", "Search Schedule, 64 trajectories"
    yield page, f"so that a default Estimate takes {hours(estimate)} hours on one GPU."
    yield page, f"8 GPUs need {hours(estimate, 8)}, and 64 need the same."
    yield page, f"Tune at effort normal goes from {hours(tune)} hours to {hours(tune, 16)} at 16 GPUs"
    yield page, f"Search at its defaults goes from {hours(search)} hours to {hours(search, 8)} at 8 GPUs"
    yield page, f"at 8 GPUs and {hours(search, 16)} at 16: its trials wait"
    yield page, f"Compare at its defaults goes from {hours(compare)} hours to {hours(compare, 8)} at 8 GPUs"
    yield page, f"Estimate of 64 images: from {hours(images)} hours to {hours(images, 64)}; "
    yield page, f"Search on 64 trajectories: from {hours(latents)} to {hours(latents, 64)})"


CLAIMS: tuple[Callable[[], Claims], ...] = (
    of_boost, of_tune, of_dualfast, of_constraint, of_guidance, of_gmflow, of_mixtures, of_solver, of_search,
    of_restart, of_costs, of_many_workers,
)  # fmt: skip


def without_breaks(text: str) -> str:
    return " ".join(text.split())


def missing(text_of: Callable[[str], str] = read) -> list[str]:
    """What the pages ought to say and do not."""
    text = cache(lambda page: without_breaks(text_of(page)))
    told = [(page, without_breaks(sentence)) for subject in CLAIMS for page, sentence in subject()]
    return [f"{page}: {sentence}" for page, sentence in told if sentence not in text(page)]


if __name__ == "__main__":
    print("\n".join(missing()) or "The pages say what was measured.")
