"""A device without float64, as MPS and DirectML are, on the CPU: tensors that say they are there and refuse it.

What a sampler of the host is handed (x, sigmas, the noise, the model's answers) is on the device; so is what is made of
it, until it is brought to the CPU. There, as on the device, the numbers are the CPU's own.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_any, tree_leaves, tree_map_only

DEVICE = torch.device("mps")  # the name; nothing is moved anywhere
CPU = torch.device("cpu")
ACROSS = {"to", "copy_", "__getitem__", "__setitem__", "type_as", "__get__", "as_subclass"}  # take both devices
NUMBERS = {"item", "tolist", "__float__", "__int__", "__bool__", "__index__", "nonzero", "equal", "allclose", "unique"}


class Ran(list[str]):
    """The names of the sampler functions that ran, and where they waited for the device: for copies, both ways.

    past_the_double: something is heard of the network itself, whose numbers do not come through `Model`.
    """

    def __init__(self) -> None:
        self.reads: list[str] = []
        self.past_the_double = False


ran = Ran()


class OnDevice(torch.Tensor):
    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        return compute(func, args, kwargs or {})


class Mode(TorchFunctionMode):
    """For what is made on the device, or moved to it, out of nothing that is there."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return compute(func, args, kwargs or {})


def on_device(tensor: Tensor) -> Tensor:
    if tensor.dtype in (torch.float64, torch.complex128):
        raise RuntimeError("a float64 tensor on a device that has none")  # no TypeError: operators would hide it
    return tensor.as_subclass(OnDevice)


def off_device(tree: Any) -> Any:
    return tree_map_only(OnDevice, lambda t: t.as_subclass(torch.Tensor), tree)


def place() -> str:
    """Who calls torch, as "file:line"."""
    frame: Any = sys._getframe(1)
    while frame.f_code.co_filename == __file__ or f"{os.sep}torch{os.sep}" in frame.f_code.co_filename:
        frame = frame.f_back
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"


def compute(func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    """One operation of torch, its result where the device would have it."""
    here = tree_any(lambda leaf: isinstance(leaf, OnDevice), (args, kwargs))
    if here and func == torch.Tensor.device.__get__:
        return DEVICE
    if here and func.__name__ == "numpy":
        raise RuntimeError("a tensor on the device cannot be a numpy array")
    mixed = here and not ran.past_the_double and func.__name__ not in ACROSS
    if mixed and any(elsewhere(leaf) for leaf in tree_leaves((args, kwargs))):
        raise RuntimeError(f"{func.__name__} of tensors on two devices")
    wanted = kwargs.get("device")
    if func.__name__ == "to":
        wanted = next((leaf for leaf in (*args[1:], wanted) if isinstance(leaf, (str, torch.device, Tensor))), None)
    if isinstance(wanted, Tensor):
        there = isinstance(wanted, OnDevice)
    elif wanted is not None:
        there = torch.device(wanted) == DEVICE
    else:
        there = here and func.__name__ != "cpu"
    if here and (func.__name__ in NUMBERS or (func.__name__ in ("to", "cpu") and not there) or by_mask(func, args)):
        ran.reads.append(place())
    brought = func.__name__ in ("tensor", "as_tensor") or (func.__name__ == "to" and not kwargs.get("non_blocking"))
    if brought and there and not here:
        ran.reads.append(place())
    args, kwargs = tree_map_only(torch.device, lambda d: CPU if d == DEVICE else d, off_device((args, kwargs)))
    with torch._C.DisableTorchFunctionSubclass():
        result = func(*args, **kwargs)
        return tree_map_only(Tensor, on_device, result) if there else result


def elsewhere(leaf: Any) -> bool:
    """A tensor on the CPU that is no single number: those are taken from there by every device."""
    with torch._C.DisableTorchFunction():
        return isinstance(leaf, Tensor) and not isinstance(leaf, OnDevice) and leaf.dim() > 0


def by_mask(func: Callable, args: tuple) -> bool:
    """Whether a mask on the device says which elements are taken: how many they are has to be waited for."""
    return func.__name__ == "__getitem__" and isinstance(args[1], OnDevice) and args[1].dtype == torch.bool


class Model:
    """The host's model as a sampler function sees it, whose answers are on the device."""

    def __init__(self, model):
        self.model = model

    def __call__(self, x: Tensor, sigma: Tensor, **extra) -> Tensor:
        assert isinstance(x, OnDevice), "the model is given a latent that is not on its device"
        with torch._C.DisableTorchFunction():
            return on_device(self.model(*off_device((x, sigma)), **off_device(extra)))

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.model, name)
        return on_device(value) if name in ("noise", "latent_image") else value


@contextmanager
def device_without_float64(monkeypatch) -> Iterator[Ran]:
    """All sampling of the host on such a device; yields what ran there."""
    import comfy.samplers
    from fewstep.nodes.host.answers import InParts

    ran.clear()
    ran.reads.clear()
    ran.past_the_double = False
    original = comfy.samplers.KSAMPLER.sample

    def sample(self, *args, **kwargs):
        function = self.sampler_function

        def there(model, x, sigmas, extra_args=None, callback=None, disable=None, **options):
            ran.append(function.__name__)
            given = {k: on_device(v) if isinstance(v, Tensor) else v for k, v in (extra_args or {}).items()}
            with Mode():
                x, sigmas = on_device(x.clone()), on_device(sigmas.clone())
                drawn = function(
                    Model(model), x, sigmas, extra_args=given, callback=callback, disable=disable, **options
                )
            return off_device(drawn)

        self.sampler_function = there
        try:
            return original(self, *args, **kwargs)
        finally:
            self.sampler_function = function

    hear = InParts.hear

    def heard(self, args):
        answer = hear(self, args)
        self.pushes[:] = map(on_device, self.pushes)
        return answer

    with monkeypatch.context() as patch:
        patch.setattr(comfy.samplers.KSAMPLER, "sample", sample)
        patch.setattr(InParts, "hear", heard)
        yield ran
