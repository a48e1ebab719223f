"""A GM-DiT of the diffusion_models folder as the host's MODEL, and what a label is to it."""

from __future__ import annotations

import difflib
import json
from functools import cache
from pathlib import Path
from typing import Any

import comfy.conds
import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.supported_models_base
import comfy.utils
import folder_paths
import torch
from comfy.ldm.modules.attention import optimized_attention
from comfy.model_base import ModelType
from safetensors import safe_open
from torch import Tensor

from ...samplers.gmflow import GMDiT, GMDiTConfig, SpectrumNetwork, check_state_dict
from ...samplers.gmflow.checkpoint import SUPPORTED
from ..host.mixtures import MixtureNetwork
from .piflow import POLICY, is_adapter, with_adapter
from .wrapped import HostNetwork

FOLDER = "diffusion_models"
ADAPTERS = "loras"  # the folder where pi-Flow adapters lie, and what their names begin with in the list
IMAGENET_CLASSES = 1000
LABEL = "gmflow_label"  # entry of a CONDITIONING
TELLING_KEY = "num_gaussians"  # a config.json without it is of another model in the folder
LONGEST_NAME = 200  # of what a message repeats
Weights = dict[str, Tensor]


# ---------------------------------------------------------------------------------------------------------
# MODEL


class HostGMDiT(HostNetwork, GMDiT, MixtureNetwork):
    """What the host calls with (input, timestep, y): its timestep is 1000 t."""

    def predict(self, x: Tensor, timesteps: Tensor, context, y, control, transformer_options, **host) -> Tensor:
        return self.answer(self.mixture(x, timesteps / 1000, y.flatten()), transformer_options)


class GMFlowConfig(comfy.supported_models_base.BASE):
    """SD 1.5's latents (scale 0.18215), flow with shift 1. bfloat16 as published: its weights are not made for fp16."""

    unet_extra_config: dict = {}
    latent_format = comfy.latent_formats.SD15
    memory_usage_factor = 0.5
    sampling_settings = {"shift": 1.0}
    supported_inference_dtypes = [torch.bfloat16, torch.float32]

    def inpaint_model(self) -> bool:
        return False


class GMFlowModel(comfy.model_base.BaseModel):
    """BaseModel conditioned by a label. names: those of its classes, where known; spectrum: its network, or None."""

    names: tuple[str, ...] = ()

    def __init__(self, *given, **options):
        super().__init__(*given, **options)
        self.register_module("spectrum", None)

    def extra_conds(self, **given) -> dict[str, comfy.conds.CONDRegular]:
        if LABEL not in given:
            raise ValueError(
                "This GMFlow model draws classes and was given a text prompt. Connect the GMFlow Label node instead of "
                "CLIP Text Encode."
            )
        return {"y": comfy.conds.CONDRegular(given[LABEL].to(given["device"]))}


def load_gmflow(
    name: str, model: comfy.model_patcher.ModelPatcher | None = None, strength: float = 1.0
) -> comfy.model_patcher.ModelPatcher:
    """The MODEL of a GM-DiT, or `model` with a pi-Flow adapter on it, whose LoRA parts count `strength`.

    Raises ValueError, in words, for what is neither, and for a model that is missing or too many.
    """
    path = path_of(name)
    state = read(path)
    if is_adapter(state) or name.startswith(f"{ADAPTERS}/"):
        if model is None:
            raise ValueError(
                f"{path.name} is a pi-Flow adapter, which goes on a model. Connect FLUX.1, FLUX.2 or Qwen-Image, as "
                "Load Diffusion Model gives it, to the input model."
            )
        return with_adapter(model, state, metadata_of(path).get(POLICY), path, strength)
    if model is not None:
        raise ValueError(
            f"{path.name} is no pi-Flow adapter, so it does not go on the connected model. Disconnect the model, or "
            f"choose an adapter. {SUPPORTED}"
        )
    return whole_model(path, state)


def whole_model(path: Path, state: Weights) -> comfy.model_patcher.ModelPatcher:
    """The MODEL of a file that holds all of one."""
    beside = config_beside(path)
    config = GMDiTConfig.of_json(beside) if beside else GMDiTConfig.of_state_dict(state)
    config.check_size(state)
    device, offload = comfy.model_management.get_torch_device(), comfy.model_management.unet_offload_device()
    model = empty_model(config, state, device, offload)
    check_state_dict(model.diffusion_model, state)
    model.diffusion_model.load_state_dict(state)
    model.names = names_of(beside, path, config.num_embeds_ada_norm)
    model.spectrum = load_spectrum(path, config.in_channels, offload)
    model.eval()
    return comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=offload)


def empty_model(config: GMDiTConfig, state: Weights, device, offload) -> GMFlowModel:
    """BaseModel with the network, its weights not set yet, in the dtype that the host chooses for the file."""
    host = GMFlowConfig({"config": config, "attention": optimized_attention})
    dtypes = host.supported_inference_dtypes
    dtype = comfy.model_management.unet_dtype(
        device,
        model_params=comfy.utils.calculate_parameters(state),
        supported_dtypes=dtypes,
        weight_dtype=comfy.utils.weight_dtype(state),
    )
    host.set_inference_dtype(dtype, comfy.model_management.unet_manual_cast(dtype, device, dtypes))
    host.latent_format.latent_channels = config.in_channels
    return GMFlowModel(host, ModelType.FLOW, device=offload, unet_model=HostGMDiT)


def load_spectrum(path: Path, channels: int, device) -> SpectrumNetwork | None:
    """The spectrum network beside a model, if there is one, where the host can move it with the model."""
    found = spectrum_beside(path)
    if found is None:
        return None
    state = read(found)
    factory: dict[str, Any] = {"dtype": torch.float32, "device": device, "operations": comfy.ops.manual_cast}
    network = SpectrumNetwork.of_state_dict(state, channels, **factory)
    check_state_dict(network, state)
    network.load_state_dict(state)
    return network


# ---------------------------------------------------------------------------------------------------------
# Files


def model_names() -> list[str]:
    """What Load GMFlow offers: the diffusion_models folder, then that of LoRAs, where adapters lie, with its name."""
    adapters = folder_paths.get_filename_list(ADAPTERS)
    return [*folder_paths.get_filename_list(FOLDER), *(f"{ADAPTERS}/{name}" for name in adapters)]


def path_of(name: str) -> Path:
    """Raises ValueError where there is no such file, or can be none of that name."""
    found = found_in(FOLDER, name)
    if found is None and name.startswith(f"{ADAPTERS}/"):
        found = found_in(ADAPTERS, name.removeprefix(f"{ADAPTERS}/"))
    if found is None:
        folder = folder_paths.get_folder_paths(FOLDER)[0]
        raise ValueError(
            f"There is no {name[:LONGEST_NAME]!r} in {folder}. Put transformer/diffusion_pytorch_model.bf16.safetensors"
            " of a GMFlow release there, or a pi-Flow adapter into models/loras, and refresh."
        )
    return Path(found)


def found_in(folder: str, name: str) -> str | None:
    try:
        return folder_paths.get_full_path(folder, name)
    except (OSError, ValueError):  # too long for a name, or with a null byte
        return None


def metadata_of(path: Path) -> dict[str, str]:
    """Of a safetensors file; other kinds have none."""
    if path.suffix != ".safetensors":
        return {}
    with safe_open(path, framework="pt") as file:
        return file.metadata() or {}


def read(path: Path) -> Weights:
    """The tensors of a file. Raises ValueError where it cannot be read or holds NaN."""
    try:
        state = comfy.utils.load_torch_file(str(path), safe_load=True)
    except Exception as error:  # the host and its readers raise what they like
        raise ValueError(f"{path.name} cannot be read ({error}). Download it again.") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path.name} holds other things than tensors, so it is no GMFlow model. Download it again.")
    wrong = [key for key, value in state.items() if not bool(value.sum(dtype=torch.float32).isfinite())]
    if wrong:
        raise ValueError(f"{path.name} is damaged: {wrong[0]} holds values that are no numbers. Download it again.")
    return state


def config_beside(path: Path) -> dict[str, Any] | None:
    """NAME.json, or a config.json of a GMFlow model, in the folder of the file."""
    for candidate in (path.with_suffix(".json"), path.with_name("config.json")):
        if not candidate.exists():
            continue
        try:
            values = json.loads(candidate.read_text(encoding="utf-8"))
        except (ValueError, OSError, RecursionError) as error:
            raise ValueError(f"{candidate.name} beside {path.name} is no JSON ({error}). Remove or mend it.") from error
        if isinstance(values, dict) and TELLING_KEY in values:
            return values
    return None


def spectrum_beside(path: Path) -> Path | None:
    """NAME_spectrum.safetensors, or a folder spectrum_net as in the authors' release."""
    folders = (path.parent / "spectrum_net", path.parent.parent / "spectrum_net")
    found = [path.with_name(f"{path.stem}_spectrum.safetensors")]
    found += [file for folder in folders if folder.is_dir() for file in sorted(folder.glob("*.safetensors"))]
    return next((file for file in found if file.exists()), None)


def names_of(config: dict[str, Any] | None, path: Path, classes: int) -> tuple[str, ...]:
    """The classes' names: id2label of the config, NAME.txt with a name a line, or ImageNet's for 1000 classes."""
    listed = path.with_suffix(".txt")
    if listed.exists():
        return tuple(
            line.strip() for line in listed.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()
        )
    if config and isinstance(config.get("id2label"), dict):
        return tuple(config["id2label"].get(str(i), "") for i in range(classes))
    return imagenet_names() if classes == IMAGENET_CLASSES else ()


@cache
def imagenet_names() -> tuple[str, ...]:
    """ImageNet's, in its order, from torchvision, which the host requires; none where it does not work."""
    try:
        from torchvision.models import ResNet18_Weights
    except Exception:  # a torchvision of another build than torch fails in many ways
        return ()
    return tuple(ResNet18_Weights.IMAGENET1K_V1.meta["categories"])


# ---------------------------------------------------------------------------------------------------------
# Labels


def label_conditioning(model, label: str) -> tuple[list, list]:
    """Positive and negative CONDITIONING: the class, and "no label". Raises ValueError for what the model lacks."""
    network = model.get_model_object("diffusion_model")
    if not isinstance(network, GMDiT):
        raise ValueError(
            "GMFlow Label is for class models from Load GMFlow, and this model takes no class. For the Demo Model and "
            "other text models use CLIP Text Encode."
        )
    classes = network.config.num_embeds_ada_norm
    number = number_of(label, getattr(model.model, "names", ()), classes)
    return conditioning_of(number), conditioning_of(classes)


def conditioning_of(number: int) -> list:
    return [[torch.zeros(1, 1, 1), {LABEL: torch.tensor([[number]])}]]


def number_of(label: str, names: tuple[str, ...], classes: int) -> int:
    """The class of a number or a name. Raises ValueError, with names that are near.

    Upper and lower case count only where they tell classes apart: ImageNet has a Cardigan (dog) and a cardigan.
    """
    wanted = label.strip()
    if wanted.lstrip("+-").isdecimal():
        if not 0 <= int(wanted) < classes:
            raise ValueError(f"label is {wanted}; this model knows the numbers 0 to {classes - 1}.")
        return int(wanted)
    if not names:
        raise ValueError(
            f"label is {label!r}, and this model's names are not known. Give a number from 0 to {classes - 1}, or put "
            "a file with a name a line beside the model, called as it is and ending in .txt."
        )
    if names.count(wanted) == 1:
        return names.index(wanted)
    known = [name.lower() for name in names]
    same = [i for i, name in enumerate(known) if name == wanted.lower()]
    if len(same) == 1:
        return same[0]
    if same:
        raise ValueError(f"label {label!r} is the name of several classes; give one of the numbers {same}.")
    raise ValueError(f"label is {label!r}; the model has no such class.{suggestion(wanted.lower(), known)}")


def suggestion(wanted: str, known: list[str]) -> str:
    """A few names that are near, with their numbers."""
    inside = [name for name in known if wanted and wanted in name][:3]
    near = dict.fromkeys(inside + difflib.get_close_matches(wanted, known, 3))
    told = ", ".join(f"{name} ({known.index(name)})" for name in near)
    return f" Near to it: {told}." if told else f" Give a name of ImageNet, or a number from 0 to {len(known) - 1}."
