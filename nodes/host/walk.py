"""A digest of any Python value by what it holds: the same in every process, and never by an address.

Functions are told by name, code, defaults and the values they enclose; objects by class and attributes; tensors and
modules by every byte. What cannot be told so makes the whole unknown, because a digest that leaves something out would
take one question for another.
"""

from __future__ import annotations

import dis
import enum
import functools
import hashlib
import logging
import re
import threading
import types
import uuid
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .progress import Report
from .tensors import digest_of, remembered

DIGITS = 12
DEEPEST = 60  # containers in containers
MOST = 500_000  # values: several LoRAs have a hundred thousand
SCALARS = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.Size, enum.Enum)
FUNCTIONS = (types.BuiltinFunctionType, types.MethodDescriptorType, types.WrapperDescriptorType, np.ufunc)
TORCHS = frozenset(vars(nn.Module()))  # attributes of every module, with what it holds and its hooks
HOOKS = ("_forward_pre_hooks", "_forward_hooks")
# What the host notes on a module when it loads and runs it; it says nothing of the answer.
RUNTIME = frozenset(
    "device weight_function bias_function model_lowvram lowvram_patch_counter model_loaded_weight_memory "
    "model_offload_buffer_memory current_weight_patches_uuid current_patcher dynamic_vbars dynamic_pins "
    "dynamic_patchers seed_key".split()
)
NOTED = ("comfy_", "prev_comfy_", "weight_comfy_", "bias_comfy_", "_v", "_pin", "_prefetch")  # how further ones begin
LOCKS = (type(threading.Lock()), type(threading.RLock()))
HEAP_TYPE = 1 << 9  # of a class that Python code, or a newer extension, made


class Lasting:
    """A value whose tensors stay as they are for long, so that the digest of each is kept."""

    def __init__(self, value: Any):
        self.value = value


class Told:
    """The digest of a value, and what could not be told.

    parts: for objects of the host, what they are made of, or None to look at their attributes.
    known: values with a name, which are told by it: the model's own modules, whose weights stand elsewhere.
    """

    def __init__(
        self, value: Any, parts: Callable[[Any], Any] = lambda value: None, known: Mapping[int, str] | None = None
    ):
        self.parts, self.known = parts, known or {}
        self.unknown: list[str] = []
        self.written: set[int] = set()
        self.begin()
        self.told(value)  # finds the variables that functions write: state, which is not told
        self.begin()
        self.value = self.told(value)

    def begin(self) -> None:
        self.unknown.clear()
        self.done: dict[int, bytes] = {}
        self.kept: list[Any] = []  # as long as it lives its id is its own
        self.depth, self.lasting = 0, False

    @property
    def text(self) -> str:
        """Hexadecimal digits; or a text that equals no other, with names of what is unknown."""
        if self.unknown:
            return f"unknown ({', '.join(dict.fromkeys(self.unknown[:3]))}) {uuid.uuid4().hex[:DIGITS]}"
        return self.value.hex()[:DIGITS]

    # -----------------------------------------------------------------------------------------------------

    def told(self, value: Any) -> bytes:
        if isinstance(value, SCALARS):
            return join(type(value).__name__, str(value))
        if id(value) in self.known:
            return join("known", self.known[id(value)])
        if id(value) in self.done:
            return self.done[id(value)]
        if self.depth > DEEPEST or len(self.done) > MOST:
            return self.not_told("nested too deep")
        self.done[id(value)] = join("inside itself")
        self.kept.append(value)
        self.depth += 1
        try:
            found = self.by_kind(value)
        except Exception as error:  # of an attribute, a tensor or a reduction that is not ours
            found = self.not_told(f"{type(value).__name__} ({type(error).__name__})")
        self.depth -= 1
        self.done[id(value)] = found
        return found

    def not_told(self, name: str) -> bytes:
        self.unknown.append(name)
        return join("unknown")

    def all(self, name: str, *values: Any) -> bytes:
        return join(name, *map(self.told, values))

    def by_kind(self, value: Any) -> bytes:
        for kinds, way in self.ways():
            if isinstance(value, kinds):
                return way(value)
        parts = self.parts(value)
        if parts is not None:
            return self.all("parts", type(value), parts)
        return self.module(value) if isinstance(value, nn.Module) else self.object(value)

    def ways(self) -> Iterator[tuple[Any, Callable[[Any], bytes]]]:
        yield Lasting, self.last
        yield Tensor, self.weight if self.lasting else self.tensor
        yield dict, lambda value: self.all("dict", *(part for item in value.items() for part in item))
        yield (list, tuple), lambda value: self.all("list", *value)
        yield (set, frozenset), lambda value: join("set", *sorted(map(self.told, value)))
        yield types.FunctionType, self.function
        yield types.MethodType, lambda value: self.all("method", value.__func__, value.__self__)
        yield functools.partial, lambda value: self.all("partial", value.func, value.args, value.keywords)
        yield types.CodeType, self.code
        yield type, self.kind
        yield FUNCTIONS, lambda value: join("function", *names_of(value))
        yield types.ModuleType, lambda value: join("module", value.__name__)
        yield (torch.device, torch.layout, torch.memory_format), lambda value: join(type(value).__name__)
        yield np.ndarray, lambda value: self.all("array", torch.from_numpy(np.ascontiguousarray(value)))
        yield np.generic, lambda value: self.all("number", value.item())
        yield torch.Generator, lambda value: self.all("generator", value.get_state())
        yield weakref.ref, lambda value: self.all("reference", value())
        yield (logging.Logger, Report), lambda value: join("speaks")
        yield LOCKS, lambda value: join("lock")
        yield (PurePath, uuid.UUID), lambda value: join(type(value).__name__, str(value))

    # -----------------------------------------------------------------------------------------------------

    def tensor(self, tensor: Tensor, digest: Callable[[Tensor], bytes] = digest_of) -> bytes:
        """A wrapper of tensors by those. A quantised one may hide its shape, and keeps its kind in attributes."""
        flatten = getattr(tensor, "__tensor_flatten__", None)
        if flatten is not None:
            names, context = flatten()
            inner = [self.tensor(getattr(tensor, name), digest) for name in names]
            return join("wrapper", type(tensor).__name__, *names, *inner, self.told(context))
        own = {name: value for name, value in vars(tensor).items() if isinstance(value, SCALARS)}
        return join("tensor", digest(tensor), self.told(own))

    def last(self, value: Lasting) -> bytes:
        before, self.lasting = self.lasting, True
        found = self.told(value.value)
        self.lasting = before
        return found

    def module(self, module: nn.Module) -> bytes:
        """Its class, weights, attributes and hooks, and the same of the modules in it."""
        own = {name: value for name, value in vars(module).items() if not is_noted(name)}
        tensors = (module._parameters | module._buffers).items()
        weights = [part for name, value in tensors if value is not None for part in (name, self.weight(value))]
        inner = [own, hooks_of(module), dict(module._modules)]
        return join("module", self.told(type(module)), *weights, *map(self.told, inner))

    def weight(self, tensor: Tensor) -> bytes:
        """Of a tensor that stays as it is for long."""
        try:
            return self.tensor(tensor, remembered.digest)
        except (RuntimeError, TypeError, NotImplementedError):
            return self.not_told("weights without data")

    def function(self, function: types.FunctionType) -> bytes:
        """Name, code, defaults, attributes, and enclosed values. A variable that is written is state: not told."""
        names, cells = function.__code__.co_freevars, function.__closure__ or ()
        written = written_in(function.__code__)
        self.written |= {id(cell) for name, cell in zip(names, cells, strict=True) if name in written}
        enclosed = [None if id(cell) in self.written else content(cell) for cell in cells]
        given = (function.__defaults__, function.__kwdefaults__, vars(function))
        return self.all("function", *names_of(function), function.__code__, *given, names, enclosed)

    def code(self, code: types.CodeType) -> bytes:
        return self.all("code", code.co_code, code.co_names, code.co_consts)

    def kind(self, kind: type) -> bytes:
        """Its name and those it inherits from; of a class made inside a function, what that wrote into it."""
        return join("type", *(part for base in kind.__mro__ for part in self.base(base)))

    def base(self, base: type) -> Iterable[bytes | str]:
        if "<locals>" not in base.__qualname__:
            return names_of(base)
        return [self.told(value) for value in vars(base).values() if isinstance(value, types.FunctionType)]

    def object(self, value: Any) -> bytes:
        """Its class and attributes; of what Python does not hold as such, what a copy would be made from."""
        call = type(value).__call__ if callable(value) else None
        held = attributes_of(value)
        copied = None if is_of_python(type(value)) else value.__reduce_ex__(4)[:2]
        return self.all("object", type(value), call if isinstance(call, types.FunctionType) else None, held, copied)


def join(*parts: str | bytes) -> bytes:
    """A digest of the parts, each with its length."""
    found = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        found.update(f"{len(data)}:".encode() + data)
    return found.digest()


def without_folder(module: str) -> str:
    """Its name. The host names a pack's modules by the path of the pack's folder, which is another elsewhere."""
    folder, dot, inside = module.partition(".")
    pack = re.split(r"[/\\]", folder)[-1]
    return f"{pack}{dot}{inside}"


def names_of(value: Any) -> tuple[str, str]:
    """Module and name."""
    module = without_folder(str(getattr(value, "__module__", "")))
    return module, str(getattr(value, "__qualname__", getattr(value, "__name__", "")))


def content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return ...


@functools.lru_cache(maxsize=1024)
def written_in(code: types.CodeType) -> frozenset[str]:
    """The names of enclosing functions that a function, or one inside it, writes."""
    own = {step.argval for step in dis.get_instructions(code) if step.opname in ("STORE_DEREF", "DELETE_DEREF")}
    inner = (written_in(part) for part in code.co_consts if isinstance(part, types.CodeType))
    return frozenset(own.union(*inner) & set(code.co_freevars))


def is_noted(name: str) -> bool:
    return name in TORCHS or name in RUNTIME or name.startswith(NOTED)


def hooks_of(module: nn.Module) -> list[Any]:
    """Functions that change what a module is given or answers, and a `forward` of its own."""
    hooks = [hook for name in HOOKS for hook in vars(module)[name].values()]
    return [*hooks, vars(module)["forward"]] if "forward" in vars(module) else hooks


def is_of_python(kind: type) -> bool:
    """Whether all that its objects hold are attributes."""
    return all(base is object or base.__flags__ & HEAP_TYPE for base in kind.__mro__)


def attributes_of(value: Any) -> dict[str, Any]:
    """By name. Results that are kept on the object (cached_property) are none."""
    kinds = type(value).__mro__
    slots = [name for kind in kinds for name in listed(vars(kind).get("__slots__", ()))]
    held = {name: getattr(value, name) for name in slots if not name.startswith("__") and hasattr(value, name)}
    cached = {name for kind in kinds for name, one in vars(kind).items() if isinstance(one, functools.cached_property)}
    return held | {name: one for name, one in getattr(value, "__dict__", {}).items() if name not in cached}


def listed(slots: Any) -> tuple[str, ...]:
    return (slots,) if isinstance(slots, str) else tuple(slots)
