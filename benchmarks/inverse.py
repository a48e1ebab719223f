"""What is known of a picture, and draws of the rest, against the exact posterior of a mixture.

    python3 run.py python benchmarks/inverse.py [--problems 6] [--draws 16] [--out FILE.json]

A problem is a true draw of the mixture of which something is known: all but a square of 8 x 8 in 16 x 16 (inpaint), the
means of 2 x 2 or 4 x 4 (downsample), one sum of the four channels (grey). Every way makes some draws; judged are the
squared distance of their mean from the exact posterior's, without what so few draws alone would have, and their
variance over the exact one. Unguided, because there the exact posterior is known.

host: its own inpainting (Set Latent Noise Mask). project: what is known is put into the prediction, no gradient.
differences, model: Manifold Constraint, by a second call nearby (its default), and through the model. paper: MCG as
published, an ancestral step, a move of the state by a / |e|, and the known part of the state noised anew.
"""

from __future__ import annotations

import argparse
import logging
import math
import warnings
from collections.abc import Callable
from dataclasses import astuple, dataclass
from functools import partial
from itertools import pairwise, product
from pathlib import Path

import torch
from support.host import start_host
from torch import Tensor
from tqdm import tqdm

logging.basicConfig(level=logging.ERROR)
start_host()
import comfy.sample  # noqa: E402
import comfy.samplers  # noqa: E402
from comfy.patcher_extension import WrappersMP  # noqa: E402
from fewstep.nodes.host.constraint import Held, Known  # noqa: E402
from fewstep.samplers.constraint import Grey, Identity, Measurement, Operator, Pooled  # noqa: E402
from fewstep.samplers.noise_law import VARIANCE_EXPLODING  # noqa: E402
from record import record  # noqa: E402
from support.host_mixture import label_conditioning, mixture_model  # noqa: E402
from support.inverse import Posterior, judged, matrix_of, posterior  # noqa: E402
from support.mixture import GuidedMixture, picture_like  # noqa: E402

RESULTS = Path(__file__).with_name("results")
MIXTURE = picture_like()
SHAPE = torch.Size(MIXTURE.spectrum.shape)
STEPS = (8, 20)
CASES = (("eps", "euler", "karras"), ("eps", "euler_ancestral", "karras"), ("flow", "euler", "simple"))
OPERATORS: dict[str, Operator] = {
    "inpaint": Identity(),
    "downsample 2": Pooled(2),
    "downsample 4": Pooled(4),
    "grey": Grey((0.5, 0.5, 0.5, 0.5)),
}


@dataclass(frozen=True, eq=False)
class Problems:
    """Several of one kind, each so many times in a row. unknown: (B, 1, H, W), or None."""

    operator: Operator
    y: Tensor
    unknown: Tensor | None
    draws: int
    truths: list[Posterior]

    @property
    def known(self) -> Known:
        return Known(self.operator, self.y, self.unknown)

    def judge(self, ends: Tensor) -> list[float]:
        """The mean error of the problems' means, and the mean of their variances, five digits."""
        each = [judged(one, truth) for one, truth in zip(ends.split(self.draws), self.truths, strict=True)]
        return [round(sum(figures) / len(each), 5) for figures in zip(*map(astuple, each), strict=True)]


def holes(count: int) -> Tensor:
    """A square of half the height and width somewhere, (count, 1, H, W)."""
    generator = torch.Generator().manual_seed(0)
    made, (rows, columns) = torch.zeros(count, 1, *SHAPE[1:], dtype=torch.float64), (SHAPE[1] // 2, SHAPE[2] // 2)
    for one in made[:, 0]:
        top, left = (int(torch.randint(size + 1, (), generator=generator)) for size in (rows, columns))
        one[top : top + rows, left : left + columns] = 1
    return made


def measured(operator: Operator, known: Tensor, x: Tensor) -> Tensor:
    return operator.measure(x) * known


def problems(name: str, count: int, draws: int) -> Problems:
    operator, x = OPERATORS[name], MIXTURE.sample(count, 11)
    unknown = holes(count) if name == "inpaint" else None
    known = torch.ones(count, 1, 1, 1).double() if unknown is None else 1 - unknown
    truths = [
        posterior(MIXTURE, matrix_of(partial(measured, operator, one), SHAPE), true)
        for one, true in zip(known, x, strict=True)
    ]
    repeated = None if unknown is None else unknown.repeat_interleave(draws, 0)
    return Problems(operator, x.repeat_interleave(draws, 0).float(), repeated, draws, truths)


@dataclass(frozen=True, eq=False)
class Case:
    """A kind of model, a sampler and its sigmas."""

    kind: str
    sampler: str
    scheduler: str
    steps: int

    @property
    def name(self) -> str:
        return f"{self.kind}, {self.sampler}, {self.steps}"

    def draw(self, of: Problems, held: Held | None = None, host_mask: bool = False) -> Tensor:
        patcher = mixture_model(MIXTURE, self.kind, 3.0 if self.kind == "flow" else 1.0)
        if held:
            patcher.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "inverse", held)
        noise = torch.randn(of.y.shape, generator=torch.Generator().manual_seed(1))
        sigmas = comfy.samplers.calculate_sigmas(patcher.model.model_sampling, self.scheduler, self.steps)
        latent, mask = (of.y, of.unknown) if host_mask else (torch.zeros_like(of.y), None)
        conditioning = [label_conditioning([-1] * len(of.y))] * 2
        sampler = comfy.samplers.sampler_object(self.sampler)
        return comfy.sample.sample_custom(
            patcher, noise, 1.0, sampler, sigmas, *conditioning, latent, mask, disable_pbar=True, seed=2
        )

    def sigmas(self) -> list[float]:
        sampling = mixture_model(MIXTURE, self.kind).model.model_sampling
        return comfy.samplers.calculate_sigmas(sampling, self.scheduler, self.steps).tolist()


def paper(of: Problems, sigmas: list[float], scale: float) -> Tensor:
    """Algorithm 1 with DDPM's steps, on x = x0 + sigma e; its x is that times alpha = 1 / sqrt(1 + sigma^2)."""
    generator = torch.Generator().manual_seed(1)

    def draw() -> Tensor:
        return torch.randn(of.y.shape, generator=generator, dtype=torch.float64)

    denoise, x = GuidedMixture(MIXTURE, VARIANCE_EXPLODING), draw() * sigmas[0]
    measurement: Measurement = of.known.on(x)
    for sigma, to in pairwise(sigmas):
        with torch.enable_grad():
            x.requires_grad_()
            denoised = denoise(x, sigma)
            missed = measurement.missed(denoised)
            (slope,) = torch.autograd.grad(missed.flatten(1).norm(dim=1).sum(), x)
        x, denoised = x.detach(), denoised.detach()
        down = to**2 / sigma
        x = denoised + down / sigma * (x - denoised) + math.sqrt(to**2 - down**2) * draw()
        x = x - scale * slope * math.sqrt(1 + sigma**2) * math.sqrt(1 + to**2)
        noised = Measurement(of.operator, measurement.y + to * of.operator.measure(draw()), measurement.weight)
        x = noised.kept(x)
    return x


def ways(case: Case, of: Problems) -> dict[str, Callable[[], Tensor]]:
    """Each draws for every problem."""

    def held(scale: float = 1.0, project: bool = True, gradient: str = "differences", iterations: int = 1):
        return lambda: case.draw(of, Held(of.known, scale, project, gradient, iterations))

    made: dict[str, Callable[[], Tensor]] = (
        {} if of.unknown is None else {"host": lambda: case.draw(of, host_mask=True)}
    )
    made |= {
        "project": held(0.0),
        "differences": held(),
        "differences, scale 0.5": held(0.5),
        "differences, no project": held(project=False),
        "differences, 3 iterations": held(iterations=3),
        "model": held(gradient="model"),
        "model, 3 iterations": held(gradient="model", iterations=3),
    }
    if case.sampler == "euler_ancestral":
        made |= {f"paper, a {a:g}": partial(paper, of, case.sigmas(), a) for a in (1.0, 3.0)}
    return made


def rows(name: str, of: Problems) -> list[dict]:
    """A row a way: its figures by case."""
    found: dict[str, dict[str, list[float]]] = {}
    for case in tqdm([Case(*names, steps) for names, steps in product(CASES, STEPS)], desc=name, mininterval=5):
        for way, draw in ways(case, of).items():
            found.setdefault(way, {})[case.name] = of.judge(draw())
    return [{"problem": name, "way": way, "figures": figures} for way, figures in found.items()]


def table(found: list[dict]) -> str:
    """A line a problem and way, a column a case: the error, and the variance by the truth's."""
    heads = list(found[0]["figures"])
    lines = ["| known | way | " + " | ".join(heads) + " |", "|---" * (len(heads) + 2) + "|"]
    for row in found:
        cells = ["{:.4f} ({:.2f})".format(*figures) if (figures := row["figures"].get(head)) else "" for head in heads]
        lines.append(f"| {row['problem']} | {row['way']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=6)
    parser.add_argument("--draws", type=int, default=16)
    parser.add_argument("--out", type=Path, default=RESULTS / "inverse.json", help="all figures, as JSON")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    found: list[dict] = []
    for name in OPERATORS:
        found += rows(name, problems(name, args.problems, args.draws))
        record(args.out, problems=args.problems, draws=args.draws, rows=found)
    print(table(found))


if __name__ == "__main__":
    main()
