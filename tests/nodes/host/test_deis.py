"""DEIS as the host's SAMPLER: against the host's own solvers where those are right, and where they are not."""

from __future__ import annotations

import pytest
import torch
from support.field import deis, dual_fast, hosts, model, sample, schedule

pytestmark = pytest.mark.usefixtures("host")
KINDS = pytest.mark.parametrize("kind", ["eps", "v", "edm", "flow"])


@pytest.mark.parametrize("steps", [5, 9])
@pytest.mark.parametrize("kind", ["eps", "v", "edm"])
def test_rhoab_of_order_4_is_the_hosts_lms(kind, steps):
    """karras: its steps shrink, so that no extrapolation is capped."""
    sigmas = schedule(model(kind), steps, "karras")
    torch.testing.assert_close(
        sample(deis("rhoab", 4, "model"), kind, sigmas=sigmas),
        sample(hosts("lms"), kind, sigmas=sigmas),
        rtol=0,
        atol=2e-4,
    )


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", ["eps", "flow"])
def test_ipndm_is_the_hosts(kind, order):
    host = hosts("ipndm", max_order=order) if order > 1 else hosts("euler")
    torch.testing.assert_close(sample(deis("ipndm", order, "model"), kind), sample(host, kind), rtol=0, atol=2e-4)


@pytest.mark.parametrize("kind", ["eps", "flow"])
def test_order_1_is_the_hosts_euler_and_rhork_of_order_2_its_heun(kind):
    for method in ("tab", "rhoab", "rhork"):
        torch.testing.assert_close(
            sample(deis(method, 1, "model"), kind), sample(hosts("euler"), kind), rtol=0, atol=1e-4
        )
    torch.testing.assert_close(sample(deis("rhork", 2, "model"), kind), sample(hosts("heun"), kind), rtol=0, atol=1e-4)


def test_on_the_hosts_clock_it_is_the_hosts_deis():
    """The host has one clock for all models, made of EDM's sigmas, and sums ten thousand float32 numbers."""
    from functools import partial

    import comfy.samplers
    from comfy.k_diffusion.deis import edm2t
    from fewstep.nodes.host.deis import run
    from fewstep.samplers.deis import DEIS, SLOPE

    def clock(ratio):
        return edm2t(ratio)[0].double()

    def sampler_function(model, x, sigmas, extra_args=None, callback=None, disable=None):
        made = lambda law, sampling: DEIS(law, clock, 3, False, True, SLOPE)  # noqa: E731
        return partial(run, model, x, sigmas, extra_args, callback, disable, who="test", report=None)(made)

    drawn = sample(comfy.samplers.KSAMPLER(sampler_function))
    torch.testing.assert_close(drawn, sample(hosts("deis")), rtol=0, atol=1e-4)
    assert (sample(deis("tab", 3, "model")) - drawn).abs().max() > 1e-2  # the model's own clock is another


def test_what_the_hosts_deis_cannot_run_is_run():
    """rhoab of three answers, and order 1: the host raises at both, and no node of its own reaches them."""
    for options, error in (({"deis_mode": "rhoab"}, ValueError), ({"max_order": 1}, IndexError)):
        with pytest.raises(error):
            sample(hosts("deis", **options))
    for given in (("rhoab", 3, "model"), ("tab", 1, "model")):
        assert sample(deis(*given)).isfinite().all()


def test_guidance_on_a_flow_model_does_not_blow_up_as_the_hosts_multistep_samplers_do():
    sigmas = schedule(model("flow"), 5, "beta")
    error = {
        name: float(sample(sampler, "flow", 5.0, sigmas=sigmas).square().mean())
        for name, sampler in (("lms", hosts("lms")), ("deis", hosts("deis")), ("ours", deis("tab", 2, "log_snr")))
    }
    assert error["ours"] < 5 < min(error["lms"], error["deis"])


@KINDS
def test_the_models_own_clock(kind):
    """What the network is told at every sigma, and between the whole numbers of eps models."""
    from fewstep.nodes.host.deis import ModelTime
    from fewstep.nodes.host.noise_law import noise_law

    sampling = model(kind).get_model_object("model_sampling")
    law = noise_law(sampling)
    sigmas = sampling.sigmas.double()
    sigmas = sigmas[:: len(sigmas) // 10]
    sigmas = sigmas[sigmas < 1] if law.is_flow else sigmas
    found = ModelTime(sampling, law)(law.ratio(sigmas))
    told = sampling.timestep(sigmas.float()).double()
    assert (found - told).abs().max() < 1e-3 * told.abs().max()
    between = ModelTime(sampling, law)(law.ratio((sigmas[3:4] * sigmas[4:5]).sqrt()))
    assert found[3] < between < found[4]


def test_beyond_the_models_own_sigmas_its_clock_goes_on():
    from fewstep.nodes.host.deis import between_steps

    table = torch.tensor([1.0, 2.0, 4.0]).log()
    sigma = torch.tensor([0.5, 1.0, 2.0**0.5, 4.0, 8.0, 16.0], dtype=torch.float64)
    assert between_steps(table, sigma) == pytest.approx([-1, 0, 0.5, 2, 3, 4], abs=1e-5)


def test_boost_knows_how_many_calls_they_make():
    from fewstep.nodes.host.boost import calls_of

    assert calls_of(deis("rhork", 3, "model"), 4, True) == 10 and calls_of(deis("rhork", 3, "model"), 4, False) == 12
    assert calls_of(deis("tab", 3, "model"), 4, True) == 4
    assert calls_of(dual_fast("heun", 0.25, "linear"), 4, True) == calls_of(hosts("heun"), 4, True) == 7
    assert calls_of(dual_fast(deis("rhork", 2, "model"), 0.25, "linear"), 4, True) == 7
