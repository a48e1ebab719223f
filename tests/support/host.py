"""ComfyUI inside this process: for training, benchmarks and the tests that need no server."""

from __future__ import annotations

import importlib
import importlib.util
import sys


def start_host() -> None:
    """Make `import comfy` work as it does inside the host: its options parsed, on the CPU where there is no GPU."""
    if "comfy.cli_args" in sys.modules:
        return
    import torch

    declare_missing_vision_operators()
    arguments, sys.argv = sys.argv, [sys.argv[0]] + ([] if torch.cuda.is_available() else ["--cpu"])
    try:
        importlib.import_module("comfy.options").enable_args_parsing()
        importlib.import_module("comfy.model_management")
    finally:
        sys.argv = arguments


def declare_missing_vision_operators() -> None:
    """A CPU-only torch beside an ordinary torchvision lacks two operators that torchvision's import looks up."""
    import torch

    if importlib.util.find_spec("torchvision") is None or hasattr(torch.ops.torchvision, "nms"):
        return
