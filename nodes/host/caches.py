"""Caches of steps on a MODEL (EasyCache, TeaCache and their kin): they answer some calls with what earlier ones gave.

That is a gain on one falling schedule. Whoever asks the model anything else, or jumps, gets numbers of another place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from comfy.model_patcher import ModelPatcher

from ...samplers.contract import Noise

AROUND = ("model_function_wrapper", "sampler_calc_cond_batch_function")  # of model_options, beside the wrappers
WORDS = ("cache", "taylorseer")
HOLDER = "easycache"  # where the host's EasyCache and LazyCache keep their state, in transformer_options
# Of a holder, what says where it works and what it has done; the rest is what it remembers of earlier calls.
LASTING = frozenset("start_t end_t total_steps_skipped output_change_rates approx_output_change_rates".split())


def caches_on(model: ModelPatcher) -> list[str]:
    """The names of the caches of steps on a MODEL.

    Told by the name of what stands around the call of the model: keys of wrappers, nodes that made the functions,
    functions in the place of the network's own. What keeps keys and values inside of the attention is none.
    """
    own = getattr(holder_in(getattr(model, "model_options", None)), "name", None)
    found = [name for around in things_around(model) if (name := named(*around))]
    if own and found:
        found = [own, *(name for name in found if name not in ("easycache", "lazycache"))]
    return list(dict.fromkeys(found))


def holder_in(options: dict[str, Any] | None) -> Any:
    """What the host's own caches keep their state in, of model options; None where there is none of them."""
    return (options or {}).get("transformer_options", {}).get(HOLDER)


def things_around(model: ModelPatcher) -> Iterator[tuple[str, Any]]:
    """What stands around or in the place of the network's call, with the key that it has there."""
    options = getattr(model, "model_options", {})
    for wrappers in (getattr(model, "wrappers", {}), options.get("transformer_options", {}).get("wrappers", {})):
        for by_key in wrappers.values():
            yield from ((str(key), one) for key, functions in by_key.items() for one in functions)
    yield from (("", options[name]) for name in AROUND if options.get(name) is not None)
    yield from getattr(model, "object_patches", {}).items()
    network = getattr(model.model, "diffusion_model", None)
    yield from (("", value) for value in vars(network).values() if callable(value)) if network is not None else ()


def named(key: str, value: Any) -> str:
    """How a cache calls itself, by the node that made it or by its key; empty for what is none."""
    function = getattr(value, "__func__", value)
    name = getattr(function, "__qualname__", type(value).__name__).split(".")[0]
    for text in (key, name):
        if any(word in text.lower() for word in WORDS):
            return text
    return ""


def check_no_cache(model: ModelPatcher) -> None:
    """Raises ValueError where what is to be measured would be a cache's answers."""
    if found := caches_on(model):
        verb = "is" if len(found) == 1 else "are"
        raise ValueError(
            f"{' and '.join(found)} {verb} on the model: measured through it every number would be wrong. Take the "
            "model from before it."
        )


# ---------------------------------------------------------------------------------------------------------
# Restart


def forgetting(noise: Noise, extra_args: dict[str, Any]) -> Noise:
    """The same noise, and at every jump the host's own caches forget: what they know is of the sigma jumped from."""
    forget = forgetter(holder_in(extra_args.get("model_options")))

    def drawn(sigma_from: float, sigma_to: float):
        if sigma_to > sigma_from:
            forget()
        return noise(sigma_from, sigma_to)

    return drawn


def forgetter(holder: Any) -> Callable[[], None]:
    """Sets a holder back to what a new one is.

    Not by its own `reset`, after which the host's would skip all further calls: it leaves a rate of 0 instead of none.
    """

    def forget() -> None:
        if hasattr(holder, "clone"):
            new = {name: value for name, value in vars(holder.clone()).items() if name not in LASTING}
            vars(holder).update(new)

    return forget


def remembering_at_jumps(model: ModelPatcher) -> list[str]:
    """One sentence where there are caches that cannot be made to forget."""
    holder = holder_in(getattr(model, "model_options", None))
    left = [name for name in caches_on(model) if name != getattr(holder, "name", None)]
    if not left:
        return []
    return [
        f"{' and '.join(left)} on the model remembers across the jumps: after each of them it answers with what it "
        "knows of a picture with less noise. Take the model from before it for Restart."
    ]
