"""Everything runs on devices that have no float64 (MPS, DirectML)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fewstep.nodes.measuring.interrupted import Parts
from fewstep.samplers.guidance import ProbabilisticGuidance
from support import field
from support.examples import mostly
from support.mixture import picture_like
from support.no_float64 import DEVICE, Mode, OnDevice, device_without_float64, off_device, on_device, ran

pytestmark = pytest.mark.usefixtures("host")


@pytest.fixture
def device(host, monkeypatch):
    with device_without_float64(monkeypatch) as ran:
        yield ran


def exact(kind: str = "flow"):
    """A model of the host that is a known mixture, and two prompts."""
    from support.host_mixture import label_conditioning, mixture_model

    return mixture_model(picture_like(), kind, 3.0), label_conditioning([0]), label_conditioning([-1])


def asked(module: str, kind: str = "flow", **changed):
    """A request of a measuring node."""
    import importlib

    model, positive, negative = exact(kind)
    given = {"model": model, "positive": positive, "negative": negative, "cfg": 2.0, "seed": 0}
    given["latent"] = torch.zeros(2, 4, 16, 16)
    return importlib.import_module(f"fewstep.nodes.measuring.{module}").Request(**(given | changed))


def draw(sampler, sigmas, model, positive, negative, *, cfg: float = 3.0, shape=(2, 4, 16, 16)) -> torch.Tensor:
    from fewstep.nodes.host.guiders import guider_for

    guider = guider_for(model, positive, negative, cfg)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(1, 1, *shape[2:])
    return guider.sample(
        noise, torch.zeros(shape), sampler, torch.tensor(sigmas), denoise_mask=mask, disable_pbar=True, seed=1
    )


def test_the_double_refuses():
    x = on_device(torch.ones(2, 3))
    assert x.device == DEVICE and isinstance(x + torch.tensor(1.0), OnDevice) and not isinstance(x.cpu(), OnDevice)
    assert x.cpu().double().dtype == torch.float64 and x.to("cpu", torch.float64).dtype == torch.float64
    elsewhere = torch.ones(2, 3)
    mixed = (lambda: x + elsewhere, lambda: torch.cat([elsewhere, x]), lambda: elsewhere.lerp(elsewhere, x))
    for wrong in (x.double, lambda: x.to(torch.float64), lambda: on_device(elsewhere.double()), x.numpy, *mixed):
        with pytest.raises(RuntimeError, match="device"):
            wrong()


def test_the_double_refuses_what_is_made_there(device, monkeypatch):
    import comfy.samplers

    def makes(model, x, sigmas, **given):
        assert isinstance(torch.zeros(3, device=x.device), OnDevice)
        return torch.ones(3, dtype=torch.float64).to(x.device)

    with pytest.raises(RuntimeError, match="float64"):
        draw(comfy.samplers.KSAMPLER(makes), [1.0, 0.0], *exact())


@pytest.mark.parametrize("kind", ["eps", "flow"])
@pytest.mark.parametrize("inner", [None, "dpmpp_2m", "dpmpp_sde"])
def test_restart(device, kind, inner):
    import comfy.samplers
    from fewstep.nodes.host.sampler import restart_sampler

    sampler = restart_sampler(inner and comfy.samplers.sampler_object(inner), 1.0)
    top = 1.0 if kind == "flow" else 14.6
    assert draw(sampler, [top, 0.6, 0.3, 0.6, 0.2, 0.0], *exact(kind)).isfinite().all() and device


@pytest.mark.parametrize("kind", ["eps", "flow"])
def test_dpm_solver_v3_without_statistics(device, kind):
    import comfy.samplers
    from fewstep.nodes.host.dpm_solver_v3 import Choice, dpm_solver_v3_sampler
    from fewstep.samplers.dpm_solver_v3 import Options

    model, *prompts = exact(kind)
    sampler = dpm_solver_v3_sampler(Choice(Options(3, "everywhere"), None, "data", "when_checked", None))
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "beta", 6).tolist()
    assert draw(sampler, sigmas, model, *prompts).isfinite().all() and device == ["sample_dpm_solver_v3"]


@pytest.mark.parametrize("kind", ["eps", "flow"])
@pytest.mark.parametrize(
    "name", ["deis tab", "deis rhork", "deis ipndm", "dual fast", "flow map", "flow map ctm", "deis log_snr"]
)
def test_the_fields_samplers(device, kind, name):
    sampler = field.deis("tab", 4, "log_snr") if name == "deis log_snr" else field.ours()[name]
    top = 1.0 if kind == "flow" else 14.6
    assert draw(sampler, [top, 0.7, 0.3, 0.1, 0.0], *exact(kind)).isfinite().all() and device


@pytest.mark.parametrize("pooling", mostly("spectral", longer=("global", "channel", "pixel")))
def test_measuring_statistics_and_drawing_with_them(device, pooling):
    from fewstep.nodes.measuring.estimate import estimate

    request = asked("estimate", images=10, levels=8, pooling=pooling, derivative="differences", cfg=1.0)
    measured = estimate(request, None, Parts(), None)
    assert measured.facts["check"] and len(device) > 10


def test_searching_a_schedule(device):
    from fewstep.nodes.measuring.search import search_schedule

    given: dict[str, Any] = {"solver": "dpmpp_2m", "steps": 4, "teacher_steps": 20, "trajectories": 2, "polish": 1}
    assert search_schedule(asked("search", **given), Parts(), None) and device


@pytest.mark.parametrize("solver", ["euler", "dpmpp_2m", "dpm_solver_v3"])
@pytest.mark.parametrize("first", [0, 1])
def test_a_teacher_of_which_a_part_found_no_room_beside_the_model(device, monkeypatch, first, solver):
    from fewstep.nodes.measuring import search

    places = iter([first, 1 - first] * 2)  # of four parts: on the processor, or beside the model

    def store_for(latents, x):
        return x.device if next(places) else torch.device("cpu")

    monkeypatch.setattr(search, "store_for", store_for)
    given: dict[str, Any] = {"solver": solver, "steps": 3, "teacher_steps": 20, "trajectories": 6, "polish": 0}
    assert search.search_schedule(asked("search", **given), Parts(), None) and device


@pytest.mark.parametrize("room", [True, False])
@pytest.mark.parametrize("what", ["tune", "meter"])
def test_what_is_kept_beside_the_model_and_elsewhere(device, monkeypatch, what, room):
    from fewstep.nodes.measuring import meter, tune

    module: Any = {"tune": tune, "meter": meter}[what]
    monkeypatch.setattr(module, "store_for", lambda latents, x: x.device if room else torch.device("cpu"))
    if what == "tune":
        assert tune.tune(asked("tune", effort="quick"), Parts(), None).tables
    else:
        assert meter.measured(asked("meter", schedule=(1.0, 0.6, 0.3, 0.0)), None).steps
    assert device


@pytest.mark.parametrize("estimator", ["residual", "derivative"])
def test_measuring_the_spread(device, estimator):
    from fewstep.nodes.measuring.spread import measure_spread

    spread = measure_spread(asked("spread", images=2, levels=6, estimator=estimator), None)
    assert spread.values.isfinite().all() and spread.values.dtype == torch.float64 and device


@pytest.mark.parametrize("mode", ["cap", "soft", "fixed"])
def test_guidance(mode):
    from fewstep.nodes.host.guidance import AfterGuidance

    model, *_ = exact()
    parts = [on_device(torch.randn(2, 4, 16, 16)) for _ in range(4)]
    args: dict[str, Any] = dict(zip(("denoised", "cond_denoised", "uncond_denoised", "input"), parts, strict=True))
    args |= {"cond": 1, "uncond": 1, "cond_scale": 7.0, "sigma": on_device(torch.full((2,), 0.7))}
    args |= {"model": model.model, "model_options": {}}
    drawn = AfterGuidance(ProbabilisticGuidance(0.5, mode), None, 0.0, 1.0)(args)
    assert isinstance(drawn, OnDevice) and drawn.isfinite().all()


@pytest.mark.parametrize("mode, order", [("ode", 1), ("ode", 2), ("sde", 2)])
@pytest.mark.parametrize("guider", ["ours", "cfg"])
def test_gmflow(device, mode, order, guider):
    from fewstep.nodes.host.gmflow import Choice, Guidance, gmflow_guider, gmflow_sampler
    from fewstep.nodes.models.demo import load_clip, load_model

    device.past_the_double = True  # mixtures
    clip, model = load_clip(), load_model("gmflow")
    prompts = [clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in ("red apple", "")]
    sampler = gmflow_sampler(Choice(mode, order, 0, 0.9, False))
    sigmas, noise = [1.0, 0.6, 0.3, 0.0], torch.randn(2, 3, 16, 16)
    if guider == "ours":
        used = gmflow_guider(model, prompts[0], prompts[1], Guidance(0.45))
        drawn = used.sample(noise, torch.zeros_like(noise), sampler, torch.tensor(sigmas), disable_pbar=True, seed=1)
    else:
        drawn = draw(sampler, sigmas, model, *prompts, shape=(2, 3, 16, 16))
    assert drawn.isfinite().all() and device == ["sample_gmflow"]


def test_spectral_draws():
    """The one place that computes in float64, and does so on the CPU."""
    from fewstep.samplers.gmflow import Mixture, SpectralDraw

    means, logits = on_device(torch.randn(2, 3, 4, 8, 8)), on_device(torch.randn(2, 3, 1, 8, 8))
    mixture = Mixture.of_logits(means, logits, on_device(torch.zeros(2, 1, 1, 1, 1)))
    draw = SpectralDraw(lambda statistics: statistics.new_zeros(2, 4, 8, 8))
    with Mode():
        drawn = draw(mixture, lambda: on_device(torch.randn(2, 4, 8, 8)))
    assert isinstance(drawn, OnDevice) and drawn.isfinite().all()


@pytest.mark.parametrize("name", ["inpaint", "downsample 4", "grey", "blur"])
def test_pictures_held_to_what_is_known(name):
    """Nor is the device waited for, after the measurement is there."""
    from comfy.latent_formats import SD15
    from fewstep.nodes.host.constraint import Known, Wanted
    from fewstep.nodes.host.slope import Nearby, Slope

    unknown = torch.eye(16)[None, None] if name == "inpaint" else None
    operator = Wanted(name, 1.0, True).on(SD15())
    with Mode():
        x, sigmas = on_device(torch.randn(2, 4, 16, 16)), on_device(torch.ones(2))
        measurement = Known(operator, torch.randn(1, 4, 16, 16), unknown).on(x)
        ran.reads.clear()
        denoised, moved = Slope("differences", 3, None).by_differences(Nearby(torch.tanh, x, sigmas), measurement)
        held = measurement.kept(denoised + moved)
    assert isinstance(held, OnDevice) and off_device(held).isfinite().all() and off_device(moved).any()
    assert ran.reads == []


# ---------------------------------------------------------------------------------------------------------
# The device is waited for as often in a long run as in a short one: for the schedule, and once in the end


def samplers() -> dict[str, Any]:
    """One of every kind, by name."""
    from fewstep.nodes.host.dpm_solver_v3 import Choice, dpm_solver_v3_sampler
    from fewstep.nodes.host.sampler import restart_sampler
    from fewstep.samplers.dpm_solver_v3 import Options

    v3 = dpm_solver_v3_sampler(Choice(Options(2, "everywhere"), None, "data", "when_checked", None))
    return field.ours() | {
        "deis rhoab": field.deis("rhoab", 4, "model"),
        "restart": restart_sampler(None, 1.0),
        "v3": v3,
    }


@pytest.mark.parametrize(
    "name",
    ["deis tab", "deis rhoab", "deis rhork", "deis ipndm", "flow map", "flow map ctm", "restart", "v3", "gmflow"],
)
def test_no_step_waits_for_the_device(device, name):
    def reads(steps: int) -> list[str]:
        device.reads.clear()
        if name == "gmflow":
            drawn_from_mixtures(steps)
        else:
            model, *prompts = exact("flow")
            draw(samplers()[name], torch.linspace(1, 0, steps + 1).tolist(), model, *prompts)
        return list(device.reads)

    device.past_the_double = name == "gmflow"
    short, long = reads(4), reads(12)
    assert short and len(short) == len(long) <= 3, (short, long)


def drawn_from_mixtures(steps: int) -> None:
    from fewstep.nodes.host.gmflow import Choice, Guidance, gmflow_guider, gmflow_sampler
    from fewstep.nodes.models.demo import load_clip, load_model

    clip, noise = load_clip(), torch.randn(2, 3, 16, 16)
    prompts = [clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in ("red apple", "")]
    used = gmflow_guider(load_model("gmflow"), prompts[0], prompts[1], Guidance(0.45))
    sampler, sigmas = gmflow_sampler(Choice("sde", 2, 0, 0.9, False)), torch.linspace(1, 0, steps + 1)
    used.sample(noise, torch.zeros_like(noise), sampler, sigmas, disable_pbar=True, seed=1)
