"""Every run of the authors' samplers that was recorded on a small GM-DiT, step by step from the recorded states."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import product

import pytest
import torch
from fewstep.samplers.gmflow.guidance import extrapolated
from fewstep.samplers.gmflow.mixture import Gaussian, Mixture, sample
from fewstep.samplers.gmflow.solver import GMFlow
from fewstep.samplers.gmflow.spectral import coloured, fitted, principal_axes, statistics, to_gaussian
from fewstep.samplers.gmflow.transition import reverse_transition, wide_std
from support.gmflow import Guided, assert_same, golden, item, tiny_gmdit, tiny_spectrum
from torch import Tensor

TOLERANCE = 1e-4
RECORDED = golden("gmflow_samplers")
RUNS = sorted(key.removesuffix(".out") for key in RECORDED.arrays if key.endswith(".out"))
NAME = re.compile(r"(ode|sde|sdespec|sdemean\.\w+)(?:\.o(\d))?\.n(\d)(?:\.s(\d))?\.w([\d.]*\d)(?:\.(\D\w+))?")
MODES = {"ode": "ode", "sde": "sde", "sdespec": "sde", "sdemean.small": "mean_narrow", "sdemean.large": "mean_wide"}


@dataclass(frozen=True)
class Run:
    """What a run's name says."""

    name: str

    @property
    def parts(self) -> tuple[str, ...]:
        match = NAME.fullmatch(self.name)
        assert match
        return tuple(part or "" for part in match.groups())

    @property
    def kind(self) -> str:
        return self.parts[0]

    @property
    def solver(self) -> GMFlow:
        kind, order, _, substeps, _, extra = self.parts
        return GMFlow(
            MODES[kind],
            int(order or 1),
            int(substeps or 1),
            shift=3.0 if extra == "shift3" else 1.0,
            corrections=2 if extra == "corr2" else 0,
        )

    @property
    def predict(self) -> Guided:
        """In float64, whose rounding is the same on every processor; theirs was float32."""
        return Guided(tiny_gmdit().double(), RECORDED.tensor("labels"), float(self.parts[4]), self.parts[5] != "orth0")

    @property
    def sigmas(self) -> Tensor:
        return torch.cat([self["ts"] / 1000, torch.zeros(1)])

    @property
    def next_states(self) -> Tensor:
        """What the steps made: the states at the model calls after the first, and the end."""
        return torch.cat([self["xs"][1:], self["out"][None]])

    def __getitem__(self, key: str) -> Tensor:
        values = RECORDED.tensor(f"{self.name}.{key}")
        return values.double() if values.is_floating_point() else values


@dataclass
class Draws:
    """The recorded components, component noise and step noise, as a Draw and a Noise."""

    run: Run
    step: int = 0

    def draw(self, mixture: Mixture, noise) -> Tensor:
        index = self.run["multinomial"][self.step].view(-1, 1, *mixture.means.shape[3:])
        return sample(mixture, index, self.run["randn"][self.step][:, 0])

    def __call__(self, sigma_from: float, sigma_to: float) -> Tensor:
        self.step += 1
        return self.run["sde_noise"][self.step - 1]


class Led(GMFlow):
    """Our solver, every step of which begins at the recorded state: a run would carry rounding on and magnify it."""

    def lead(self, recorded: Tensor) -> None:
        self.__dict__.update(recorded=recorded, made=[])

    def advance(self, mixture, x, sigma, sigma_next, noise):
        self.made.append(super().advance(mixture, x, sigma, sigma_next, noise))
        return self.recorded[len(self.made)] if len(self.made) < len(self.recorded) else self.made[-1]


def led(run: Run, noise=None, kind: type[Led] = Led, **options) -> tuple[Tensor, Tensor]:
    """What each step makes of the recorded state before it, and the denoised means there."""
    means: list[Tensor] = []
    solver = kind(**{**vars(run.solver), **options})
    solver.lead(run["xs"])
    solver(
        run.predict,
        RECORDED.tensor("noise").double(),
        run.sigmas,
        noise=noise,
        on_step=lambda step, sigma, x, denoised: means.append(denoised),
    )
    return torch.stack(solver.made), torch.stack(means)


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", [name for name in RUNS if name.startswith("ode")])
def test_ode(name):
    run = Run(name)
    made, _ = led(run)
    close(made, run.next_states)


@pytest.mark.parametrize("name", [name for name in RUNS if name.startswith("sdemean")])
def test_sde_of_the_mean(name):
    """Their wide variance leaves noise in the last latent, a third of the whole; ours ends on the mean."""
    run = Run(name)
    made, means = led(run, Draws(run))
    close(means, run["x0"])
    left = wide_std(run.sigmas[-2].item(), 0.0) if run.solver.mode == "mean_wide" else 0
    made[-1] += left * run["sde_noise"][-1]
    close(made, run.next_states)


@pytest.mark.parametrize("name", [name for name in RUNS if name.startswith("sde.")])
def test_sde(name):
    """The authors end on a sample."""
    run = Run(name)
    draws = Draws(run)
    made, _ = led(run, draws, draw=draws.draw, sample_last=True)
    close(made, run.next_states)


@pytest.mark.parametrize("name", [name for name in RUNS if f"{name}.gmx0.means" in RECORDED.arrays])
def test_the_mixtures_of_a_run(name):
    run, seen = Run(name), []

    class Spy(Led):
        def advance(self, mixture, x, sigma, sigma_next, noise):
            seen.append((mixture, reverse_transition(mixture, x, sigma, sigma_next)))
            return super().advance(mixture, x, sigma, sigma_next, noise)

    draws = Draws(run)
    led(run, draws, Spy, **({"draw": draws.draw} if run.kind == "sde" else {}))
    for step, (x0, below) in enumerate(seen):
        for found, key in ((x0, "gmx0"), (below, "gmtrans")):
            expected = Mixture(*(run[f"{key}.{part}"][step] for part in ("means", "logweights", "logstds")))
            if key == "gmtrans" and step == len(run.sigmas) - 2:  # the authors' floor, at the end only
                expected = Mixture(expected.means, expected.logweights, (expected.var - 1e-6).log()[:, None] / 2)
            assert_same(found, expected, TOLERANCE, relative=2e-5)  # means reach 9


@pytest.mark.parametrize("name", [name for name in RUNS if name.startswith("sdespec")])
def test_spectral_sde(name):
    """Each step with the axes' signs that the authors' eigensolver gave, found among the sixteen for each item.

    Compared are the Gaussian numbers: between two components, where next to nothing is, their x0 is worth no digits.
    They take the spectrum of the Gaussian that guidance aims at, we that of the mixture that is sampled.
    """
    run, network = Run(name), tiny_spectrum().double()
    aims: list[Gaussian] = []
    found: list[Tensor] = []
    wanted: list[Tensor] = []

    class Spy(Led):
        def mixture_of(self, prediction, earlier, h):
            bias, share = torch.zeros(()), torch.full_like(prediction.spread, prediction.strength**2)
            if earlier:
                bias, share = extrapolated(prediction, earlier, h)
            elif prediction.bias is not None:
                bias = prediction.bias
            aims.append(Gaussian(prediction.centre + bias, prediction.spread * (1 - share)))
            return super().mixture_of(prediction, earlier, h)

    def draw(mixture: Mixture, noise) -> Tensor:
        step = len(found)
        log_power = fitted(network(statistics(aims[step])), 8, 8)
        wanted.append(coloured(run["randn"][step][:, 0], log_power))
        found.append(with_signs(mixture, run["x0"][step], wanted[-1]))
        return run["x0"][step]

    led(run, Draws(run), Spy, draw=draw)
    torch.testing.assert_close(torch.stack(found), torch.stack(wanted), rtol=0, atol=5e-4)


def with_signs(mixture: Mixture, x0: Tensor, wanted: Tensor) -> Tensor:
    """For each item the Gaussian numbers behind its x0, over all signs of its axes those nearest to the wanted."""
    axes, items = principal_axes(mixture), []
    for i in range(len(x0)):
        signs = [torch.tensor(s, dtype=x0.dtype) for s in product((1, -1), repeat=x0.shape[1])]
        behind = [to_gaussian(item(mixture, i), x0[i : i + 1], axes[i : i + 1] * s) for s in signs]
        items.append(min(behind, key=lambda z: (z - wanted[i]).abs().max().item()))
    return torch.cat(items)


def test_every_recorded_run_is_replayed_here():
    """A run of a kind that no test above takes would be left out in silence."""
    assert len(RUNS) == 35 and {Run(name).kind for name in RUNS} == set(MODES)
