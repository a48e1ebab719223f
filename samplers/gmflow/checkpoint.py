"""What a GMFlow checkpoint is: its config, from a file or from its shapes, and the keys that a network expects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor, nn

LARGEST_SAMPLE = 4096  # latent pixels on a side: 32768 of the picture
HEAD_WIDTHS = (72, 64)  # of the published model, and of the other sizes of DiT
SUPPORTED = (
    "What is known: by itself the GM-DiT of gmflow_imagenet_k8_ema (transformer/diffusion_pytorch_model.bf16), and on "
    "a connected model the pi-Flow adapters of FLUX.1 (gmflux_k8, dxflux_n10), FLUX.2 (gmflux2_k8) and Qwen-Image "
    "(gmqwen_k8, dxqwen_n10, dxqwen_p10)."
)


@dataclass(frozen=True)
class GMDiTConfig:
    """The numbers in the authors' config.json, with the values of gmflow_imagenet_k8_ema."""

    num_gaussians: int = 8
    logstd_inner_dim: int = 1024
    gm_num_logstd_layers: int = 2
    num_attention_heads: int = 16
    attention_head_dim: int = 72
    in_channels: int = 4
    num_layers: int = 28
    sample_size: int = 32
    patch_size: int = 2
    num_embeds_ada_norm: int = 1000

    @property
    def width(self) -> int:
        return self.num_attention_heads * self.attention_head_dim

    def check_size(self, state: Mapping[str, Tensor]) -> None:
        """Raises ValueError for a network larger than its checkpoint, before any of it is made."""
        largest = max((n for value in state.values() for n in value.shape), default=0)
        sides = (self.width, self.num_gaussians, self.logstd_inner_dim, self.in_channels, self.patch_size)
        layers = counted(state, "transformer_blocks."), counted(state, "gm_out.logstd_layers.")
        deep = self.num_layers > layers[0] or self.gm_num_logstd_layers > max(layers[1], 1)
        if deep or max(*sides, self.num_embeds_ada_norm) > largest or self.sample_size > LARGEST_SAMPLE:
            raise ValueError(
                "The config.json beside this GMFlow model is of a larger one. Use the file that belongs to it, or "
                "remove the config.json."
            )

    @classmethod
    def of_json(cls, values: Mapping[str, Any]) -> GMDiTConfig:
        """From a config.json; other entries of it are left alone. Raises ValueError for what is no positive number."""
        known = {f.name: values[f.name] for f in fields(cls) if f.name in values}
        wrong = [f"{name} is {value!r}" for name, value in known.items() if type(value) is not int or value < 1]
        if wrong:
            raise ValueError(f"The config.json of this GMFlow model cannot be used: {'; '.join(wrong)}.")
        return cls(**known)

    @classmethod
    def of_state_dict(cls, state: Mapping[str, Tensor], sample_size: int = 32) -> GMDiTConfig:
        """From the shapes of a checkpoint. sample_size, the latent size it was trained at, cannot be told from them.

        The number of heads is that of a published head width. Raises ValueError where a shape that tells is missing.
        """
        width, channels, patch, _ = shape_of(state, "pos_embed.proj.weight", 4)
        outputs = shape_of(state, "proj_out_2.weight", 2)[0]
        components, rest = divmod(outputs, max(patch**2 * (channels + 1), 1))
        head = next((w for w in HEAD_WIDTHS if width % w == 0), None)
        if rest or not components or head is None or not width * channels * patch:
            raise ValueError(
                f"This is no GMFlow model that we know: its width is {width}, with {outputs} outputs a patch. "
                "If a config.json came with it, put that beside the file."
            )
        return cls(
            num_gaussians=components,
            logstd_inner_dim=shape_of(state, "gm_out.logstd_layers.1.weight", 2)[0],
            gm_num_logstd_layers=counted(state, "gm_out.logstd_layers."),
            num_attention_heads=width // head,
            attention_head_dim=head,
            in_channels=channels,
            num_layers=counted(state, "transformer_blocks."),
            sample_size=sample_size,
            patch_size=patch,
            num_embeds_ada_norm=shape_of(state, "emb.class_embedder.embedding_table.weight", 2)[0] - 1,
        )


def shape_of(state: Mapping[str, Tensor], key: str, axes: int) -> tuple[int, ...]:
    """The shape of one tensor. Raises ValueError where it is missing or has another number of axes."""
    if key not in state or state[key].ndim != axes:
        raise ValueError(f"This is no GMFlow model: {key} is missing or has another shape. {SUPPORTED}")
    return tuple(state[key].shape)


def counted(state: Mapping[str, Tensor], prefix: str) -> int:
    """How many different numbers follow `prefix` in the keys."""
    return len({key[len(prefix) :].split(".")[0] for key in state if key.startswith(prefix)})


def check_state_dict(
    network: nn.Module,
    state: Mapping[str, Tensor],
    name: str = "GMFlow network",
    hint: str = "Download it again, or use the file that belongs to this config.json.",
) -> None:
    """Raises ValueError, naming them, where keys of a checkpoint are missing, extra or misshapen for the network."""
    expected = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    misshapen = [
        f"{key} ({size(state[key].shape)} instead of {size(shape)})"
        for key, shape in expected.items()
        if key in state and tuple(state[key].shape) != shape
    ]
    faults = {
        "missing": [key for key in expected if key not in state],
        "unknown": [key for key in state if key not in expected],
        "of another shape": misshapen,
    }
    told = [f"{len(keys)} {fault}: {listed(keys)}" for fault, keys in faults.items() if keys]
    if told:
        raise ValueError(f"This checkpoint does not fit the {name}. {'; '.join(told)}. {hint}")


def size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "one number"


def listed(keys: list[str], most: int = 6) -> str:
    """The first of the keys, and how many more there are."""
    more = f" and {len(keys) - most} more" if len(keys) > most else ""
    return ", ".join(keys[:most]) + more
