"""Recorded arrays of GMFlow (tests/goldens/gmflow) as mixtures, the small network, and an exact mixture model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from fewstep.samplers.gmflow.checkpoint import GMDiTConfig
from fewstep.samplers.gmflow.guidance import Prediction, guided
from fewstep.samplers.gmflow.mixture import Gaussian, Mixture, Tilt, choose, sample, tilt, x0_from_u
from fewstep.samplers.gmflow.network import GMDiT, SpectrumNetwork
from fewstep.samplers.gmflow.solver import GMFlow
from fewstep.samplers.noise_law import FLOW
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from support.goldens import FOLDER, Arrays
from support.metrics import sliced_energy_distance


@cache
def golden(name: str) -> Recorded:
    return Recorded.load(f"gmflow/{name}")


@dataclass(frozen=True)
class Recorded(Arrays):
    """A file of arrays in the authors' layout."""

    def mixture(self, key: str) -> Mixture:
        return Mixture(*(self.tensor(f"{key}.{part}") for part in ("means", "logweights", "logstds")))

    def gaussian(self, key: str) -> Gaussian:
        return Gaussian(self.tensor(f"{key}.mean"), self.tensor(f"{key}.var"))


def assert_same(mixture: Mixture, expected: Mixture, tolerance: float, relative: float = 0) -> None:
    for name in ("means", "logweights", "logstds"):
        torch.testing.assert_close(getattr(mixture, name), getattr(expected, name), rtol=relative, atol=tolerance)


def item(mixture: Mixture, i: int) -> Mixture:
    """One picture of a batch, as a batch of one."""
    return Mixture(mixture.means[i : i + 1], mixture.logweights[i : i + 1], mixture.logstds[i : i + 1])


def random_mixture(shape: tuple[int, ...], components: int, seed: int = 0, dtype=torch.float64) -> Mixture:
    """A mixture for latents of `shape` (B, C, *S), s about 0.4."""
    generator = torch.Generator().manual_seed(seed)
    batch, channels, *space = shape
    ones = [1] * len(space)
    means = torch.randn((batch, components, channels, *space), generator=generator, dtype=dtype)
    logits = torch.randn((batch, components, 1, *space), generator=generator, dtype=dtype)
    logstds = torch.randn((batch, 1, 1, *ones), generator=generator, dtype=dtype) / 5 - 0.9
    return Mixture.of_logits(means, logits, logstds)


def normal(shape: tuple[int, ...], seed: int, dtype=torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# ---------------------------------------------------------------------------------------------------------
# Networks


def weights(name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A recorded network: its state dict and its config."""
    path = FOLDER / "gmflow" / f"{name}.safetensors"
    with safe_open(path, framework="pt") as file:
        config = json.loads(file.metadata()["config"])
    return load_file(path), config


def tiny_gmdit() -> GMDiT:
    state, config = weights("tiny_gmdit")
    network = GMDiT(GMDiTConfig.of_json(config))
    network.load_state_dict(state)
    return network.requires_grad_(False)


def tiny_spectrum() -> SpectrumNetwork:
    state, config = weights("tiny_spectrum")
    network = SpectrumNetwork(tuple(config["base_size"]), tuple(config["layers"]))
    network.load_state_dict(state)
    return network.requires_grad_(False)


@dataclass(frozen=True)
class Guided:
    """The small GM-DiT as a MixtureDenoiser, guided at `strength` against its null label."""

    network: GMDiT
    labels: Tensor
    strength: float = 0.0
    orthogonal: float = 1.0

    def x0(self, x: Tensor, sigma: float, labels: Tensor) -> Mixture:
        return x0_from_u(self.network.mixture(x, torch.full((len(x),), sigma), labels), x, sigma)

    def __call__(self, x: Tensor, sigma: float) -> Prediction:
        conditional = self.x0(x, sigma, self.labels)
        if self.strength == 0:
            return Prediction(conditional)
        null = torch.full_like(self.labels, self.network.config.num_embeds_ada_norm)
        return guided(conditional, self.x0(x, sigma, null), self.strength, self.orthogonal)


# ---------------------------------------------------------------------------------------------------------
# A known law


@dataclass(frozen=True)
class Exact:
    """The MixtureDenoiser of data whose pixels are drawn from `law` (a batch of one, of the latent's shape)."""

    law: Mixture

    def __call__(self, x: Tensor, sigma: float) -> Prediction:
        law = Mixture(
            *(t.expand(len(x), *t.shape[1:]) for t in (self.law.means, self.law.logweights, self.law.logstds))
        )
        alpha = FLOW.alpha(sigma)
        precision = torch.full_like(law.var, (alpha / sigma) ** 2)
        return Prediction(tilt(law, Tilt(torch.zeros_like(x), x * (alpha / sigma**2), precision)))


COUNT = 8000


def sigmas(steps: int) -> Tensor:
    return torch.linspace(1, 0, steps + 1, dtype=torch.float64)


def noise_of(x: Tensor, seed: int):
    """Fresh seeded draws of x's shape."""
    generator = torch.Generator().manual_seed(seed)
    return lambda sigma_from, sigma_to: torch.randn(x.shape, generator=generator, dtype=x.dtype)


def three_peaks() -> Exact:
    means = torch.tensor([[2.0, 0], [-1, 1.5], [-0.5, -2]], dtype=torch.float64).view(1, 3, 2, 1, 1)
    logits = torch.tensor([0.0, 0.5, -0.5], dtype=torch.float64).view(1, 3, 1, 1, 1)
    return Exact(Mixture.of_logits(means, logits, torch.full((1, 1, 1, 1, 1), -1.6, dtype=torch.float64)))


def true_samples(law: Mixture, count: int, seed: int = 11) -> Tensor:
    many = Mixture(*(t.expand(count, *t.shape[1:]) for t in (law.means, law.logweights, law.logstds)))
    return sample(many, choose(many, normal((count, 2, 1, 1), seed)), normal((count, 2, 1, 1), seed + 1))


def distance_to_three_peaks(solver: GMFlow, steps: int) -> float:
    """From the true law to what the solver draws."""
    exact, x = three_peaks(), normal((COUNT, 2, 1, 1), 0)
    drawn = solver(exact, x, sigmas(steps), noise=noise_of(x, 1))
    return sliced_energy_distance(drawn, true_samples(exact.law, COUNT))


def true_distance_to_three_peaks() -> float:
    """Of two sets of true draws."""
    law = three_peaks().law
    return sliced_energy_distance(true_samples(law, COUNT), true_samples(law, COUNT, 13))
