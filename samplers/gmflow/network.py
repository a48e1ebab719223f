"""GM-DiT and the spectrum network, arXiv 2504.05304 figures 4 and 9, with the published state-dict names.

A DiT (arXiv 2212.09748) whose last layer gives, per pixel, the means and logits of K components of the velocity u, and
whose embedding of time and label alone gives their common log standard deviation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .checkpoint import GMDiTConfig, counted, shape_of
from .mixture import Mixture, mean

TIME_FEATURES = 256
EMBEDDING_EPS, FEED_FORWARD_EPS = 1e-6, 1e-5  # of the layer norms, as published

Attention = Callable[[Tensor, Tensor, Tensor, int], Tensor]


# ---------------------------------------------------------------------------------------------------------
# Embeddings


@lru_cache(maxsize=8)
def time_rates(device: torch.device) -> Tensor:
    """10000^(-i / 128), (128,) float32, rounded from double precision.

    A float32 exp differs by processor in its last place, which at t = 1000 moves an angle by 5e-5 radians.
    """
    powers = torch.arange(TIME_FEATURES // 2, dtype=torch.float64) / (TIME_FEATURES // 2)
    return (10000.0**-powers).float().to(device)


def time_features(timesteps: Tensor) -> Tensor:
    """cos then sin of t / 10000^(i / 128), (B,) -> (B, 256) float32; t runs to 1000."""
    angles = timesteps.float()[:, None] * time_rates(timesteps.device)
    return torch.cat([angles.cos(), angles.sin()], 1)


def line_features(count: int, features: int, base: int) -> Tensor:
    """sin then cos of `count` positions stretched over `base`, (count, features) float64."""
    rates = 10000 ** -(torch.arange(features // 2, dtype=torch.float64) / (features // 2))
    angles = torch.arange(count, dtype=torch.float64)[:, None] * (base / count) * rates
    return torch.cat([angles.sin(), angles.cos()], 1)


def position_features(rows: int, columns: int, width: int, base: int) -> Tensor:
    """(rows * columns, width): the column's features, then the row's. Any grid is stretched over the trained one."""
    across = line_features(columns, width // 2, base).expand(rows, -1, -1)
    down = line_features(rows, width // 2, base)[:, None].expand(-1, columns, -1)
    return torch.cat([across, down], 2).flatten(0, 1)


class PatchEmbedding(nn.Module):
    """x (B, C, H, W), H and W multiples of the patch -> tokens (B, L, width)."""

    def __init__(self, config: GMDiTConfig, factory: dict[str, Any], operations):
        super().__init__()
        self.base = config.sample_size // config.patch_size
        patch = config.patch_size
        self.proj = operations.Conv2d(config.in_channels, config.width, patch, stride=patch, **factory)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.proj(x)
        positions = position_features(patches.shape[2], patches.shape[3], patches.shape[1], self.base)
        return patches.flatten(2).mT + positions.to(patches.dtype).to(patches.device)


class TimestepEmbedder(nn.Module):
    """Features of time (B, 256) -> (B, width)."""

    def __init__(self, width: int, factory: dict[str, Any], operations):
        super().__init__()
        self.linear_1 = operations.Linear(TIME_FEATURES, width, **factory)
        self.linear_2 = operations.Linear(width, width, **factory)

    def forward(self, features: Tensor) -> Tensor:
        return self.linear_2(functional.silu(self.linear_1(features)))


class ClassEmbedder(nn.Module):
    """A row for each label, and a last one for none."""

    def __init__(self, classes: int, width: int, factory: dict[str, Any], operations):
        super().__init__()
        self.embedding_table = operations.Embedding(classes + 1, width, **factory)


class Embedding(nn.Module):
    """Time (B,) and label (B,) -> (B, width), one for all blocks."""

    def __init__(self, config: GMDiTConfig, factory: dict[str, Any], operations):
        super().__init__()
        self.timestep_embedder = TimestepEmbedder(config.width, factory, operations)
        self.class_embedder = ClassEmbedder(config.num_embeds_ada_norm, config.width, factory, operations)

    def forward(self, timesteps: Tensor, labels: Tensor, dtype: torch.dtype) -> Tensor:
        time = self.timestep_embedder(time_features(timesteps).to(dtype))
        return time + self.class_embedder.embedding_table(labels).to(dtype)


# ---------------------------------------------------------------------------------------------------------
# Blocks


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Scaled dot-product attention of (B, L, heads * D): the host's functions take these arguments."""
    q, k, v = (t.unflatten(2, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    return functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x (B, L, width) (1 + scale) + shift, both (B, width)."""
    return torch.addcmul(shift[:, None], x, 1 + scale[:, None])


class SelfAttention(nn.Module):
    """Tokens (B, L, width) -> the same shape."""

    def __init__(self, config: GMDiTConfig, attention: Attention, factory: dict[str, Any], operations):
        super().__init__()
        width, self.heads, self.attention = config.width, config.num_attention_heads, attention
        self.to_q, self.to_k, self.to_v = (operations.Linear(width, width, **factory) for _ in range(3))
        self.to_out = nn.ModuleList([operations.Linear(width, width, **factory)])

    def forward(self, x: Tensor) -> Tensor:
        return self.to_out[0](self.attention(self.to_q(x), self.to_k(x), self.to_v(x), self.heads))


class Projection(nn.Module):
    """A linear layer and a GELU."""

    def __init__(self, width: int, inner: int, factory: dict[str, Any], operations):
        super().__init__()
        self.proj = operations.Linear(width, inner, **factory)

    def forward(self, x: Tensor) -> Tensor:
        return functional.gelu(self.proj(x), approximate="tanh")


class FeedForward(nn.Module):
    """Tokens (B, L, width) -> the same shape, four times as wide inside."""

    def __init__(self, width: int, factory: dict[str, Any], operations):
        super().__init__()
        # The published names leave room for a dropout at 1.
        layers = [Projection(width, 4 * width, factory, operations), nn.Identity()]
        self.net = nn.Sequential(*layers, operations.Linear(4 * width, width, **factory))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Modulation(nn.Module):
    """The embedding -> six vectors (B, width): shift, scale and gate of the attention, then of the feed-forward."""

    def __init__(self, width: int, factory: dict[str, Any], operations):
        super().__init__()
        self.linear = operations.Linear(width, 6 * width, **factory)

    def forward(self, embedding: Tensor) -> tuple[Tensor, ...]:
        return self.linear(functional.silu(embedding)).chunk(6, 1)


class Block(nn.Module):
    """A DiT block with adaLN-zero, arXiv 2212.09748 section 3.2. tokens (B, L, width), embedding (B, width)."""

    def __init__(self, config: GMDiTConfig, attention: Attention, factory: dict[str, Any], operations):
        super().__init__()
        width = config.width
        self.norm1 = Modulation(width, factory, operations)
        self.attn1 = SelfAttention(config, attention, factory, operations)
        self.ff = FeedForward(width, factory, operations)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = self.norm1(embedding)
        attended = self.attn1(modulated(normalised(x, EMBEDDING_EPS), shift_1, scale_1))
        x = torch.addcmul(x, gate_1[:, None], attended)
        fed = self.ff(modulated(normalised(x, FEED_FORWARD_EPS), shift_2, scale_2))
        return torch.addcmul(x, gate_2[:, None], fed)


def normalised(x: Tensor, eps: float) -> Tensor:
    """Layer norm without weights over the last axis."""
    return functional.layer_norm(x, x.shape[-1:], eps=eps)


class LogStd(nn.Module):
    """The embedding (B, width) -> log s (B, 1)."""

    def __init__(self, config: GMDiTConfig, factory: dict[str, Any], operations):
        super().__init__()
        widths = [config.width, *[config.logstd_inner_dim] * (config.gm_num_logstd_layers - 1), 1]
        layers: list[nn.Module] = []
        for before, after in zip(widths[:-1], widths[1:], strict=True):
            layers += [nn.SiLU(), operations.Linear(before, after, **factory)]
        self.logstd_layers = nn.Sequential(*layers)

    def forward(self, embedding: Tensor) -> Tensor:
        return self.logstd_layers(embedding)


# ---------------------------------------------------------------------------------------------------------
# The networks


class GMDiT(nn.Module):
    """x_t (B, C, H, W), t (B,) in [0, 1] and labels (B,) int64 -> the mixture of u. Any H, W.

    operations: where Linear, Conv2d and Embedding come from; the host passes its own, which cast and offload.
    attention: f(q, k, v, heads) on (B, L, heads * D). Labels run from 0; config.num_embeds_ada_norm is "no label".
    """

    def __init__(
        self,
        config: GMDiTConfig | None = None,
        dtype=None,
        device=None,
        operations=nn,
        attention: Attention = attend,
    ):
        super().__init__()
        self.config = config = config or GMDiTConfig()
        self.dtype = dtype
        factory, width = {"dtype": dtype, "device": device}, config.width
        blocks = [Block(config, attention, factory, operations) for _ in range(config.num_layers)]
        outputs = config.patch_size**2 * config.num_gaussians * (config.in_channels + 1)
        self.pos_embed = PatchEmbedding(config, factory, operations)
        self.emb = Embedding(config, factory, operations)
        self.transformer_blocks = nn.ModuleList(blocks)
        self.proj_out_1 = operations.Linear(width, 2 * width, **factory)
        self.proj_out_2 = operations.Linear(width, outputs, **factory)
        self.gm_out = LogStd(config, factory, operations)

    def mixture(self, x: Tensor, t: Tensor, labels: Tensor) -> Mixture:
        """q(u | x_t), u = e - x0: normalised, and in float32 at least. Raises ValueError for labels out of range."""
        self.check_labels(labels)
        height, width = x.shape[-2:]
        x = to_patches(x, self.config.patch_size)
        embedding = self.emb(1000 * t, labels, x.dtype)
        heads = self.to_pixels(self.trunk(x, embedding), x.shape[2], x.shape[3])[..., :height, :width]
        means, logits = heads.split([self.config.num_gaussians * self.config.in_channels, self.config.num_gaussians], 1)
        return Mixture.of_logits(
            means.unflatten(1, (self.config.num_gaussians, -1)),
            logits[:, :, None],
            self.gm_out(embedding)[:, :, None, None, None],
        )

    def velocity(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """E[u | x_t], (B, C, H, W): what an ordinary sampler wants."""
        return mean(self.mixture(x, t, labels))

    def trunk(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Padded x -> the outputs of every token, (B, L, patch^2 K (C + 1))."""
        tokens = self.pos_embed(x)
        for block in self.transformer_blocks:
            tokens = block(tokens, embedding)
        shift, scale = self.proj_out_1(functional.silu(embedding)).chunk(2, 1)
        return self.proj_out_2(modulated(normalised(tokens, EMBEDDING_EPS), shift, scale))

    def to_pixels(self, outputs: Tensor, height: int, width: int) -> Tensor:
        """Tokens (B, L, patch^2 M), ordered row in the patch, column, channel -> (B, M, H, W)."""
        patch = self.config.patch_size
        grid = outputs.unflatten(1, (height // patch, -1)).unflatten(3, (patch, patch, -1))
        return grid.permute(0, 5, 1, 3, 2, 4).reshape(len(outputs), -1, height, width)

    def check_labels(self, labels: Tensor) -> None:
        """Raises ValueError for labels that the table does not have."""
        most = self.config.num_embeds_ada_norm
        if ((labels < 0) | (labels > most)).any():
            raise ValueError(
                f"Label {labels.flatten().tolist()} is out of range: this model knows 0 to {most - 1}; "
                f"{most} stands for no label."
            )


def to_patches(x: Tensor, patch: int) -> Tensor:
    """x with its last rows and columns repeated, so that whole patches cover it."""
    rows, columns = (-n % patch for n in x.shape[-2:])
    return functional.pad(x, (0, columns, 0, rows), mode="replicate") if rows or columns else x


class SpectrumNetwork(nn.Module):
    """Two statistics of a Gaussian (B, 2) -> its log-power, not normalised, (B, C, n, n) in the order of an FFT."""

    def __init__(
        self,
        base_size: tuple[int, int, int] = (4, 32, 32),
        layers: tuple[int, ...] = (64, 8),
        dtype=None,
        device=None,
        operations=nn,
    ):
        super().__init__()
        self.base_size = tuple(base_size)
        widths = [2, *layers, math.prod(base_size)]
        modules: list[nn.Module] = []
        for before, after in zip(widths[:-1], widths[1:], strict=True):
            modules += [operations.Linear(before, after, dtype=dtype, device=device), nn.SiLU()]
        self.mlp = nn.Sequential(*modules[:-1])

    @classmethod
    def of_state_dict(cls, state: Mapping[str, Tensor], channels: int = 4, **factory) -> SpectrumNetwork:
        """The network that a checkpoint of square spectra fits, without weights. Raises ValueError where none does."""
        last = 2 * (counted(state, "mlp.") - 1)
        outputs = shape_of(state, f"mlp.{last}.weight", 2)[0]
        side = math.isqrt(outputs // channels)
        if channels * side**2 != outputs:
            raise ValueError(f"This spectrum network has {outputs} outputs; {channels} square spectra were expected.")
        layers = tuple(shape_of(state, f"mlp.{i}.weight", 2)[0] for i in range(0, last, 2))
        return cls((channels, side, side), layers, **factory)

    def forward(self, statistics: Tensor) -> Tensor:
        return self.mlp(statistics).unflatten(1, self.base_size)
