"""What of a workflow is run by workers: its measuring nodes, and what these stand on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CARRIED = {
    "FewStepEstimateStatistics": "Estimate Statistics",
    "FewStepMeasureSpread": "Measure Spread",
    "FewStepSearchSchedule": "Search Schedule",
    "FewStepTune": "Tune",
    "FewStepCompare": "Compare",
}

PREFIX = "fewstep/compare"  # of what Compare saves, where the workflow names none


def read(path: Path) -> dict[str, Any]:
    """The part of a workflow file, in the API's format, that measures. Raises ValueError, in words."""
    try:
        workflow = json.loads(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a workflow: it is no text.") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not a workflow: {error}. Give a file of Workflow > Export (API).") from error
    if isinstance(workflow, dict) and "nodes" in workflow:
        raise ValueError(f"{path} is a workflow as the browser saves it. Save it anew with Workflow > Export (API).")
    if not is_prompt(workflow):
        raise ValueError(f"{path} is not a workflow of the API's format. Give a file of Workflow > Export (API).")
    return measuring(workflow, str(path))


def is_prompt(workflow: Any) -> bool:
    nodes = list(workflow.values()) if isinstance(workflow, dict) else []
    return bool(nodes) and all(isinstance(node, dict) and {"class_type", "inputs"} <= set(node) for node in nodes)


def measuring(prompt: dict[str, Any], name: str) -> dict[str, Any]:
    """The measuring nodes with all that they stand on; the rest would be drawn by every worker, for nothing.

    Raises ValueError for a workflow with no measuring node.
    """
    wanted = [number for number, node in prompt.items() if node["class_type"] in CARRIED]
    if not wanted:
        raise ValueError(
            f"{name} has no node that measures. Those that many workers share: {listed(CARRIED.values())}."
        )
    kept: set[str] = set()
    while wanted:
        number = wanted.pop()
        kept.add(number)
        wanted += [source for source in sources(prompt[number]) if source in prompt and source not in kept]
    return {number: node for number, node in prompt.items() if number in kept}


def prefixes(prompt: dict[str, Any]) -> tuple[str, ...]:
    """How the names begin of what is saved in the output folder, as far as they stand in the workflow."""
    given = [node["inputs"].get("filename_prefix", PREFIX) for node in prompt.values()]
    return tuple({str(prefix).strip().replace("\\", "/").partition("%")[0] for prefix in given})


def sources(node: dict[str, Any]) -> list[str]:
    """Of its links, which are [node, output]."""
    return [str(value[0]) for value in node["inputs"].values() if isinstance(value, list) and len(value) == 2]


def listed(names: Any) -> str:
    *first, last = dict.fromkeys(names)
    return f"{', '.join(first)} and {last}" if first else last
