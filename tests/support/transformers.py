"""FLUX.1, FLUX.2 and Qwen-Image of the host with a few random weights, and pi-Flow adapters by the published names."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

WIDTH, TEXT, RANK = 32, 12, 4
FAMILIES = ("flux", "flux2", "qwen_image")
LATENTS = {"flux": (1, 16, 8, 6), "flux2": (1, 128, 4, 3), "qwen_image": (1, 16, 1, 8, 6)}
VALUES = {"flux": 64, "flux2": 128, "qwen_image": 64}  # of a token
CONFIGS: dict[str, dict[str, Any]] = {
    "flux": {
        "image_model": "flux",
        "in_channels": 16,
        "out_channels": 16,
        "vec_in_dim": 8,
        "context_in_dim": TEXT,
        "hidden_size": WIDTH,
        "mlp_ratio": 4.0,
        "num_heads": 2,
        "depth": 2,
        "depth_single_blocks": 2,
        "axes_dim": [4, 6, 6],
        "theta": 10000,
        "patch_size": 2,
        "qkv_bias": True,
        "guidance_embed": True,
    },
    "flux2": {
        "image_model": "flux2",
        "in_channels": 128,
        "out_channels": 128,
        "vec_in_dim": None,
        "context_in_dim": TEXT,
        "hidden_size": WIDTH,
        "mlp_ratio": 3.0,
        "num_heads": 2,
        "depth": 2,
        "depth_single_blocks": 2,
        "axes_dim": [4, 4, 4, 4],
        "theta": 2000,
        "patch_size": 1,
        "qkv_bias": False,
        "guidance_embed": True,
        "global_modulation": True,
        "mlp_silu_act": True,
        "ops_bias": False,
    },
    "qwen_image": {
        "image_model": "qwen_image",
        "in_channels": 64,
        "num_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": TEXT,
        "axes_dims_rope": (4, 6, 6),
    },
}
# LoRA parts of the published adapters, and the weight of the host (and its rows) that each goes on
PLACES: dict[str, dict[str, tuple[str, int, int | None]]] = {
    "flux": {
        "transformer_blocks.1.ff.net.0.proj": ("double_blocks.1.img_mlp.0", 0, None),
        "transformer_blocks.0.ff.net.2": ("double_blocks.0.img_mlp.2", 0, None),
        "transformer_blocks.0.ff_context.net.2": ("double_blocks.0.txt_mlp.2", 0, None),
        "single_transformer_blocks.1.proj_mlp": ("single_blocks.1.linear1", 3 * WIDTH, 7 * WIDTH),
        "single_transformer_blocks.1.proj_out": ("single_blocks.1.linear2", 0, None),
        "time_text_embed.timestep_embedder.linear_1": ("time_in.in_layer", 0, None),
        "time_text_embed.timestep_embedder.linear_2": ("time_in.out_layer", 0, None),
    },
    "flux2": {
        "transformer_blocks.1.ff.linear_in": ("double_blocks.1.img_mlp.0", 0, None),
        "transformer_blocks.0.ff.linear_out": ("double_blocks.0.img_mlp.2", 0, None),
        "transformer_blocks.0.ff_context.linear_in": ("double_blocks.0.txt_mlp.0", 0, None),
        "transformer_blocks.0.ff_context.linear_out": ("double_blocks.0.txt_mlp.2", 0, None),
        "single_transformer_blocks.1.attn.to_qkv_mlp_proj": ("single_blocks.1.linear1", 0, None),
        "single_transformer_blocks.1.attn.to_out": ("single_blocks.1.linear2", 0, None),
        "time_guidance_embed.timestep_embedder.linear_1": ("time_in.in_layer", 0, None),
        "time_guidance_embed.timestep_embedder.linear_2": ("time_in.out_layer", 0, None),
    },
    "qwen_image": {
        name: (name, 0, None)
        for name in (
            "transformer_blocks.1.img_mlp.net.0.proj",
            "transformer_blocks.0.img_mlp.net.2",
            "transformer_blocks.0.txt_mlp.net.2",
            "time_text_embed.timestep_embedder.linear_1",
            "time_text_embed.timestep_embedder.linear_2",
        )
    },
}


def tiny(family: str):
    """A MODEL of the host, its weights of a fixed seed."""
    import comfy.ldm.flux.model
    import comfy.model_patcher
    import comfy.supported_models

    kind = {"flux": "Flux", "flux2": "Flux2", "qwen_image": "QwenImage"}[family]
    sizes = dict(CONFIGS[family])
    if family != "qwen_image" and "txt_ids_dims" in comfy.ldm.flux.model.FluxParams.__dataclass_fields__:  # of 0.33
        sizes["txt_ids_dims"] = [3] if family == "flux2" else []
    config = getattr(comfy.supported_models, kind)(sizes)
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, device="cpu")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            drawn = torch.randn(weight.shape, generator=generator) * (0.3 if weight.ndim > 1 else 0.1)
            weight.copy_(
                drawn + 1 if "norm" in name and weight.ndim == 1 else drawn / max(1, weight.shape[-1] / 32) ** 0.5
            )
    model.requires_grad_(False).eval()
    return comfy.model_patcher.ModelPatcher(model, load_device=torch.device("cpu"), offload_device=torch.device("cpu"))


def prompt(seed: int = 3, **options) -> list:
    """A CONDITIONING of a few random tokens."""
    generator = torch.Generator().manual_seed(seed)
    return [
        [
            torch.randn(1, 5, TEXT, generator=generator),
            {"pooled_output": torch.randn(1, 8, generator=generator)} | options,
        ]
    ]


@dataclass
class Adapter:
    """A file of an adapter: its tensors and its metadata."""

    state: dict[str, Tensor]
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def policy(self) -> str | None:
        return self.metadata.get("policy_config")

    def saved(self, path: Path) -> Path:
        save_file({key: value.contiguous() for key, value in self.state.items()}, path, self.metadata or None)
        return path


def adapter(family: str, policy: str = "GMFlow", count: int = 4, strength: float = 0.2) -> Adapter:
    """Random LoRA parts and a random last layer, by the published names. DX policies: "grid" or "polynomial"."""
    generator = torch.Generator().manual_seed(7)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) * strength

    state = {"norm_out.linear.weight": drawn(2 * WIDTH, WIDTH)}
    if family != "flux2":
        state["norm_out.linear.bias"] = drawn(2 * WIDTH)
    heads = {"proj_out_means": VALUES[family] * count, "proj_out_logweights": 4 * count}
    for name, outputs in (heads if policy == "GMFlow" else {"proj_out": VALUES[family] * count}).items():
        state |= {f"{name}.weight": drawn(outputs, WIDTH), f"{name}.bias": drawn(outputs)}
    if policy == "GMFlow":
        for i, (inputs, outputs) in {1: (WIDTH, 16), 3: (16, 1)}.items():
            state |= {
                f"proj_out_logstds.{i}.weight": drawn(outputs, inputs),
                f"proj_out_logstds.{i}.bias": drawn(outputs) - 2,
            }
    weights = tiny(family).model.diffusion_model.state_dict()
    for name, (place, first, last) in PLACES[family].items():
        rows, columns = weights[f"{place}.weight"][first:last].shape
        state |= {f"{name}.lora_A.weight": drawn(RANK, columns), f"{name}.lora_B.weight": drawn(rows, RANK)}
    dx = {"type": "DX", "mode": policy, "segment_size": 1 / 3.5, "shift": 3.2}
    config = {"type": "GMFlow"} if policy == "GMFlow" else dx
    return Adapter(state, {"policy_config": json.dumps(config)})


def same_head(family: str, model, count: int = 3) -> Adapter:
    """An adapter without LoRA parts whose components all are the model's own last layer, with random weights."""
    weights = model.model.diffusion_model.state_dict()
    norm, last = (
        ("norm_out.linear", "proj_out")
        if family == "qwen_image"
        else ("final_layer.adaLN_modulation.1", "final_layer.linear")
    )
    fresh = adapter(family, count=count).state
    state = {key: value for key, value in fresh.items() if key.startswith(("proj_out_logweights", "proj_out_logstds"))}
    for end in ("weight", "bias"):
        of_norm = weights.get(f"{norm}.{end}")
        if of_norm is not None:
            halves = of_norm.chunk(2) if family == "qwen_image" else reversed(of_norm.chunk(2))  # theirs: scale, shift
            state[f"norm_out.linear.{end}"] = torch.cat(list(halves))
        own = weights.get(f"{last}.{end}")
        own = torch.zeros(VALUES[family]) if own is None else own
        state[f"proj_out_means.{end}"] = own.repeat(count, *[1] * (own.ndim - 1))
    return Adapter(state, {"policy_config": json.dumps({"type": "GMFlow"})})
