"""Latents of several streams (LTX-2, MiniMax-H3), measured: two exact models in one, against each alone."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache
from typing import Any

import pytest
import torch
from fewstep.samplers.dpm_solver_v3 import Options, Statistics
from fewstep.samplers.dpm_solver_v3.measured import Measured, load_measured
from fewstep.samplers.dpm_solver_v3.pooling import Pooling
from fewstep.samplers.spread import load_spread
from fewstep.samplers.streams import ALONE, Streams
from fewstep.schedulers.optimal_steps import Objective
from fewstep.schedulers.optimal_steps.schedules import load_schedules
from support.mixture import Mixture, picture_like

from . import test_requests as small

pytestmark = pytest.mark.usefixtures("host")
NODES = small.NODES
VIDEO, AUDIO = (4, 1, 8, 8), (4, 4, 4)
STREAMS = Streams((VIDEO, AUDIO))
SIZES = [256, 64]


@lru_cache(maxsize=1)
def mixtures() -> list[Mixture]:
    """A picture, and a small stream of three times its size that becomes clear at much more noise."""
    loud = picture_like(size=4, components=8, seed=1)
    return [picture_like(size=8, components=8), replace(loud, means=loud.means * 3, spectrum=loud.spectrum * 9)]


def model(kind: str = "flow"):
    from support.host_mixture import streams_model

    return streams_model(mixtures(), kind, 3.0)


def alone(number: int, kind: str = "flow"):
    """The MODEL of one stream."""
    from support.host_mixture import mixture_model

    return mixture_model(mixtures()[number], kind, 3.0)


def empty(batch: int = 1):
    return nested(torch.zeros(batch, 1, sum(SIZES)))


def nested(pack: torch.Tensor):
    from comfy.nested_tensor import NestedTensor

    return NestedTensor(STREAMS.apart(pack))


def noise(batch: int, seed: int = 0) -> torch.Tensor:
    """A pack."""
    return torch.randn((batch, 1, sum(SIZES)), generator=torch.Generator().manual_seed(seed))


def pictures(batch: int) -> torch.Tensor:
    """A pack of true draws."""
    return torch.cat([m.sample(batch, seed=5).float().view(batch, 1, -1) for m in mixtures()], -1)


def run(node: str, patcher=None, **changed):
    return small.run(node, patcher or model(), **({"latent": empty()} | changed))


def sample(patcher, sampler, sigmas, start, positive=0):
    """What the host itself draws from `start`, nested or not."""
    import comfy.sample
    from support.host_mixture import label_conditioning

    start, nothing = start * 1, start * 0  # the host may work in place
    prompts = label_conditioning([positive]), label_conditioning([-1])
    return comfy.sample.sample_custom(patcher, start, 1.0, sampler, torch.tensor(sigmas), *prompts, nothing, seed=0)


def square(stream: torch.Tensor) -> torch.Tensor:
    """A stream as the model alone has it, (B, 4, H, W)."""
    return stream.reshape(len(stream), 4, *stream.shape[-2:])


# ---------------------------------------------------------------------------------------------------------
# The pack


def test_streams_are_taken_apart_as_the_host_does():
    import comfy.utils
    from fewstep.nodes.host.streams import packed

    pack = noise(3)
    theirs = comfy.utils.unpack_latents(pack, [torch.Size((3, *shape)) for shape in STREAMS.shapes])
    assert all(torch.equal(a, b) for a, b in zip(STREAMS.apart(pack), theirs, strict=True))
    assert torch.equal(packed(nested(pack)), pack) and STREAMS.names == ["video", "audio"]
    assert Streams(((4, 8, 8), (1, 5))).names == ["stream 1", "stream 2"]


def test_errors_are_the_mean_over_streams_and_of_one_stream_to_the_bit_what_they_were():
    x, target = noise(3, 1), noise(3, 2)
    of_each = [
        (a - b).square().flatten(1).mean(1) for a, b in zip(STREAMS.apart(x), STREAMS.apart(target), strict=True)
    ]
    found = Objective(streams=STREAMS)
    torch.testing.assert_close(found.by_stream(x, target), torch.stack(of_each, 1))
    torch.testing.assert_close(found.errors(x, target), (of_each[0] + of_each[1]) / 2)
    assert torch.equal(Objective().errors(x, target), (x - target).square().flatten(1).mean(1))
    assert torch.equal(ALONE.means(x)[:, 0], x.flatten(1).mean(1))


def test_a_sound_that_is_carried_larger_counts_in_its_own_size():
    from fewstep.nodes.host.streams import streams_of

    patcher = model()
    sampling = patcher.get_model_object("model_sampling")
    object.__setattr__(sampling, "audio_scale", 4.0)
    asked = small.request("search", patcher, latent=empty())
    assert asked.streams.scales == (1.0, 4.0)
    x, target = noise(2, 1), noise(2, 2)
    plain = STREAMS.square_errors(x, target)
    torch.testing.assert_close(asked.streams.square_errors(x, target), plain / torch.tensor([1.0, 16.0]))
    torch.testing.assert_close(Objective(p=1, streams=asked.streams).by_stream(x, target)[:, 1],
                               Objective(p=1, streams=STREAMS).by_stream(x, target)[:, 1] / 4)  # fmt: skip
    assert streams_of(torch.zeros(1, *VIDEO), sampling).scales == ()


@pytest.mark.parametrize("node", NODES)
def test_the_host_tells_the_model_the_true_shapes_in_every_call(node):
    patcher = model()
    run(node, patcher, latent=empty(2))
    seen = patcher.model.diffusion_model.shapes
    assert len(seen) > 20 and {tuple(shape[1:] for shape in shapes) for shapes in seen} == {(VIDEO, AUDIO)}


def test_pictures_come_in_the_models_own_scale_as_in_a_run():
    """MiniMax's model looks up the shapes when it scales the sound, also outside of a run."""
    from fewstep.nodes.measuring.running import inside_sampling

    patcher, given = model(), pictures(2)
    own, told = patcher.model, []

    def process_latent_in(latent):
        told.append([tuple(shape) for shape in own.latent_shapes])
        return latent * 2

    own.process_latent_in = process_latent_in
    asked = small.request("spread", patcher, latent=nested(given))
    assert torch.equal(asked.latents, given * 2) and told == [[(2, *VIDEO), (2, *AUDIO)]]
    inside_sampling(asked.guidance(), noise(2), [1.0], lambda denoise, x: None, 0, asked.streams)


# ---------------------------------------------------------------------------------------------------------
# Search


@lru_cache(maxsize=4)
def found(solver: str = "euler"):
    return run("search", steps=4, trajectories=4, teacher_steps=40, polish=2, solver=solver)


@pytest.mark.parametrize("solver", ["euler", "dpm_solver_v3"])
def test_the_errors_of_each_stream_are_those_of_its_model_alone(solver):
    """With the same sigmas and noise: by the host's own sampling of the model that knows this stream only."""
    import comfy.samplers
    from fewstep.nodes.host.dpm_solver_v3 import Choice, dpm_solver_v3_sampler
    from fewstep.nodes.measuring.trajectories import own_noise
    from fewstep.samplers.noise_law import FLOW
    from support.mixture import GuidedMixture, converged

    schedules = found(solver)
    asked = small.request("search", model(), latent=empty(), trajectories=4)
    unseen = torch.stack([own_noise(asked, number) for number in range(4, 8)])
    if solver == "euler":
        sampler = comfy.samplers.sampler_object("euler")
    else:
        sampler = dpm_solver_v3_sampler(Choice(Options(), None, "data", "never"))
    told = schedules.facts["errors_by_stream"]["4"]
    for number, name in enumerate(("video", "audio")):
        start = square(STREAMS.apart(unseen)[number])
        drawn = sample(alone(number), sampler, schedules.sigmas[4], start)
        exact = GuidedMixture(mixtures()[number], FLOW, torch.zeros(4, dtype=torch.long))
        end = converged(exact, start, 1.0 - 1e-6, 1e-7)
        error = float(Objective().reduce(Objective().errors(drawn.double(), end)))
        assert told[name][0] == pytest.approx(error, rel=0.15), name


def test_both_streams_are_weighed_alike():
    """The schedule of the pack is better for both together than that of either alone, though one has a fifth of it."""
    both = found()
    errors = both.facts["errors"]["4"][1]
    told = both.facts["errors_by_stream"]["4"]
    assert errors == pytest.approx((told["video"][1] + told["audio"][1]) / 2, rel=1e-5)
    for number, name in enumerate(("video", "audio")):
        latent = torch.zeros(1, 4, *STREAMS.shapes[number][-2:])
        given: dict[str, Any] = {"steps": 4, "trajectories": 4, "teacher_steps": 40, "polish": 2}
        one = small.run("search", alone(number), latent=latent, **given)
        assert compared_on_the_pack(both.sigmas[4]) < compared_on_the_pack(one.sigmas[4]), name


def compared_on_the_pack(sigmas) -> float:
    """What a search minimises, of a schedule, on the latents that it searched on."""
    from fewstep.nodes.measuring.running import inside_sampling
    from fewstep.nodes.measuring.search import Bench, student_of, taught, teacher_sigmas
    from fewstep.nodes.measuring.trajectories import own_noise
    from fewstep.schedulers.optimal_steps import Replay

    asked = small.request("search", model(), latent=empty(), trajectories=4, teacher_steps=40, steps=4)
    start = torch.stack([own_noise(asked, number) for number in range(8)])

    def work(denoise, x):
        bench = Bench(asked, denoise, student_of(asked), start, start * 0, denoise.announce, deal=denoise.deal)
        task = bench.task(taught(bench, teacher_sigmas(asked), slice(0, 4)), slice(0, 4))
        return Replay(task).cost(sigmas)

    return inside_sampling(asked.guidance(), start, [1.0], work, 0, asked.streams)


def test_video_and_audio_are_reported_apart(tmp_path):
    schedules = found()
    facts = schedules.facts
    assert facts["streams"] == [list(VIDEO), list(AUDIO)]
    assert set(facts["compared_by_stream"]) == set(facts["compared"])
    for name, errors in facts["compared_by_stream"].items():
        mean = (errors["video"][1] + errors["audio"][1]) / 2
        assert facts["compared"][name][1] == pytest.approx(mean, rel=1e-5)
    text = schedules.describe()
    assert f"(video {facts['compared_by_stream'][facts['chosen']]['video'][0]:.1e}, audio " in text
    assert "\nof video 1: " in text and "\nof audio 1: " in text
    schedules.calibration().save(tmp_path / "both.safetensors")
    assert load_schedules(tmp_path / "both.safetensors").describe() == text


@pytest.mark.parametrize("node", NODES)
def test_a_latent_of_one_stream_is_told_and_kept_as_before(node):
    result = small.run(node, small.model("FLOW"))
    assert not [name for name in result.facts if "stream" in name]
    assert "video" not in result.describe() and "stream" not in result.describe()


def test_less_noise_starts_from_the_pictures_of_both():
    schedules = run("search", latent=nested(pictures(2)), denoise=0.6)
    assert max(sigmas[0] for sigmas in schedules.sigmas.values()) < 0.9


def test_prompts_are_dealt_over_packs():
    one, two = (run("search", prompts=prompts) for prompts in ((), (small_pair(3),)))
    assert two.facts["prompts"] == 2 and one.facts["compared"] != two.facts["compared"]


def small_pair(label: int):
    from support.host_mixture import label_conditioning

    return label_conditioning([label]), label_conditioning([-1])


# ---------------------------------------------------------------------------------------------------------
# Statistics


@lru_cache(maxsize=4)
def measured(pooling: str = "global", kind: str = "flow") -> Measured:
    return run("estimate", model(kind), latent=empty(4), images=16, levels=16, pooling=pooling)


class DrawnWithThePack:
    """torch, whose random numbers for one stream are those that it has in the pack."""

    def __init__(self, number: int):
        self.number = number

    def __getattr__(self, name: str):
        return getattr(torch, name)

    def own(self, pack: torch.Tensor, shape) -> torch.Tensor:
        return STREAMS.apart(pack)[self.number].reshape(shape)

    def randn(self, shape, **given) -> torch.Tensor:
        return self.own(torch.randn((shape[0], 1, sum(SIZES)), **given), shape)

    def randint(self, low: int, high: int, shape, **given) -> torch.Tensor:
        return self.own(torch.randint(low, high, (shape[0], 1, sum(SIZES)), **given), shape)


@pytest.mark.parametrize("pooling, features", [("global", 2), ("channel", 8)])
def test_each_stream_has_the_statistics_of_its_model_alone(pooling, features, monkeypatch):
    from fewstep.nodes.measuring import estimate

    both, tables = measured(pooling), []
    assert both.statistics.features == (features, 1, 1)
    for number, name in enumerate(("video", "audio")):
        monkeypatch.setattr(estimate, "torch", DrawnWithThePack(number))
        latent = torch.zeros(4, 4, *STREAMS.shapes[number][-2:])
        one = small.run("estimate", alone(number), latent=latent, images=16, levels=16, pooling=pooling)
        rows = slice(number * features // 2, (number + 1) * features // 2)
        for letter in "lsb":
            ours, theirs = (getattr(of, letter) for of in (both.statistics, one.statistics))
            torch.testing.assert_close(ours[:, rows], theirs, rtol=2e-2, atol=1e-2)
        tables.append(one.statistics.l)
        assert both.facts["check_by_stream"]["20"][name]["without"] == pytest.approx(
            one.facts["check"]["20"]["without"], rel=1e-3
        )
    assert (tables[0] - tables[1]).abs().max() > 0.3


@pytest.mark.parametrize("kind", ["global", "channel"])
def test_what_is_pooled_of_a_pack_is_what_is_pooled_of_each_stream(kind):
    pack, pooling = noise(3), Pooling(kind, (1, sum(SIZES)), STREAMS)
    each = [Pooling(kind, shape) for shape in STREAMS.shapes]
    parts = [one.total(part) for one, part in zip(each, STREAMS.apart(pack), strict=True)]
    torch.testing.assert_close(pooling.total(pack), torch.cat(parts))
    assert pooling.features == tuple(torch.cat(parts).shape) and pooling.numbers.sum() % sum(SIZES) == 0


@pytest.mark.parametrize("pooling", ["spectral", "pixel"])
def test_what_needs_rows_and_columns_is_refused(pooling):
    with pytest.raises(ValueError, match=f"pooling is {pooling}, and this latent has several streams .video, audio"):
        small.request("estimate", model(), latent=empty(), pooling=pooling)


def test_the_check_counts_both_alike_and_is_told_apart(tmp_path):
    statistics = measured()
    assert set(statistics.facts["check_by_stream"]) == set(statistics.facts["check"]) == {"5", "8", "10", "20"}
    for calls, streams in statistics.facts["check_by_stream"].items():
        for way, error in statistics.facts["check"][calls].items():
            low, high = sorted((streams["video"][way], streams["audio"][way]))
            assert low / 2 <= error <= high
    text = statistics.describe()
    assert text.count("  video: error ") == text.count("  audio: error ") == 4
    assert statistics.best_order(8) in (1, 2)
    for pooling in ("global", "channel"):
        measured(pooling).calibration().save(tmp_path / "both.safetensors")
        again = load_measured(tmp_path / "both.safetensors")
        assert torch.equal(again.statistics.l, measured(pooling).statistics.l)


@pytest.mark.parametrize("pooling", ["global", "channel"])
def test_the_sampler_steps_each_stream_with_its_own_statistics(pooling):
    """What it draws of a stream in the pack is what it draws of the model alone with that stream's table."""
    both, sigmas = measured(pooling), small_sigmas(8)
    start = noise(2, 7)
    drawn = sample(model(), sampler_with(both), sigmas, nested(start)).unbind()
    for number, stream in enumerate(drawn):
        rows = slice(number, number + 1) if pooling == "global" else slice(4 * number, 4 * number + 4)
        table = both.statistics
        own = Statistics(table.lam, table.l[:, rows], table.s[:, rows], table.b[:, rows])
        begun = square(STREAMS.apart(start)[number])
        one = sample(alone(number), sampler_with(Measured(own, {})), sigmas, begun)
        torch.testing.assert_close(square(stream), one, rtol=1e-4, atol=2e-4)
        without = sample(alone(number), sampler_with(None), sigmas, begun)
        assert (one - without).abs().max() > 0.01


def sampler_with(statistics):
    from fewstep.nodes.host.dpm_solver_v3 import Choice, dpm_solver_v3_sampler

    return dpm_solver_v3_sampler(Choice(Options(), statistics, "data", "always"))


def small_sigmas(steps: int) -> list[float]:
    import comfy.samplers

    return comfy.samplers.calculate_sigmas(model().get_model_object("model_sampling"), "beta", steps).tolist()


def test_a_search_is_made_with_statistics_of_streams():
    schedules = run("search", solver="dpm_solver_v3", statistics=measured(), steps=6)
    plain = run("search", solver="dpm_solver_v3", steps=6)
    assert schedules.facts["errors"]["6"][0] != plain.facts["errors"]["6"][0]
    assert all(map(math.isfinite, schedules.facts["errors"]["6"]))


def test_statistics_of_other_streams_are_refused_and_one_number_serves_all():
    start, sigmas = noise(1), small_sigmas(5)
    of_four = torch.zeros(1, 4, 8, 8)
    per_channel = small.run("estimate", alone(0), latent=of_four, images=4, pooling="channel")
    with pytest.raises(ValueError, match="of one stream; this latent has 2 streams of 4 and 4 channels. Measure"):
        sample(model(), sampler_with(per_channel), sigmas, nested(start))
    with pytest.raises(ValueError, match="of 2 streams of 4 and 4 channels; this latent has one stream. Measure"):
        sample(alone(0), sampler_with(measured()), sigmas, of_four)
    by_all = small.run("estimate", alone(0), latent=of_four, images=4)
    assert by_all.remarks_on(STREAMS, "")[0].startswith("The statistics were measured on latents of one stream")
    assert all(part.isfinite().all() for part in sample(model(), sampler_with(by_all), sigmas, nested(start)).unbind())


# ---------------------------------------------------------------------------------------------------------
# Spread


@pytest.mark.parametrize("estimator", ["residual", "derivative"])
def test_the_spread_is_that_of_both_alike(estimator, tmp_path):
    both = run("spread", latent=nested(pictures(8)), images=8, estimator=estimator, levels=8)
    apart = both.facts["by_stream"]
    squares = torch.tensor([apart["video"], apart["audio"]]).double().square().mean(0)
    torch.testing.assert_close(both.squares / both.counts, squares, rtol=1e-5, atol=1e-9)
    for number, name in enumerate(("video", "audio")):
        latent = square(STREAMS.apart(pictures(8))[number])
        one = small.run("spread", alone(number), latent=latent, images=8, estimator=estimator, levels=8)
        assert apart[name] == pytest.approx((one.squares / one.counts).sqrt().tolist(), rel=0.2), name
    assert "\nvideo: 10: " in both.describe() and "\naudio: 10: " in both.describe()
    both.calibration().save(tmp_path / "both.safetensors")
    assert load_spread(tmp_path / "both.safetensors").describe() == both.describe()


def test_references_are_drawn_of_both():
    assert set(run("spread").facts["by_stream"]) == {"video", "audio"}


# ---------------------------------------------------------------------------------------------------------
# What cannot be


@pytest.mark.parametrize("node", NODES)
def test_a_model_of_one_stream_is_said(node):
    with pytest.raises(ValueError, match="several streams .video, audio., and this model takes one. Connect"):
        small.run(node, small.model("FLOW"), latent=empty())


@pytest.mark.parametrize("node", NODES)
@pytest.mark.parametrize(
    "shapes, words",
    [
        (((1, *VIDEO), (2, *AUDIO)), "streams of the shapes 1 x 4 x 1 x 8 x 8 and 2 x 4 x 4 x 4"),
        (((1, *VIDEO), (1, 4, 0, 4)), "none of them 0. Connect"),
        (((1, 24, 1, 8, 8), (1, 32, 4, 4)), "have a stream of 4 channels"),
        (((1, 4), (1, 4, 4, 4)), "streams of the shapes 1 x 4 and"),
    ],
)
def test_streams_that_are_not_the_models_are_said(node, shapes, words):
    from comfy.nested_tensor import NestedTensor

    with pytest.raises(ValueError, match=words):
        small.request(node, model(), latent=NestedTensor([torch.zeros(shape) for shape in shapes]))


def test_streams_are_known_by_the_channels_that_a_format_tells():
    """Of the video (LTX), of the widest stream (MiniMax), or how wide a row of tokens is (TripoSplat)."""
    from fewstep.nodes.measuring.asked import check_streams

    patcher = model()
    for channels, shapes in [
        (128, ((1, 128, 3, 4, 4), (1, 8, 9, 16))),
        (32, ((1, 24, 3, 4, 4), (1, 32, 2, 9))),
        (16, ((1, 100, 16), (1, 1, 5))),
    ]:
        patcher.model.latent_format.latent_channels = channels
        check_streams(patcher, [torch.zeros(shape) for shape in shapes])


@pytest.mark.parametrize("node", NODES)
def test_a_stream_that_holds_no_numbers_is_said(node):
    pack = torch.zeros(1, 1, sum(SIZES))
    pack[0, 0, -1] = math.nan
    with pytest.raises(ValueError, match="latent_image holds NaN"):
        small.request(node, model(), latent=nested(pack))


@pytest.mark.parametrize("node", NODES)
def test_a_sound_that_leads_nowhere_is_said_though_the_video_is_fine(node):
    patcher = model()
    sound = patcher.model.diffusion_model.streams[1]
    original = sound.denoise
    sound.denoise = lambda x, sigma, labels: original(x, sigma, labels) * 15
    with pytest.raises(ValueError, match="did not reach a picture"):
        run(node, patcher)


def test_a_latent_comes_in_nested_or_is_made_so_by_the_host():
    """0.33 makes an empty latent of one stream nested where the model's format says so."""
    from comfy.latent_formats import LatentFormat
    from fewstep.nodes.measuring.asked import latent_for

    patcher = model()
    assert latent_for(patcher, {"samples": empty()}).is_nested
    if hasattr(LatentFormat, "fix_empty_latent"):
        patcher.model.latent_format.fix_empty_latent = lambda latent: empty()
        assert (
            small.request("search", patcher, latent=latent_for(patcher, {"samples": torch.zeros(1, 4, 8, 8)})).streams
            == STREAMS
        )


@pytest.mark.parametrize(
    "load, made, changed",
    [
        (load_schedules, found, {"errors_by_stream": {"4": {"video": "small"}}}),
        (load_schedules, found, {"compared_by_stream": {"simple": [1.0]}}),
        (load_schedules, found, {"streams": [[4, 8, 8]]}),
        (load_measured, measured, {"check_by_stream": {"5": {"video": {"1": 0.1}}}}),
        (load_measured, measured, {"streams": [[4, 8, 0], [4]]}),
        (load_spread, lambda: run("spread"), {"by_stream": {"video": [1.0, 1.0]}}),
        (load_spread, lambda: run("spread"), {"by_stream": {"video": 1.0}}),
    ],
)
def test_a_file_that_tells_nonsense_of_its_streams_is_said(load, made, changed, tmp_path):
    calibration = made().calibration()
    replace(calibration, facts=calibration.facts | changed).save(tmp_path / "both.safetensors")
    with pytest.raises(ValueError, match="easure again"):
        load(tmp_path / "both.safetensors")
