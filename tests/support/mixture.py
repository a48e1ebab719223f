"""An exact test model: a class-conditional Gaussian mixture on latents, every answer known (methods/beyond.md 8).

Component k of class c(k) is N(m_k, C); C is diagonal in the 2-D DCT with a power-law spectrum P_f, like pictures.
At noise-to-signal ratio s a component is N(m_k, C + s^2 I), so with g = 1 / (P + s^2), all in the DCT basis,
    w_k ~ exp(-1/2 sum g (y - m_k)^2),   m = sum w_k m_k,   D(y, s) = m + P g (y - m).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from fewstep.samplers.contract import Denoiser
from fewstep.samplers.noise_law import NoiseLaw
from scipy.integrate import solve_ivp
from torch import Tensor


def dct_matrix(n: int) -> Tensor:
    """The orthonormal DCT-II, (n, n) float64."""
    k, i = torch.meshgrid(torch.arange(n, dtype=torch.float64), torch.arange(n, dtype=torch.float64), indexing="ij")
    rows = torch.cos(torch.pi * k * (2 * i + 1) / (2 * n)) * (2 / n) ** 0.5
    rows[0] /= 2**0.5
    return rows


@dataclass(frozen=True)
class Mixture:
    """means (K, C, H, W) and spectrum (C, H, W), both in the DCT basis; classes (K,)."""

    means: Tensor
    spectrum: Tensor
    classes: Tensor

    def to_frequency(self, x: Tensor) -> Tensor:
        rows, columns = dct_matrix(x.shape[-2]).to(x), dct_matrix(x.shape[-1]).to(x)
        return rows @ x @ columns.T

    def to_pixels(self, z: Tensor) -> Tensor:
        rows, columns = dct_matrix(z.shape[-2]).to(z), dct_matrix(z.shape[-1]).to(z)
        return rows.T @ z @ columns

    def denoise(self, y: Tensor, ratio: Tensor | float, labels: Tensor | None = None) -> Tensor:
        """E[x0 | y] for y = x0 + ratio e, (B, C, H, W); ratio a number or (B,); labels (B,), -1 or None: any class."""
        z, means, spectrum = self.to_frequency(y), self.means.to(y), self.spectrum.to(y)
        s = torch.as_tensor(ratio, dtype=y.dtype, device=y.device).reshape(-1, 1, 1, 1)
        gain = 1 / (spectrum + s**2)
        # |y - m|^2 expanded, so that no (B, K, C, H, W) tensor is made; sum g y^2 is common to all k.
        log_weights = torch.einsum("bchw,kchw->bk", gain * z, means)
        log_weights = log_weights - 0.5 * torch.einsum("bchw,kchw->bk", gain.expand_as(z), means**2)
        if labels is not None:
            foreign = (self.classes != labels[:, None]) & (labels[:, None] >= 0)
            log_weights = log_weights.masked_fill(foreign, -torch.inf)
        mean = torch.einsum("bk,kchw->bchw", log_weights.softmax(1), means)
        return self.to_pixels(mean + spectrum * gain * (z - mean))

    def sample(self, count: int, seed: int, label: int | None = None) -> Tensor:
        """True draws, (count, C, H, W), of one class or of all."""
        generator = torch.Generator().manual_seed(seed)
        own = torch.arange(len(self.means)) if label is None else (self.classes == label).nonzero().flatten()
        chosen = own[torch.randint(len(own), (count,), generator=generator)]
        noise = torch.randn((count, *self.spectrum.shape), generator=generator, dtype=self.means.dtype)
        return self.to_pixels(self.means[chosen] + self.spectrum.sqrt() * noise)

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and variance of every pixel, (C, H, W) each."""
        mean = self.means.mean(0)
        basis = [dct_matrix(n) ** 2 for n in self.spectrum.shape[-2:]]
        within = basis[0].T @ self.spectrum @ basis[1]
        between = self.to_pixels(self.means - mean).square().mean(0)
        return self.to_pixels(mean), within + between


def picture_like(channels: int = 4, size: int = 16, components: int = 32, classes: int = 8, seed: int = 0) -> Mixture:
    """The standard test mixture: unit variance in all, half of it between the components, spectrum ~ 1 / f^2."""
    generator = torch.Generator().manual_seed(seed)
    f = torch.arange(size, dtype=torch.float64)
    power = 1 / (1 + f[:, None] ** 2 + f[None, :] ** 2)
    power = (power / power.mean()).expand(channels, size, size)
    draws = torch.randn((components, channels, size, size), generator=generator, dtype=torch.float64)
    means = draws * (power / 2).sqrt()
    return Mixture(means, power / 2, torch.arange(components) % classes)


def one_gaussian() -> Mixture:
    """Of a single component: its ODE has a closed form, `exact_of_one`."""
    full = picture_like(size=4)
    return Mixture(full.means[:1], full.spectrum, full.classes[:1])


def exact_of_one(mixture: Mixture, y: Tensor, ratio: float, ratio_end: float) -> Tensor:
    """The probability-flow ODE of N(m, P): every DCT coordinate scales by sqrt((P + s'^2) / (P + s^2))."""
    scale = ((mixture.spectrum + ratio_end**2) / (mixture.spectrum + ratio**2)).sqrt()
    return mixture.to_pixels(mixture.means[0] + scale * (mixture.to_frequency(y) - mixture.means[0]))


@dataclass(frozen=True)
class GuidedMixture:
    """A denoiser of the contract: classifier-free guidance between a class an item, (B,), and the whole mixture."""

    mixture: Mixture
    law: NoiseLaw
    labels: Tensor | None = None
    cfg: float = 1.0

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        if self.law.is_flow:
            sigma = min(sigma, 1 - 1e-9)  # at 1 nothing of the picture is left, and y = x / alpha has no value
        y, ratio = x / self.law.alpha(sigma), self.law.ratio(sigma)
        conditional = self.mixture.denoise(y, ratio, self.labels)
        if self.cfg == 1:
            return conditional
        unconditional = self.mixture.denoise(y, ratio)
        return unconditional + self.cfg * (conditional - unconditional)


def converged(denoise: Denoiser, x: Tensor, sigma: float, tolerance: float = 1e-9) -> Tensor:
    """The end at sigma 0 of dx/dsigma = (x - x0) / sigma from x at `sigma`, by an eighth-order method.

    In tau = ln sigma it reads dx/dtau = x - x0 for either noise law; below 1e-5 x0 no longer moves.
    """

    def slope(tau: float, flat: np.ndarray) -> np.ndarray:
        at = torch.from_numpy(flat).view_as(x)
        return (at - denoise(at, math.exp(tau))).numpy().ravel()

    x = x.double()
    span = (math.log(sigma), math.log(1e-5))
    solution = solve_ivp(slope, span, x.numpy().ravel(), "DOP853", (span[1],), rtol=tolerance, atol=tolerance)
    if not solution.success:
        raise ArithmeticError(f"The exact solution was not reached: {solution.message}")
    return denoise(torch.from_numpy(solution.y[:, -1]).view_as(x), 1e-5)
