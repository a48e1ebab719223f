"""Every run of the authors' samplers that was recorded, state by state, on a small GM-DiT in float32."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from itertools import product

import pytest
import torch
from fewstep.samplers.gmflow.guidance import extrapolated
from fewstep.samplers.gmflow.mixture import Gaussian, Mixture, sample
from fewstep.samplers.gmflow.solver import GMFlow
from fewstep.samplers.gmflow.spectral import coloured, fitted, from_gaussian, principal_axes, statistics
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
        return Guided(tiny_gmdit(), RECORDED.tensor("labels"), float(self.parts[4]), self.parts[5] != "orth0")

    @property
    def sigmas(self) -> Tensor:
        return torch.cat([self["ts"] / 1000, torch.zeros(1)])

    def __getitem__(self, key: str) -> Tensor:
        return RECORDED.tensor(f"{self.name}.{key}")


@dataclass
class Draws:
    """The recorded components, component noise and step noise, as a Draw and a Noise."""

    run: Run
    step: int = 0
    last: list[Tensor] = field(default_factory=list)

    def draw(self, mixture: Mixture, noise) -> Tensor:
        index = self.run["multinomial"][self.step].view(-1, 1, *mixture.means.shape[3:])
        return sample(mixture, index, self.run["randn"][self.step][:, 0])

    def __call__(self, sigma_from: float, sigma_to: float) -> Tensor:
        self.step += 1
        return self.run["sde_noise"][self.step - 1]


@dataclass
class Watched:
    """A mixture denoiser that keeps the states and what it gave."""

    predict: Guided
    states: list[Tensor] = field(default_factory=list)

    def __call__(self, x: Tensor, sigma: float):
        self.states.append(x)
        return self.predict(x, sigma)


def solved(run: Run, noise=None, **options) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """The states at the model calls, the denoised means, and the end."""
    watched, means = Watched(run.predict), []
    solver = GMFlow(**{**vars(run.solver), **options})
    end = solver(
        watched,
        RECORDED.tensor("noise"),
        run.sigmas,
        noise=noise,
        on_step=lambda step, sigma, x, denoised: means.append(denoised),
    )
    return watched.states, means, end


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", [name for name in RUNS if name.startswith("ode")])
def test_ode(name):
    run = Run(name)
    states, _, end = solved(run)
    close(torch.stack(states), run["xs"])
    close(end, run["out"])


@pytest.mark.parametrize("name", [name for name in RUNS if name.startswith("sdemean")])
def test_sde_of_the_mean(name):
    """Their wide variance leaves noise in the last latent, a third of the whole; ours ends on the mean."""
    run = Run(name)
    states, means, end = solved(run, Draws(run))
    close(torch.stack(states), run["xs"])
    close(torch.stack(means), run["x0"])
    left = wide_std(run.sigmas[-2].item(), 0.0) if run.solver.mode == "mean_wide" else 0
    close(end + left * run["sde_noise"][-1], run["out"])


@pytest.mark.parametrize("name", [name for name in RUNS if name.startswith("sde.")])
def test_sde(name):
    """The authors end on a sample."""
    run = Run(name)
    draws = Draws(run)
    states, _, end = solved(run, draws, draw=draws.draw, sample_last=True)
    close(torch.stack(states), run["xs"])
    close(end, run["out"])


@pytest.mark.parametrize("name", [name for name in RUNS if f"{name}.gmx0.means" in RECORDED.arrays])
def test_the_mixtures_of_a_run(name):
    """In float64: our own rounding, which differs between processors, must not use up the bound."""
    run, seen = Run(name), []

    class Spy(GMFlow):
        def advance(self, mixture, x, sigma, sigma_next, noise):
            seen.append((mixture, reverse_transition(mixture, x, sigma, sigma_next)))
            return super().advance(mixture, x, sigma, sigma_next, noise)

    draws = Draws(run)
    options = vars(run.solver) | ({"draw": draws.draw} if run.kind == "sde" else {})
    predict = replace(run.predict, network=tiny_gmdit().double())
    Spy(**options)(predict, RECORDED.tensor("noise").double(), run.sigmas, noise=draws)
    for step, (x0, below) in enumerate(seen):
        for found, key in ((x0, "gmx0"), (below, "gmtrans")):
            parts = (run[f"{key}.{part}"][step].double() for part in ("means", "logweights", "logstds"))
            expected = Mixture(*parts)
            if key == "gmtrans" and step == len(run.sigmas) - 2:  # the authors' floor, at the end only
                expected = Mixture(expected.means, expected.logweights, (expected.var - 1e-6).log()[:, None] / 2)
            assert_same(found, expected, TOLERANCE, relative=2e-5)  # means reach 9


@pytest.mark.parametrize("name", [name for name in RUNS if name.startswith("sdespec")])
def test_spectral_sde(name):
    """Each step with the axes' signs that the authors' eigensolver gave, found among the sixteen for each item.

    They take the spectrum of the Gaussian that guidance aims at, we that of the mixture that is sampled.
    """
    run, network = Run(name), tiny_spectrum()
    aims: list[Gaussian] = []
    drawn: list[Tensor] = []

    class Spy(GMFlow):
        def mixture_of(self, prediction, earlier, h):
            bias, share = torch.zeros(()), torch.full_like(prediction.spread, prediction.strength**2)
            if earlier:
                bias, share = extrapolated(prediction, earlier, h)
            elif prediction.bias is not None:
                bias = prediction.bias
            aims.append(Gaussian(prediction.centre + bias, prediction.spread * (1 - share)))
            return super().mixture_of(prediction, earlier, h)

    def draw(mixture: Mixture, noise) -> Tensor:
        step = len(drawn)
        log_power = fitted(network(statistics(aims[step])), 8, 8)
        drawn.append(with_signs(mixture, coloured(run["randn"][step][:, 0], log_power), run["x0"][step]))
        return drawn[-1]

    Spy(**vars(run.solver) | {"draw": draw})(run.predict, RECORDED.tensor("noise"), run.sigmas, noise=Draws(run))
    torch.testing.assert_close(torch.stack(drawn), run["x0"][:3], rtol=0, atol=5e-4)


def with_signs(mixture: Mixture, z: Tensor, recorded: Tensor) -> Tensor:
    """For each item the sample, over all signs of its axes, that is nearest to the recorded one."""
    axes, items = principal_axes(mixture), []
    for i in range(len(z)):
        signs = [torch.tensor(s, dtype=z.dtype) for s in product((1, -1), repeat=z.shape[1])]
        drawn = [from_gaussian(item(mixture, i), z[i : i + 1], axes[i : i + 1] * s) for s in signs]
        items.append(min(drawn, key=lambda x: (x - recorded[i]).abs().max().item()))
    return torch.cat(items)


def test_every_recorded_run_is_replayed_here():
    """A run of a kind that no test above takes would be left out in silence."""
    assert len(RUNS) == 35 and {Run(name).kind for name in RUNS} == set(MODES)
