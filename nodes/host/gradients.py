"""Gradients through the host's model, which it loads and runs as one that will never be asked for any.

Weights and prompts are tensors of inference mode, which torch keeps out of any gradient. Each is stood in for by an
ordinary tensor of the same memory where an operation takes it; nothing is copied, and nothing on the model changes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import comfy.model_management
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

REFUSALS = (RuntimeError, NotImplementedError, TypeError, AttributeError, comfy.model_management.OOM_EXCEPTION)
PLAIN = (Tensor, nn.Parameter)  # quantised tensors and other wrappers hold their numbers elsewhere


def ordinary(tensor: Tensor) -> Tensor:
    """The same memory as a tensor that gradients may pass; others than those of inference mode as they are."""
    if type(tensor) not in PLAIN or not tensor.is_inference():
        return tensor
    with torch._C.DisableTorchFunctionSubclass(), torch.inference_mode(False):
        stand_in = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
        return stand_in.set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride())


class OrdinaryTensors(TorchFunctionMode):
    """Meanwhile no operation sees a tensor of inference mode."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__name__", "") != "__get__":  # shapes, types and devices are the same
            args, kwargs = tree_map_only(Tensor, ordinary, (args, kwargs or {}))
        return func(*args, **(kwargs or {}))


class Kept:
    """Counts the bytes that are kept for a gradient: each memory once, and none of the model's own."""

    def __init__(self, model: nn.Module):
        self.known = {place_of(tensor) for tensor in model.parameters()}
        self.bytes = 0

    def note(self, tensor: Tensor) -> Tensor:
        if (place := place_of(tensor)) not in self.known:
            self.known.add(place)
            self.bytes += tensor.untyped_storage().nbytes()
        return tensor

    def counting(self):
        return torch.autograd.graph.saved_tensors_hooks(self.note, lambda tensor: tensor)


def place_of(tensor: Tensor) -> int:
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):  # a wrapper without memory of its own
        return 0


@contextmanager
def gradients(kept: Kept | None = None) -> Iterator[None]:
    """Operations are recorded, whatever mode the host runs in. kept: counts what that takes."""
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(without_shortcuts())
        stack.enter_context(OrdinaryTensors())
        if kept:
            stack.enter_context(kept.counting())
        yield


@contextmanager
def without_shortcuts() -> Iterator[None]:
    """The host's switch for training, where it has one: its models then leave out what has no gradient."""
    management: Any = sys.modules["comfy.model_management"]  # 0.3.75 has no such switch
    before = getattr(management, "in_training", None)
    if before is None:
        yield
        return
    management.in_training = True
    try:
        yield
    finally:
        management.in_training = before


def through(
    ask: Callable[[Tensor], Tensor],
    x: Tensor,
    work: Callable[[Tensor, Callable[[Tensor], Tensor]], Tensor],
    kept: Kept | None = None,
) -> tuple[Tensor, Tensor]:
    """ask(x), and what `work` makes of it and of v -> J^T v.

    Inside of another's gradient the answer is part of that one's too. Raises one of REFUSALS where torch cannot pass.
    """
    asked_for = torch.is_grad_enabled() and x.requires_grad
    with gradients(kept):
        at = x if asked_for else ordinary(x).detach().requires_grad_()
        answer = ask(at)
        value = answer.detach()
        made = work(value, lambda v: sound(torch.autograd.grad(answer, at, v.to(answer.dtype), retain_graph=True)[0]))
        return (answer if asked_for else value), made.detach()


def sound(gradient: Tensor) -> Tensor:
    """Raises RuntimeError for one that is no number, as of half precision out of its range."""
    if not gradient.isfinite().all():
        raise RuntimeError("the gradient is NaN or infinite")
    return gradient
