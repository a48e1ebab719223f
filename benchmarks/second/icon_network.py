"""The second network: a small autoencoder, and a transformer on its latents that is told a class and words.

Plain torch, so that training needs no ComfyUI; the host's layers come in through `operations`. The transformer sees
x_t = (1 - t) x0 + t e and answers the velocity u = e - x0, as the bundled network does. Nothing else is alike: latents
of 4x16x16 in the place of pixels, a transformer (DiT, arXiv 2212.09748, with one modulation for all blocks as in
PixArt-alpha, arXiv 2310.00426) in the place of a UNet, words as tokens of one sequence with the picture's.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

LATENT_CHANNELS = 4
PATCH = 2
WIDTH = 256
HEADS = 4
BLOCKS = 8
CONTEXT_WORDS = 6  # a prompt is padded to so many; word 0 is the padding and the empty prompt
TIME_FEATURES = 128


# ---------------------------------------------------------------------------------------------------------
# Autoencoder


class Residual(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.GroupNorm(16, channels),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.GroupNorm(16, channels),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class Autoencoder(nn.Module):
    """Pictures (B, 3, 4 H, 4 W) in [-1, 1] <-> latents (B, 4, H, W) of mean 0 and variance 1 in every channel."""

    mean: Tensor
    std: Tensor

    def __init__(self, outer: int = 48, inner: int = 112):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, outer, 3, padding=1),
            Residual(outer),
            nn.Conv2d(outer, inner, 3, stride=2, padding=1),
            Residual(inner),
            nn.Conv2d(inner, inner, 3, stride=2, padding=1),
            Residual(inner),
            nn.GroupNorm(16, inner),
            nn.SiLU(),
            nn.Conv2d(inner, 2 * LATENT_CHANNELS, 3, padding=1),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(LATENT_CHANNELS, inner, 3, padding=1),
            Residual(inner),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(inner, inner, 3, padding=1),
            Residual(inner),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(inner, outer, 3, padding=1),
            Residual(outer),
            nn.GroupNorm(16, outer),
            nn.SiLU(),
            nn.Conv2d(outer, 3, 3, padding=1),
        )
        self.register_buffer("mean", torch.zeros(LATENT_CHANNELS, 1, 1))
        self.register_buffer("std", torch.ones(LATENT_CHANNELS, 1, 1))

    def posterior(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the raw latent, float32."""
        mean, logvar = self.encoder(pictures).float().chunk(2, dim=1)
        return mean, logvar.clamp(-12, 4)

    def encode(self, pictures: Tensor) -> Tensor:
        return (self.posterior(pictures)[0] - self.mean) / self.std

    def decode(self, latents: Tensor) -> Tensor:
        return self.decoder(latents * self.std + self.mean).float()


# ---------------------------------------------------------------------------------------------------------
# Transformer


def plain_norm(x: Tensor) -> Tensor:
    """Mean 0 and variance 1 over the last dimension."""
    return functional.layer_norm(x, x.shape[-1:])


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return plain_norm(x) * (1 + scale) + shift


class Block(nn.Module):
    """Attention over words and patches, then two layers, each behind a gate."""

    def __init__(self, dtype, device, operations):
        super().__init__()
        kind = {"dtype": dtype, "device": device}
        self.qkv = operations.Linear(WIDTH, 3 * WIDTH, **kind)
        self.out = operations.Linear(WIDTH, WIDTH, **kind)
        self.wide = operations.Linear(WIDTH, 4 * WIDTH, **kind)
        self.narrow = operations.Linear(4 * WIDTH, WIDTH, **kind)
        self.own = nn.Parameter(torch.zeros(6, WIDTH, **kind))

    def forward(self, x: Tensor, common: Tensor) -> Tensor:
        """x (B, L, 256), common (B, 6, 256): the modulation that all blocks share, to which each adds its own."""
        parts = (common + self.own.to(common)).unsqueeze(2).unbind(1)
        x = x + parts[2] * self.attended(modulated(x, parts[0], parts[1]))
        return x + parts[5] * self.narrow(functional.gelu(self.wide(modulated(x, parts[3], parts[4]))))

    def attended(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, HEADS, WIDTH // HEADS)).permute(2, 0, 3, 1, 4)
        q, k = plain_norm(q).to(v.dtype), plain_norm(k).to(v.dtype)  # keeps the logits bounded in low precision
        return self.out(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class IconTransformer(nn.Module):
    """x_t (B, 4, H, W), t (B,) in [0, 1], context (B, L, 256), label (B, 256) -> u (B, 4, H, W). Any H, W."""

    def __init__(self, dtype=None, device=None, operations=nn):
        super().__init__()
        kind = {"dtype": dtype, "device": device}
        values = LATENT_CHANNELS * PATCH**2
        self.into = operations.Linear(values, WIDTH, **kind)
        self.time = nn.Sequential(
            operations.Linear(TIME_FEATURES, WIDTH, **kind), nn.SiLU(), operations.Linear(WIDTH, WIDTH, **kind)
        )
        self.modulation = operations.Linear(WIDTH, 6 * WIDTH, **kind)
        self.blocks = nn.ModuleList(Block(dtype, device, operations) for _ in range(BLOCKS))
        self.last = operations.Linear(WIDTH, 2 * WIDTH, **kind)
        self.outof = operations.Linear(WIDTH, values, **kind)

    def velocity(self, x: Tensor, t: Tensor, context: Tensor, label: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        padded = functional.pad(x, (0, -width % PATCH, 0, -height % PATCH), mode="replicate")
        patches = functional.pixel_unshuffle(padded, PATCH)
        rows, columns = patches.shape[-2:]
        tokens = self.into(patches.flatten(2).transpose(1, 2)) + places(rows, columns, x)
        told = functional.silu(self.time(time_features(t).to(x.dtype)) + label)
        common = self.modulation(told).unflatten(1, (6, WIDTH))
        sequence = torch.cat([context.to(tokens.dtype), tokens], dim=1)
        for block in self.blocks:
            sequence = block(sequence, common)
        shift, scale = self.last(told)[:, None].chunk(2, dim=2)
        heads = self.outof(modulated(sequence[:, context.shape[1] :], shift, scale))
        grid = heads.transpose(1, 2).unflatten(2, (rows, columns))
        return functional.pixel_shuffle(grid, PATCH)[..., :height, :width]


def time_features(t: Tensor) -> Tensor:
    """Sines and cosines of 1000 t at 64 frequencies from 1 to 1/10000, (B, 128) float32."""
    half = TIME_FEATURES // 2
    frequencies = torch.exp(-math.log(10000) / half * torch.arange(half, device=t.device))
    angles = 1000 * t.float()[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def places(rows: int, columns: int, like: Tensor) -> Tensor:
    """Where each patch lies, (rows * columns, 256): sines and cosines of its row in one half, of its column in one."""
    quarter = WIDTH // 4
    frequencies = torch.exp(-math.log(100) / quarter * torch.arange(quarter, device=like.device))
    down, across = (torch.arange(count, device=like.device)[:, None] * frequencies for count in (rows, columns))
    halves = [torch.cat([angles.sin(), angles.cos()], dim=1) for angles in (down, across)]
    grid = [halves[0][:, None].expand(-1, columns, -1), halves[1][None].expand(rows, -1, -1)]
    return torch.cat(grid, dim=2).flatten(0, 1).to(like.dtype)
