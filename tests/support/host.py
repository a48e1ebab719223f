"""ComfyUI inside this process: for training, benchmarks, the tests that need no server, and the server itself."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import runpy
import sys
import threading
from pathlib import Path

kept = []  # torch forgets the operators of a Library that nobody holds


def start_host() -> None:
    """Make `import comfy` work as inside the host: its options parsed, on the CPU where there is no GPU."""
    if "comfy.cli_args" in sys.modules:
        return
    arguments, sys.argv = sys.argv, [sys.argv[0], *device_arguments()]
    try:
        declare_missing_vision_operators()
        importlib.import_module("comfy.options").enable_args_parsing()
        importlib.import_module("comfy.model_management")
    finally:
        sys.argv = arguments


def device_arguments() -> list[str]:
    import torch

    accelerated = torch.cuda.is_available() or torch.backends.mps.is_available()
    return [] if accelerated else ["--cpu"]


def declare_missing_vision_operators() -> None:
    """A CPU-only torch beside the ordinary torchvision lacks two operators that torchvision's import looks up."""
    import torch

    found = importlib.util.find_spec("torchvision")
    if found is None or found.origin is None:
        return
    for binary in Path(found.origin).parent.glob("_C*"):
        with contextlib.suppress(OSError):
            torch.ops.load_library(str(binary))
            return
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    kept.append(library)


def end_with_parent() -> None:
    """Leave when standard input closes: a server never outlives the process that started it.

    Read without Python's buffer, whose lock a failed start would find taken when the interpreter ends.
    """
    while os.read(0, 1):
        pass
    os._exit(0)


if __name__ == "__main__":  # python host.py main.py [ComfyUI's arguments]
    sys.argv = [sys.argv[1], *device_arguments(), *sys.argv[2:]]
    declare_missing_vision_operators()
    threading.Thread(target=end_with_parent, daemon=True).start()
    sys.path[0] = str(Path(sys.argv[0]).parent)
    runpy.run_path(sys.argv[0], run_name="__main__")
