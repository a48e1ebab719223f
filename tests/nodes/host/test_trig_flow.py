"""TrigFlow models and schedules in the host: the paper's algebra, and the host's lcm as the paper's sampling."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from support.field import hosts, model, sample
from support.mixture import one_gaussian, picture_like

pytestmark = pytest.mark.usefixtures("host")


def trig_flow_of(mixture, s_d: float = 0.5):
    """The exact mixture behind a network that speaks TrigFlow, patched by the node's function."""
    from fewstep.nodes.host.trig_flow import trig_flow_model
    from support.host_mixture import mixture_model

    return trig_flow_model(mixture_model(mixture, "eps"), s_d)[0]


@pytest.mark.parametrize("s_d", [0.5, 1.0])
def test_the_network_gets_the_paper_s_input_and_its_answer_is_read_as_the_papers(s_d):
    """x_t / s_d, the angle, and f = cos t x_t - s_d sin t F."""
    from fewstep.samplers.trig_flow import predicted

    sampling = trig_flow_of(picture_like(), s_d).get_model_object("model_sampling")
    t = torch.tensor([0.3, 1.1, 1.56], dtype=torch.float64)
    sigma = s_d * t.tan()
    x_t, network = (torch.randn(3, 4, 2, 2, generator=torch.Generator().manual_seed(n)).double() for n in (0, 1))
    y = x_t / t.cos().view(-1, 1, 1, 1)
    torch.testing.assert_close(sampling.timestep(sigma), t)
    torch.testing.assert_close(sampling.sigma(sampling.timestep(sigma)), sigma)
    torch.testing.assert_close(sampling.calculate_input(sigma, y), x_t / s_d)
    made = sampling.calculate_denoised(sigma, network, y)
    for n, angle in enumerate(t.tolist()):
        torch.testing.assert_close(made[n], predicted(x_t[n], network[n], angle, s_d))
    z, nothing = torch.ones(1, 4, 2, 2), torch.zeros(1, 4, 2, 2)
    most = sampling.noise_scaling(sampling.sigma_max, z, nothing, max_denoise=True)
    at = float(sampling.timestep(sampling.sigma_max))
    torch.testing.assert_close(math.cos(at) * most, s_d * z)  # the paper begins with s_d z


def test_ordinary_samplers_draw_from_a_trig_flow_model():
    drawn = sample(hosts("dpmpp_2m"), patcher=trig_flow_of(picture_like()), sigmas=torch.logspace(1.9, -2, 40))
    residual = picture_like().denoise(drawn.double(), 0.03) - drawn
    assert residual.square().mean().sqrt() < 0.05 and drawn.std().item() == pytest.approx(1.0, abs=0.25)


class ConsistentNetwork(torch.nn.Module):
    """sCM's F of one Gaussian of the DCT: f is the exact end of the ODE. Answers by the host's own arithmetic."""

    dtype = torch.float32

    def __init__(self, mixture):
        super().__init__()
        self.mixture = mixture

    def forward(self, x, timesteps, context, sigma, sampling, **host):
        from support.mixture import exact_of_one

        y = x.double() / sampling.calculate_input(sigma.double(), torch.ones_like(x, dtype=torch.float64))
        end = exact_of_one(self.mixture, y, float(sigma[0]), 0.0)
        a = sampling.calculate_denoised(sigma.double(), torch.zeros_like(y), y)
        b = sampling.calculate_denoised(sigma.double(), torch.ones_like(y), y) - a
        return ((end - a) / b).float()


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_the_hosts_lcm_on_this_schedule_is_the_papers_sampling(steps):
    """The same noise at every call; one step lies on the ODE, and every number of steps has the data's spread."""
    from fewstep.nodes.host.trig_flow import trig_flow_schedule
    from fewstep.samplers.trig_flow import sample_consistency
    from support.host_mixture import MixtureModel, model_of
    from support.mixture import exact_of_one

    mixture = one_gaussian()
    from fewstep.nodes.host.trig_flow import trig_flow_model

    patcher = trig_flow_model(model_of(MixtureModel, ConsistentNetwork(mixture), "eps", 1.0), 0.5)[0]
    sigmas = trig_flow_schedule(patcher, steps, "scm")
    z = [torch.randn((4, 4, 4, 4), generator=torch.Generator().manual_seed(n)) for n in range(steps)]
    further = iter(z[1:])
    sampler = hosts("lcm", noise_sampler=lambda sigma, sigma_next: next(further).clone())
    drawn = sample(sampler, patcher=patcher, sigmas=sigmas, noise=z[0].clone(), latent=torch.zeros_like(z[0]))
    times = [math.atan(sigma / 0.5) for sigma in sigmas.tolist()[:-1]]

    def f(x, t):
        return exact_of_one(mixture, x / math.cos(t), 0.5 * math.tan(t), 0.0)

    first = math.sin(times[0])  # the host begins with sqrt(s_d^2 + sigma^2) z where the paper has the data's part of 0
    by_the_paper = sample_consistency(f, [z[0].double() / first, *(one.double() for one in z[1:])], times, 0.5)
    torch.testing.assert_close(drawn.double(), by_the_paper, rtol=0, atol=1e-3)


def test_a_flow_model_gets_rcms_times_in_its_own_terms():
    from fewstep.nodes.host.trig_flow import trig_flow_schedule

    sigmas = trig_flow_schedule(model("flow"), 4, "rcm_wan")
    tau = [math.sin(t) / (math.sin(t) + math.cos(t)) for t in (1.5, 1.4, 1.0)]
    assert sigmas.tolist() == pytest.approx([80 / 81, *tau, 0], abs=1e-6)
    own = trig_flow_schedule(model("flow"), 2, "scm", "1.0")
    assert own.tolist() == pytest.approx([80 / 81, tau[-1], 0], abs=1e-6)
    assert sample(hosts("lcm"), "flow", sigmas=sigmas).isfinite().all()


def test_an_eps_model_gets_them_below_its_own_highest_sigma():
    from fewstep.nodes.host.trig_flow import trig_flow_schedule

    sigmas = trig_flow_schedule(model("eps"), 2, "scm")
    highest = float(model("eps").get_model_object("model_sampling").sigma_max)
    assert sigmas.tolist() == pytest.approx([highest, math.tan(1.1), 0], rel=1e-5)


def test_a_flow_model_is_asked_whether_it_is_meant():
    from fewstep.nodes.host.trig_flow import trig_flow_model

    assert "rCM" in trig_flow_model(model("flow"), 0.5)[1] and trig_flow_model(model("eps"), 0.5)[1] == ""
    wrong: Any
    for wrong in (0.0, -1.0, math.nan, "0.5"):
        with pytest.raises(ValueError, match="sigma_data is"):
            trig_flow_model(model("eps"), wrong)


def test_the_model_that_came_in_is_not_changed():
    from fewstep.nodes.host.trig_flow import TrigFlowSampling, trig_flow_model

    before = model("eps").get_model_object("model_sampling")
    patched = trig_flow_model(model("eps"), 0.5)[0]
    assert model("eps").get_model_object("model_sampling") is before
    assert isinstance(patched.get_model_object("model_sampling"), TrigFlowSampling)
