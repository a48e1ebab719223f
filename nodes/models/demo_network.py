"""The bundled model's network: the host's UNet on 4x4 patches, with two heads on one trunk.

The trunk sees x_t = (1 - t) x0 + t e, the flow form, at time t in [0, 1]. The first head is the velocity
u = e - x0, trained by least squares; the second is a Gaussian mixture of u at every pixel (GMFlow,
arXiv 2504.05304 section 3.1), trained by its likelihood. The eps and v of a variance-preserving model are
exact changes of variables of u, so one trained network serves every variant.
"""

from __future__ import annotations

import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from torch import Tensor, nn
from torch.nn import functional

from .wrapped import HostNetwork

PATCH = 4
COLORS = 3
COMPONENTS = 8
TEXT_WIDTH = 96
CONTEXT_WORDS = 8  # a prompt is padded to a multiple of this; word 0 is the padding and the empty prompt
HEADS = COLORS + COMPONENTS * COLORS + COMPONENTS  # velocity, means, logits: channels of one pixel

# Pictures in [-1, 1] become latents of mean 0 and variance 1: what the host's noise schedules assume.
PIXEL_MEAN = (0.757, 0.624, 0.414)
PIXEL_SCALE = 1 / 0.58

UNET = {
    "image_size": 16,
    "in_channels": COLORS * PATCH**2,
    "out_channels": HEADS * PATCH**2,
    "model_channels": 64,
    "channel_mult": (1, 2, 3),
    "num_res_blocks": [1, 1, 1],
    "num_head_channels": 32,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": True,
    "context_dim": TEXT_WIDTH,
    "transformer_depth": [0, 0, 1],
    "transformer_depth_middle": 1,
    "transformer_depth_output": [0, 0, 0, 0, 0, 1],
    "num_classes": "sequential",
    "adm_in_channels": TEXT_WIDTH,
    "legacy": False,
}


class DemoNetwork(HostNetwork):
    """x_t (B, 3, H, W), t (B,) in [0, 1], context (B, L, 96), pooled (B, 96) -> the two heads. Any H, W.

    unet: the config that the host keeps of a model and nodes look numbers up in (FreeU); UNET where there is none.
    """

    def __init__(self, dtype=None, device=None, operations=nn, **unet):
        super().__init__()
        self.dtype = dtype
        self.in_channels = self.out_channels = COLORS  # what nodes of the host ask a network for
        self.unet = UNetModel(**(unet or UNET), dtype=dtype, device=device, operations=operations)
        self.spread = nn.Sequential(
            operations.Linear(TEXT_WIDTH + 16, 64, dtype=dtype, device=device),
            nn.SiLU(),
            operations.Linear(64, 1, dtype=dtype, device=device),
        )

    def pixels(self, x: Tensor, t: Tensor, context, pooled, control=None, transformer_options=None, **host) -> Tensor:
        """All heads, (B, HEADS, H, W)."""
        height, width = x.shape[-2:]
        x = functional.pad(x, (0, -width % PATCH, 0, -height % PATCH), mode="replicate")
        patches = functional.pixel_unshuffle(x, PATCH)
        options = {} if transformer_options is None else transformer_options
        heads = self.unet(patches, 1000 * t, context, pooled, control, options, **host)
        return functional.pixel_shuffle(heads, PATCH)[..., :height, :width]

    def logstd(self, t: Tensor, pooled: Tensor) -> Tensor:
        """log s of the mixture, (B, 1, 1, 1, 1): of time and prompt only, never of x."""
        features = torch.cat([time_features(t).to(pooled.dtype), pooled], dim=1)
        return self.spread(features).float()[:, :, None, None, None]

    def velocity(self, x: Tensor, t: Tensor, context: Tensor, pooled: Tensor, *given, **host) -> Tensor:
        """u = e - x0, (B, 3, H, W)."""
        return self.pixels(x, t, context, pooled, *given, **host)[:, :COLORS]

    def mixture(self, x: Tensor, t: Tensor, context: Tensor, pooled: Tensor, *given, **host) -> dict[str, Tensor]:
        """q(u | x_t): means (B, K, 3, H, W), logweights (B, K, 1, H, W), logstds (B, 1, 1, 1, 1)."""
        return split_mixture(self.pixels(x, t, context, pooled, *given, **host), self.logstd(t, pooled))


def split_mixture(heads: Tensor, logstd: Tensor) -> dict[str, Tensor]:
    """The mixture part of `DemoNetwork.pixels`, in GMFlow's layout and in float32."""
    means, logits = heads[:, COLORS:].float().split([COMPONENTS * COLORS, COMPONENTS], dim=1)
    return {
        "means": means.unflatten(1, (COMPONENTS, COLORS)),
        "logweights": logits.log_softmax(dim=1)[:, :, None],
        "logstds": logstd,
    }


def time_features(t: Tensor) -> Tensor:
    """Sixteen smooth functions of t, (B, 16)."""
    octaves = torch.pi * 2.0 ** torch.arange(-1, 7, device=t.device)
    angles = t.float()[:, None] * octaves
    return torch.cat([angles.sin(), angles.cos()], dim=1)
