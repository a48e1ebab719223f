"""What a node says about itself while and after it runs."""

from __future__ import annotations

import sys


def show_text(node_id: str | None, text: str) -> None:
    """Print a text on the node, in the host's own way. Without a server (scripts, tests) there is nobody to read."""
    server = sys.modules.get("server")
    if node_id is not None and server and server.PromptServer.instance is not None:
        server.PromptServer.instance.send_progress_text(text, node_id)
