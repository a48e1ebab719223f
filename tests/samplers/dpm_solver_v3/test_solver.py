"""The loop: where it calls the model, what it holds, its dtypes, and that it is one solver for every noise law."""

from __future__ import annotations

import gc
import math

import pytest
import torch
from fewstep.samplers.dpm_solver_v3 import DPMSolverV3, Options, Statistics
from fewstep.samplers.noise_law import FLOW, VARIANCE_EXPLODING
from support.mixture import GuidedMixture, Mixture, converged, picture_like
from support.recording import Recording
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

MIXTURE = picture_like(channels=2, size=8, components=6)
RATIOS = torch.logspace(1, -1, 6, dtype=torch.float64)


def table(*features: int) -> Statistics:
    """Smooth in lambda from -3 to 3, other numbers for every feature."""
    lam = torch.linspace(-3, 3, 25, dtype=torch.float64)
    phase = torch.rand((3, *features), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    waves = torch.sin(lam.view(-1, *[1] * len(features)) + 3 * phase[:, None])
    return Statistics(lam, 0.5 + waves[0] / 2, waves[1] - 0.5, waves[2] / 5)


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def solve(law, x: Tensor, sigmas: Tensor, statistics: Statistics | None = None, denoise=None, **options) -> Tensor:
    solver = DPMSolverV3(law, statistics or table(2, 1, 1), Options(**options))
    return solver(denoise or GuidedMixture(MIXTURE, law), x, sigmas)


def test_one_call_at_every_node_and_none_at_the_end():
    recording = Recording(GuidedMixture(MIXTURE, VARIANCE_EXPLODING))
    sigmas = torch.tensor([10.0, 3.0, 1.0, 0.3, 0.0])
    solve(VARIANCE_EXPLODING, 10 * noise(1, 2, 8, 8).float(), sigmas, denoise=recording, order=3)
    assert recording.sigmas == sigmas[:-1].tolist()


def test_one_step_is_a_step_and_none_is_none():
    x, recording = 10 * noise(1, 2, 8, 8), Recording(GuidedMixture(MIXTURE, VARIANCE_EXPLODING))
    for sigmas in ([], [10.0]):
        assert torch.equal(solve(VARIANCE_EXPLODING, x, torch.tensor(sigmas), denoise=recording), x)
    assert recording.calls == 0
    end = solve(VARIANCE_EXPLODING, x, torch.tensor([10.0, 0.0]), denoise=recording, last_step="denoised")
    torch.testing.assert_close(end, GuidedMixture(MIXTURE, VARIANCE_EXPLODING)(x, 10.0))
    assert recording.calls == 1


def test_every_step_is_told_with_what_the_model_saw_and_said():
    seen, told = [], []

    def denoise(x: Tensor, sigma: float) -> Tensor:
        seen.append((sigma, x, GuidedMixture(MIXTURE, FLOW)(x, sigma)))
        return seen[-1][2]

    sigmas = FLOW.sigma(RATIOS)
    solver = DPMSolverV3(FLOW, table(1, 4))
    solver(denoise, noise(1, 2, 8, 8), sigmas, on_step=lambda step, sigma, x, d: told.append((step, sigma, x, d)))
    assert [step for step, *_ in told] == [0, 1, 2, 3, 4]
    assert all(t[1] == s[0] and t[2] is s[1] and t[3] is s[2] for t, s in zip(told, seen, strict=True))


@pytest.mark.parametrize(
    "statistics", [table(2, 1, 1), table(2, 8, 8), table(1, 4)], ids=["channel", "pixel", "spectral"]
)
def test_a_flow_model_takes_the_same_way_in_y(statistics):
    options = {"order": 3, "corrector": "everywhere", "pseudo_corrector": True}
    y = solve(VARIANCE_EXPLODING, 10 * noise(2, 2, 8, 8), RATIOS, statistics, **options)
    sigmas = FLOW.sigma(RATIOS)
    x = solve(FLOW, 10 * noise(2, 2, 8, 8) * FLOW.alpha(sigmas[0].item()), sigmas, statistics, **options)
    torch.testing.assert_close(x / FLOW.alpha(sigmas[-1].item()), y, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("statistics", [Statistics.data_prediction(), table(2, 1, 1)], ids=["data", "table"])
def test_the_start_at_one_is_the_limit_of_starts_below(statistics):
    sigmas = torch.tensor([1.0, 0.9, 0.6, 0.2], dtype=torch.float64)
    ends = [
        solve(FLOW, noise(2, 2, 8, 8), torch.cat([torch.tensor([first]).double(), sigmas[1:]]), statistics, order=1)
        for first in (1.0, 1 - 1e-9)
    ]
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    "statistics", [Statistics.data_prediction(), Statistics.noise_prediction()], ids=["data", "noise"]
)
def test_from_one_the_second_order_is_reached(statistics):
    """A Gaussian N(m, P): from pure noise n, y = m + sqrt(P + s^2) n at the ratio s, in the DCT basis."""
    gaussian = Mixture(MIXTURE.means[:1], MIXTURE.spectrum, MIXTURE.classes[:1])
    n, last = noise(2, 2, 8, 8), FLOW.ratio(0.2)
    spread = (gaussian.spectrum + last**2).sqrt()
    exact = gaussian.to_pixels(gaussian.means[0] + spread * gaussian.to_frequency(n))
    errors = []
    for steps in (24, 48, 96):
        t = torch.linspace(1, 0.2, steps + 1, dtype=torch.float64)
        y = solve(FLOW, n, t, statistics, GuidedMixture(gaussian, FLOW)) / FLOW.alpha(0.2)
        errors.append((y - exact).square().mean().sqrt().item())
    assert math.log2(errors[1] / errors[2]) == pytest.approx(2, abs=0.35)
    assert errors[2] < 2e-3


def test_a_trailing_zero_gives_d_or_something_nearer_to_the_exact_picture():
    """The denoised end is D at the last node to the bit."""
    said: list[Tensor] = []

    def denoise(x: Tensor, sigma: float) -> Tensor:
        said.append(GuidedMixture(MIXTURE, VARIANCE_EXPLODING)(x, sigma))
        return said[-1]

    x = 10 * noise(2, 2, 8, 8)
    sigmas = torch.cat([torch.logspace(1, math.log10(0.4), 12), torch.zeros(1)])
    exact = converged(GuidedMixture(MIXTURE, VARIANCE_EXPLODING), x, 10.0)
    data = Statistics.data_prediction()
    d = solve(VARIANCE_EXPLODING, x, sigmas, data, denoise, last_step="denoised")
    assert torch.equal(d, said[-1])
    full = solve(VARIANCE_EXPLODING, x, sigmas, data, denoise, last_step="full_order", final_ratio=0.15)
    assert (full - exact).square().mean() < (d - exact).square().mean() / 2


def test_items_of_a_batch_do_not_know_of_each_other():
    x, sigmas = 10 * noise(3, 2, 8, 8), torch.cat([RATIOS, torch.zeros(1)])
    for statistics in (table(2, 1, 1), table(1, 4)):
        together = solve(VARIANCE_EXPLODING, x, sigmas, statistics, order=3)
        alone = [solve(VARIANCE_EXPLODING, item[None], sigmas, statistics, order=3) for item in x]
        torch.testing.assert_close(together, torch.cat(alone), rtol=1e-11, atol=1e-11)


def test_a_split_schedule_of_first_order_is_the_whole_one():
    x = 10 * noise(2, 2, 8, 8)
    whole = solve(VARIANCE_EXPLODING, x, RATIOS, order=1)
    half = solve(VARIANCE_EXPLODING, x, RATIOS[:4], order=1)
    assert torch.equal(solve(VARIANCE_EXPLODING, half, RATIOS[3:], order=1), whole)


def test_nothing_is_carried_from_one_picture_to_the_next():
    solver = DPMSolverV3(VARIANCE_EXPLODING, table(1, 4), Options(order=3))
    denoise, x = GuidedMixture(MIXTURE, VARIANCE_EXPLODING), 10 * noise(2, 2, 8, 8)
    first, kept = solver(denoise, x, RATIOS), x.clone()
    solver(denoise, x + 1, RATIOS[1:])
    assert torch.equal(solver(denoise, x, RATIOS), first)
    assert torch.equal(x, kept)


# ---------------------------------------------------------------------------------------------------------
# Dtype, device, memory


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 2e-6), (torch.float16, 4e-3), (torch.bfloat16, 3e-2)])
def test_the_dtype_of_the_latents_is_kept(dtype, tolerance):
    """Relative to float64; in half precision it is the rounding of what the model gets that is left."""
    x = 10 * noise(2, 2, 8, 8).to(dtype)

    def denoise(x: Tensor, sigma: float) -> Tensor:
        assert x.dtype == dtype
        return GuidedMixture(MIXTURE, VARIANCE_EXPLODING)(x.double(), sigma).to(dtype)

    for statistics in (table(2, 1, 1), table(1, 4)):
        ours = solve(VARIANCE_EXPLODING, x, RATIOS, statistics, denoise)
        expected = solve(VARIANCE_EXPLODING, x.double(), RATIOS, statistics)
        assert ours.dtype == dtype
        assert (ours - expected).square().mean().sqrt() < tolerance * expected.square().mean().sqrt()


def test_half_precision_is_stepped_in_float32():
    """With a model that answers exactly 0, y falls by e^-l h in 40 steps: only the last rounding is left."""
    sigmas = torch.logspace(1, -1, 41, dtype=torch.float64)
    x = torch.ones(1, 2, 4, 4, dtype=torch.bfloat16)
    half = Statistics.constant(0.5, 0, 0)
    ours, expected = (
        solve(VARIANCE_EXPLODING, start, sigmas, half, lambda x, sigma: x * 0, order=1) for start in (x, x.double())
    )
    assert (ours / expected - 1).abs().max() < 2**-8


class OnDevice(TorchDispatchMode):
    """Keeps the dtypes of the tensors that operations make on the meta device."""

    def __init__(self):
        super().__init__()
        self.dtypes: set[torch.dtype] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (list, tuple)) else [result]:
            if isinstance(tensor, Tensor) and tensor.is_meta:
                self.dtypes.add(tensor.dtype)
        return result


@pytest.mark.parametrize(
    "statistics", [table(2, 1, 1), table(2, 8, 8), table(2, 4)], ids=["channel", "pixel", "spectral"]
)
def test_no_float64_reaches_the_device_and_nothing_is_read_back_from_it(statistics):
    """The meta device has no data, so that a read would raise."""
    with OnDevice() as watched:
        x = solve(
            VARIANCE_EXPLODING, torch.ones(1, 2, 8, 8, device="meta"), RATIOS, statistics, lambda x, sigma: x * 0.5
        )
    assert x.is_meta and x.dtype == torch.float32
    numbers = {torch.int64, torch.int32, torch.bool}  # which band a frequency belongs to, and which items were held
    assert watched.dtypes <= {torch.float32, *numbers}


@pytest.mark.parametrize("statistics, more", [(table(2, 1, 1), 1), (table(1, 4), 2)], ids=["channel", "spectral"])
@pytest.mark.parametrize("pseudo", [False, True])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_a_call_finds_at_most_two_latents_more_than_the_order_needs(order, pseudo, statistics, more):
    """x and the r of order - 1 nodes; then the begun correction, and x in the other basis."""
    shape = (1, 2, 17, 13)  # of nothing else in this process
    found = []

    def denoise(x: Tensor, sigma: float) -> Tensor:
        gc.collect()
        alive = {t.data_ptr() for t in gc.get_objects() if type(t) is Tensor and t.shape == shape}
        found.append(len(alive))
        return x * 0.5

    solve(VARIANCE_EXPLODING, torch.ones(shape), RATIOS, statistics, denoise, order=order, pseudo_corrector=pseudo)
    the_callers = 1
    assert max(found) - the_callers <= 1 + (order - 1) + more
