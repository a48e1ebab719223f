"""A run in pieces, each solved with no memory of the one before: after the model changes, earlier answers mislead."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from .contract import Denoiser, Noise, OnStep, Solver
from .restart import counted_from
from .sigmas import is_repeat


@dataclass(frozen=True)
class InPieces:
    """A solver that begins afresh where a schedule passes the sigma `at`; None: nowhere."""

    solver: Solver
    at: float | None

    def __call__(
        self,
        denoise: Denoiser,
        x: Tensor,
        sigmas: Tensor,
        *,
        noise: Noise | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        steps = 0
        for piece in pieces(sigmas, self.at):
            x = self.solver(denoise, x, piece, noise=noise, on_step=counted_from(steps, on_step))
            steps += len(piece) - 1
        return x


def pieces(sigmas: Tensor, at: float | None) -> list[Tensor]:
    """`sigmas` (N + 1,), falling or rising, cut at the first node beyond `at`: there one piece ends and one begins.

    A node on `at` is above it. All steps are kept: a cut at the last node is none, because no call is made there.
    """
    if at is None:
        return [sigmas]
    above = [sigma >= at or is_repeat(sigma, at) for sigma in sigmas.tolist()]
    cuts = [i for i, (before, here) in enumerate(pairwise(above), start=1) if before != here and i < len(above) - 1]
    starts, ends = [0, *cuts], [*cuts, len(above) - 1]
    return [sigmas[start : end + 1] for start, end in zip(starts, ends, strict=True)]
