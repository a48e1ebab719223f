"""What a calibration was measured on, and whether a model is the same."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

import comfy.controlnet
import comfy.hooks
import comfy.sd
from comfy.model_base import BaseModel
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from .tensors import remembered
from .walk import Lasting, Told, hooks_of

KEPT = 2  # which facts are kept of a model: with 1 some tensors' values, no functions and no model sampling
BOOST = "fewstep_boost"  # the key of its wrapper
ORDINARY = "CFG Guider"  # what is meant where no guider is named
NAMED = 3  # functions on a model that a person reads of
OLDER = (
    "with an older FewStep, which kept less of where: another checkpoint, LoRA or guidance cannot be told; measure "
    "again to be sure"
)


def identify(model: ModelPatcher) -> dict[str, Any]:
    """Facts about a MODEL, as JSON values. What cannot be told of it begins with "unknown" and equals nothing."""
    sampling, latent = model.get_model_object("model_sampling"), model.get_model_object("latent_format")
    shift = getattr(sampling, "shift", None)
    return {
        "identity": KEPT,
        "model": weights_digest(model),
        "patches": patches_digest(model),
        "functions": functions_on(model),
        "latent_format": type(latent).__name__,
        "channels": latent.latent_channels,
        "prediction": model.model.model_type.name,
        "sampling": f"{prediction_of(sampling)} {Told(sampling, parts_of).text}",
        "shift": None if shift is None else float(shift),
        "sigma_max": float(sampling.sigma_max),
        "sigma_min": float(sampling.sigma_min),
    }


def differences(facts: dict[str, Any], here: dict[str, Any], remedy: str) -> list[str]:
    """What differs from the model `here`, in the person's words. Raises ValueError where the use would be nonsense."""
    if "channels" in facts and facts["channels"] != here["channels"]:
        raise ValueError(
            f"This was made on {facts.get('latent_format')} latents of {facts['channels']} channels; this model has "
            f"{here['latent_format']} latents of {here['channels']}. {remedy}"
        )
    sentences = {
        "model": "on another checkpoint",
        "patches": "with other LoRAs or patches",
        "functions": f"with functions on the model: {compared('functions', facts, here)}",
        "latent_format": f"on {facts.get('latent_format')} latents, not {here['latent_format']}",
        "prediction": f"on a model of type {facts.get('prediction')}, not {here['prediction']}",
        "shift": f"at shift {facts.get('shift')}, not {here['shift']}",
        "sampling": f"with a model sampling: {compared('sampling', facts, here)}",
        "cfg": f"at cfg {facts.get('cfg')}, not {here.get('cfg')}",
        "guider": f"with other guidance: {compared('guider', facts, here, ORDINARY)}",
    }
    facts = {"guider": ""} | facts if "cfg" in facts else facts
    left = {name for name in ("shift", "prediction") if facts.get(name) != here.get(name)}
    silent = {"sampling"} if left else set()  # said by those
    if "guider" in here and facts.get("guider") != here["guider"]:
        silent.add("cfg")  # the guider's numbers are said
    older = facts.get("identity") != here.get("identity") and "model" in facts
    if older:
        silent |= {"model", "patches", "functions", "sampling"}
    found = [
        text
        for name, text in sentences.items()
        if name in facts and name in here and facts[name] != here[name] and name not in silent
    ]
    return [*found, OLDER] if older else found


def compared(fact: str, facts: dict[str, Any], here: dict[str, Any], nothing: str = "nothing") -> str:
    """Names and a digest of both sides, for a person."""
    one, other = (str(of.get(fact, "")).rpartition(" ")[0] or nothing for of in (facts, here))
    if "unknown" in one or "unknown" in other:
        what = (one if "unknown" in one else other).partition("unknown ")[2]
        return f"of a kind that cannot be told from others {what}"
    return f"{one} of other settings" if one == other else f"{one}, not {other}"


# ---------------------------------------------------------------------------------------------------------
# Weights


def weights_digest(model: ModelPatcher) -> str:
    """Of the checkpoint's own weights: where LoRAs are merged into them, the host keeps the originals aside."""
    network, changed = own_network(model), getattr(model, "object_patches", {})
    weights = {name: original(model, f"diffusion_model.{name}", value) for name, value in kept_tensors(network)}
    hooks = {name: hooks_of(module) for name, module in network.named_modules()}
    own = {name: those for name, those in hooks.items() if those and f"diffusion_model.{name}.forward" not in changed}
    remembered.warm(weights.values())
    return Told([type(network), Lasting(weights), own], parts_of, modules_of(model)).text


def own_network(model: ModelPatcher) -> nn.Module:
    """The network, also while another one stands in its place, as in a run of a compiled one."""
    aside = getattr(model, "object_patches_backup", {}).get("diffusion_model")
    return model.model.diffusion_model if aside is None else aside


def kept_tensors(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers that a file holds. Not the state dict, which quantised networks fake."""
    yield from network.named_parameters(remove_duplicate=False)
    for prefix, module in network.named_modules():
        for name, value in module._buffers.items():
            if value is not None and name not in module._non_persistent_buffers_set:
                yield f"{prefix}.{name}", value


def original(model: ModelPatcher, key: str, value: Tensor) -> Tensor:
    """A weight without LoRAs, those of conditionings too. Patchers of other packs may keep nothing aside."""
    backup, hooked = getattr(model, "backup", {}).get(key), getattr(model, "hook_backup", {}).get(key)
    if backup is not None:
        return backup.weight
    return value if hooked is None else hooked[0]


def patches_digest(model: ModelPatcher) -> str:
    """Of the LoRAs and other weight patches; empty where there are none."""
    return Told(Lasting(model.patches), parts_of, modules_of(model)).text if model.patches else ""


# ---------------------------------------------------------------------------------------------------------
# Functions, and other objects of the host


def functions_on(model: ModelPatcher) -> str:
    """Of everything on a MODEL that changes its answer beside weights: names, and a digest; empty where there is none.

    Guidance, patches of attention, wrappers, callbacks, injections, and objects put in the place of the model's own.
    """
    held = functions_of(model)
    if not held:
        return ""
    told = Told(held, parts_of, modules_of(model))
    names = list(dict.fromkeys(names_in(held)))
    more = ["..."] if len(names) > NAMED else []
    return told.text if told.unknown else f"{', '.join(names[:NAMED] + more)} {told.text}".strip()


def functions_of(model: ModelPatcher) -> dict[str, Any]:
    """What other nodes put on a MODEL, without what is empty, and without Boost, which changes no answer of it."""
    objects = getattr(model, "object_patches", {})
    names = (
        "model_options wrappers callbacks injections forced_hooks weight_wrapper_patches attachments additional_models"
    )
    held = {name: getattr(model, name, None) for name in names.split()}
    own = {name: value for name, value in objects.items() if name != "model_sampling"}  # which has its own fact
    wrappers = {
        kind: {key: those for key, those in by_key.items() if key != BOOST}
        for kind, by_key in (held["wrappers"] or {}).items()
    }
    return filled(held | {"wrappers": wrappers, "objects": own}) or {}


def filled(value: Any) -> Any:
    """Nested dictionaries without None and empty containers; None where nothing is left."""
    if isinstance(value, dict):
        inner = {name: filled(part) for name, part in value.items()}
        return {name: part for name, part in inner.items() if part is not None} or None
    return None if isinstance(value, (list, tuple)) and not value else value


def names_in(value: Any) -> Iterator[str]:
    """What the functions and objects in nested containers are called: a node's class, where one made them."""
    if isinstance(value, dict):
        yield from chain.from_iterable(map(names_in, value.values()))
    elif isinstance(value, (list, tuple)):
        yield from chain.from_iterable(map(names_in, value))
    elif callable(value) or hasattr(value, "__dict__"):
        yield getattr(value, "__qualname__", type(value).__name__).split(".")[0]


def parts_of(value: Any) -> Any:
    """What objects of the host are made of, without what they note while they run; None for others."""
    if isinstance(value, ModelPatcher):
        return [value.model, Lasting(value.patches), functions_of(value)]
    if isinstance(value, BaseModel):
        return [value.model_sampling, value.diffusion_model]
    if isinstance(value, comfy.sd.VAE):
        return [value.first_stage_model]
    if isinstance(value, comfy.controlnet.ControlBase):  # a copy has what was set on it, and nothing of a run
        return [vars(value.copy()), value.previous_controlnet]
    if isinstance(value, comfy.hooks.HookGroup):
        return value.hooks
    if isinstance(value, comfy.hooks.HookKeyframeGroup):
        return [value.keyframes]
    if isinstance(value, (comfy.hooks.Hook, comfy.hooks.HookKeyframe)):
        return {name: one for name, one in vars(value).items() if name not in ("hook_ref", "_skip_adding", "start_t")}
    return None


def modules_of(model: ModelPatcher) -> dict[int, str]:
    """The model's own modules by their ids: their weights are told elsewhere."""
    modules = chain(model.model.named_modules(), own_network(model).named_modules())
    return {id(module): f"the model's {name}" for name, module in modules}


def prediction_of(sampling) -> str:
    """V_PREDICTION and the like: of the classes that the host joined, the one that is no module."""
    kinds = [kind for kind in type(sampling).__mro__ if not issubclass(kind, nn.Module)]
    return kinds[0].__name__


# ---------------------------------------------------------------------------------------------------------


def conditioning_digest(*conditionings: list) -> str:
    """Of prompts and what hangs on them: tensors, masks, areas, strengths, ControlNets, LoRAs and time ranges."""
    return Told(list(conditionings), parts_of).text
