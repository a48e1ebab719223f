"""How good the bundled model is: `python3 run.py python demo/evaluate.py`. Writes demo/samples.png and prints a table.

Named: over 100 prompts (names from the data), 30 steps at cfg 3, the nearest neighbour of the drawn picture, by
squared distance of pixels, is the named picture or one of its subcategory. Error: of the velocity against the
exact posterior mean over the training pictures, which is known in closed form for the empty prompt.
With --few-calls and --mixtures: figures of GMFlow, in the place of those.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from data import Emoji, download, pictures, select
from PIL import Image
from support.host import start_host
from torch import Tensor

start_host()
import comfy.model_management  # noqa: E402
import comfy.samplers  # noqa: E402
from fewstep.nodes.host.gmflow import Choice, Guidance, gmflow_guider, gmflow_sampler  # noqa: E402
from fewstep.nodes.host.guiders import guider_for  # noqa: E402
from fewstep.nodes.host.mixtures import Recorder  # noqa: E402
from fewstep.nodes.models.demo import EmojiLatent, load_clip, load_model  # noqa: E402
from fewstep.samplers.contract import Denoiser  # noqa: E402
from fewstep.samplers.gmflow.guidance import spread_of  # noqa: E402
from fewstep.samplers.gmflow.mixture import Mixture, mean  # noqa: E402
from fewstep.samplers.gmflow.transition import Posterior  # noqa: E402
from fewstep.samplers.noise_law import FLOW  # noqa: E402

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "benchmarks"))  # scripts that stand beside each other, outside of any package
from record import record  # noqa: E402

INTERVALS = ((1.0, 0.75), (0.75, 0.5), (0.5, 0.25), (0.25, 0.125), (0.875, 0.75), (0.625, 0.5), (0.375, 0.25))
TIMES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)


def prompts(emoji: list[Emoji], count: int) -> list[Emoji]:
    """`count` emoji spread evenly over the data."""
    return [emoji[i * len(emoji) // count] for i in range(count)]


def encode(clip, texts: list[str]) -> list:
    """Conditioning of one text a batch item; every text fits in one chunk of words."""
    coded = [clip.encode_from_tokens_scheduled(clip.tokenize(text))[0] for text in texts]
    context = torch.cat([context[:, :8] for context, _ in coded])
    return [[context, {"pooled_output": torch.cat([extra["pooled_output"] for _, extra in coded])}]]


@dataclass(frozen=True)
class Setting:
    """How to draw. strength: of the GMFlow Guider, where it guides in the place of the host's cfg."""

    variant: str
    sampler: str | Choice = "dpmpp_2m"
    cfg: float = 3.0
    strength: float | None = None

    @property
    def words(self) -> dict[str, str]:
        sampler = (
            f"GMFlow {self.sampler.mode} {self.sampler.order}" if isinstance(self.sampler, Choice) else self.sampler
        )
        guidance = f"cfg {self.cfg:g}" if self.strength is None else f"strength {self.strength:g}"
        return {"variant": self.variant, "sampler": sampler, "guidance": guidance}


def draw(setting: Setting, texts: list[str], steps: int, seed: int) -> Tensor:
    """Pictures (N, 3, 64, 64) in [-1, 1], one a text."""
    model, clip = load_model(setting.variant), load_clip()
    latent = torch.zeros(len(texts), 3, 64, 64)
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(seed))
    scheduler = "karras" if setting.variant in ("eps", "v") else "simple"
    prompts = encode(clip, texts), encode(clip, [""] * len(texts))
    if setting.strength is None:
        guider = guider_for(model, *prompts, setting.cfg)
    else:
        guider = gmflow_guider(model, *prompts, Guidance(setting.strength))
    choice = setting.sampler
    sampler = comfy.samplers.sampler_object(choice) if isinstance(choice, str) else gmflow_sampler(choice)
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), scheduler, steps)
    return guider.sample(noise, latent, sampler, sigmas, disable_pbar=True, seed=seed).cpu().clamp(-1, 1)


def named(drawn: Tensor, wanted: list[Emoji], emoji: list[Emoji], data: Tensor) -> tuple[int, int]:
    """How many nearest neighbours are the named picture itself, and how many at least of its subcategory."""
    nearest = [emoji[i] for i in torch.cdist(drawn.flatten(1), data.flatten(1)).argmin(1)]
    itself = sum(a == b for a, b in zip(nearest, wanted, strict=True))
    return itself, sum(a.subcategory == b.subcategory for a, b in zip(nearest, wanted, strict=True))


def posterior_velocity(x: Tensor, t: float, data: Tensor) -> Tensor:
    """E[e - x0 | x_t] when x0 is one of the pictures with equal chance: (x_t - E[x0 | x_t]) / t."""
    distance = torch.cdist(x.flatten(1), (1 - t) * data.flatten(1)).square()
    mean = (-distance / (2 * t**2)).softmax(1) @ data.flatten(1)
    return (x - mean.view_as(x)) / t


def velocity_errors(data: Tensor, count: int = 64) -> list[dict[str, float]]:
    """Root mean squared error of u at each time, for both heads, empty prompt; u itself has about 1.4."""
    ((context, pooled),) = encode(load_clip(), [""] * count)
    generator = torch.Generator().manual_seed(1)
    chosen = torch.randint(len(data), (count,), generator=generator)
    noise = torch.randn((count, *data.shape[1:]), generator=generator)
    rows = []
    models = {head: load_model(head) for head in ("flow", "gmflow")}
    comfy.model_management.load_models_gpu(list(models.values()))
    for t in TIMES:
        x = (1 - t) * data[chosen] + t * noise
        exact = posterior_velocity(x.double(), t, data.double()).float()
        row = {"t": t}
        for head, model in models.items():
            x0 = model.model.apply_model(x, torch.full((count,), t), c_crossattn=context, y=pooled["pooled_output"])
            row[head] = ((x - x0) / t - exact).square().mean().sqrt().item()
        rows.append(row)
    return rows


def sheet(drawn: Tensor, columns: int, path: Path) -> None:
    """The pictures in a grid, as a PNG."""
    rows = (drawn.permute(0, 2, 3, 1).numpy() * 127.5 + 127.5).round().astype(np.uint8).reshape(-1, columns, 64, 64, 3)
    Image.fromarray(rows.transpose(0, 2, 1, 3, 4).reshape(len(rows) * 64, columns * 64, 3)).save(path, optimize=True)


def few_calls(
    texts: list[str], wanted: list[Emoji], emoji: list[Emoji], data: Tensor, budgets: list[int], path: Path | None
) -> Iterator[dict]:
    """Named pictures, and the distance to the nearest one, in so many calls: a row of figures and of pictures each."""
    choices = [Choice(mode, order, 0, 1.0, False) for mode in ("ode", "sde") for order in (1, 2)]
    first, ode, _, sde = choices
    settings = [Setting("flow", "euler", cfg) for cfg in (3.0, 1.5)]
    samplers: list[str | Choice] = ["euler", *choices]
    settings += [Setting("gmflow", sampler, cfg) for cfg in (3.0, 1.5) for sampler in samplers]
    settings += [Setting("gmflow", sampler, strength=0.45) for sampler in ("euler", first, ode, sde)]
    settings += [Setting("gmflow", ode, strength=0.7), Setting("gmflow", sde, strength=0.2)]
    shown = []
    for calls in budgets:
        for setting in settings:
            drawn = draw(setting, texts, calls, seed=0)
            shown.append(drawn[:8])
            itself, kind = named(drawn, wanted, emoji, data)
            row = {"calls": calls, **setting.words, "of": len(texts), "named_picture": itself, "its_subcategory": kind}
            away = distances(drawn, data)
            error = away.std().item() / len(away) ** 0.5
            yield row | {"to_the_nearest": round(away.mean().item(), 4), "standard_error": round(error, 4)}
    if path:
        sheet(torch.cat(shown), 8, path)


def few_calls_table(rows: list[dict]) -> str:
    """For a page: a row a setting, a column a number of calls; named, of its subcategory, distance."""
    numbers = sorted({row["calls"] for row in rows})
    lines = [f"| model, sampler, guidance | {' | '.join(f'{n} calls' for n in numbers)} |"]
    lines.append("|---" * (1 + len(numbers)) + "|")
    cells: dict[str, list[str]] = {}
    for row in sorted(rows, key=lambda row: row["calls"]):
        cell = f"{row['named_picture']}, {row['its_subcategory']}, {row['to_the_nearest']:.3f}"
        cells.setdefault(f"{row['variant']}, {row['sampler']}, {row['guidance']}", []).append(cell)
    return "\n".join([*lines, *(f"| {name} | {' | '.join(found)} |" for name, found in cells.items())])


def mixtures(texts: list[str], x0: Tensor) -> Iterator[dict[str, float]]:
    """What the mixture at t knows of the model's answer D at u: mean squares, cfg 1.

    spread: the mixture's variance, and the pictures' about its mean. neighbours: the correlation of what is left of
    the pictures between a pixel and the next. Then D less the mixture's mean, as Euler takes it, and less its mean once
    x at u is known, as GM-ODE's sub-steps take it: for x of the pictures with noise, and on the model's own path.
    """
    found: list[dict[str, float]] = []

    def sampled(wrap, x, sigmas, extra_args=None, **rest) -> Tensor:
        def call(x: Tensor, sigma: float) -> tuple[Tensor, Mixture]:
            recorder = Recorder(x.shape)
            options = recorder.on(extra_args["model_options"])
            denoised = wrap(x, x.new_full((len(x),), sigma), **(extra_args | {"model_options": options}))
            mixture = recorder.sides[0]
            assert isinstance(mixture, Mixture)
            return denoised, mixture

        generator = torch.Generator().manual_seed(5)
        for t, u in INTERVALS:
            noise, more = (torch.randn(x0.shape, generator=generator) for _ in range(2))
            at_u = FLOW.noised(x0, u, noise)
            at_t = FLOW.renoise(at_u, u, t, more)
            denoised, mixture = call(at_t, t)
            own = own_path(lambda x, sigma: call(x, sigma)[0], at_t, t, u)
            found.append({"t": t, "u": u} | of_residuals(x0 - denoised, mixture))
            for name, x in (("pictures", at_u), ("path", own)):
                later, knows = call(x, u)[0], Posterior(mixture, at_t, t)
                found[-1] |= {f"{name}_mean": square(later - mean(mixture))}
                found[-1] |= {f"{name}_known": square(later - knows.mean_at(x, u))}
        return x

    prompts = encode(load_clip(), texts)
    guider = guider_for(load_model("gmflow"), prompts, [], 1.0)
    sampler = comfy.samplers.KSAMPLER(sampled)
    guider.sample(x0, torch.zeros_like(x0), sampler, torch.tensor([1.0, 0.0]), disable_pbar=True, seed=1)
    yield from found


def own_path(denoise: Denoiser, x: Tensor, t: float, u: float, steps: int = 6) -> Tensor:
    """x at u of the probability flow from x at t, by Euler's steps."""
    for i in range(steps):
        here, there = (t + (u - t) * n / steps for n in (i, i + 1))
        x = torch.lerp(denoise(x, here), x, there / here)
    return x


def of_residuals(left: Tensor, mixture: Mixture) -> dict[str, float]:
    beside = (left[..., 1:] * left[..., :-1]).mean().item()
    return {
        "spread_told": spread_of(mixture).mean().item(),
        "spread_true": square(left),
        "neighbours": beside / square(left),
    }


def square(x: Tensor) -> float:
    return x.square().mean().item()


def distances(drawn: Tensor, data: Tensor) -> Tensor:
    """Root mean squared difference of each picture in [-1, 1] to the nearest of the data: how clean it is."""
    return torch.cdist(drawn.flatten(1), data.flatten(1)).amin(1) / drawn[0].numel() ** 0.5


def to_the_nearest(drawn: Tensor, data: Tensor) -> float:
    return distances(drawn, data).mean().item()


def quality(texts: list[str], wanted: list[Emoji], emoji: list[Emoji], data: Tensor, path: Path) -> Iterator[dict]:
    """Named pictures a variant, then errors of the velocity a time."""
    for variant in ("eps", "gmflow"):
        drawn = draw(Setting(variant), texts, 30, seed=0)
        itself, kind = named(drawn, wanted, emoji, data)
        yield {"variant": variant, "of": len(texts), "named_picture": itself, "its_subcategory": kind}
        if variant == "eps":
            sheet(drawn[:64], 8, path)
    yield from velocity_errors(EmojiLatent().process_in(data))


def quality_table(rows: list[dict]) -> str:
    """For a page: how many pictures are the named ones, a row a variant."""
    schedules = {"eps": "eps, karras", "gmflow": "gmflow, simple (the mixture's mean)"}
    lines = ["| variant | nearest is the named picture | ... or one of its subcategory |", "|---|---|---|"]
    for row in (row for row in rows if "variant" in row):
        counts = (f"{row[name]} of {row['of']}" for name in ("named_picture", "its_subcategory"))
        lines.append(f"| {schedules[row['variant']]} | {' | '.join(counts)} |")
    return "\n".join(lines)


def velocity_table(rows: list[dict]) -> str:
    """For a page: errors of both heads, a column a time; and of the clean latent, which is t times the first."""
    found = [row for row in rows if "t" in row]
    named = {
        "velocity head (eps, v, flow)": [row["flow"] for row in found],
        "mixture's mean (gmflow)": [row["gmflow"] for row in found],
        "clean latent, velocity head": [row["t"] * row["flow"] for row in found],
    }
    lines = [f"| t | {' | '.join(str(row['t']) for row in found)} |", "|---" * (1 + len(found)) + "|"]
    lines += [f"| {name} | {' | '.join(f'{error:.2f}' for error in errors)} |" for name, errors in named.items()]
    return "\n".join(lines)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(prog="evaluate.py", description=__doc__)
    parser.add_argument("--data", type=Path, default=HERE / ".state", help="where the picture archive is or goes")
    parser.add_argument("--sheet", type=Path, help="a PNG of some pictures; with --few-calls only if given")
    parser.add_argument("--few-calls", action="store_true", help="few model calls instead, GMFlow beside Euler")
    parser.add_argument("--calls", type=int, nargs="+", default=[2, 4, 6, 8], help="of --few-calls")
    parser.add_argument("--mixtures", action="store_true", help="what GMFlow's mixtures know of the next call, instead")
    parser.add_argument("--prompts", type=int, default=100, help="how many")
    parser.add_argument("--out", type=Path, help="all figures, as JSON")
    args = parser.parse_args()
    package = download(args.data)
    emoji = select(package)
    data = torch.from_numpy(pictures(package, emoji))
    wanted = prompts(emoji, args.prompts)
    texts = [e.name for e in wanted]
    if args.few_calls:
        asked = few_calls(texts, wanted, emoji, data, args.calls, args.sheet)
    elif args.mixtures:
        asked = mixtures(texts, EmojiLatent().process_in(data[[emoji.index(one) for one in wanted]]))
    else:
        asked = quality(texts, wanted, emoji, data, args.sheet or HERE / "samples.png")
    rows: list[dict] = []
    for row in asked:
        rows.append({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()})
        print(json.dumps(rows[-1]), flush=True)
        if args.out:
            record(args.out, prompts=args.prompts, rows=rows)


if __name__ == "__main__":
    main()
