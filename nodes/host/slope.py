"""How a model's prediction answers to a change of its state: by its gradient, or by asking it once more nearby."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import comfy.model_management
import torch
from torch import Tensor

from ...samplers.constraint import Measurement, Response, dot, over
from .gradients import REFUSALS, Kept, through
from .progress import Report, complain

WHO = "Manifold Constraint"
GRADIENTS = ("differences", "auto", "model")
PROBE = 0.3  # of the noise's deviation. On mixtures better than 0.1, 1 and the derivative itself, see benchmarks
SMALL_PROBE, UNLIKE, SLACK = 0.01, 0.5, 0.2  # of the check of a gradient, which only a wrong one is to fail


@dataclass(frozen=True, eq=False)
class Nearby:
    """The model around x: `ask` at its sigma, `timestep`."""

    ask: Callable[[Tensor], Tensor]
    x: Tensor
    timestep: Tensor

    @torch.no_grad()
    def change(self, answer: Tensor, v: Tensor, probe: float = PROBE) -> Tensor:
        """(D(x + h v) - D(x)) / h, h v being `probe` of the noise's deviation; 0 where v is 0."""
        strength, sigma = v.float().square().flatten(1).mean(1).sqrt(), self.timestep.float().reshape(-1)
        size = over(torch.where(strength > 0, probe * sigma / strength, 0.0), self.x)
        return torch.where(size > 0, (self.ask(self.x.detach() + size * v) - answer) / size, 0.0)

    def has_slope(self, answer: Tensor, v: Tensor, response: Tensor) -> bool:
        """Whether a gradient J^T v is at all like how the answer changes: fused kernels may hide theirs from torch."""
        told, seen = (float(dot(v, of).sum()) for of in (response, self.change(answer, v, SMALL_PROBE)))
        return abs(told - seen) <= UNLIKE * max(abs(told), abs(seen)) + SLACK * float(dot(v, v).sum())


class Slope:
    """How the model's response is had: by its gradient, or by asking it once more nearby. name: which of the two."""

    def __init__(self, asked: str, iterations: int, report: Report | None):
        self.asked, self.iterations, self.report = asked, iterations, report
        self.name = "differences" if asked == "differences" else "model"
        self.works = False

    def __call__(self, ask, x: Tensor, timestep: Tensor, measurement: Measurement, guider) -> tuple[Tensor, Tensor]:
        """The prediction, and where to move it. Raises ValueError where a gradient was asked for that is none."""
        nearby = Nearby(ask, x, timestep)
        found = self.by_gradient(nearby, measurement, guider) if self.name == "model" else None
        return found or self.by_differences(nearby, measurement)

    def by_gradient(self, nearby: Nearby, measurement: Measurement, guider) -> tuple[Tensor, Tensor] | None:
        """None where the model, or the memory, has none: from then on differences are taken."""
        kept, pairs = None if self.works else Kept(guider.inner_model), []

        def work(denoised: Tensor, respond: Response) -> Tensor:
            def noted(v: Tensor) -> Tensor:
                pairs.append((v, response := respond(v)))
                return response

            return measurement.move(denoised, noted, self.iterations)

        try:
            found = through(nearby.ask, nearby.x, work, kept)
            if kept and not nearby.has_slope(found[0].detach(), *pairs[0]):
                raise RuntimeError("some of its operations hide their gradient")
        except REFUSALS as error:
            refusal = f"{type(error).__name__}: {str(error).partition(chr(10))[0][:160]}"
        else:
            self.says_what_it_took(kept)
            return found
        comfy.model_management.soft_empty_cache()  # what the refused call held is gone only now
        if self.asked == "model":
            raise ValueError(
                f"The model gave no gradient ({refusal}). Set gradient of Manifold Constraint to auto or differences."
            )
        self.name = "differences"
        complain(self.report, WHO, f"The model gave no gradient ({refusal}), so differences are taken.")
        return None

    def by_differences(self, nearby: Nearby, measurement: Measurement) -> tuple[Tensor, Tensor]:
        """J is symmetric, so J v, the change of the answer along v, is J^T v."""
        denoised = nearby.ask(nearby.x)
        with torch.no_grad():
            moved = measurement.move(denoised.detach(), lambda v: nearby.change(denoised.detach(), v), self.iterations)
        return denoised, moved

    def says_what_it_took(self, kept: Kept | None) -> None:
        """After the first call."""
        self.works = True
        if kept and self.report:
            before = self.report.entry["text"]
            self.report.add(f"{before}\nA call kept {in_words(kept.bytes)} for its gradient.", before)


def in_words(count: float) -> str:
    return f"{count / 2**30:.1f} GB" if count >= 2**30 else f"{count / 2**20:.0f} MB"
