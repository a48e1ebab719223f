"""pi-Flow adapters on the host's own FLUX.1, FLUX.2 and Qwen-Image, through its patcher.

An adapter is LoRA parts and a last layer. The LoRA parts become the host's weight patches; the last layer stands in the
place of the model's own as an object patch, so that a clone of the model without it is as it was.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import comfy.lora
import comfy.ops
import comfy.utils
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor, nn

from ...samplers.gmflow.checkpoint import SUPPORTED, listed
from ...samplers.gmflow.head import MEANS, PolicyHead, is_of_head
from ..host.mixtures import KEY, head_of_model, patch_of, tell

LORA_A, LORA_B = ".lora_A.weight", ".lora_B.weight"
POLICY = "policy_config"  # in the metadata of a file
GM_DIT = "pos_embed.proj.weight"  # a file with it is a model by itself
Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Family:
    """A transformer of the host. layers: those in whose place the head stands, the first; the others let it pass.

    names: further names of adapters' modules, with {} for the number of a block, where ComfyUI 0.3.75 has none.
    """

    title: str
    layers: tuple[str, ...]
    names: dict[str, str]


FLUX_2_NAMES = {
    "transformer_blocks.{}.ff.linear_in": "double_blocks.{}.img_mlp.0",
    "transformer_blocks.{}.ff.linear_out": "double_blocks.{}.img_mlp.2",
    "transformer_blocks.{}.ff_context.linear_in": "double_blocks.{}.txt_mlp.0",
    "transformer_blocks.{}.ff_context.linear_out": "double_blocks.{}.txt_mlp.2",
    "transformer_blocks.{}.attn.to_out.0": "double_blocks.{}.img_attn.proj",
    "transformer_blocks.{}.attn.to_add_out": "double_blocks.{}.txt_attn.proj",
    "single_transformer_blocks.{}.attn.to_qkv_mlp_proj": "single_blocks.{}.linear1",
    "single_transformer_blocks.{}.attn.to_out": "single_blocks.{}.linear2",
    "time_guidance_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_guidance_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "time_guidance_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
    "time_guidance_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
    "double_stream_modulation_img.linear": "double_stream_modulation_img.lin",
    "double_stream_modulation_txt.linear": "double_stream_modulation_txt.lin",
    "single_stream_modulation.linear": "single_stream_modulation.lin",
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
}
FAMILIES = {
    "flux": Family("FLUX.1", ("final_layer",), {}),
    "flux2": Family("FLUX.2", ("final_layer",), FLUX_2_NAMES),
    "qwen_image": Family("Qwen-Image", ("norm_out", "proj_out"), {}),
}


def is_adapter(state: Weights) -> bool:
    """Whether a file belongs on a model, and is none by itself."""
    return GM_DIT not in state and (f"{MEANS}.weight" in state or any(key.endswith(LORA_A) for key in state))


def with_adapter(model: ModelPatcher, state: Weights, policy: str | None, path: Path, strength: float) -> ModelPatcher:
    """A clone of the MODEL with an adapter on it.

    policy: the JSON of policy_config in the file's metadata. strength: of the LoRA parts; the last layer is whole.
    Raises ValueError for a model that takes none or has one, and for a file that is none or of another model.
    """
    if not math.isfinite(strength):
        raise ValueError(f"strength is {strength:g}; it must be a number. 1 is the adapter as it was made.")
    if head_of_model(model):
        raise ValueError(
            "The connected model has a pi-Flow adapter already, and takes one. Connect the model without it, or leave "
            "one Load GMFlow out."
        )
    network = model.get_model_object("diffusion_model")
    family = family_of(model)
    head = head_for(network, state, policy)
    check_width(head, network, path, family)
    patches = lora_patches(model, family, state, path)
    patched = model.clone()
    own = [f"diffusion_model.{name}" for name in family.layers]
    patched.add_object_patch(own[0], head)
    for name in own[1:]:
        patched.add_object_patch(name, nn.Identity())
    patched.add_patches(patches, strength)
    patched.patches_uuid = uuid4()  # for the host it is another model, with LoRA parts or without
    patched.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, tell)
    return patched


def family_of(model: ModelPatcher) -> Family:
    """Raises ValueError for a model that takes no adapter."""
    config = getattr(model.model, "model_config", None)
    kind = getattr(config, "unet_config", {}).get("image_model")
    if kind not in FAMILIES:
        titles = ", ".join(family.title for family in FAMILIES.values())
        raise ValueError(
            f"pi-Flow adapters go on {titles}; the connected model is a {type(model.model).__name__}. Connect the "
            "model that the adapter was made for."
        )
    return FAMILIES[kind]


def head_for(network, state: Weights, policy: str | None) -> PolicyHead:
    values = network.out_channels * (patch_of(network) ** 2 if hasattr(network, "inner_dim") else 1)
    dtype = next((value.dtype for key, value in state.items() if is_of_head(key)), None)
    return PolicyHead.of_state_dict(state, values, policy, dtype=dtype, device="cpu", operations=comfy.ops.manual_cast)


def check_width(head: PolicyHead, network, path: Path, family: Family) -> None:
    """Raises ValueError where the tokens of the model are wider or narrower than the adapter's."""
    width = getattr(network, "hidden_size", None) or network.inner_dim
    if head.config.width != width:
        raise ValueError(
            f"{path.name} is for a model whose tokens have {head.config.width} numbers; this {family.title} has "
            f"{width}. Connect the model that the adapter was made for. {SUPPORTED}"
        )


# ---------------------------------------------------------------------------------------------------------
# LoRA parts


def lora_patches(model: ModelPatcher, family: Family, state: Weights, path: Path) -> dict:
    """The host's patches of an adapter's LoRA parts. Raises ValueError, naming them, for parts without a place."""
    known = comfy.lora.model_lora_keys_unet(model.model, {})
    own = {key for key in state if not is_of_head(key)}
    places, strange = {}, []
    for key in sorted(own):
        name = key.removesuffix(LORA_A).removesuffix(LORA_B)
        place = place_of(name, family, known)
        if name == key or place is None or f"{name}{LORA_A}" not in own or f"{name}{LORA_B}" not in own:
            strange.append(key)
        else:
            places[name] = place
    if strange:
        raise ValueError(
            f"{path.name} does not belong on this {family.title}: {len(strange)} of its parts have no place there "
            f"({listed(strange, 3)}). Connect the model that the adapter was made for. {SUPPORTED}"
        )
    check_shapes(model, places, state, path, family)
    return comfy.lora.load_lora({key: state[key] for key in own}, places)


def place_of(name: str, family: Family, known: dict) -> str | tuple | None:
    """The host's weight, or part of one, of a module of an adapter."""
    parts = name.split(".")
    pattern = ".".join("{}" if i == 1 and part.isdecimal() else part for i, part in enumerate(parts))
    place = family.names.get(pattern)
    if place:
        name = f"diffusion_model.{place.format(parts[1]) if '{}' in place else place}"
    found = known.get(name, known.get(f"transformer.{name}"))
    return found[:2] if isinstance(found, tuple) else found


def check_shapes(model: ModelPatcher, places: dict, state: Weights, path: Path, family: Family) -> None:
    """Raises ValueError for LoRA parts of another size than the weights that they go on."""
    weights = model.model.state_dict()
    for name, place in places.items():
        key, part = place if isinstance(place, tuple) else (place, None)
        shape = tuple(weights[key].shape)
        if not weights[key].is_floating_point() or len(shape) != 2:
            continue  # quantised files keep their weights in other shapes
        rows = part[2] if part else shape[0]
        found = (state[f"{name}{LORA_B}"].shape[0], state[f"{name}{LORA_A}"].shape[1])
        if found != (rows, shape[1]):
            raise ValueError(
                f"{path.name} is of another size than this {family.title}: {name} is for {found[0]} x {found[1]} "
                f"weights, and the model has {rows} x {shape[1]}. Connect the model that the adapter was made for."
            )
