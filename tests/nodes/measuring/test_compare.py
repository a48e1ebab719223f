"""Compare inside the host, in this process: what it counts, measures, recognises and refuses; cancel and second queue.

Mostly on exact mixtures, whose converged pictures are known to nine digits.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.mixture import GuidedMixture, converged

from . import test_requests as small
from . import test_streams as streams

pytestmark = pytest.mark.usefixtures("host")
KINDS = pytest.mark.parametrize("kind", ["EPS", "FLOW"])
CFG = 3.0


@pytest.fixture
def benchmark(monkeypatch):
    """benchmarks/error_per_call.py, as a module."""
    monkeypatch.setattr(sys, "path", [str(Path(os.environ["FEWSTEP_ROOT"], "benchmarks")), *sys.path])
    import error_per_call

    return error_per_call


def sigmas(patcher, scheduler: str, steps: int) -> torch.Tensor:
    import comfy.samplers

    return comfy.samplers.calculate_sigmas(patcher.get_model_object("model_sampling"), scheduler, steps)


def entry(patcher, name: str, scheduler: str, steps: int, label: str = "", guider=None, **options):
    import comfy.samplers
    from fewstep.nodes.measuring.comparing.entries import Entry

    ks = comfy.samplers.KSampler(patcher, steps, patcher.load_device, name, scheduler)
    sampler = comfy.samplers.ksampler(name, options) if options else comfy.samplers.sampler_object(name)
    return Entry(label or f"{name} {scheduler}", sampler, ks.sigmas, guider)


def of_function(function, steps=4, label="own", patcher=None):
    """An entry with a sampler of another pack."""
    import comfy.samplers
    from fewstep.nodes.measuring.comparing.entries import Entry

    return Entry(label, comfy.samplers.KSAMPLER(function), sigmas(patcher, "simple", steps))


def request(patcher, entries=(), **changed):
    from fewstep.nodes.measuring.compare import Request

    given = small.given(patcher) | {"cfg": CFG, "reference_steps": 20, "images": 2, "rivals": False, "calls": (4,)}
    given |= changed
    return Request(**({"given": given["latent"], "entries": entries} | given))


def compared(patcher, entries=(), shelf=None, **changed):
    from fewstep.nodes.measuring.compare import compare
    from fewstep.nodes.measuring.comparing.shelf import Shelf

    return compare(request(patcher, entries, **changed), Shelf() if shelf is None else shelf, None)


class Counting:
    """In the network, where no fact of the model is: how many latents every guided call was about. stop: when to."""

    def __init__(self):
        self.calls: list[int] = []
        self.stop = -1

    def __call__(self, output, sigma):
        import comfy.model_management

        if len(self.calls) == self.stop:
            raise comfy.model_management.InterruptProcessingException()
        self.calls.append(len(output))
        return output


def counted(patcher) -> tuple[Any, list[int]]:
    """The same MODEL, and a list that grows with every call of its network: by the latents, both sides of cfg."""
    patcher.model.diffusion_model.failing = counting = Counting()
    return patcher, counting.calls


# ---------------------------------------------------------------------------------------------------------
# The figures


PAIRS = [("euler", "simple", 6), ("heun", "beta", 7), ("uni_pc", "simple", 6), ("dpm_2", "normal", 9)]


@KINDS
def test_the_figures_are_those_of_the_benchmark_on_the_same_problem(kind, benchmark):
    """Sampler by sampler: calls, mean and median of the errors, from the same noise to the same end."""
    patcher = small.model(kind)
    entries = []
    for name, scheduler, budget in PAIRS:
        steps = benchmark.affordable_steps(benchmark.host_entry(name, scheduler), budget)
        entries.append(entry(patcher, name, scheduler, steps))
    found = compared(patcher, entries, images=3)
    given = small.given(patcher)
    noise = torch.cat([torch.randn((1, 4, small.SIZE, small.SIZE), generator=torch.manual_seed(n)) for n in range(3)])
    problem = benchmark.Problem("same", patcher, given["positive"], given["negative"], CFG, noise, found.converged, 0.0)
    for row, (name, scheduler, budget) in zip(found.rows, PAIRS, strict=True):
        theirs = benchmark.measure(problem, benchmark.host_entry(name, scheduler), budget)
        errors = torch.tensor(row.errors, dtype=torch.float64)
        assert (row.calls, row.steps) == (theirs.calls, theirs.steps)
        assert float(errors.mean()) == pytest.approx(theirs.mean, rel=1e-4)
        assert float(errors.median()) == pytest.approx(theirs.median, rel=1e-4)
        assert len(row.seconds) == 3 and all(0 < seconds < 60 for seconds in row.seconds)


@KINDS
def test_the_reference_is_as_near_to_the_exact_end_as_is_said(kind):
    """Also under prompts that are dealt out, each image its own."""
    from support.host_mixture import label_conditioning

    patcher = small.model(kind)
    prompts = ((label_conditioning([3]), label_conditioning([-1])),)
    found = compared(patcher, [entry(patcher, "euler", "simple", 4)], images=3, reference_steps=100, prompts=prompts)
    sampling, law = patcher.get_model_object("model_sampling"), patcher.model.diffusion_model.law
    noise = torch.cat([torch.randn((1, 4, small.SIZE, small.SIZE), generator=torch.manual_seed(n)) for n in range(3)])
    top = sampling.sigma_max
    start = sampling.noise_scaling(top, noise.double(), torch.zeros(1), max_denoise=True)
    exact = converged(GuidedMixture(small.mixture(), law, torch.tensor([0, 3, 0]), CFG), start, float(top))
    error = float((found.converged - exact).square().flatten(1).mean(1).log().mean().exp())
    assert error < 2 * found.known and 1e-9 < found.known < 1e-4
    assert found.rows[0].error > 100 * found.known
    assert torch.stack([e for e in found.ends[0]]).shape == (3, 4, small.SIZE, small.SIZE)


@pytest.mark.parametrize(
    "name, calls", [("euler", 5), ("heun", 9), ("dpm_2", 9), ("seeds_2", 9), ("seeds_3", 13), ("dpmpp_2s_ancestral", 9)]
)
def test_calls_are_counted_not_assumed(name, calls):
    patcher, made = counted(small.model("EPS"))
    (row,) = compared(patcher, [entry(patcher, name, "simple", 5)], cfg=1.0).rows
    references = 2 * (20 + 10)
    assert row.calls == calls and sum(made) == references + 2 * calls + calls  # the last to see whether it draws noise


def test_a_guided_prediction_counts_one_whatever_it_asks_of_the_model():
    from comfy_extras.nodes_custom_sampler import DualCFGGuider
    from support.nodes import executed

    patcher, given = small.model("EPS"), small.given(small.model("EPS"))
    sides = given["positive"], given["positive"], given["negative"]
    guider = executed(DualCFGGuider, patcher, *sides, 2.0, 3.0, "regular")
    found = compared(patcher, [entry(patcher, "euler", "simple", 5)], guider=guider)
    assert found.rows[0].calls == 5 and found.rows[0].error < 1


# ---------------------------------------------------------------------------------------------------------
# What draws noise


def draws_from_torch(model, x, sigmas, extra_args=None, callback=None, disable=None):
    """Of another pack, with a name that says nothing, from torch's own generator."""
    for sigma, after in zip(sigmas[:-1], sigmas[1:], strict=True):
        denoised = model(x, sigma * x.new_ones(len(x)), **extra_args)
        x = denoised + after * torch.randn_like(x)
    return x


def quiet(model, x, sigmas, extra_args=None, callback=None, disable=None):
    for sigma, after in zip(sigmas[:-1], sigmas[1:], strict=True):
        denoised = model(x, sigma * x.new_ones(len(x)), **extra_args)
        x = denoised + after / sigma * (x - denoised)
    return x


def trembles(model, x, sigmas, extra_args=None, callback=None, disable=None):
    """As some devices do: no two runs are the same to the last digit."""
    chance = torch.Generator().manual_seed(TICK.pop())
    return quiet(model, x, sigmas, extra_args) + 1e-5 * torch.rand((), generator=chance)


TICK = list(range(100))


def test_what_draws_noise_is_told_by_what_it_does():
    from fewstep.nodes.host.sampler import restart_sampler
    from fewstep.nodes.measuring.comparing.entries import Entry

    patcher = small.model("EPS")
    names = {"euler": "ode", "uni_pc": "ode", "ipndm": "ode", "euler_ancestral": "sde", "dpmpp_2m_sde": "sde"}
    entries = [entry(patcher, name, "simple", 5, label=name) for name in names]
    entries.append(entry(patcher, "euler", "simple", 5, label="churned", s_churn=3.0))
    entries += [of_function(f, label=f.__name__, patcher=patcher) for f in (draws_from_torch, quiet, trembles)]
    jumping = torch.tensor([14.0, 3.0, 1.0, 2.0, 0.5, 0.0])
    entries.append(Entry("restarted", restart_sampler(None, 1.0), jumping))
    entries.append(Entry("restart, falling", restart_sampler(None, 1.0), jumping[[0, 1, 4, 5]]))
    found = {row.label: row.kind for row in compared(patcher, entries).rows}
    expected = names | {"churned": "sde", "draws_from_torch": "sde", "quiet": "ode", "trembles": "ode"}
    assert found == expected | {"restarted": "sde", "restart, falling": "ode"}


def test_cfg_pp_is_marked_where_it_is_another_equation():
    patcher = small.model("EPS")
    one = [entry(patcher, "euler_cfg_pp", "simple", 5)]
    assert compared(patcher, one).rows[0].kind == "other"
    assert compared(patcher, one, cfg=1.0).rows[0].kind == "ode"


def test_the_right_law_is_nearer_as_a_set_than_a_wrong_one():
    """An ancestral sampler of many steps draws from the model's law; euler of two steps does not."""
    patcher = small.model("EPS")
    good = entry(patcher, "euler_ancestral", "karras", 40, label="good")
    found = compared(patcher, [good, entry(patcher, "euler", "karras", 2, label="poor")], images=24, cfg=1.0)
    good_row, poor = found.rows
    assert good_row.kind == "sde" and poor.distance > 0.2 and abs(good_row.distance) < 0.5 * poor.distance


# ---------------------------------------------------------------------------------------------------------
# What cannot run


def raises(model, x, sigmas, extra_args=None, callback=None, disable=None):
    raise RuntimeError("wants a CUDA kernel\nthat is not here")


def out_of_memory(model, x, sigmas, extra_args=None, callback=None, disable=None):
    raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")


def not_a_number(model, x, sigmas, extra_args=None, callback=None, disable=None):
    return x * float("nan")


def test_what_cannot_run_is_refused_in_words_and_the_others_go_on():
    import comfy.samplers
    from fewstep.nodes.measuring.comparing.entries import Entry

    patcher = small.model("FLOW")
    euler, good = comfy.samplers.sampler_object("euler"), sigmas(patcher, "simple", 4)
    entries = [
        *(of_function(f, label=f.__name__, patcher=patcher) for f in (raises, out_of_memory, not_a_number)),
        Entry("no sampler", "euler", good),
        Entry("no sigmas", euler, None),
        Entry("one sigma", euler, good[:1]),
        Entry("too high", euler, good * 14),
        Entry("no guider", euler, good, guider="cfg"),
        Entry("no prompt", euler, good, guider=comfy.samplers.CFGGuider(patcher)),
        5,
        Entry("good", euler, good),
    ]
    found = compared(patcher, entries)
    said = {row.label: row.refused for row in found.rows}
    assert said["raises"] == "it stopped with RuntimeError: wants a CUDA kernel that is not here"
    assert "not enough memory" in said["out_of_memory"] and "NaN" in said["not_a_number"]
    assert "Connect a SAMPLER" in said["no sampler"] and "Connect SIGMAS" in said["no sigmas"]
    assert "two or more" in said["one sigma"] and "1 is the highest" in said["too high"]
    assert "must be a GUIDER" in said["no guider"] and "has no prompt" in said["no prompt"]
    assert "Connect an Entry" in said["entry 10"]
    assert said["good"] == "" and [row.label for row in found.drawn] == ["good"] and len(found.ends) == 1


def test_nothing_that_runs_is_an_error_in_words():
    patcher = small.model("FLOW")
    with pytest.raises(ValueError, match="Nothing could be compared.\nraises: it stopped with RuntimeError"):
        compared(patcher, [of_function(raises, label="raises", patcher=patcher)])
    with pytest.raises(ValueError, match="There is nothing to compare. Connect an Entry"):
        compared(patcher, [])


def test_a_model_that_answers_nan_is_said_once():
    from support.host_mixture import fail

    patcher = small.model("FLOW")
    fail(patcher, 3)
    with pytest.raises(ValueError, match="NaN or infinite numbers at model call 4 while solving the reference"):
        compared(patcher, [entry(patcher, "euler", "simple", 4), entry(patcher, "heun", "simple", 4)])


@pytest.mark.parametrize(
    "changed, words",
    [
        ({"images": 0}, "images is 0"),
        ({"reference_steps": 5}, "reference_steps is 5"),
        ({"model": None}, "model is missing"),
    ],
)
def test_bad_input_is_refused_in_words(changed, words):
    patcher = small.model("FLOW")
    with pytest.raises(ValueError, match=words):
        request(patcher, [entry(patcher, "euler", "simple", 4)], **changed)


@pytest.mark.parametrize("text", ["", "4; x", "0", "4, 1000", "1.5", "²", ", ".join(map(str, range(1, 20))), None])
def test_calls_are_numbers_with_commas(text):
    from fewstep.nodes.measuring.compare import budgets

    assert budgets(" 12, 4;8 8 ") == (4, 8, 12)
    with pytest.raises(ValueError, match="calls is"):
        budgets(text)


# ---------------------------------------------------------------------------------------------------------
# Cancel, and a second queue


def pair(patcher):
    """Made anew, as the host's nodes do at every queue."""
    return [entry(patcher, "euler", "simple", 5), entry(patcher, "heun", "beta", 3)]


def test_unchanged_entries_are_not_run_again():
    from fewstep.nodes.measuring.comparing.shelf import Shelf

    shelf = Shelf()
    patcher, calls = counted(small.model("FLOW"))

    def spent(entries=(), **changed):
        """Calls of one latent, and the rows."""
        calls.clear()
        found = compared(patcher, [*pair(patcher), *entries], shelf, cfg=1.0, **changed)
        return sum(calls), found.rows

    each = 5 + 5  # of one picture by both
    first = spent()
    assert first[0] == 2 * (20 + 10) + 2 * each + each  # the last to see whether they draw noise
    assert spent() == (0, first[1])
    more = spent([entry(patcher, "euler", "simple", 7)])
    assert more == (2 * 7, [*first[1], more[1][2]])
    assert spent(images=3)[0] == 30 + each
    assert spent(seed=1)[0] == each  # seeds 1 and 2 are there; whether they draw noise is asked at the first picture
    assert spent(reference_steps=22)[0] == 2 * (22 + 11)
    assert compared(patcher, pair(patcher), shelf, cfg=2.0).rows[0].errors != first[1][0].errors


@pytest.mark.parametrize("at", [3, 29, 33, 44, 70])
def test_a_cancelled_comparison_goes_on_where_it_was(at):
    import comfy.model_management
    from fewstep.nodes.measuring.comparing.shelf import Shelf

    whole, calls = counted(small.model("FLOW"))
    expected = compared(whole, pair(whole), cfg=1.0)
    total, most, shelf = sum(calls), len(calls), Shelf()
    patcher, calls = counted(small.model("FLOW"))
    stopping = patcher.model.diffusion_model.failing
    stopping.stop = min(at, most - 1)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        compared(patcher, pair(patcher), shelf, cfg=1.0)
    stopped, stopping.stop = sum(calls), -1
    found = compared(patcher, pair(patcher), shelf, cfg=1.0)
    assert [row.errors for row in found.rows] == [row.errors for row in expected.rows]
    lost = sum(calls) - total
    assert 0 <= lost <= stopped and lost <= (60 if stopped < 60 else 10)


def test_the_shelf_keeps_the_latest_within_its_bytes():
    from fewstep.nodes.measuring.comparing.shelf import Picture, Shelf

    shelf = Shelf(most=3 * 400)
    for name in "abcd":
        shelf.put(name, Picture(torch.zeros(100)))
        shelf.get("a")
    assert list(shelf.pictures) == ["c", "d", "a"] and "b" not in shelf


# ---------------------------------------------------------------------------------------------------------
# Models, guiders, latents


def test_boost_on_the_model_is_left_out_and_ours_is_what_boost_runs():
    from fewstep.nodes.host.boost import Boost, boosted

    plain = small.model("FLOW")
    one = [entry(plain, "euler", "simple", 6, label="one")]
    expected = compared(plain, one, rivals=True, calls=(6,))
    found = compared(boosted(plain, Boost()), one, rivals=True, calls=(6,))
    assert found.remarks == ["Boost on the model is left out: every entry runs as itself."] and not expected.remarks
    assert [(r.label, r.errors) for r in found.rows] == [(r.label, r.errors) for r in expected.rows]
    rows = {row.label: row for row in found.rows}
    assert list(rows)[:3] == ["one", "Boost (FewStep)", "euler simple"] and rows["Boost (FewStep)"].ours
    assert rows["one"].errors == rows["euler simple"].errors and rows["Boost (FewStep)"].error < rows["one"].error
    assert {"uni_pc simple", "dpmpp_2m karras", "dpmpp_2m beta", "res_multistep simple", "er_sde simple"} <= set(rows)
    # As an entry's own guider, whose model has Boost on it, it is run as a person would run it.
    from fewstep.nodes.host.guiders import guider_for

    given = small.given(plain)
    guider = guider_for(boosted(plain, Boost()), given["positive"], given["negative"], CFG)
    own = compared(plain, [entry(plain, "euler", "simple", 6, guider=guider)]).rows[0]
    assert own.calls == 6 and min(own.seconds) > 0
    assert own.errors == pytest.approx(rows["Boost (FewStep)"].errors, rel=1e-4)


def test_guiders_of_every_kind_are_counted_and_timed():
    """Two experts, of which one hands over to the other, and a mixture's, each as the guider of all and of an entry."""
    from fewstep.nodes.host.gmflow import Guidance, gmflow_guider
    from fewstep.nodes.models.demo import load_clip, load_model
    from fewstep.nodes.models.two_experts import two_experts_guider

    patcher, given = small.model("FLOW"), small.given(small.model("FLOW"))
    experts = two_experts_guider(patcher, patcher.clone(), given["positive"], given["negative"], 3.0, 1.0, 0.5)
    clip, mixtures = load_clip(), load_model("gmflow")
    positive, negative = (clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in ("red apple", ""))
    guided = gmflow_guider(mixtures, positive, negative, Guidance(0.45))
    for model, guider, channels in ((patcher, experts, 4), (mixtures, guided, 3)):
        latent = torch.zeros(1, channels, small.SIZE, small.SIZE)
        own = [entry(model, "euler", "simple", 8), entry(model, "heun", "simple", 8, guider=guider)]
        rows = compared(model, own, guider=guider, latent=latent).rows
        assert [row.refused for row in rows] == ["", ""]
        assert [row.calls for row in rows] == [8, 15] and all(min(row.seconds) > 0 for row in rows)
        assert all(row.error < 0.1 for row in rows)


def test_more_than_the_shelf_holds_is_compared_all_the_same():
    from fewstep.nodes.measuring.comparing.shelf import Shelf

    patcher = small.model("FLOW")
    tiny = Shelf(most=1)
    found, expected = (compared(patcher, pair(patcher), shelf, images=3) for shelf in (tiny, None))
    assert [row.errors for row in found.rows] == [row.errors for row in expected.rows] and len(tiny.pictures) == 1


def test_an_entry_with_guidance_of_its_own_is_measured_to_where_that_converges():
    from fewstep.nodes.host.guiders import guider_for

    patcher, given = small.model("EPS"), small.given(small.model("EPS"))
    other = guider_for(patcher, given["positive"], given["negative"], 1.0)
    given_to = {"a": None, "b": other}
    entries = [entry(patcher, "dpmpp_2m", "karras", 20, label=name, guider=g) for name, g in given_to.items()]
    a, b = compared(patcher, entries, reference_steps=40).rows
    (alone,) = compared(patcher, entries[:1], reference_steps=40, cfg=1.0).rows
    assert b.errors == pytest.approx(alone.errors, rel=1e-3) and a.errors != b.errors


def test_entries_that_begin_in_a_picture_are_measured_from_there():
    patcher = small.model("FLOW")
    latent = small.PICTURES.clone()
    whole = sigmas(patcher, "simple", 30)
    import comfy.samplers
    from fewstep.nodes.measuring.comparing.entries import Entry

    fine = Entry("fine", comfy.samplers.sampler_object("dpmpp_2m"), whole[whole <= 0.6])
    poor = Entry("poor", comfy.samplers.sampler_object("euler"), torch.tensor([fine.sigmas[0], 0.2, 0.0]))
    near, far = compared(patcher, [fine, poor], latent=latent, reference_steps=60).rows
    assert near.error < 1e-3 < 10 * near.error < far.error


def test_streams_count_alike():
    patcher = streams.model()
    latent = streams.empty()
    found = compared(patcher, [entry(patcher, "euler", "simple", 6)], latent=latent)
    assert found.rows[0].calls == 6 and 0 < found.rows[0].error < 1
    from fewstep.nodes.compare import latents_of

    whole = latents_of(found)
    assert [tuple(part.shape[1:]) for part in whole.unbind()] == list(found.request.streams.shapes)
    assert len(whole.unbind()[0]) == 4


# ---------------------------------------------------------------------------------------------------------
# The node


@pytest.fixture
def output(monkeypatch, tmp_path):
    import folder_paths

    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path))
    monkeypatch.setattr(folder_paths, "get_temp_directory", lambda: str(tmp_path / "temp"))
    return tmp_path


def executed(patcher, **changed):
    from fewstep.nodes.compare import FewStepCompare

    node: Any = type(
        "Node", (FewStepCompare,), {"hidden": SimpleNamespace(unique_id=None, prompt=None, extra_pnginfo=None)}
    )
    given = {name: value for name, value in small.given(patcher).items() if name != "latent"}
    latent = {"samples": torch.zeros(1, 4, small.SIZE, small.SIZE)}
    short = {"reference_steps": 20, "images": 2, "calls": "4", "latent_image": latent, "filename_prefix": "sub/cmp"}
    return node.execute(**(given | short | changed))


def test_the_node_gives_latents_chart_table_and_grid_and_saves_them(output):
    import csv
    import json

    patcher = small.model("FLOW")
    last, first = entry(patcher, "heun", "beta", 3, "last"), entry(patcher, "euler", "beta", 5, "first")
    entries = {"entry10": last, "entry2": first}
    made = executed(patcher, entries=entries, rivals=False)
    latents, chart, table, grid = made.args
    assert latents["samples"].shape == (2 + 2 * 2, 4, small.SIZE, small.SIZE)
    assert chart.shape[0] == 1 and chart.shape[-1] == 3 and 0 <= chart.min() and chart.max() <= 1
    assert "| last " in table and table.splitlines()[0].startswith("| entry")
    assert "Connect a VAE for the grid" in made.ui["fewstep"][0]["text"] and grid.ndim == 4
    names = sorted(path.name for path in (output / "sub").iterdir())
    assert names == ["cmp_00001_.csv", "cmp_00001_.json", "cmp_00001_chart.png", "cmp_00001_grid.png"]
    assert [image["filename"] for image in made.ui["images"]] == names[2:3]
    with (output / "sub" / names[0]).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    document = json.loads((output / "sub" / names[1]).read_text(encoding="utf-8"))
    assert [row["label"] for row in rows] == [row["label"] for row in document["rows"]] == ["first", "last"]
    for line, row in zip(rows, document["rows"], strict=True):
        assert float(line["error"]) == row["error"] and int(line["calls"]) == row["calls"] == 5
        assert len(row["errors_of_pictures"]) == 2 and row["sigmas"][-1] == 0
    assert "Saved in the output folder: sub/cmp_00001_.csv, .json, chart.png, grid.png" in made.ui["fewstep"][0]["text"]


def test_sockets_by_name_are_the_growing_list_of_older_hosts():
    from fewstep.nodes.compare import connected

    assert connected(None, {"entries.entry10": "c", "entries.entry2": "b", "entries.entry0": None}) == ["b", "c"]
    assert connected({"entry1": "a", "entry0": "z"}, {}) == ["z", "a"] and connected(None, {"other": 1}) == []


def test_without_matplotlib_all_but_the_chart_is_there(output, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    patcher = small.model("FLOW")
    made = executed(patcher, entries={"entry0": entry(patcher, "euler", "beta", 5)}, rivals=False, filename_prefix="")
    assert "install matplotlib" in made.ui["fewstep"][0]["text"] and made.args[1].ndim == 4
    assert list(output.glob("**/*.csv")) == [] and made.ui["images"][0]["type"] == "temp"


@pytest.mark.parametrize("prefix", ["../out", "/etc/x", "a\0b", "x" * 300, "C:\\x", 5, 'a"b'])
def test_a_prefix_that_is_no_name_is_refused_before_anything_is_drawn(prefix):
    patcher, calls = counted(small.model("FLOW"))
    with pytest.raises(ValueError, match="filename_prefix"):
        executed(patcher, filename_prefix=prefix)
    assert calls == []


def test_a_full_disk_is_said_and_the_result_is_there(output, monkeypatch):
    import errno

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    patcher = small.model("FLOW")
    made = executed(patcher, entries={"entry0": entry(patcher, "euler", "beta", 5)}, rivals=False)
    assert "Not saved in the output folder: the disk is full." in made.ui["fewstep"][0]["text"]
    assert made.ui["images"][0]["type"] == "temp" and "| euler beta" in made.args[2]
