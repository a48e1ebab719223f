"""DPM-Solver-v3 inside the host, in this process: measuring on exact models, files, and which statistics a run uses."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from fewstep.nodes.measuring.interrupted import Parts
from fewstep.samplers.calibration import Calibration
from fewstep.samplers.dpm_solver_v3 import Options, Statistics
from fewstep.samplers.dpm_solver_v3.measured import Measured, load_measured, load_published
from fewstep.samplers.dpm_solver_v3.sums import Sums
from support.mixture import picture_like
from support.recording import watched_counters

pytestmark = pytest.mark.usefixtures("host")
LABELS = [0, 3]


def model(kind: str = "eps", shift: float = 3.0):
    from support.host_mixture import mixture_model

    return mixture_model(picture_like(), kind, shift)


def request(patcher, **changed):
    from fewstep.nodes.measuring.estimate import Request
    from support.host_mixture import label_conditioning

    given = {
        "model": patcher,
        "positive": label_conditioning(LABELS),
        "negative": label_conditioning([-1, -1]),
        "cfg": 1.0,
        "latent": torch.zeros(2, 4, 16, 16),
        "seed": 0,
        "images": 8,
        "levels": 12,
        "pooling": "global",
        "derivative": "differences",
    }
    return Request(**(given | changed))


def estimate(patcher, known=None, parts=None, **changed) -> Measured:
    from fewstep.nodes.measuring.estimate import estimate

    return estimate(request(patcher, **changed), known, parts or Parts(), None)


def calls_of(patcher) -> list[float]:
    """The sigmas of the network's calls from now on."""
    seen: list[float] = []
    network = patcher.model.diffusion_model
    original = network.denoise

    def counted(x, sigma, labels):
        seen.append(float(sigma[0]))
        return original(x, sigma, labels)

    network.denoise = counted
    return seen


@pytest.mark.parametrize("kind", ["eps", "v", "edm", "flow"])
def test_every_kind_of_model_has_the_same_statistics(kind):
    """One mixture behind four prediction types: the table at a noise-to-signal ratio is the same number."""
    found = estimate(model(kind)).statistics
    reference = estimate(model("eps")).statistics
    at = [-2.0, -1.0, 0.0, 1.0, 2.0, 3.0]
    for lam in at:
        assert found.l_at(lam).item() == pytest.approx(reference.l_at(lam).item(), abs=0.05)


@pytest.mark.parametrize("kind", ["eps", "flow"])
def test_the_check_finds_that_statistics_help(kind):
    measured = estimate(model(kind), cfg=4.0, levels=20)
    assert set(measured.facts["check"]) == {"5", "8", "10", "20"}
    for calls in (5, 8, 10):
        assert measured.best_order(calls) in (1, 2)
    assert measured.facts["check"]["8"]["2"] < 0.5 * measured.facts["check"]["8"]["without"]


@pytest.mark.parametrize("kind", ["eps", "flow"])
@pytest.mark.parametrize("drawn", [True, False])
def test_the_calls_are_as_many_as_were_promised(kind, drawn, monkeypatch):
    from fewstep.nodes.measuring import estimate as module

    counters = watched_counters(monkeypatch, module)
    patcher = model(kind)
    latent = torch.zeros(2, 4, 16, 16) if drawn else picture_like().sample(2, seed=1).float()
    seen = calls_of(patcher)
    estimate(patcher, latent=latent)
    assert counters[0].total == counters[0].done == len(seen)


def test_forward_mode_and_differences_agree_inside_the_host():
    exact, near = (estimate(model("v"), derivative=d, images=32) for d in ("auto", "differences"))
    assert exact.facts["derivative"] == "forward_mode"
    assert (exact.statistics.l - near.statistics.l).abs().max() < 0.01


def test_auto_takes_differences_where_the_model_has_no_forward_mode():
    patcher = model("eps")
    network = patcher.model.diffusion_model
    original = network.denoise

    class NoDerivative(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

    network.denoise = lambda x, sigma, labels: original(NoDerivative.apply(x), sigma, labels)
    measured = estimate(patcher, derivative="auto")
    assert measured.facts["derivative"] == "differences"
    assert 0 < measured.statistics.l_at(0.0).item() < 1


def test_fused_attention_is_written_out_for_forward_mode(monkeypatch):
    """As on a GPU: torch's fused kernel, which the host takes there, has no forward mode."""
    import comfy.ldm.modules.attention as attention
    from fewstep.nodes.models.demo import load_clip, load_model

    monkeypatch.setattr(attention, "optimized_attention", attention.attention_pytorch)
    q = torch.randn(1, 64, 32)
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.func.jvp(lambda q: attention.attention_pytorch(q, q, q, 2), (q,), (q,))
    clip = load_clip()
    prompt = clip.encode_from_tokens_scheduled(clip.tokenize("red apple"))
    asked = {"positive": prompt, "negative": prompt, "latent": torch.zeros(1, 3, 64, 64), "images": 2, "levels": 6}
    exact, near = (estimate(load_model("flow"), derivative=d, **asked) for d in ("auto", "differences"))
    assert exact.facts["derivative"] == "forward_mode" and near.facts["derivative"] == "differences"
    assert (exact.statistics.l - near.statistics.l).abs().max() < 0.05


def test_a_cancelled_measurement_goes_on_where_it_was():
    import comfy.model_management

    whole = estimate(model("eps"))
    patcher, left = model("eps"), [60]
    parts = Parts()
    network = patcher.model.diffusion_model
    original = network.denoise

    def cancelled(x, sigma, labels):
        left[0] -= 1
        if left[0] == 0:
            raise comfy.model_management.InterruptProcessingException()
        return original(x, sigma, labels)

    network.denoise = cancelled
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        estimate(patcher, parts=parts)
    assert list(parts.done) == ["batch 1", "batch 2"]
    seen = calls_of(patcher)
    measured = estimate(patcher, parts=parts)
    assert len(seen) == 2 * 24 + 2 * 3 * 43
    torch.testing.assert_close(measured.statistics.l, whole.statistics.l)


def test_what_an_interrupted_run_measured_beyond_the_wish_is_counted():
    """Six images are measured and their check cancelled; then four are asked for: six are in the sums."""
    import comfy.model_management
    from support.host_mixture import fail

    patcher = model("eps")
    parts = Parts()
    fail(patcher, at=3 * 24 + 5, error=comfy.model_management.InterruptProcessingException())
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        estimate(patcher, parts=parts, images=6)
    assert [name for name in parts.done if name.startswith("batch")] == ["batch 1", "batch 2", "batch 3"]
    measured = estimate(model("eps"), parts=parts, images=4)
    assert measured.facts["batches"] == 3 and measured.facts["images"] == 6
    assert measured.sums is not None and measured.sums.count[0].item() == 6 * 4 * 16 * 16


def test_more_images_later_measure_only_the_new_ones(tmp_path):
    few = estimate(model("eps"), images=4)
    few.calibration().save(tmp_path / "few.safetensors")
    patcher = model("eps")
    seen = calls_of(patcher)
    more = estimate(patcher, known=load_measured(tmp_path / "few.safetensors"), images=12)
    assert len(seen) == 4 * 24 + 2 * 3 * 43
    whole = estimate(model("eps"), images=12)
    assert more.facts["images"] == 12
    torch.testing.assert_close(more.statistics.l, whole.statistics.l)
    torch.testing.assert_close(more.statistics.s, whole.statistics.s, rtol=1e-4, atol=1e-4)


def test_a_model_that_answers_nan_is_said():
    from support.host_mixture import fail

    patcher = model("eps")
    fail(patcher, at=5)
    with pytest.raises(ValueError, match="NaN.*--force-fp32"):
        estimate(patcher)


# ---------------------------------------------------------------------------------------------------------
# Files


@pytest.fixture(scope="module")
def measured(host) -> Measured:
    return estimate(model("eps"))


def test_a_file_gives_back_what_was_measured(measured, tmp_path):
    path = tmp_path / "here.safetensors"
    measured.calibration().save(path)
    again = load_measured(path)
    assert again.facts == json.loads(json.dumps(measured.facts))
    for name in ("lam", "l", "s", "b"):
        assert torch.equal(getattr(again.statistics, name), getattr(measured.statistics, name))
    assert path.stat().st_size < 20_000
    assert list(tmp_path.iterdir()) == [path]


def broken_files(tmp_path, measured) -> dict[str, bytes]:
    path = tmp_path / "whole.safetensors"
    measured.calibration().save(path)
    whole = path.read_bytes()
    foreign = safetensors.torch.save({"lam": torch.zeros(3)})
    head = json.dumps({"format": 99, "kind": "statistics", "facts": {}})
    newer = safetensors.torch.save({"lam": torch.zeros(3)}, metadata={"fewstep": head})
    other = safetensors.torch.save(
        {"lam": torch.zeros(3)}, metadata={"fewstep": head.replace("99", "1").replace("statistics", "spread")}
    )
    facts = json.dumps({"format": 1, "kind": "statistics", "facts": measured.facts})
    lacking = safetensors.torch.save({"lam": torch.zeros(3)}, metadata={"fewstep": facts})
    spoilt = Sums(**{**vars(measured.sums), "first": measured.sums.first * math.nan})
    Measured(measured.statistics, measured.facts, spoilt).calibration().save(path)
    short = Sums(**{**vars(measured.sums), "probe": measured.sums.probe[:3]})
    bent = tmp_path / "bent"
    Measured(measured.statistics, measured.facts, short).calibration().save(bent)
    return {
        "broken or incomplete": whole[: len(whole) // 2],
        "not written by FewStep": foreign,
        "Update FewStep": newer,
        "Choose another file": other,
        "lacks count": lacking,
        "NaN or infinite": path.read_bytes(),
        "do not fit together": bent.read_bytes(),
        "cannot be read": b"\x80\x04\x95pickle" * 9,
    }


def test_what_is_not_a_measurement_is_said(measured, tmp_path):
    for words, content in broken_files(tmp_path, measured).items():
        path = tmp_path / "given.safetensors"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=words):
            load_measured(path)


def test_a_file_that_cannot_be_used_is_never_overwritten(measured, tmp_path, monkeypatch):
    import folder_paths
    from fewstep.nodes.host import files

    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", {})

    def path_for(name: str, facts: dict[str, Any]) -> Path:
        return files.path_for(name, "made-of-facts", facts, load_measured)[0]

    first = path_for("mine", measured.facts)
    assert first == tmp_path / "fewstep" / "mine.safetensors"
    first.parent.mkdir()
    first.write_bytes(b"broken")
    assert path_for("mine", measured.facts).name == "mine-2.safetensors"
    measured.calibration().save(first)
    assert path_for("mine", measured.facts) == first
    assert path_for("mine", measured.facts | {"cfg": 9.0}).name == "mine-2.safetensors"
    assert path_for("", measured.facts).name == "made-of-facts.safetensors"
    with pytest.raises(ValueError, match="leads out of"):
        path_for("../../elsewhere", measured.facts)


def test_the_authors_files(tmp_path, rng=np.random.default_rng(0)):  # noqa: B008
    shape = (6, 4, 8, 8)
    np.savez_compressed(tmp_path / "l.npz", l=rng.random(shape, dtype=np.float32))
    np.savez_compressed(tmp_path / "sb.npz", s=rng.random(shape), b=rng.random(shape))
    measured = load_published(tmp_path, -2.682, 3.535)
    assert measured.statistics.features == (4, 8, 8) and measured.statistics.is_per_pixel
    assert measured.statistics.lam.tolist() == pytest.approx(np.linspace(-2.682, 3.535, 6).tolist())
    pooled = measured.statistics.pooled_by_channel()
    assert pooled.features == (4, 1, 1)
    np.savez_compressed(tmp_path / "sb.npz", s=np.array([{"a": 1}], dtype=object), b=rng.random(shape))
    with pytest.raises(ValueError, match="sb.npz cannot be read"):
        load_published(tmp_path, -2.682, 3.535)
    (tmp_path / "l.npz").write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(ValueError, match="l.npz cannot be read"):
        load_published(tmp_path, -2.682, 3.535)


# ---------------------------------------------------------------------------------------------------------
# Which statistics a run uses


def choice(measured: Measured | None, use: str = "when_checked"):
    from fewstep.nodes.host.dpm_solver_v3 import Choice

    return Choice(Options(), measured, "data", use, None)


def facts_here(**changed) -> dict:
    from fewstep.nodes.host.identity import identify

    return identify(model("eps")) | {"cfg": 1.0} | changed


def table(measured, calls=8, use="when_checked", item=(4, 16, 16), **changed):
    from fewstep.nodes.host.dpm_solver_v3 import table_for

    return table_for(choice(measured, use), calls, facts_here(**changed), item)


def test_statistics_are_used_where_they_won_and_left_where_they_lost(measured):
    check = {
        "5": {"1": 1.0, "2": 1.5, "without": 2.0},
        "10": {"1": 1.0, "2": 0.5, "without": 2.0},
        "20": {"1": 3.0, "2": 2.0, "without": 1.0},
    }
    mixed = Measured(measured.statistics, measured.facts | {"check": check})
    assert table(mixed, calls=9) == (mixed.statistics, 2, ["9 calls with statistics."])
    used, order, said = table(mixed, calls=6)
    assert used is mixed.statistics and order == 1 and "at order 1, which was best" in said[0]
    left, order, said = table(mixed, calls=18)
    assert left is None and order == 2 and "did not help" in said[0]
    assert table(mixed, calls=18, use="always")[:2] == (mixed.statistics, 2)
    assert table(mixed, calls=6, use="never")[0] is None


def test_another_model_cfg_or_shift_is_said(measured):
    assert table(measured)[2] == ["8 calls with statistics."]
    said = " ".join(table(measured, model="elsewhere", cfg=7.0, shift=2.5, prediction="V_PREDICTION")[2])
    for words in (
        "on another checkpoint",
        "at cfg 1.0, not 7.0",
        "at shift None, not 2.5",
        "type EPS, not V_PREDICTION",
    ):
        assert words in said


def test_another_latent_is_an_error(measured):
    with pytest.raises(ValueError, match="MixtureLatent latents of 4 channels; this model has .* of 16"):
        table(measured, channels=16)


def test_statistics_per_pixel_of_another_size_are_pooled():
    lam = torch.linspace(-3, 4, 5)
    per_pixel = Statistics(lam, *(torch.rand(5, 4, 8, 8) for _ in range(3)))
    used, _, said = table(Measured(per_pixel))
    assert used.features == (4, 1, 1) and "per pixel at another size" in said[1]
    assert table(Measured(per_pixel), item=(4, 8, 8))[0] is per_pixel


def test_a_lora_is_another_model():
    from fewstep.nodes.host.identity import differences, identify

    plain = model("eps")
    plain.model.diffusion_model.extra = torch.nn.Linear(3, 3)
    before = identify(plain)
    patched = plain.clone()
    patched.add_patches({"diffusion_model.extra.weight": ("diff", (torch.ones(3, 3),))}, 0.5)
    assert differences(before, identify(patched), "Measure again.") == ["with other LoRAs or patches"]
    patched.patch_model()
    assert identify(patched)["model"] == before["model"]
    patched.unpatch_model()
    with torch.no_grad():
        plain.model.diffusion_model.extra.weight += 1
    assert differences(before, identify(plain), "Measure again.") == ["on another checkpoint"]


def test_another_prompt_or_area_is_another_measurement():
    from fewstep.nodes.host.identity import conditioning_digest

    prompt = torch.ones(1, 8, 4)
    same = [conditioning_digest([[prompt.clone(), {"strength": 0.5}]], []) for _ in range(2)]
    others = [
        conditioning_digest([[prompt, {"strength": 0.6}]], []),
        conditioning_digest([[prompt * 2, {"strength": 0.5}]], []),
        conditioning_digest([], [[prompt, {"strength": 0.5}]]),
        conditioning_digest([[prompt, {"strength": 0.5, "area": (8, 8, 0, 0)}]], []),
    ]
    assert same[0] == same[1] and len({same[0], *others}) == 5


# ---------------------------------------------------------------------------------------------------------
# Sampling


def sample(patcher, measured, sigmas, inner=False, **options):
    import comfy.sample
    from fewstep.nodes.host.dpm_solver_v3 import Choice, dpm_solver_v3_sampler
    from fewstep.nodes.host.sampler import restart_sampler
    from support.host_mixture import label_conditioning

    sampler = dpm_solver_v3_sampler(Choice(Options(**options), measured, "data", "always", None))
    noise = torch.randn((2, 4, 16, 16), generator=torch.Generator().manual_seed(0))
    conditioning = (label_conditioning(LABELS), label_conditioning([-1, -1]))
    return comfy.sample.sample_custom(
        patcher,
        noise,
        1.0,
        restart_sampler(sampler, 1.0) if inner else sampler,
        sigmas,
        *conditioning,
        torch.zeros(2, 4, 16, 16),
        disable_pbar=True,
        seed=0,
    )


@pytest.mark.parametrize(
    "kind, scheduler",
    [
        ("eps", "simple"),
        ("eps", "karras"),
        ("eps", "beta"),
        ("flow", "simple"),
        ("flow", "sgm_uniform"),
        ("flow", "beta"),
    ],
)
def test_statistics_halve_the_error_of_the_hosts_own_sampler_on_its_usual_schedules(kind, scheduler):
    import comfy.sample
    import comfy.samplers
    from support.host_mixture import label_conditioning

    patcher = model(kind)
    sampling = patcher.get_model_object("model_sampling")
    noise = torch.randn((2, 4, 16, 16), generator=torch.Generator().manual_seed(0))
    end = sample(patcher, None, comfy.samplers.calculate_sigmas(sampling, "simple", 300), order=3, corrector="off")
    sigmas = comfy.samplers.calculate_sigmas(sampling, scheduler, 8)
    theirs = comfy.sample.sample_custom(
        patcher,
        noise,
        1.0,
        comfy.samplers.sampler_object("dpmpp_2m"),
        sigmas,
        label_conditioning(LABELS),
        label_conditioning([-1, -1]),
        torch.zeros(2, 4, 16, 16),
        disable_pbar=True,
        seed=0,
    )
    ours = sample(patcher, estimate(model(kind), levels=20), sigmas)
    assert (ours - end).square().mean() < 0.5 * (theirs - end).square().mean()


def test_it_runs_between_the_jumps_of_a_restart(measured):
    import comfy.samplers
    from fewstep.samplers.noise_law import VARIANCE_EXPLODING
    from fewstep.schedulers.restart.plan import Interval
    from fewstep.schedulers.restart.request import requested_plan

    patcher = model("eps")
    sigmas = comfy.samplers.calculate_sigmas(patcher.get_model_object("model_sampling"), "karras", 12)
    plan = requested_plan(sigmas.tolist(), VARIANCE_EXPLODING, "a1111", "add_steps", [Interval(4, 2, 0.3, 1.5)])
    with pytest.raises(ValueError, match="Restart Sampler"):
        sample(patcher, measured, torch.tensor(plan.sigmas))
    drawn = sample(patcher, measured, torch.tensor(plan.sigmas), inner=True)
    assert drawn.std().item() == pytest.approx(1.0, abs=0.25)


def test_the_last_step_is_the_one_that_fits_the_schedule(measured):
    """karras ends at the model's smallest sigma; at beta's last node there is something left to solve."""
    import comfy.samplers
    from fewstep.nodes.host.dpm_solver_v3 import solver_for

    sampling = model("eps").get_model_object("model_sampling")
    karras, beta = (comfy.samplers.calculate_sigmas(sampling, name, 8) for name in ("karras", "beta"))
    ends = [solver_for(measured.statistics, Options(), sampling, s).options.last_step for s in (karras, beta)]
    assert ends == ["denoised", "full_order"]
    assert solver_for(None, Options(), sampling, beta).options.last_step == "denoised"


def test_calibrations_of_another_kind_are_told_apart(tmp_path):
    Calibration("schedule", {"x": torch.zeros(1)}, {}).save(tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="holds 'schedule', not 'statistics'"):
        Calibration.load(tmp_path / "x.safetensors", "statistics")
