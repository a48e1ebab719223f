"""Schedules searched inside the host, in this process: students, rivals, the search itself, files and loading."""

from __future__ import annotations

import math
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from fewstep.nodes.measuring.interrupted import Parts
from fewstep.samplers.calibration import Calibration
from fewstep.schedulers.optimal_steps import Euler, Multistep2M, Objective, Replay
from fewstep.schedulers.optimal_steps.published import PUBLISHED
from fewstep.schedulers.optimal_steps.schedules import Schedules, load_schedules
from support.mixture import picture_like
from support.recording import watched_counters

pytestmark = pytest.mark.usefixtures("host")
KINDS = ["eps", "v", "edm", "flow"]
SMALL = {"steps": 4, "teacher_steps": 30, "trajectories": 4, "polish": 2}


def model(kind: str = "eps", shift: float = 3.0):
    from support.host_mixture import mixture_model

    return mixture_model(picture_like(), kind, shift)


def request(patcher, **changed):
    from fewstep.nodes.measuring.search import Request
    from support.host_mixture import label_conditioning

    given = {
        "model": patcher,
        "positive": label_conditioning([0]),
        "negative": label_conditioning([-1]),
        "cfg": 1.0,
        "latent": torch.zeros(1, 4, 16, 16),
        "seed": 0,
        "solver": "dpmpp_2m",
    }
    return Request(**(given | SMALL | changed))


def searched(patcher, kept=None, **changed) -> Schedules:
    from fewstep.nodes.measuring.search import search_schedule

    return search_schedule(request(patcher, **changed), kept or Parts(), None)


@pytest.fixture(scope="module")
def found(host) -> Schedules:
    return searched(model("flow"), cfg=3.0)


def sample(patcher, sampler, sigmas, noise, labels, cfg: float = 1.0, latent=None) -> torch.Tensor:
    """What the host itself draws."""
    import comfy.sample
    from support.host_mixture import label_conditioning

    latent = torch.zeros_like(noise) if latent is None else latent
    conditioning = (label_conditioning(labels), label_conditioning([-1]))
    return comfy.sample.sample_custom(
        patcher, noise, cfg, sampler, torch.tensor(sigmas), *conditioning, latent, disable_pbar=True, seed=0
    )


# ---------------------------------------------------------------------------------------------------------
# Students and rivals


@pytest.mark.parametrize("kind", ["eps", "flow"])
@pytest.mark.parametrize("name, student", [("euler", Euler()), ("dpmpp_2m", Multistep2M())])
@pytest.mark.parametrize("end", [0.0, 0.02])
def test_a_student_is_the_hosts_sampler(kind, name, student, end):
    import comfy.samplers
    from fewstep.nodes.measuring.search import Bench
    from fewstep.schedulers.optimal_steps import Task, Teacher
    from support.mixture import GuidedMixture

    patcher, noise = model(kind), torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    asked = request(patcher)
    highest = float(asked.sampling.sigma_max)
    sigmas = (highest, highest * 0.9, highest * 0.55, highest * 0.2, highest * 0.07, end)
    denoise = GuidedMixture(picture_like(), asked.law, torch.tensor([0, 0]))
    bench = Bench(asked, denoise, student, noise, torch.zeros_like(noise))
    nothing = Teacher((), (), (), torch.zeros(1))
    task = Task(denoise, student, asked.law, nothing, lambda sigma: bench.start(sigma, slice(None)))
    ours = Replay(task).end(sigmas) / asked.law.alpha(end)
    theirs = sample(patcher, comfy.samplers.sampler_object(name), sigmas, noise, [0, 0])
    torch.testing.assert_close(ours.float(), theirs.float(), rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("denoise", [1.0, 0.4])
def test_every_schedule_of_the_host_is_a_rival(kind, denoise):
    import comfy.samplers
    from fewstep.nodes.host.schedules import rivals, sigma_at

    asked = request(model(kind))
    start = None if denoise == 1 else sigma_at(asked.sampling, denoise)
    schedules = rivals(asked.sampling, asked.law, 6, start)
    missing = {name for name in comfy.samplers.SCHEDULER_NAMES if name not in schedules}
    # These give a step more than was asked for (flow), or cannot be cut at a noise level (linear_quadratic).
    assert missing <= {"ddim_uniform", "linear_quadratic"}
    assert {"uniform log-SNR", "beta, cut"} <= set(schedules)
    assert ("AYS SDXL" in schedules) == (kind in ("eps", "v"))
    assert ("FLUX (published)" in schedules) == (kind == "flow")
    for sigmas in schedules.values():
        assert all(high > low for high, low in pairwise(sigmas)) and len(sigmas) == 7
        assert start is None or sigmas[0] == start


def test_less_noise_begins_where_the_hosts_simple_schedule_does():
    """By the model's own time, so it does not depend on the number of steps or the scheduler."""
    import comfy.samplers
    from fewstep.nodes.host.schedules import shift_of, sigma_at

    for kind in ("eps", "flow"):
        asked = request(model(kind))
        there = float(comfy.samplers.calculate_sigmas(asked.sampling, "simple", 1000)[500])
        assert sigma_at(asked.sampling, 0.5) == pytest.approx(there, rel=5e-3)
        assert sigma_at(asked.sampling, 1.0) == float(asked.sampling.sigma_max)
        assert shift_of(asked.sampling, asked.law) == pytest.approx(3.0 if kind == "flow" else 1.0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("denoise", [1.0, 0.5])
def test_the_teachers_nodes(kind, denoise):
    from fewstep.nodes.measuring.search import teacher_sigmas

    asked = request(model(kind), teacher_steps=100, denoise=denoise, latent=torch.ones(1, 4, 16, 16))
    sigmas = teacher_sigmas(asked)
    assert 80 <= len(sigmas) <= 101
    assert all(high > low for high, low in pairwise(sigmas))
    assert sigmas[-1] >= float(asked.sampling.sigma_min) * (1 - 1e-5)
    if kind in ("eps", "v"):  # where the model has a time step
        inner = torch.tensor(sigmas[1:])
        torch.testing.assert_close(asked.sampling.sigma(asked.sampling.timestep(inner)), inner)


# ---------------------------------------------------------------------------------------------------------
# The search


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("solver", ["euler", "dpmpp_2m", "dpm_solver_v3"])
def test_the_answer_is_the_best_that_was_tried(kind, solver):
    schedules = searched(model(kind), solver=solver)
    facts = schedules.facts
    best = min(errors[0] for errors in facts["compared"].values())
    assert facts["compared"][facts["chosen"]][0] == best
    assert facts["errors"]["4"][0] == pytest.approx(best, rel=1e-4)
    assert {"searched", "searched and polished"} <= set(facts["compared"])
    assert list(schedules.sigmas) == list(range(1, 11))
    for steps, sigmas in schedules.sigmas.items():
        assert len(sigmas) == steps + 1 and all(high > low >= 0 for high, low in pairwise(sigmas))
    assert facts["chosen"] in schedules.describe() and "4 calls" in schedules.describe()


@pytest.mark.parametrize("solver, middle", [("euler", 0.0), ("dpmpp_2m", 0.0), ("dpmpp_2m", 0.7)])
def test_what_it_promises_is_what_the_hosts_sampler_gets(solver, middle):
    """The error on the unseen seeds, measured by the host's own sampling of the same noise.

    An empty latent starts from 0 in the model's own scale, as in the host, whatever the format calls 0.
    """
    import comfy.samplers
    from fewstep.nodes.measuring.search import own_noise
    from fewstep.samplers.noise_law import VARIANCE_EXPLODING
    from support.host_mixture import MixtureLatent
    from support.mixture import GuidedMixture, converged

    patcher = model("eps")
    patcher.model.latent_format = MixtureLatent(middle)
    kept = Parts()
    schedules = searched(patcher, kept, solver=solver, cfg=2.0, teacher_steps=100)
    asked = request(patcher, solver=solver, cfg=2.0)
    noise = torch.stack([own_noise(asked, number) for number in range(4, 8)])
    drawn = sample(patcher, comfy.samplers.sampler_object(solver), schedules.sigmas[4], noise, [0], 2.0) - middle
    highest = float(asked.sampling.sigma_max)
    start = asked.sampling.noise_scaling(torch.tensor([highest]).double(), noise.double(), torch.zeros(1), True)
    exact = GuidedMixture(picture_like(), VARIANCE_EXPLODING, torch.tensor([0]), 2.0)
    end = converged(exact, start, highest, 1e-7)
    error = float(Objective().reduce(Objective().errors(drawn.double(), end)))
    assert error == pytest.approx(schedules.facts["errors"]["4"][0], rel=0.1)


def test_a_search_is_the_same_again_and_another_seed_is_another(found):
    assert searched(model("flow"), cfg=3.0).sigmas == found.sigmas
    assert searched(model("flow"), cfg=3.0, seed=1).sigmas != found.sigmas


def test_no_more_calls_than_were_announced(monkeypatch):
    from fewstep.nodes.measuring import search

    counters = watched_counters(monkeypatch, search)
    for changed in ({}, {"start": "sigma_max"}, {"solver": "dpm_solver_v3", "polish": 0}):
        searched(model("eps"), **changed)
    for counter in counters:
        assert 0.5 * counter.total < counter.done <= counter.total


def test_a_start_at_the_highest_sigma_is_kept():
    for kind in ("eps", "flow"):
        patcher = model(kind)
        schedules = searched(patcher, start="sigma_max")
        highest = float(patcher.get_model_object("model_sampling").sigma_max)
        names = ("searched", "searched and polished")
        if schedules.facts["chosen"] in names:
            assert schedules.sigmas[4][0] == pytest.approx(highest)
        assert schedules.sigmas[6][0] == pytest.approx(highest)


def test_less_noise_starts_from_the_pictures():
    from fewstep.nodes.host.schedules import sigma_at

    patcher = model("flow")
    pictures = picture_like().sample(2, seed=3).float()
    schedules = searched(patcher, denoise=0.5, latent=pictures)
    start = sigma_at(patcher.get_model_object("model_sampling"), 0.5)
    assert {sigmas[0] for sigmas in schedules.sigmas.values()} == {start}


@pytest.mark.parametrize("at, kept_so_far", [(40, {"teacher of latents 1 to 4"}), (90, {"teacher"})])
def test_a_cancelled_search_goes_on_where_it_was(at, kept_so_far):
    import comfy.model_management
    from support.host_mixture import fail

    patcher, kept = model("flow"), Parts()
    fail(patcher, at=at, error=comfy.model_management.InterruptProcessingException())
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        searched(patcher, kept, cfg=3.0)
    assert set(kept.done) == kept_so_far
    again = model("flow")
    fail(again, at=10**9)
    schedules = searched(again, kept, cfg=3.0)
    assert schedules.sigmas == searched(model("flow"), cfg=3.0).sigmas


def test_statistics_belong_to_the_solver_that_uses_them():
    from fewstep.samplers.dpm_solver_v3 import Statistics
    from fewstep.samplers.dpm_solver_v3.measured import Measured

    lam = torch.linspace(-3, 4, 20, dtype=torch.float64)
    l = torch.sigmoid(-lam).view(-1, 1, 1, 1)  # noqa: E741
    measured = Measured(Statistics(lam, l, -2 + 2 * l, 0 * l), {})
    patcher = model("eps")
    with_it = searched(patcher, solver="dpm_solver_v3", statistics=measured, steps=5)
    assert with_it.facts["statistics"] != "none"
    assert with_it.facts["errors"]["5"] != searched(patcher, solver="dpm_solver_v3", steps=5).facts["errors"]["5"]
    too_few = searched(patcher, solver="dpm_solver_v3", statistics=measured)  # the sampler does not use them there
    assert too_few.facts["errors"]["4"] == searched(patcher, solver="dpm_solver_v3").facts["errors"]["4"]


# ---------------------------------------------------------------------------------------------------------
# Bad input


@pytest.mark.parametrize(
    "changed, words",
    [
        ({"teacher_steps": 19}, "teacher_steps is 19; it must be a whole number from 20 to 1000"),
        ({"steps": 13, "teacher_steps": 25}, "for 13 steps it must be 26 or more"),
        ({"steps": 40, "teacher_steps": 70}, "for 40 steps it must be 80 or more"),
        ({"denoise": 0.5}, "the latent is empty"),
        ({"denoise": 0.0}, "must be a number above 0"),
        ({"denoise": 0.001, "latent": torch.ones(1, 4, 16, 16)}, "knows too few levels of noise"),
        ({"cfg": 3000.0}, "at cfg 3000, did not reach a picture"),
    ],
)
def test_what_cannot_be_searched_is_said(changed, words):
    with pytest.raises(ValueError, match=words):
        searched(model("eps"), **changed)


def test_a_model_that_answers_with_nan_is_said():
    from support.host_mixture import fail

    patcher = model("flow")
    fail(patcher, at=5)
    with pytest.raises(ValueError, match="NaN or infinite numbers at model call 6 while following the teacher"):
        searched(patcher)


def test_one_step_is_a_schedule_too():
    schedules = searched(model("flow"), steps=1)
    assert len(schedules.sigmas[1]) == 2


# ---------------------------------------------------------------------------------------------------------
# Files, and loading


def test_a_file_holds_all_of_it(found, tmp_path):
    found.calibration().save(tmp_path / "mine.safetensors")
    loaded = load_schedules(tmp_path / "mine.safetensors")
    assert loaded.sigmas == found.sigmas and loaded.facts == found.facts


def test_files_that_are_none_are_said(found, tmp_path):
    path = tmp_path / "given.safetensors"
    good = found.calibration()
    bad = {
        "cannot be read": None,
        "holds 'statistics', not 'schedule'": Calibration("statistics", good.tensors, good.facts),
        "lacks solver": Calibration("schedule", good.tensors, {"steps": 4, "shift_factor": 1.0, "is_flow": True}),
        "no falling sigmas for 4 steps": Calibration("schedule", good.tensors | {"4": torch.ones(5)}, good.facts),
        "no falling sigmas for 3 steps": Calibration("schedule", {"3": torch.tensor([1.0, 0.5])}, good.facts),
        "no falling sigmas for x steps": Calibration("schedule", {"x": torch.tensor([1.0, 0.5])}, good.facts),
    }
    for words, calibration in bad.items():
        if calibration is None:
            path.write_bytes(b"nothing")
        else:
            calibration.save(path)
        with pytest.raises(ValueError, match=words):
            load_schedules(path)


@pytest.fixture
def folder(monkeypatch, tmp_path) -> Path:
    import folder_paths

    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", {})
    return tmp_path / "fewstep"


def test_a_searched_schedule_is_loaded(found, folder):
    from fewstep.nodes.host.files import names_of
    from fewstep.nodes.host.loading import loaded

    found.calibration().save(folder / "mine.safetensors")
    (folder / "other.safetensors").write_bytes(b"nothing")
    assert names_of("schedule") == ["mine.safetensors"] and names_of("statistics") == []
    sigmas, remarks = loaded("mine.safetensors", model("flow"), 4, 1.0)
    assert sigmas == pytest.approx(found.sigmas[4]) and len(remarks) == 1
    assert "dpmpp_2m at cfg 3" in remarks[0]
    sigmas, remarks = loaded("mine.safetensors", model("flow"), 6, 1.0)
    assert sigmas == pytest.approx(found.sigmas[6]) and "6 steps were found on the way to 4" in remarks[1]
    sigmas, remarks = loaded("mine.safetensors", model("flow"), 12, 1.0)
    assert len(sigmas) == 13 and "Made for 10 steps; 12 are put between" in " ".join(remarks)
    _, remarks = loaded("mine.safetensors", model("flow", shift=5.0), 4, 1.0)
    assert "Made at shift 3; carried over to your model's 5" in " ".join(remarks)
    with pytest.raises(ValueError, match="searched on a flow model, and the model is an eps, v or EDM model"):
        loaded("mine.safetensors", model("eps"), 4, 1.0)


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_a_published_table_says_what_it_is_for(name):
    from fewstep.nodes.host.loading import loaded

    table = PUBLISHED[name]
    native = len(table.sigmas) - 1
    sigmas, remarks = loaded(name, model("flow", shift=table.shift), native, 1.0)
    assert sigmas == pytest.approx(table.sigmas, abs=1e-4) and remarks == [f"Made for {table.made_for}."]
    sigmas, _ = loaded(name, model("flow", shift=table.shift), native, 0.3)
    assert len(sigmas) == native + 1 and 0 < sigmas[0] < table.sigmas[0]
    with pytest.raises(ValueError, match="is for flow models"):
        loaded(name, model("eps"), 10, 1.0)


def test_the_chart(found, monkeypatch):
    from fewstep.nodes.measuring.chart import chart

    picture, remark = chart(found)
    assert picture is not None and picture.shape[0] == 1 and picture.shape[3] == 3 and remark == ""
    assert picture.std() > 0.05
    assert not overlapping(found)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    picture, remark = chart(found)
    assert picture is None and "install matplotlib" in remark


def overlapping(schedules: Schedules) -> list[str]:
    """Texts below the bars that stand in each other's place, for errors of any size."""
    from fewstep.nodes.measuring.chart import draw_errors
    from matplotlib.figure import Figure

    texts = []
    for size in (1e-9, 1e-4, 1.0, 1e5):
        compared = {name: [size * (i + 1)] * 3 for i, name in enumerate(schedules.facts["compared"])}
        figure = Figure(figsize=(4, 3.6), dpi=110)
        axes = figure.subplots()
        draw_errors(axes, Schedules(schedules.sigmas, schedules.facts | {"compared": compared}))
        figure.draw_without_rendering()
        below = [text for text in axes.get_xticklabels() if text.get_text()] + [axes.xaxis.label, axes.xaxis.offsetText]
        boxes = [(text.get_text(), text.get_window_extent()) for text in below if text.get_text()]
        texts += [one for i, (one, box) in enumerate(boxes) for _, other in boxes[i + 1 :] if box.overlaps(other)]
    return texts


def test_the_batch_that_fits_is_one_at_least(monkeypatch):
    import comfy.model_management
    from fewstep.nodes.measuring.trajectories import batch_of

    asked = request(model("eps"))
    assert batch_of(asked, 8) == 8
    monkeypatch.setattr(comfy.model_management, "is_device_cpu", lambda device: False)
    for free, batch in ((0, 1), (math.inf, 8)):
        monkeypatch.setattr(comfy.model_management, "get_free_memory", lambda device, free=free: min(free, 1e15))
        assert batch_of(asked, 8) == batch
