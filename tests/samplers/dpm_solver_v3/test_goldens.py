"""Every run of the authors' code that was recorded, model call by model call (tests/goldens/dpm_solver_v3)."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest
import torch
from fewstep.samplers.dpm_solver_v3 import DPMSolverV3, Options, Statistics
from fewstep.samplers.noise_law import FLOW, VARIANCE_EXPLODING
from support.goldens import FOLDER, Arrays
from support.recording import Recording
from torch import Tensor

FILES = sorted(path.stem for path in (FOLDER / "dpm_solver_v3").glob("v3_*.npz"))
RUNS = {
    "v3_edm_degenerate_logsnr": 90,
    "v3_edm_ems_flags": 4,
    "v3_edm_ems_logsnr": 90,
    "v3_edm_noisepred_logsnr": 12,
    "v3_vp_degenerate_timeuniform": 90,
    "v3_vp_ems_flags": 10,
    "v3_vp_ems_logsnr": 12,
    "v3_vp_ems_timeuniform": 90,
    "v3_vp_noisepred_timeuniform": 12,
}
TOLERANCE = 1e-10
NAME = re.compile(r"o(\d)_c(\d)_pp(\d)_cp(\d)_lof(\d)_half(\d)_n(\d+)")


def options_of(name: str, quadrature: str = "trapezoid") -> Options:
    match = NAME.fullmatch(name)
    assert match
    order, corrects, pseudo_predictor, pseudo_corrector, lower_order_final, half, _ = map(int, match.groups())
    corrector = "off" if not corrects else "high_noise" if half else "everywhere"
    return Options(
        order, corrector, bool(pseudo_predictor), bool(pseudo_corrector), bool(lower_order_final), quadrature
    )


@dataclass(frozen=True)
class Golden(Arrays):
    """A file of recorded runs."""

    @property
    def runs(self) -> list[str]:
        return [str(name) for name in self.arrays["run_names"]]

    @property
    def statistics(self) -> Statistics:
        """The authors' `degenerated` overwrites the table by data prediction."""
        tables = [self.tensor(f"ems_{name}") for name in "lsb"]
        if self.arrays["degenerated_flag"]:
            tables = [torch.full_like(tables[0], value) for value in (1, 0, 0)]
        return Statistics(self.tensor("lambda_grid"), *tables)

    def schedule(self, run: str) -> tuple[Tensor, Tensor]:
        """sigma~ of the nodes, and the states y there, (steps + 1, 4, 2, 2, 2): model inputs and the end."""
        steps = run.rsplit("_n", 1)[1]
        alpha = self.tensor(f"alpha_n{steps}").view(-1, 1, 1, 1, 1)
        return self.tensor(f"sigma_ve_n{steps}"), self.tensor(f"{run}__x_in") / alpha


def states(golden: Golden, run: str, options: Options) -> Tensor:
    """y at every node, as the model sees it, and at the end."""
    sigmas, expected = golden.schedule(run)
    seen: list[Tensor] = []

    def denoise(x: Tensor, sigma: float) -> Tensor:
        seen.append(x)
        return golden.denoise(x, sigma)

    end = DPMSolverV3(VARIANCE_EXPLODING, golden.statistics, options)(denoise, expected[0], sigmas)
    return torch.stack([*seen, end])


def worst(ours: Tensor, expected: Tensor) -> float:
    """Over the nodes, the largest difference relative to the largest number there."""
    return ((ours - expected).flatten(1).abs().amax(1) / expected.flatten(1).abs().amax(1)).max().item()


def test_no_recorded_run_is_missing():
    assert {name: len(Golden.load(f"dpm_solver_v3/{name}").runs) for name in FILES} == RUNS


@pytest.mark.parametrize("name", FILES)
def test_every_state_of_every_run_is_the_authors_one(name):
    golden = Golden.load(f"dpm_solver_v3/{name}")
    errors = {run: worst(states(golden, run, options_of(run)), golden.schedule(run)[1]) for run in golden.runs}
    assert max(errors.values()) < TOLERANCE, max(errors, key=lambda run: errors[run])


def test_the_exact_integrals_differ_by_the_trapezoids_error_only():
    """About h0^2 / 12 of the integrals on a grid of spacing h0, and more after the ODE; but not nothing."""
    golden = Golden.load("dpm_solver_v3/v3_vp_ems_timeuniform")
    run = "o2_c1_pp0_cp0_lof1_half0_n10"
    error = worst(states(golden, run, options_of(run, "exact")), golden.schedule(run)[1])
    assert 1e-7 < error < 1e-3


def test_a_flow_model_takes_the_same_way():
    """x = (1 - t) y with t = sigma~ / (1 + sigma~)."""
    golden = Golden.load("dpm_solver_v3/v3_edm_ems_logsnr")
    run = "o3_c1_pp0_cp1_lof1_half0_n8"
    ratios, expected = golden.schedule(run)
    sigmas = FLOW.sigma(ratios)
    recording = Recording(lambda x, sigma: golden.denoise(x / FLOW.alpha(sigma), FLOW.ratio(sigma)))
    start = expected[0] * FLOW.alpha(sigmas[0].item())
    x = DPMSolverV3(FLOW, golden.statistics, options_of(run))(recording, start, sigmas)
    assert recording.sigmas == sigmas[:-1].tolist()
    torch.testing.assert_close(x / FLOW.alpha(sigmas[-1].item()), expected[-1], rtol=1e-10, atol=1e-12)
