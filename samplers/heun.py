"""Heun's method, arXiv 2206.00364 algorithm 1 without churn."""

from __future__ import annotations

from torch import Tensor

from .contract import Denoiser, Noise, OnStep


def heun(
    denoise: Denoiser, x: Tensor, sigmas: Tensor, *, noise: Noise | None = None, on_step: OnStep | None = None
) -> Tensor:
    """Second order, 2 N - 1 calls for N steps that end at 0. dx/dsigma = (x - x0) / sigma holds for both noise laws."""
    nodes = sigmas.tolist()
    for step, (sigma, sigma_next) in enumerate(zip(nodes[:-1], nodes[1:], strict=True)):
        denoised = denoise(x, sigma)
        d = (x - denoised) / sigma
        if on_step:
            on_step(step, sigma, x, denoised)
        x_next = x + (sigma_next - sigma) * d
        if sigma_next > 0:  # the correction needs the slope at the end, which has none at 0
            d_next = (x_next - denoise(x_next, sigma_next)) / sigma_next
            x_next = x + (sigma_next - sigma) * (d + d_next) / 2
        x = x_next
    return x
