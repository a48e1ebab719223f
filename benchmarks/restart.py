"""`python3 run.py python benchmarks/restart.py`: Restart and its rivals, their distance to the true law.

A mixture whose law is known is sampled inside the host, a class an item, all classes alike (cfg 1). What is drawn
is compared with true draws by the sliced energy distance (0: the same law). Restart, through the functions of its
nodes, meets the host's heun, euler_ancestral, dpmpp_2m_sde and er_sde at equal model calls. The schedule of each
rival and the setting of Restart are the best ones on the tuning seeds; the figures are of other seeds. `alone` is
Restart's inner sampler on the same schedule without a restart. A difference counts when it is three standard errors
of its mean over the seeds.

Problems: a kind of model, and what its network does.
    exact        the true denoiser: nothing but the sampler's steps errs
    early        a network that errs above noise-to-signal 2
    level        a network that takes the noise to be 3 percent stronger than it is
    everywhere   a network that errs at every noise level
"""

from __future__ import annotations

import argparse
import logging
import math
import statistics
import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import torch
from support.host import start_host
from support.metrics import directions, sliced_energy_distances
from torch import Tensor

logging.basicConfig(level=logging.ERROR)
start_host()
import comfy.samplers  # noqa: E402
from fewstep.nodes.host.noise_law import noise_law  # noqa: E402
from fewstep.nodes.host.sampler import restart_sampler  # noqa: E402
from fewstep.samplers.noise_law import NoiseLaw  # noqa: E402
from fewstep.schedulers.restart.plan import Interval  # noqa: E402
from fewstep.schedulers.restart.request import requested_plan  # noqa: E402
from problems import Problem, run  # noqa: E402
from record import record  # noqa: E402
from support.host_mixture import MixtureNetwork, label_conditioning, mixture_model  # noqa: E402
from support.mixture import Mixture, picture_like  # noqa: E402

CHANNELS, SIZE, CLASSES, SLICES = 1, 8, 8, 64
RIVALS = ("heun", "euler_ancestral", "dpmpp_2m_sde", "er_sde")
SCHEDULES = ("karras", "normal", "beta", "simple", "exponential", "kl_optimal", "ddim_uniform")
CALLS_A_STEP = {"heun": 2}  # one less for a step that ends at 0; 1 for all others here
ERRORS_OF_MEAN = 3  # by so many standard errors two figures must differ to be called different


# ---------------------------------------------------------------------------------------------------------
# Networks that err


def in_ratio(law: NoiseLaw, x: Tensor, sigma: Tensor) -> tuple[Tensor, float]:
    """y = x / alpha and s = sigma / alpha of a batch at one sigma; near the flow's 1, where they have no value."""
    at = min(float(sigma[0]), 1 - 1e-9) if law.is_flow else float(sigma[0])
    return x / law.alpha(at), law.ratio(at)


class ErringNetwork(MixtureNetwork):
    """D + 0.1 c_out(s) F(y / sqrt(1 + s^2), ln s) / (1 + (above / s)^8): nearly exact below the ratio `above`.

    F is a fixed smooth field, 64 cosines of root mean square 1; c_out = s / sqrt(1 + s^2) is EDM's (arXiv
    2206.00364 table 1, sigma_data 1), so this is a network whose own output is wrong by a tenth.
    """

    above = 0.0

    def __init__(self, mixture: Mixture, is_flow: bool):
        super().__init__(mixture, is_flow)
        generator, size = torch.Generator().manual_seed(7), mixture.spectrum.numel()
        self.waves = torch.randn((size, 64), generator=generator, dtype=torch.float64) / size**0.5
        self.drift = torch.randn(64, generator=generator, dtype=torch.float64) / 2
        self.phases = torch.rand(64, generator=generator, dtype=torch.float64) * 2 * math.pi
        self.patterns = torch.randn((64, size), generator=generator, dtype=torch.float64) / 32**0.5

    def denoise(self, x: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
        y, ratio = in_ratio(self.law, x, sigma)
        norm = (1 + ratio**2) ** 0.5
        field = torch.cos((y / norm).flatten(1) @ self.waves + math.log(ratio) * self.drift + self.phases)
        size = 0.1 * ratio / norm / (1 + (self.above / ratio) ** 8)
        return super().denoise(x, sigma, labels) + size * (field @ self.patterns).view_as(y)


class EarlyNetwork(ErringNetwork):
    """Errs in the first steps, above noise-to-signal 2."""

    above = 2.0


class LevelNetwork(MixtureNetwork):
    """The true denoiser of noise that is 1.03 times as strong."""

    def denoise(self, x: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
        y, ratio = in_ratio(self.law, x, sigma)
        return self.mixture.denoise(y, 1.03 * ratio, labels)


NETWORKS = {"exact": MixtureNetwork, "early": EarlyNetwork, "level": LevelNetwork, "everywhere": ErringNetwork}
PROBLEMS = tuple(f"{network}-{kind}" for network, kind in product(NETWORKS, ("eps", "edm", "flow")))
DEFAULT_PROBLEMS = ["exact-eps", "exact-edm", "exact-flow", "early-eps"]


def look_up_once(sampling) -> None:
    """The time step of a batch from its first item: for each of thousands it takes longer than the network."""
    timestep = sampling.timestep
    sampling.timestep = lambda sigma: timestep(sigma[:1] if sigma.dim() else sigma).expand(sigma.shape)


@lru_cache(maxsize=4)
def problem_of(name: str, seed: int, count: int) -> tuple[Problem, Tensor]:
    """`count` starts, and twice as many true draws."""
    network, kind = name.split("-")
    mixture = picture_like(CHANNELS, SIZE, classes=CLASSES)
    patcher = mixture_model(mixture, kind, shift=3.0 if kind == "flow" else 1.0)
    patcher.model.diffusion_model = NETWORKS[network](mixture, is_flow=kind == "flow")
    look_up_once(patcher.model.model_sampling)
    noise = torch.randn((count, CHANNELS, SIZE, SIZE), generator=torch.Generator().manual_seed(seed))
    labels = label_conditioning([i % CLASSES for i in range(count)])
    problem = Problem(name, patcher, labels, labels, 1.0, noise, end=noise, end_error=0.0)  # nothing is converged here
    return problem, mixture.sample(2 * count, seed + 500_000)


# ---------------------------------------------------------------------------------------------------------
# What is compared


@dataclass(frozen=True)
class Setting:
    """A sampler on a schedule. `restarts`: a preset's name or intervals; None: the host's sampler alone."""

    sampler: str
    scheduler: str
    restarts: str | tuple[Interval, ...] | None = None

    def __str__(self) -> str:
        name = f"{self.sampler} {self.scheduler}"
        if self.restarts is None or isinstance(self.restarts, str):
            return f"{name} {self.restarts or ''}".rstrip()
        return name + "".join(f" ({i.steps}, {i.repeats}, {i.sigma_min:g}, {i.sigma_max:g})" for i in self.restarts)


def main_sigmas(problem: Problem, scheduler: str, steps: int) -> Tensor:
    """The host's schedule of at most `steps` steps; some of its schedulers give one more than asked."""
    for asked in range(steps, 0, -1):
        sigmas = comfy.samplers.calculate_sigmas(problem.sampling, scheduler, asked)
        if len(sigmas) - 1 <= steps:
            return sigmas
    raise ValueError(f"{scheduler} has no schedule of {steps} steps")


def sampler_and_sigmas(setting: Setting, problem: Problem, calls: int) -> tuple[object, Tensor]:
    """What a person would connect, for as many steps as `calls` pay for."""
    cost = CALLS_A_STEP.get(setting.sampler, 1)
    sigmas = main_sigmas(problem, setting.scheduler, (calls + cost - 1) // cost)
    inner = comfy.samplers.sampler_object(setting.sampler)
    if setting.restarts is None:
        return inner, sigmas
    own = None if isinstance(setting.restarts, str) else setting.restarts
    preset = setting.restarts if isinstance(setting.restarts, str) else "a1111"
    plan = requested_plan(sigmas.tolist(), noise_law(problem.sampling), preset, "keep_steps", own)
    return restart_sampler(None if setting.sampler == "heun" else inner, 1.0), torch.tensor(plan.sigmas)


def rivals(sampler: str) -> list[Setting]:
    return [Setting(sampler, scheduler) for scheduler in SCHEDULES]


LOW, MIDDLE = (Interval(2, 1, 0.1, 0.3),), (Interval(3, 1, 0.3, 2.0),)
WIDE, HIGH = (Interval(5, 1, 0.5, 9.0),), (Interval(3, 1, 2.0, 10.0),)
FORGET, REPEAT = (Interval(4, 2, 0.1, 2.0),), (Interval(5, 3, 0.1, 2.0),)
SHORT = (LOW, MIDDLE, WIDE, FORGET)
LONG = (
    *SHORT, HIGH, REPEAT, (Interval(3, 1, 0.1, 0.5),), (Interval(2, 1, 3.0, 8.0),), (Interval(4, 1, 0.1, 2.0),),
    (Interval(7, 1, 0.1, 2.0),), (Interval(5, 1, 0.1, 9.0),), (Interval(2, 1, 0.3, 1.0),), (Interval(3, 2, 0.3, 2.0),),
    "a1111", "sd_cfg_2", "sd_cfg_3", "sd_cfg_5_to_8", "cifar10_vp_43", "cifar10_edm_43", "imagenet64_39",
)  # fmt: skip


def restarts(search: bool) -> list[Setting]:
    """Restart's candidates; `search` adds the published lists, more intervals, schedules and inner samplers."""
    if search:
        return [Setting(*s) for s in product(("dpmpp_2m", "uni_pc", "deis", "er_sde", "heun"), SCHEDULES[:6], LONG)]
    return [Setting(*s) for s in product(("dpmpp_2m", "uni_pc"), ("karras", "beta", "exponential", "simple"), SHORT)]


# ---------------------------------------------------------------------------------------------------------
# Measuring


@dataclass(frozen=True)
class Figure:
    """Sliced energy distances to the true law, one a seed, in the latents' unit (their variance is about 1)."""

    setting: str
    calls: int
    distances: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.mean(self.distances)


def measure(setting: Setting, name: str, calls: int, seeds: Iterable[int], count: int) -> Figure | None:
    """None where the setting cannot be had for so few calls or its sampler breaks down."""
    distances, taken, along = [], 0, directions(CHANNELS * SIZE * SIZE, SLICES)
    for seed in seeds:
        problem, true = problem_of(name, seed, count)
        try:
            drawn, taken = run(problem, *sampler_and_sigmas(setting, problem, calls), seed=seed)
        except (ValueError, RuntimeError):
            return None
        if taken > calls or not drawn.isfinite().all():
            return None
        distances.append(float(sliced_energy_distances(drawn, true, along).mean()))
    return Figure(str(setting), taken, tuple(distances))


def best(settings: Iterable[Setting], name: str, calls: int, seeds: Iterable[int], count: int) -> Setting:
    """The setting with the least distance on these seeds: three rounds, the best quarter goes on to fourfold draws."""
    left = list(settings)
    for draws in (count, 4 * count, 16 * count):
        figures = {s: f for s in left if (f := measure(s, name, calls, seeds, draws))}
        ranked = sorted(figures, key=lambda s: figures[s].mean)
        left = ranked[: math.ceil(len(ranked) / 4)]
    return ranked[0]


def difference(ours: Figure, theirs: Figure) -> tuple[float, float]:
    """Mean over the seeds of ours - theirs, and its standard error."""
    pairs = [a - b for a, b in zip(ours.distances, theirs.distances, strict=True)]
    return statistics.mean(pairs), statistics.stdev(pairs) / len(pairs) ** 0.5


def verdict(ours: Figure, theirs: Figure) -> str:
    gap, error = difference(ours, theirs)
    if abs(gap) <= ERRORS_OF_MEAN * error:
        return "even"
    return "below" if gap < 0 else "above"


@dataclass(frozen=True)
class Result:
    """A problem at a number of calls: Restart, its inner sampler alone, and each rival at its best."""

    problem: str
    calls: int
    restart: Figure
    alone: Figure
    rivals: dict[str, Figure]

    @property
    def best_rival(self) -> str:
        return min(self.rivals, key=lambda name: self.rivals[name].mean)

    def line(self) -> str:
        figures = [self.restart, *self.rivals.values(), self.alone]
        words = [f"{1e5 * f.mean:>16.1f}" for f in figures]
        gap, error = difference(self.restart, self.rivals[self.best_rival])
        against = [verdict(self.restart, f) for f in self.rivals.values()]
        won = f"below {against.count('below')}, even {against.count('even')}, above {against.count('above')}"
        return f"{self.problem:<16}{self.calls:>6}{''.join(words)}  {1e5 * gap:>8.1f} +- {1e5 * error:<6.1f}{won}"


COLUMNS = ("Restart", *RIVALS, "alone")
HEAD = f"{'problem':<16}{'calls':>6}{''.join(f'{c:>16}' for c in COLUMNS)}  Restart to the best rival, and to all"


def result(name: str, calls: int, args: argparse.Namespace) -> Result:
    """Settings chosen on the tuning seeds, figures of the others."""
    tuning = range(1000, 1000 + args.tuning_seeds)
    reported = range(args.seeds)

    def at_best(settings: list[Setting]) -> tuple[Setting, Figure]:
        chosen = best(settings, name, calls, tuning, args.tuning_count)
        figure = measure(chosen, name, calls, reported, args.count)
        if figure is None:
            raise ArithmeticError(f"{chosen} broke down on {name}")
        return chosen, figure

    setting, ours = at_best(restarts(args.search))
    alone = at_best([Setting(setting.sampler, setting.scheduler)])[1]
    return Result(name, calls, ours, alone, {rival: at_best(rivals(rival))[1] for rival in RIVALS})


def table(results: list[dict[str, Any]]) -> str:
    """For a page: a row a problem and number of calls, the distances x 100000."""
    lines = [f"| problem | calls | Restart | {' | '.join(RIVALS)} | Restart's sampler alone |", "|---" * 8 + "|"]
    for row in results:
        figures = [row["restart"], *(row["rivals"][name] for name in RIVALS), row["alone"]]
        means = [f"{1e5 * statistics.mean(figure['distances']):.1f}" for figure in figures]
        lines.append(f"| {row['problem']} | {row['calls']} | {' | '.join(means)} |")
    return "\n".join(lines)


def resolution(count: int, seeds: int) -> float:
    """Standard error of the mean distance between true draws and true draws: what cannot be told from 0."""
    mixture, along = picture_like(CHANNELS, SIZE, classes=CLASSES), directions(CHANNELS * SIZE * SIZE, SLICES)
    pairs = [(mixture.sample(count, 2 * i + 10**6), mixture.sample(2 * count, 2 * i + 10**6 + 1)) for i in range(8)]
    spread = statistics.stdev(float(sliced_energy_distances(*pair, along).mean()) for pair in pairs)
    return spread / seeds**0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", nargs="+", choices=PROBLEMS, default=DEFAULT_PROBLEMS)
    parser.add_argument("--calls", nargs="+", type=int, default=[10, 20])
    parser.add_argument("--count", type=int, default=4096, help="draws a seed")
    parser.add_argument("--seeds", type=int, default=4, help="seeds that are reported, from 0 (2 or more)")
    parser.add_argument("--tuning-count", type=int, default=1024, help="draws a tuning seed, in its first round")
    parser.add_argument("--tuning-seeds", type=int, default=1, help="seeds to choose settings on, from 1000")
    parser.add_argument("--search", action="store_true", help="choose Restart's setting among several hundred (hours)")
    parser.add_argument("--out", type=Path, default=Path("restart.json"), help="all figures, as JSON")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    smallest = resolution(args.count, args.seeds)
    print(f"Sliced energy distance to the true law x 100000. True draws are 0 +- {1e5 * smallest:.1f}.\n{HEAD}")
    results = []
    for name, calls in product(args.problems, args.calls):
        results.append(result(name, calls, args))
        print(results[-1].line(), flush=True)
        draws = {"count": args.count, "seeds": args.seeds}
        record(args.out, **draws, resolution=smallest, results=[asdict(r) for r in results])
    print("\nRestart's settings (points, repeats, from, to, in noise-to-signal) and the best rival:")
    for r in results:
        print(f"{r.problem:<16}{r.calls:>6}  {r.restart.setting:<44} {r.rivals[r.best_rival].setting}")
    print(f"All figures: {args.out}")


if __name__ == "__main__":
    main()
