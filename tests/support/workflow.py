"""A workflow as the browser saves it -> the prompt that the host's API takes."""

from __future__ import annotations

SEED_CONTROLS = {"fixed", "increment", "decrement", "randomize"}


def to_prompt(workflow: dict, object_info: dict) -> dict:
    """Workflows of either format: what is already a prompt is returned as it is.

    Widget values are positional in saved workflows: the inputs of object_info in their order, those without a
    socket type of their own; a seed is followed by the browser's "control after generate".
    Raises ValueError for a node that the host does not have.
    """
    if "nodes" not in workflow:
        return workflow
    links = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    prompt = {}
    for node in workflow["nodes"]:
        if node["type"] in ("Note", "MarkdownNote") or node.get("mode", 0) != 0:
            continue
        if node["type"] not in object_info:
            raise ValueError(f"The workflow needs the node {node['type']}, which this ComfyUI does not have.")
        inputs = widget_values(node, object_info[node["type"]])
        for socket in node.get("inputs", []):
            if socket.get("link") is not None:
                inputs[socket["name"]] = links[socket["link"]]
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return prompt


def widget_values(node: dict, info: dict) -> dict:
    """The node's widgets by name."""
    values = list(node.get("widgets_values", []))
    found = {}
    for group in ("required", "optional"):
        for name in info["input_order"].get(group, []):
            if values and is_widget(info["input"][group][name]):
                found[name] = values.pop(0)
                if name in ("seed", "noise_seed") and values and values[0] in SEED_CONTROLS:
                    values.pop(0)
    return found


def is_widget(spec: list) -> bool:
    """Lists and these four types are drawn as widgets; everything else is a socket."""
    return isinstance(spec[0], list) or spec[0] in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
