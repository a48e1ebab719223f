"""Flow maps in the host: where to go reaches a network that looks, and one that does not look gets Euler."""

from __future__ import annotations

import pytest
import torch
from fewstep.nodes.host.progress import Report
from fewstep.samplers.noise_law import FLOW
from support.field import flow_map, hosts, model, sample, schedule, start_noise
from support.mixture import one_gaussian

pytestmark = pytest.mark.usefixtures("host")


class MapNetwork(torch.nn.Module):
    """The exact flow map of one Gaussian: reads where to go as a DMF network would."""

    dtype = torch.float32

    def __init__(self, mixture):
        super().__init__()
        self.mixture, self.asked = mixture, []

    def forward(self, x, timesteps, context, sigma, transformer_options, **host):
        from support.mixture import exact_of_one

        r = transformer_options["flow_map_r"].expand(len(x))
        t, end = float(sigma[0]), min(float(r[0]), float(sigma[0]) * (1 - 1e-6))
        self.asked.append((t, float(r[0])))
        y = x.double() / FLOW.alpha(min(t, 1 - 1e-9))
        to = exact_of_one(self.mixture, y, FLOW.ratio(min(t, 1 - 1e-9)), FLOW.ratio(end))
        return ((FLOW.alpha(end) * to - x) / (end - t)).float()


def map_model():
    from support.host_mixture import MixtureModel, model_of

    return model_of(MixtureModel, MapNetwork(one_gaussian()), "flow", 1.0)


@pytest.mark.parametrize("sigmas", [[1.0, 0.0], [1.0, 0.6, 0.2, 0.0]])
@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_where_to_go_reaches_the_network(sigmas, cfg):
    """Euler on a flow map is exact in any number of steps, guided or not: both sides are one and the same here."""
    from support.mixture import exact_of_one

    patcher, report = map_model(), Report(None)
    noise = start_noise()[..., :4, :4].contiguous()
    given = {"patcher": patcher, "noise": noise, "latent": torch.zeros_like(noise), "sigmas": torch.tensor(sigmas)}
    drawn = sample(flow_map("euler", 0.9, report), cfg=cfg, **given)
    near = 1 - 1e-9
    end = exact_of_one(one_gaussian(), noise.double() / FLOW.alpha(near), FLOW.ratio(near), 0.0)
    torch.testing.assert_close(drawn.double(), end, rtol=0, atol=1e-3)
    assert [pair for n, pair in enumerate(patcher.model.diffusion_model.asked) if n < len(sigmas) - 1] == pytest.approx(
        [pytest.approx(pair, abs=1e-6) for pair in zip(sigmas, sigmas[1:], strict=False)]
    )
    assert report.ui["fewstep"][0]["text"] == ""


@pytest.mark.parametrize("method", ["restart", "ctm"])
def test_noise_put_back_leaves_a_flow_maps_spread(method):
    mixture, noise = one_gaussian(), torch.randn((400, 4, 4, 4), generator=torch.Generator().manual_seed(0))
    import comfy.sample
    from support.host_mixture import label_conditioning

    conditioning = label_conditioning([0] * 400), label_conditioning([-1] * 400)
    drawn = comfy.sample.sample_custom(
        map_model(),
        noise,
        1.0,
        flow_map(method, 0.9),
        torch.tensor([1.0, 0.6, 0.3, 0.0]),
        *conditioning,
        torch.zeros_like(noise),
        disable_pbar=True,
        seed=3,
    )
    within = mixture.to_frequency(drawn.double()) - mixture.means[0]
    assert (within.square().mean(0) / mixture.spectrum).mean().item() == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("kind", ["eps", "flow"])
def test_on_any_other_model_it_is_euler_and_says_so(kind):
    report = Report(None)
    drawn = sample(flow_map("euler", 0.9, report), kind)
    torch.testing.assert_close(drawn, sample(hosts("euler"), kind), rtol=0, atol=1e-4)
    assert "is no flow map" in report.ui["fewstep"][0]["text"] and "plain Euler" in report.ui["fewstep"][0]["text"]
    sample(flow_map("ctm", 0.9, report), kind)
    assert "noise put back" in report.ui["fewstep"][0]["text"]


def test_restart_on_any_other_model_is_lcm_with_noise_of_our_own():
    """The host's lcm is the same steps: it predicts and puts noise back."""
    from fewstep.nodes.host.noise import ItemNoise

    sigmas = schedule(model("flow"), 3)
    start = start_noise()
    own = ItemNoise(7, start, round(float(sigmas[0]) * 2**20))
    theirs = sample(hosts("lcm", noise_sampler=lambda s, t: own(0, 0)), "flow", sigmas=sigmas)
    torch.testing.assert_close(sample(flow_map("restart", 0.9), "flow", sigmas=sigmas), theirs, rtol=0, atol=1e-4)


def test_a_tensor_notes_that_it_was_read():
    from fewstep.nodes.host.flow_map import Noticed

    for use in (lambda r: r.expand(3), lambda r: 2 * r, lambda r: torch.stack([r, r]), float, lambda r: r.shape):
        told = Noticed.of(0.25, torch.device("cpu"))
        passed_on = {"flow_map_r": told} | {}
        assert not passed_on["flow_map_r"].was_read
        result = use(told)
        assert told.was_read and not isinstance(result, Noticed)
