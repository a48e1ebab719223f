"""What the three measuring nodes ask of the host and of the person: sizes, schedules, kinds of model, missing parts."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fewstep.nodes.measuring.interrupted import Parts
from support.mixture import Mixture, picture_like

pytestmark = pytest.mark.usefixtures("host")
SIZE = 8
# Every way to lay out sigma and time that the host has. IMG_TO_IMG_FLOW adds no noise at all.
TYPES = (
    "EPS V_PREDICTION V_PREDICTION_EDM STABLE_CASCADE EDM FLOW V_PREDICTION_CONTINUOUS FLUX IMG_TO_IMG FLOW_COSMOS "
    "V_PREDICTION_DDPM FLOW_AV"
).split()
NODES = ("estimate", "spread", "search")


def mixture(size: int = SIZE) -> Mixture:
    return picture_like(size=size, components=8)


def model(kind: str = "EPS", size: int = SIZE):
    from comfy.model_base import ModelType
    from fewstep.nodes.host.noise_law import noise_law
    from support import host_mixture

    if not hasattr(ModelType, kind):
        pytest.skip(f"this ComfyUI has no models of type {kind}")
    host_mixture.TYPES["asked"] = getattr(ModelType, kind)
    patcher = host_mixture.mixture_model(mixture(size), "asked", 1.15 if kind == "FLUX" else 3.0)
    patcher.model.diffusion_model.law = noise_law(patcher.get_model_object("model_sampling"))
    return patcher


def given(patcher, **changed) -> dict[str, Any]:
    from support.host_mixture import label_conditioning

    base = {
        "model": patcher,
        "positive": label_conditioning([0]),
        "negative": label_conditioning([-1]),
        "cfg": 1.0,
        "latent": torch.zeros(1, 4, SIZE, SIZE),
        "seed": 0,
    }
    return base | changed


def request(node: str, patcher, **changed):
    """The smallest of a node."""
    from fewstep.nodes.measuring import estimate, search, spread

    small: dict[str, dict[str, Any]] = {
        "estimate": {"images": 2, "levels": 6, "pooling": "global", "derivative": "differences"},
        "spread": {"images": 2, "levels": 6},
        "search": {"steps": 2, "solver": "euler", "teacher_steps": 20, "trajectories": 2, "polish": 1},
    }
    kinds: dict[str, Callable] = {"estimate": estimate.Request, "spread": spread.Request, "search": search.Request}
    return kinds[node](**(given(patcher) | small[node] | changed))


def run(node: str, patcher, memory=None, **changed):
    from fewstep.nodes.measuring import estimate, search, spread

    asked = request(node, patcher, **changed)
    if node == "estimate":
        return estimate.estimate(asked, None, memory or Parts(), None)
    if node == "spread":
        return spread.measure_spread(asked, None)
    return search.search_schedule(asked, memory or Parts(), None)


def numbers_of(result) -> list[float]:
    """All that a result says."""
    if hasattr(result, "statistics"):
        checks = [e for errors in result.facts.get("check", {}).values() for e in errors.values()]
        return [*result.statistics.l.flatten().tolist(), *result.statistics.s.flatten().tolist(), *checks]
    if hasattr(result, "squares"):
        return result.squares.tolist()
    return [*result.sigmas[2], *(error for errors in result.facts["compared"].values() for error in errors)]


# ---------------------------------------------------------------------------------------------------------
# What the host is told


PICTURES = mixture().sample(2, seed=1).float()


@pytest.mark.parametrize("kind", ["EPS", "FLOW"])
@pytest.mark.parametrize(
    "node, changed",
    [
        ("estimate", {}),
        ("estimate", {"latent": PICTURES}),
        ("spread", {}),
        ("spread", {"latent": PICTURES}),
        ("spread", {"estimator": "derivative"}),
        ("search", {"steps": 3}),
        ("search", {"latent": PICTURES, "denoise": 0.6}),
        ("search", {"solver": "dpm_solver_v3"}),
    ],
    ids=["estimate", "estimate-given", "spread", "spread-given", "spread-derivative", "search", "search-below", "v3"],
)
def test_every_call_finds_its_step_in_the_schedule_that_the_host_was_told(kind, node, changed):
    """Context windows, tiled diffusion and MeanFlow models look their step, and the sigma after it, up there."""
    patcher, calls = model(kind), []

    def watch(apply_model, args):
        options = args["c"]["transformer_options"]
        calls.append((float(args["timestep"][0]), options["sample_sigmas"].tolist(), float(options["sigmas"][0])))
        return apply_model(args["input"], args["timestep"], **args["c"])

    patcher.set_model_unet_function_wrapper(watch)
    run(node, patcher, **changed)
    assert len(calls) > 5
    for sigma, schedule, told in calls:
        assert told == sigma and sigma in schedule[:-1]
        assert schedule == sorted(set(schedule), reverse=True) and schedule[-1] >= 0


def test_a_searched_schedule_is_asked_at_the_step_that_it_will_be_sampled_at():
    """While schedules of 3 steps are polished and compared, the host sees 3 steps."""
    patcher, seen = model("FLOW"), []

    def watch(apply_model, args):
        seen.append(len(args["c"]["transformer_options"]["sample_sigmas"]))
        return apply_model(args["input"], args["timestep"], **args["c"])

    patcher.set_model_unet_function_wrapper(watch)
    run("search", patcher, steps=3)
    teacher = seen[0]
    assert 20 <= teacher <= 22 and seen[:10] == [teacher] * 10
    assert seen.count(4) > 20 and seen[-1] == 11  # the last is compared at 10 steps


def test_context_windows_are_measured_in():
    """The host's own, which on 0.3.75 fail at a sigma that is not in the schedule."""
    import comfy.context_windows as windows

    for node in NODES:
        patcher = model("EPS")
        patcher.model.diffusion_model.denoise = lambda x, sigma, labels: x / (1 + sigma[0] ** 2)
        patcher.model_options["context_handler"] = windows.IndexListContextHandler(
            windows.get_matching_context_schedule("standard_static"),
            windows.get_matching_fuse_method("pyramid"),
            context_length=6,
            context_overlap=2,
            dim=2,
        )
        assert all(map(math.isfinite, numbers_of(run(node, patcher))))


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("node", NODES)
def test_every_kind_of_model_is_measured(kind, node):
    """Cosmos's time is made for one number at a time; Stable Cascade's first sigmas are equal."""
    assert all(map(math.isfinite, numbers_of(run(node, model(kind)))))


def test_a_latent_is_measured_at_the_size_that_the_host_samples():
    """Where the format's ratio is not 8, ComfyUI 0.33 makes an empty latent of ratio 8 smaller; 0.3.75 does not."""
    import comfy.samplers
    from comfy_extras.nodes_custom_sampler import SamplerCustom
    from fewstep.nodes.measuring.asked import latent_for
    from support.host_mixture import label_conditioning

    patcher = model()
    patcher.model.latent_format.spacial_downscale_ratio = 16
    patcher.model.diffusion_model.denoise = lambda x, sigma, labels: x / (1 + sigma[0] ** 2)
    latent = {"samples": torch.zeros(1, 4, 16, 16), "downscale_ratio_spacial": 8}
    prompts = label_conditioning([0]), label_conditioning([-1])
    sigmas = comfy.samplers.calculate_sigmas(patcher.get_model_object("model_sampling"), "simple", 1)
    euler = comfy.samplers.sampler_object("euler")
    drawn = SamplerCustom.execute(patcher, True, 0, 1.0, *prompts, euler, sigmas, dict(latent)).args[0]["samples"]
    assert latent_for(patcher, latent).shape == drawn.shape


# ---------------------------------------------------------------------------------------------------------
# Missing and wrong parts


@pytest.mark.parametrize("node", NODES)
@pytest.mark.parametrize(
    "changed, words",
    [
        ({"model": None}, "model is missing; it must be a MODEL"),
        ({"model": object()}, "model is a object; it must be a MODEL"),
        ({"positive": None}, "positive is missing; it must be a CONDITIONING"),
        ({"positive": []}, "positive is an empty list"),
        ({"positive": [torch.ones(1, 1, 1)]}, "positive is a list"),
        ({"negative": None, "cfg": 2.0}, "negative is missing"),
        ({"negative": [], "cfg": 2.0}, "negative is an empty list"),
        ({"cfg": math.nan}, "cfg is nan; it must be a number of 0 or more"),
        ({"cfg": None}, "cfg is None"),
        ({"seed": -1}, "seed is -1; it must be a whole number from 0 to"),
        ({"seed": 0.5}, "seed is 0.5"),
        ({"latent": torch.zeros(0, 4, 8, 8)}, "latent_image has the shape 0 x 4 x 8 x 8"),
        ({"latent": torch.ones(1, 16, 8, 8)}, "this model's latents are batch x 4 channels"),
        ({"latent": torch.zeros(1, 4, 1, 8, 8)}, "latent_image has the shape 1 x 4 x 1 x 8 x 8"),
        ({"latent": torch.full((1, 4, 8, 8), math.nan)}, "latent_image holds NaN"),
    ],
)
def test_what_is_missing_is_said(node, changed, words):
    with pytest.raises(ValueError, match=words):
        run(node, model(), **changed)


@pytest.mark.parametrize(
    "node, changed, words",
    [
        ("estimate", {"images": 0}, "images is 0; it must be a whole number from 2 to 4096"),
        ("estimate", {"images": 2.5}, "images is 2.5"),
        ("estimate", {"levels": 1}, "levels is 1; it must be a whole number from 6 to 400"),
        ("estimate", {"pooling": "all"}, "pooling is 'all'; choose one of"),
        ("estimate", {"derivative": "exact"}, "derivative is 'exact'; choose one of"),
        ("estimate", {"images": 2, "pooling": "pixel"}, "images is 2; with pooling pixel it must be 9 or more"),
        ("spread", {"images": 1}, "images is 1; it must be a whole number from 2 to 4096"),
        ("spread", {"levels": 0}, "levels is 0"),
        ("spread", {"estimator": "guess"}, "estimator is 'guess'; choose one of"),
        ("search", {"steps": 0}, "steps is 0; it must be a whole number from 1 to 100"),
        ("search", {"trajectories": 1}, "trajectories is 1; it must be a whole number from 2 to 256"),
        ("search", {"polish": -1}, "polish is -1; it must be a whole number from 0 to 20"),
        ("search", {"teacher_steps": 1001}, "teacher_steps is 1001; it must be a whole number from 20 to 1000"),
        ("search", {"solver": "heun"}, "solver is 'heun'; choose one of"),
        ("search", {"start": "late"}, "start is 'late'; choose one of"),
        ("search", {"denoise": math.nan}, "denoise is nan; it must be a number above 0"),
    ],
)
def test_what_is_out_of_range_is_said(node, changed, words):
    with pytest.raises(ValueError, match=words):
        request(node, model(), **changed)


@pytest.mark.parametrize("latent", [None, {}, {"samples": None}, {"samples": [1]}])
def test_a_latent_without_samples_is_said(latent):
    from fewstep.nodes.measuring.asked import latent_for

    with pytest.raises(ValueError, match="latent_image is .*without samples; it must be a LATENT"):
        latent_for(model(), latent)
    with pytest.raises(ValueError, match="model is missing"):
        latent_for(None, latent)


# ---------------------------------------------------------------------------------------------------------
# Answers that are none


@pytest.mark.parametrize("answer", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "node, at, words",
    [
        ("estimate", 3, "at model call 4 while measuring batch 1 of 2, at sigma"),
        ("estimate", 40, "at model call 41 while checking the statistics"),
        ("spread", 2, "at model call 3 while drawing images 1 to 1"),
        ("spread", 22, "at model call 23 while measuring the spread of images 1 to 1"),
        ("search", 3, "at model call 4 while following the teacher"),
        ("search", 45, "at model call 46 while trying ComfyUI's schedules"),
    ],
)
def test_what_is_no_number_is_said_where_it_came(node, at, words, answer):
    patcher = model()
    network = patcher.model.diffusion_model
    original, left = network.denoise, [at]

    def denoise(x, sigma, labels):
        left[0] -= 1
        return original(x, sigma, labels) if left[0] != -1 else torch.full_like(x, answer)

    network.denoise = denoise
    with pytest.raises(ValueError, match=f"NaN or infinite numbers {words}.*--force-fp32"):
        run(node, patcher)


@pytest.mark.parametrize("kind", ["EPS", "FLOW"])
@pytest.mark.parametrize("size", [10.0, 1e3, 1e10, 1e25])
@pytest.mark.parametrize("node", NODES)
def test_a_model_whose_answers_are_huge_is_said(kind, size, node):
    patcher = model(kind)
    network = patcher.model.diffusion_model
    original = network.denoise
    network.denoise = lambda x, sigma, labels: original(x, sigma, labels) * size
    with pytest.raises(ValueError, match="did not reach a picture .*(Lower the cfg|check the model's shift)"):
        run(node, patcher)
    if node != "search" and size > 100:
        with pytest.raises(ValueError, match="did not reach a picture .*Lower the cfg"):
            run(node, patcher, latent=mixture().sample(1, 3).float(), images=2)


@pytest.mark.parametrize("s", [80.0, 8000.0, -8000.0])
def test_statistics_that_cannot_be_stepped_with_lose_their_check(monkeypatch, s):
    """The coefficients overflow float32: not an error of the person's, and not the end of a measurement or a search."""
    from fewstep.nodes.measuring import estimate as module
    from fewstep.samplers.dpm_solver_v3 import Statistics
    from fewstep.samplers.dpm_solver_v3.measured import Measured

    lam = torch.linspace(-3, 4, 8)
    zero = torch.zeros(8, 1, 1, 1)
    steep = Statistics(lam, zero, zero + s, zero + 1.0)
    original = module.solver_for
    monkeypatch.setattr(module, "solver_for", lambda table, *rest, **more: original(table and steep, *rest, **more))
    check = run("estimate", model()).facts["check"]
    assert all(errors["without"] < errors["2"] < 1e6 for errors in check.values())
    measured = Measured(steep, {})
    schedules = run("search", model(), solver="dpm_solver_v3", statistics=measured)
    assert all(math.isfinite(sigma) for sigmas in schedules.sigmas.values() for sigma in sigmas)


# ---------------------------------------------------------------------------------------------------------
# Few nodes, small latents, few pictures


@pytest.mark.parametrize("kind", ["EPS", "V_PREDICTION", "EDM", "FLOW", "STABLE_CASCADE", "FLOW_COSMOS"])
@pytest.mark.parametrize("steps, teacher_steps", [(1, 20), (4, 20), (10, 20), (25, 50)])
def test_the_smallest_teacher_that_is_allowed_works(kind, steps, teacher_steps):
    from fewstep.nodes.measuring.search import teacher_sigmas

    asked = request("search", model(kind), steps=steps, teacher_steps=teacher_steps, polish=0)
    sigmas = teacher_sigmas(asked)
    assert len(sigmas[::2]) >= steps
    if steps in (4, 10):
        schedules = run("search", model(kind), steps=steps, teacher_steps=teacher_steps, polish=0)
        assert steps in schedules.sigmas and len(schedules.sigmas) <= 10


def test_as_many_budgets_are_searched_as_there_are_nodes():
    """A wish for 2 steps does not fail because 10 do not fit."""
    pictures = mixture().sample(1, 3).float()
    schedules = run("search", model("EPS"), latent=pictures, denoise=0.006)
    assert 2 in schedules.sigmas and max(schedules.sigmas) < 10
    most = max(schedules.sigmas)
    with pytest.raises(ValueError, match=f"too few levels of noise .* Set steps to {most}, or raise denoise"):
        run("search", model("EPS"), latent=pictures, denoise=0.006, steps=most + 1)


@pytest.mark.parametrize("size", [1, 2, 4, 8, 12])
def test_small_latents_have_fewer_bands_and_are_measured(size):
    from fewstep.samplers.dpm_solver_v3.pooling import Pooling

    pooling = Pooling("spectral", (4, size, size))
    assert 1 <= pooling.bands < 8 and pooling.features == (1, pooling.bands)
    assert (pooling.numbers > 0).all() and pooling.numbers.sum() == 4 * size * size
    patcher = model("FLOW", size)
    measured = run("estimate", patcher, images=8, pooling="spectral", latent=torch.zeros(2, 4, size, size))
    assert measured.statistics.features == (1, pooling.bands)
    assert all(map(math.isfinite, numbers_of(measured)))


def test_latents_from_16_on_have_all_bands():
    from fewstep.samplers.dpm_solver_v3.pooling import BANDS, Pooling

    for size in [(16, 16), (16, 32), (64, 64), (17, 128), (3, 32, 32)]:
        assert Pooling("spectral", (4, *size)).bands == BANDS


def test_as_few_pictures_as_are_allowed_give_statistics_that_draw():
    for kind in ("EPS", "FLOW"):
        measured = run("estimate", model(kind), images=9, pooling="pixel", levels=12)
        assert all(map(math.isfinite, numbers_of(measured)))
