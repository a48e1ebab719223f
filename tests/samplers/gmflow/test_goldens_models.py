"""Further recordings: the authors' loss, the successor's posterior and temperature, and a small trained model."""

from __future__ import annotations

import math

import pytest
import torch
from fewstep.samplers.gmflow.guidance import Prediction
from fewstep.samplers.gmflow.mixture import Mixture, log_prob, tempered, x0_from_u
from fewstep.samplers.gmflow.solver import GMFlow
from fewstep.samplers.gmflow.transition import Posterior, reverse_transition
from fewstep.samplers.noise_law import FLOW
from support.gmflow import golden, item, tiny_gmdit, weights
from torch import Tensor, nn
from torch.nn import functional

TRAINED, POLICIES, TOY = golden("gmflow_train"), golden("piflow_policies"), golden("toy_checkerboard_io")
CONSTANT = 2 * math.log(2 * math.pi)  # of four channels, which the authors leave out


def close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


# ---------------------------------------------------------------------------------------------------------
# Likelihoods


def test_the_likelihood_that_is_trained():
    found = -log_prob(TRAINED.mixture("nll"), TRAINED.tensor("nll.target")) - CONSTANT
    close(found, TRAINED.tensor("nll.map"), 1e-9)


@pytest.mark.parametrize("ratio, floor", [(0.5, 0.0), (0.9, 0.0), (1, 1e-6)])
def test_the_transition_loss(ratio, floor):
    """arXiv 2504.05304 algorithm 1, twice the mean. Where the lower sigma is 0, the authors' variance has a floor."""
    key, network, losses = f"train.tr{ratio}.spec0", tiny_gmdit(), []
    noise = TRAINED.tensor(f"{key}.noise")
    for i, sigma in enumerate(TRAINED.tensor(f"{key}.t_randn").double().sigmoid().tolist()):
        low = sigma * (1 - ratio)
        x_low = (1 - low) * TRAINED.tensor("x0")[i] + low * noise[i]
        x = FLOW.renoise(x_low, low, sigma, noise[4 + i])[None]
        u = network.mixture(x, torch.tensor([sigma], dtype=torch.float32), TRAINED.tensor("labels")[i : i + 1])
        below = reverse_transition(x0_from_u(u, x, sigma), x, sigma, low)
        below = Mixture(below.means, below.logweights, (below.var + floor).log()[:, None] / 2)
        losses.append(-log_prob(below, x_low[None]).mean() - CONSTANT)
    torch.testing.assert_close(2 * torch.stack(losses).mean(), TRAINED.tensor(f"{key}.loss"), rtol=1e-4, atol=0)


# ---------------------------------------------------------------------------------------------------------
# pi-Flow


def source(i: int) -> tuple[Mixture, Tensor, float]:
    """The mixture of x0 of item i, where it was predicted, and at which sigma."""
    x, sigma = POLICIES.tensor("x_src")[i : i + 1], POLICIES.tensor("sigma_src")[i].item()
    return x0_from_u(item(POLICIES.mixture("u"), i), x, sigma), x, sigma


def velocity(mixture: Mixture, x_source: Tensor, sigma_source: float, point: str, i: int) -> Tensor:
    """(x - E[x0 | x]) / sigma at a recorded point."""
    x, sigma = POLICIES.tensor(f"{point}.x")[i : i + 1], POLICIES.tensor(f"{point}.sigma")[i].item()
    return ((x - Posterior(mixture, x_source, sigma_source).mean_at(x, sigma)) / sigma)[0]


@pytest.mark.parametrize("i", [0, 1])
def test_the_posterior_of_a_policy(i):
    mixture, x, sigma = source(i)
    close(mixture.means[0], POLICIES.tensor("x0gm.means")[i], 1e-9)
    close(mixture.var[0], POLICIES.tensor("x0gm.gm_vars")[i, 0], 1e-9)
    for point in ("pi0", "pi1", "pi2"):
        close(velocity(mixture, x, sigma, point, i), POLICIES.tensor(f"{point}.u")[i], 1e-9)


@pytest.mark.parametrize("i", [0, 1])
@pytest.mark.parametrize("temperature", [0.3, 0.1])
def test_temperature_of_a_policy(temperature, i):
    mixture, x, sigma = source(i)
    cold, key = tempered(mixture, temperature), f"temp{temperature}"
    close(cold.logweights[0], POLICIES.tensor(f"{key}.logweights")[i], 1e-9)
    close(cold.var[0], POLICIES.tensor(f"{key}.gm_vars")[i, 0], 1e-9)
    close(velocity(cold, x, sigma, "pi0", i), POLICIES.tensor(f"{key}.pi")[i], 1e-9)


# ---------------------------------------------------------------------------------------------------------
# The checkerboard: points of the plane as latents (B, 2, 1, 1), K = 8


class Toy(nn.Module):
    """The authors' small network, with the features of time and place that it was trained on."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        state = {name: value.to(dtype) for name, value in weights("toy_checkerboard_k8")[0].items()}
        self.layers = [(state[f"net.{i}.weight"], state[f"net.{i}.bias"]) for i in (0, 2, 4)]
        self.heads = [(state[f"out_{name}.weight"], state[f"out_{name}.bias"]) for name in NAMES]

    def forward(self, x: Tensor, t: Tensor) -> Mixture:
        h = torch.cat([self.of_time(t), self.of_place(x.flatten(1))], 1)
        for weight, bias in self.layers:
            h = functional.silu(functional.linear(h, weight, bias))
        means, logits, logstds = (functional.linear(h, *head) for head in self.heads)
        return Mixture.of_logits(means.view(-1, 8, 2, 1, 1), logits.view(-1, 8, 1, 1, 1), logstds.view(-1, 1, 1, 1, 1))

    @staticmethod
    def of_time(t: Tensor) -> Tensor:
        angles = t[:, None] * 10000.0 ** (-torch.arange(32, dtype=torch.float64) / 31).to(t.dtype)
        return torch.cat([angles.cos(), angles.sin()], 1)

    @staticmethod
    def of_place(x: Tensor) -> Tensor:
        periods = torch.logspace(math.log10(5e-3), math.log10(50), 16, dtype=torch.float64).to(x.dtype)
        angles = 2 * math.pi * x[..., None] / periods
        return torch.cat([angles.sin(), angles.cos()], 2).flatten(1)


NAMES = ("means", "logweights", "logstds")


def test_toy_network():
    found = Toy()(TOY.tensor("x"), TOY.tensor("t"))
    for name in NAMES:
        close(getattr(found, name), TOY.tensor(f"out.{name}"), 1e-3)


@pytest.mark.parametrize("name", ["ode.o2.n8.s16", "ode.o1.n8.s16", "ode.o1.n8.s1", "ode.o1.n128.s1"])
def test_checkerboard(name):
    """A few of 512 points lie near an edge between two fields, where the recorder's float32 decided. Ours is double."""
    order, steps, substeps = (int(part[1:]) for part in name.split(".")[1:])
    toy = Toy(torch.float64)

    def predict(x: Tensor, sigma: float) -> Prediction:
        return Prediction(x0_from_u(toy(x, torch.full((len(x),), 1000 * sigma).to(x)), x, sigma))

    end = GMFlow("ode", order, substeps)(predict, TOY.tensor("noise").double(), torch.linspace(1, 0, steps + 1))
    apart = (end.flatten(1) - TOY.tensor(f"{name}.out")).norm(dim=1)
    assert (apart < 0.01).float().mean() > 0.97
    assert on_board(end.flatten(1)) == pytest.approx(float(TOY.arrays[f"{name}.frac_on_board"]), abs=0.003)


def on_board(points: Tensor) -> float:
    """The share of points (N, 2) on the filled fields of a 4 x 4 board over [-4, 4]."""
    column, row = ((points + 4) / 2).floor().unbind(1)
    inside = (points.abs() < 4).all(1)
    return (inside & ((column + row) % 2 == 0)).float().mean().item()
