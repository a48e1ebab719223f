"""`python3 run.py python benchmarks/guidance_pictures.py`: kinds of guidance on a trained network, in pictures.

100 prompts by dpmpp_2m with every kind of guidance, weak to strong: whether the picture is the one that was asked for,
and how far its colours run beyond those of true pictures. The bundled network, or with --network second the other one.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from guidances import applied, drawn, spread_of
from PIL import Image, ImageDraw
from torch import Tensor

DEMO = Path(__file__).parents[1] / "demo"
sys.path.append(str(DEMO))  # the demo's scripts stand beside each other, outside of any package
from data import download, pictures, select  # noqa: E402
from evaluate import encode, prompts, to_the_nearest  # noqa: E402
from problems import ICONS, second_coded  # noqa: E402
from record import record, rows_of  # noqa: E402

STEPS = 16
CFGS = (3.0, 5.0, 8.0, 12.0)  # of a curve, and of the table of the page
CLIPPED = 0.1  # beyond -1 to 1, a twentieth of the range: more than the grain on a white ground
SHOWN = ["red apple", "blue heart", "rabbit face", "sunflower", "penguin", "hot dog", "soccer ball", "violin"]
HIGH = 8.0  # the cfg at which the strength of what bounds it is turned


@dataclass(frozen=True)
class Point:
    """A place on the curve of a kind of guidance; `dial` is what changes along it."""

    curve: str
    dial: str
    kind: str
    cfg: float
    setting: dict[str, Any] = field(default_factory=dict)


def by_cfg(curve: str, kind: str, cfgs: tuple[float, ...] = CFGS, **setting) -> list[Point]:
    return [Point(curve, f"cfg {cfg:g}", kind, cfg, setting) for cfg in cfgs]


def by_strength(curve: str, kind: str, strengths: tuple[float, ...], **setting) -> list[Point]:
    return [Point(curve, f"{w:g}", kind, HIGH, setting | {"strength": w}) for w in strengths]


POINTS = [
    Point("no guidance", "", "cfg", 1.0),
    *by_cfg("cfg", "cfg", (1.5, 2.0, 3.0, 5.0, 8.0, 12.0)),
    *by_strength("ours, cap", "ours cap", (0.3, 0.5, 0.7, 1.0, 1.5, 2.5)),
    *by_strength("ours, cap, orthogonal 0", "ours cap", (0.3, 0.5, 0.7, 1.0, 1.5, 2.5), orthogonal=0.0),
    *by_strength("ours, soft", "ours soft", (0.3, 0.7, 1.5)),
    *by_strength("ours, fixed", "ours fixed", (0.3, 0.6, 0.9)),
    *by_cfg("ours, cap .7", "ours cap", strength=0.7),
    *by_cfg("APG, eta 0, threshold 5", "APG", eta=0.0, threshold=5.0),
    *by_cfg("APG, eta 1, threshold 5", "APG", eta=1.0, threshold=5.0),
    *by_cfg("RescaleCFG .7", "RescaleCFG", multiplier=0.7),
    *by_cfg("CFGNorm 1", "CFGNorm", strength=1.0),
    *by_cfg("CFG-Zero*", "CFG-Zero*"),
    *by_cfg("TCFG", "TCFG"),
    *by_cfg("cfg between ratios .3 and 3", "interval", low=0.3, high=3.0),
    *by_cfg("ours, prompt_cfg 8", "ours cap", strength=0.3, prompt_cfg=8.0),
    *(
        Point(f"ours, cap {w:g}", f"prompt_cfg {least:g}", "ours cap", HIGH, {"strength": w, "prompt_cfg": least})
        for w, least in ((0.0, 8.0), (0.15, 8.0), (0.5, 8.0), (0.3, 3.0), (0.3, 5.0))
    ),
    *(
        Point(f"ours, {bands} bands", f"{w:g}", "ours cap", HIGH, {"strength": w, "prompt_cfg": 8.0, "bands": bands})
        for bands in ("4", "8")
        for w in (0.3, 0.7)
    ),
    *by_cfg("magnitude", "magnitude", strength=1.0),
    *by_cfg("frequency", "frequency", strength=0.5),
    *by_cfg("zero_star", "zero_star", strength=0.0),
    *(
        Point("ours, cap .5, plain cfg before", f"{start:g}", "ours cap", HIGH, {"strength": 0.5, "start": start})
        for start in (0.05, 0.1, 0.2)
    ),
]
SHOWN_KINDS = ("APG, eta 0, threshold 5", "RescaleCFG .7", "CFGNorm 1", "TCFG", "cfg between ratios .3 and 3")
GRID = [
    Point("cfg", "cfg 3", "cfg", 3.0),
    *(point for point in POINTS if point.dial == "cfg 12" and point.curve in ("cfg", *SHOWN_KINDS)),
    Point("ours, prompt_cfg 1", "cfg 12", "ours cap", 12.0, {"strength": 0.5}),
    Point("ours, prompt_cfg 8", "cfg 12", "ours cap", 12.0, {"strength": 0.3, "prompt_cfg": 8.0}),
]


@dataclass(frozen=True)
class Row:
    """named: share of the prompts whose nearest training picture is the named one. margin: cosine to the named picture
    less that to the likest other one, of colours less white: it does not matter how strong they are. distance: to the
    nearest picture, root mean square. clipped: share of pixels with a value beyond the range. saturated: share of
    pixels without any grey, less that of the named pictures. chroma: mean difference of largest and smallest channel,
    over that of the named pictures, less 1."""

    curve: str
    dial: str
    named: float
    margin: float
    distance: float
    clipped: float
    saturated: float
    chroma: float


@dataclass(frozen=True)
class Subject:
    """A trained network. coded: conditioning, positive and empty negative, one prompt a batch item. shape: of its
    latents. pictures_of: latents to pictures before they are clipped to [-1, 1]. wanted: the numbers in data, of all
    training pictures, of those that the prompts name. shown: further prompts, for the picture of a few."""

    model: Any
    coded: Callable[[list], tuple[list, list]]
    shape: tuple[int, int, int]
    pictures_of: Callable[[Tensor], Tensor]
    data: Tensor
    prompts: list
    wanted: list[int]
    shown: list


def bundled(count: int, folder: Path) -> Subject:
    """Told the names of emoji."""
    from fewstep.nodes.models.demo import load_clip, load_model

    package, clip = download(folder), load_clip()
    emoji = select(package)
    data, chosen = torch.from_numpy(pictures(package, emoji)), prompts(emoji, count)
    texts, wanted = [one.name for one in chosen], [emoji.index(one) for one in chosen]

    def coded(texts: list[str]) -> tuple[list, list]:
        return encode(clip, texts), encode(clip, [""] * len(texts))

    return Subject(load_model("flow"), coded, (3, 64, 64), lambda x: x, data, texts, wanted, SHOWN)


def second(count: int, folder: Path) -> Subject:
    """Told the categories, names and colours of icons."""
    import icon_evaluate
    import icon_model
    import icons

    def coded(given: list[tuple[str, str]]) -> tuple[list, list]:
        return second_coded(given), second_coded([("", "")] * len(given))

    found = icons.load()
    data = torch.from_numpy(icons.pictures(found))
    wanted = icon_evaluate.spread(count, len(data)).tolist()
    told = [icon_evaluate.caption(found, picture) for picture in wanted]
    model, pictures_of = icon_model.load_model("flow"), icon_evaluate.decoded
    return Subject(model, coded, (4, 16, 16), pictures_of, data, told, wanted, ICONS)


SUBJECTS = {"demo": bundled, "second": second}


def spreads_of(subject: Subject) -> dict[str, Any]:
    """Measured on some of the prompts, by the number of bands."""
    some = subject.coded(subject.prompts[:8])
    return {bands: spread_of(subject.model, some, subject.shape, bands) for bands in ("1", "4", "8")}


def guided(model, spreads: dict[str, Any], point: Point):
    setting = dict(point.setting)
    return applied(point.kind, model, spreads[setting.pop("bands", "1")], setting)


def draw(subject: Subject, model, conditioning: tuple[list, list], cfg: float) -> Tensor:
    """Pictures (N, 3, 64, 64), one a prompt, before they are clipped to [-1, 1]."""
    shape = (len(conditioning[0][0][0]), *subject.shape)
    return subject.pictures_of(drawn(model, conditioning, shape, cfg, "simple", STEPS))


def chroma(x: Tensor) -> Tensor:
    """Of every pixel, 0 to 1."""
    return (x.amax(1) - x.amin(1)) / 2


def saturated(x: Tensor) -> float:
    """Share of pixels whose least channel is 0 to within 2 % of the largest, black ones left out."""
    x = (x + 1) / 2
    return float(((x.amin(1) < 0.02 * x.amax(1)) & (x.amax(1) > 0.1)).double().mean())


def margin(x: Tensor, data: Tensor, wanted: list[int]) -> float:
    """Mean cosine to the named picture less the largest to another, of what is not white."""
    ink, other = (torch.nn.functional.normalize((1 - part).flatten(1), dim=1) for part in (x, data))
    likeness = ink @ other.T
    own = likeness[torch.arange(len(x)), wanted].clone()
    likeness[torch.arange(len(x)), wanted] = -1
    return float((own - likeness.amax(1)).mean())


def measured(unclipped: Tensor, wanted: list[int], data: Tensor) -> dict[str, float]:
    """What a Row tells of the drawn pictures."""
    truth, x = data[wanted], unclipped.clamp(-1, 1)
    nearest = torch.cdist(x.flatten(1), data.flatten(1)).argmin(1)
    return {
        "named": float((nearest == torch.tensor(wanted)).double().mean()),
        "margin": margin(x, data, wanted),
        "distance": to_the_nearest(x, data),
        "clipped": float((unclipped.abs().amax(1) > 1 + CLIPPED).double().mean()),
        "saturated": saturated(x) - saturated(truth),
        "chroma": float(chroma(x).mean() / chroma(truth).mean()) - 1,
    }


# ---------------------------------------------------------------------------------------------------------
# What is shown


def table(rows: list[Row]) -> str:
    """A line a place on a curve."""
    lines = ["| guidance | | named | margin | distance | clipped | saturated | chroma |", "|---" * 8 + "|"]
    for r in rows:
        colours = f"{r.clipped:.1%} | {r.saturated:+.1%} | {r.chroma:+.1%}"
        lines.append(f"| {r.curve} | {r.dial} | {r.named:.0%} | {r.margin:.3f} | {r.distance:.3f} | {colours} |")
    return "\n".join(lines)


def by_guidance(rows: list[Row], cfgs: tuple[float, ...] = CFGS) -> str:
    """For a page: a row a kind of guidance that goes by cfg, a column a cfg."""
    lines = [f"| guidance | {' | '.join(f'cfg {cfg:g}' for cfg in cfgs)} |", "|---" * (1 + len(cfgs)) + "|"]
    for curve in dict.fromkeys(row.curve for row in rows if row.dial.startswith("cfg")):
        found = {row.dial: row for row in rows if row.curve == curve}
        cells = (
            f"{r.named:.0%}, {r.margin:.3f}, {r.distance:.3f}, {r.clipped:.1%}, {r.chroma:+.1%}"
            if (r := found.get(f"cfg {cfg:g}"))
            else ""
            for cfg in cfgs
        )
        lines.append(f"| {curve} | {' | '.join(cells)} |")
    return "\n".join(lines)


def others(rows: list[Row]) -> str:
    """For a page: what the table by cfg leaves out."""
    shown = {f"cfg {cfg:g}" for cfg in CFGS}
    return table([row for row in rows if row.dial not in shown])


def curves(rows: list[Row], path: Path) -> None:
    """Clipped pixels, chroma and distance against how well pictures meet their prompts: a line a kind of guidance."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.8), layout="constrained")
    parts = {"clipped": "pixels beyond the range", "chroma": "excess of chroma", "distance": "distance to the nearest"}
    panels = figure.subplots(1, len(parts))
    for panel, (name, label) in zip(panels, parts.items(), strict=True):
        for number, curve in enumerate(dict.fromkeys(row.curve for row in rows)):
            line, colour = [row for row in rows if row.curve == curve], colormaps["tab20"](number)
            style, width = ("o-", 2.4) if curve.startswith("ours") else ("s--", 1.0)
            x, y = [r.margin for r in line], [getattr(r, name) for r in line]
            panel.plot(x, y, style, color=colour, lw=width, ms=4, label=curve)
        panel.set_xlabel("likeness to the named picture (margin of cosines)")
        panel.set_ylabel(label)
    panels[0].set_yscale("log")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    figure.savefig(path, dpi=110)


def grid(subject: Subject, spreads: dict[str, Any], path: Path) -> None:
    """Eight prompts with the same noise, a row a kind of guidance, with its name."""
    conditioning = subject.coded(subject.shown)
    sheet = Image.new("RGB", (200 + 96 * len(subject.shown), 96 * len(GRID)), "white")
    for row, point in enumerate(GRID):
        x = draw(subject, guided(subject.model, spreads, point), conditioning, point.cfg).clamp(-1, 1)
        name = f"{point.curve}\n{point.dial}"
        ImageDraw.Draw(sheet).text((8, 96 * row + 34), name, "black", font_size=13)
        for column, one in enumerate(x.permute(0, 2, 3, 1).add(1).mul(127.5).round().byte().numpy()):
            large = Image.fromarray(one).resize((92, 92), Image.Resampling.LANCZOS)
            sheet.paste(large, (202 + 96 * column, 96 * row + 2))
    sheet.save(path, quality=90)


def done(path: Path, points: list[Point]) -> list[Row]:
    """What an earlier run has measured."""
    rows = [Row(**row) for row in rows_of(json.loads(path.read_text(encoding="utf-8")))] if path.exists() else []
    if any((row.curve, row.dial) != (point.curve, point.dial) for row, point in zip(rows, points, strict=False)):
        raise SystemExit(f"{path} holds other settings than these. Give another file with --out.")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=list(SUBJECTS), default="demo")
    parser.add_argument("--data", type=Path, default=DEMO / ".state", help="where the archive of the emoji is or goes")
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument(
        "--out", type=Path, default=Path("guidance_pictures.json"), help="a stopped run goes on from it"
    )
    parser.add_argument("--only", nargs="+", default=[""], help="curves whose names hold one of these patterns")
    parser.add_argument("--curves", type=Path, help="a PNG of the curves")
    parser.add_argument("--grid", type=Path, help="instead: a picture of eight prompts")
    args = parser.parse_args()
    subject = SUBJECTS[args.network](args.prompts, args.data)
    spreads = spreads_of(subject)
    if args.grid:
        grid(subject, spreads, args.grid)
        return
    points = [point for point in POINTS if any(re.search(text, point.curve) for text in args.only)]
    rows, conditioning = done(args.out, points), subject.coded(subject.prompts)
    for point in points[len(rows) :]:
        x = draw(subject, guided(subject.model, spreads, point), conditioning, point.cfg)
        rows.append(Row(point.curve, point.dial, **measured(x, subject.wanted, subject.data)))
        record(args.out, prompts=args.prompts, rows=[asdict(row) for row in rows])
        print(rows[-1], flush=True)
    print(table(rows))
    if args.curves:
        curves(rows, args.curves)


if __name__ == "__main__":
    main()
