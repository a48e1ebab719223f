"""What stands behind a GUIDER: its models, its numbers and its prompts; and guiders of our own made of one.

A guider of the host's ordinary kind is told by cfg and prompts alone, as if these had come at sockets of their own.
Any other is also told by its class and everything that was set on it.
"""

from __future__ import annotations

import copy
import inspect
import weakref
from typing import Any

import comfy.samplers
from comfy.model_patcher import ModelPatcher

from .identity import conditioning_digest, identify, modules_of, parts_of
from .walk import Told, attributes_of

GUIDING = ("__call__", "outer_predict_noise", "predict_noise", "inner_sample", "outer_sample", "sample")
# What the host's own guiders hold besides what was set on them: their parts, and what they note while they run. A cfg
# that is no argument of set_cfg is made of those that are, and made anew in a run (LTXV's of video and audio).
PARTS = frozenset("model_patcher model_options original_conds inner_model conds loaded_models cfg".split())
NOTED = frozenset("uncond_inner uncond_loaded".split())


def guider_for(model: ModelPatcher, positive: list, negative: list, cfg: float) -> comfy.samplers.CFGGuider:
    """The host's ordinary guidance, with everything that hangs on the model."""
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(cfg)
    return guider


def fresh(guider: comfy.samplers.CFGGuider) -> comfy.samplers.CFGGuider:
    """The same guidance on an object of its own: what a run notes there does not stay on the person's."""
    made = copy.copy(guider)
    made.original_conds = dict(guider.original_conds)
    return made


def without_guidance(guider: comfy.samplers.CFGGuider) -> comfy.samplers.CFGGuider:
    """The prediction of the model under the prompt alone, which is the positive one where there are several."""
    if is_ordinary(guider):
        made = fresh(guider)
    else:
        made = comfy.samplers.CFGGuider(guider.model_patcher)
        made.model_options = guider.model_options
        made.original_conds = {"positive": prompt_alone(guider), "negative": []}
    made.set_cfg(1.0)
    return made


def prompt_alone(guider: comfy.samplers.CFGGuider) -> list:
    conds = guider.original_conds
    return conds.get("positive") or next(iter(conds.values()))


# ---------------------------------------------------------------------------------------------------------
# Whether it is one


def check_guider(guider: Any) -> None:
    """Raises ValueError, in words, for what is no GUIDER, and for one without a model or a prompt."""
    if not hasattr(guider, "model_patcher") or not callable(getattr(guider, "sample", None)):
        raise ValueError(
            f"guider is a {type(guider).__name__}; it must be a GUIDER. Connect Basic Guider, CFG Guider or another "
            "guider node; or none, and model, positive, negative and cfg instead."
        )
    name = type(guider).__name__
    if not all(hasattr(model, "get_model_object") for model in [guider.model_patcher, *further_models(guider)]):
        raise ValueError(f"The guider {name} has no model. Connect a node that loads one to it.")
    if not any(getattr(guider, "original_conds", {}).values()):
        raise ValueError(f"The guider {name} has no prompt. Connect an encoded prompt to it.")


def is_ordinary(guider: comfy.samplers.CFGGuider) -> bool:
    """Whether it guides as the host's CFG Guider does, whose Basic Guider is one at cfg 1 and without a negative."""
    kind, ordinary = type(guider), comfy.samplers.CFGGuider
    same = all(getattr(kind, name, None) is getattr(ordinary, name) for name in GUIDING)
    return same and list(numbers_of(guider)) == ["cfg"] and not settings_of(guider) and has_two_sides(guider)


def has_two_sides(guider: comfy.samplers.CFGGuider) -> bool:
    return {"positive"} <= set(guider.original_conds) <= {"positive", "negative"}


# ---------------------------------------------------------------------------------------------------------
# What it is


def identify_guided(guider: comfy.samplers.CFGGuider) -> dict[str, Any]:
    """`identify` of its model, and how it guides. guider: empty for the ordinary kind."""
    return as_guided(identify(guider.model_patcher), guider)


def as_guided(facts: dict[str, Any], guider: comfy.samplers.CFGGuider) -> dict[str, Any]:
    return facts | {"cfg": cfg_of(guider), "guider": guider_fact(guider)}


class Recognised:
    """`identify_guided`, remembered of a MODEL with its patches: to walk all modules of a large one takes seconds.

    Whatever the host or a pack changes on a MODEL, it changes on a clone.
    """

    def __init__(self) -> None:
        self.models: weakref.WeakKeyDictionary[ModelPatcher, tuple[Any, dict[str, Any]]] = weakref.WeakKeyDictionary()

    def __call__(self, guider: comfy.samplers.CFGGuider) -> dict[str, Any]:
        model = guider.model_patcher
        patches, facts = self.models.get(model, (None, {}))
        if patches != model.patches_uuid:
            facts = identify(model)
            self.models[model] = (model.patches_uuid, facts)
        return as_guided(facts, guider)


recognised = Recognised()


def numbers_of(guider: comfy.samplers.CFGGuider) -> dict[str, Any]:
    """What its `set_cfg` takes, by name: cfg; cfg1, cfg2 and nested; video_cfg and audio_cfg."""
    setter = getattr(guider, "set_cfg", None)
    taken = inspect.signature(setter).parameters if setter else {}
    found = {name: getattr(guider, name) for name in taken if hasattr(guider, name)}
    return found or {"cfg": getattr(guider, "cfg", 1.0)}


def cfg_of(guider: comfy.samplers.CFGGuider) -> float:
    """Its cfg; the first of several."""
    numbers = numbers_of(guider)
    real = (value for value in [numbers.get("cfg"), *numbers.values()] if isinstance(value, (int, float)))
    return next(real, 1.0)


def settings_of(guider: comfy.samplers.CFGGuider) -> dict[str, Any]:
    """What else was set on it, by name: further models, objects of other packs."""
    left_out = PARTS | NOTED | set(numbers_of(guider))
    held = sorted(attributes_of(guider).items())
    return {name: value for name, value in held if name not in left_out and not name.startswith("_")}


def further_models(guider: comfy.samplers.CFGGuider) -> list[ModelPatcher]:
    """Those beside its first: Dual Model Guider's for the negative prompt."""
    return [value for value in settings_of(guider).values() if isinstance(value, ModelPatcher)]


def guider_fact(guider: comfy.samplers.CFGGuider) -> str:
    """Numbers, class, and a digest of all that was set on it; empty for the ordinary kind.

    Begins with "unknown", and equals nothing, where something cannot be told.
    """
    if is_ordinary(guider):
        return ""
    numbers, settings = numbers_of(guider), settings_of(guider)
    models = {name: identify(value) for name, value in settings.items() if isinstance(value, ModelPatcher)}
    unknown = [fact for facts in models.values() for fact in facts.values() if str(fact).startswith("unknown")]
    if unknown:
        return unknown[0]
    told = Told([type(guider), numbers, settings | models], parts_of, modules_of(guider.model_patcher))
    return told.text if told.unknown else f"{in_words(numbers)} ({type(guider).__name__}) {told.text}"


def in_words(numbers: dict[str, Any]) -> str:
    shown = {name: f"{value:g}" if isinstance(value, float) else str(value) for name, value in numbers.items()}
    return ", ".join(f"{name} {value}" for name, value in shown.items())


def prompt_digest(guider: comfy.samplers.CFGGuider) -> str:
    """Of all its prompts, and what hangs on them. Of an ordinary guider: of the positive and the negative ones."""
    conds = {name: as_conditioning(prompt) for name, prompt in guider.original_conds.items()}
    if has_two_sides(guider):
        return conditioning_digest(conds["positive"], conds.get("negative", []))
    return conditioning_digest(*([name, prompt] for name, prompt in sorted(conds.items())))


def as_conditioning(prompt: list[dict[str, Any]]) -> list:
    """What a guider keeps of a CONDITIONING, as that was: the text in front, and no number of the guider's own."""
    own = ("cross_attn", "uuid")
    rest = ({k: v for k, v in one.items() if k not in own and (k != "model_conds" or v)} for one in prompt)
    return [[one.get("cross_attn"), left] for one, left in zip(prompt, rest, strict=True)]
