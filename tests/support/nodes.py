"""Nodes called in this process: the host's own, and the list of ours."""

from __future__ import annotations

import asyncio
import inspect
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any


def executed(node: type, *given: Any) -> Any:
    """The first output of a node; switches that a newer host has added are off."""
    parameters = list(inspect.signature(node.execute).parameters.values())[len(given) :]  # type: ignore[attr-defined]
    added = {p.name: False for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD}
    output = node.execute(*given, **added)  # type: ignore[attr-defined]
    return getattr(output, "args", output)[0]


def of_the_pack() -> dict[str, Any]:
    """Our nodes by id. Asked for in a thread: a browser's tests leave an event loop running in this one."""
    from fewstep.nodes.extension import FewStepExtension

    with ThreadPoolExecutor(1) as aside:
        listed = aside.submit(asyncio.run, FewStepExtension().get_node_list()).result()
    return {node.define_schema().node_id: node for node in listed}


def outside_of_a_graph(node: type) -> Any:
    """A node of ours that can be executed by itself: nobody hands it what the host hides."""
    return type(node.__name__, (node,), {"hidden": SimpleNamespace(unique_id=None, prompt=None, extra_pnginfo=None)})
