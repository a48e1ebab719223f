"""Digests of tensors: of every byte, and once a tensor as long as it lives."""

from __future__ import annotations

import hashlib
import os
import weakref
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

CHUNK = 2**24  # bytes that leave the device at a time
SEEN = 1024  # bytes that are looked at, to tell whether a tensor was changed in place
PRUNED = 4096  # storages, after which those that are gone are forgotten


def as_bytes(tensor: Tensor) -> Tensor:
    """What a strided tensor of any type holds, as bytes on its own device. No copy where it is contiguous.

    Raises RuntimeError, TypeError or NotImplementedError for tensors without data.
    """
    with torch._C.DisableTorchFunctionSubclass():  # a subclass may lie about shape and data, as quantised ones do
        plain = tensor.as_subclass(Tensor).detach()
        if plain.is_meta or plain.layout != torch.strided:
            raise TypeError("a tensor without data")
        plain = plain.int_repr() if plain.is_quantized else plain.resolve_conj().resolve_neg()
        return plain.contiguous().reshape(-1).view(torch.uint8)


def digest_of(tensor: Tensor) -> bytes:
    """Of type, shape and every byte; of the device it says nothing."""
    with torch._C.DisableTorchFunctionSubclass():
        found = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    for part in as_bytes(tensor).split(CHUNK):
        found.update(part.cpu().numpy())
    return found.digest()


def glance(tensor: Tensor) -> tuple[int | None, bytes]:
    """What changes when the tensor is changed in place: torch's count of changes, where there is one, and some bytes.

    Tensors made in inference mode, as in the host's nodes, are not counted; nor is what is done through `.data`.
    """
    flat = as_bytes(tensor)
    some = flat[:: max(len(flat) // SEEN, 1)][:SEEN].cpu().numpy().tobytes()
    return None if tensor.is_inference() else tensor._version, some


class Remembered:
    """Digests of tensors that are alive, none of which it keeps alive.

    A tensor is known again by itself, wherever it was moved, or by its storage, where the host wrapped it anew.
    """

    def __init__(self) -> None:
        self.by_object: dict[int, tuple[weakref.ref, tuple, bytes]] = {}
        self.by_storage: dict[tuple, tuple[StorageWeakRef, tuple, bytes]] = {}

    def digest(self, tensor: Tensor) -> bytes:
        now = glance(tensor)
        found = self.found(tensor, now) or digest_of(tensor)
        number = id(tensor)
        gone = weakref.ref(tensor, lambda _: self.by_object.pop(number, None))
        self.by_object[number] = (gone, now, found)
        if len(self.by_storage) > PRUNED:
            self.by_storage = {key: entry for key, entry in self.by_storage.items() if not entry[0].expired()}
        self.by_storage[place_of(tensor)] = (StorageWeakRef(tensor.untyped_storage()), now, found)
        return found

    def found(self, tensor: Tensor, now: tuple) -> bytes | None:
        known = self.by_object.get(id(tensor))
        if known and known[0]() is tensor and known[1] == now:
            return known[2]
        stored = self.by_storage.get(place_of(tensor))
        return stored[2] if stored and not stored[0].expired() and stored[1] == now else None

    def warm(self, tensors: Iterable[Tensor]) -> None:
        """Several at a time: hashing leaves Python's lock. What cannot be read is left for who asks for it."""
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            for work in [pool.submit(self.digest, tensor) for tensor in tensors]:
                work.exception()


def place_of(tensor: Tensor) -> tuple:
    """Which part of which storage, read how."""
    with torch._C.DisableTorchFunctionSubclass():
        shape, stride, offset = tuple(tensor.shape), tensor.stride(), tensor.storage_offset()
        return (tensor.untyped_storage()._cdata, offset, shape, stride, tensor.dtype, str(tensor.device))


remembered = Remembered()
