"""What a solver is: a function of a denoiser. Guidance, masks and previews stay behind `denoise`."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Denoiser(Protocol):
    """One guided model call: x (B, ...) at sigma (a float of the host's scale) -> x0, the denoised prediction."""

    def __call__(self, x: Tensor, sigma: float) -> Tensor: ...


class Noise(Protocol):
    """Unit Gaussian noise of the latent's shape for the way from one sigma to another; seeded per batch item."""

    def __call__(self, sigma_from: float, sigma_to: float) -> Tensor: ...


class OnStep(Protocol):
    """Told after each step: its number from 0, its sigma, the latent and the denoised prediction."""

    def __call__(self, step: int, sigma: float, x: Tensor, denoised: Tensor) -> None: ...


class Solver(Protocol):
    """Carries x from sigmas[0] to sigmas[-1]. sigmas: (N + 1,), falling, on the CPU. No state outlives a call."""

    def __call__(
        self,
        denoise: Denoiser,
        x: Tensor,
        sigmas: Tensor,
        *,
        noise: Noise | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor: ...
