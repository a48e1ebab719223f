"""What a node says: on itself while it works, and afterwards, where it stays."""

from __future__ import annotations

import logging
import sys
from typing import Any

KEY = "fewstep"  # of the node's UI output, which web/js/report.js shows
MOST_RUNS = 4  # that a node tells apart
log = logging.getLogger(__name__)


def server() -> Any:
    """The host's, or None in scripts and tests, where there is nobody to read."""
    module = sys.modules.get("server")
    return module and module.PromptServer.instance


def show_text(node_id: str | None, text: str) -> None:
    """One line on the node while it works; front ends take it away when the job ends."""
    if node_id is not None and server():
        server().send_progress_text(text, node_id)


class Report:
    """What one execution of a node has to say. It stays on the node and in the host's history.

    The host keeps a node's UI output by reference, until the node is executed anew. So what a SAMPLER says later, while
    another node samples with it, reaches the history as well, and a page that is opened afterwards.
    """

    def __init__(self, node_id: str | None):
        self.node_id = node_id
        self.entry: dict[str, Any] = {"text": ""}

    def __deepcopy__(self, memo: dict) -> Report:
        """The host copies what hangs on a model with the model; it is the same node that speaks."""
        return self

    @property
    def ui(self) -> dict[str, list]:
        """The UI output of the node."""
        return {KEY: [self.entry]}

    def say(self, text: str) -> Report:
        """All there is to say, before the node's execution ends."""
        self.entry["text"] = text
        return self

    def draw(self, plot: dict[str, Any] | None) -> Report:
        """What the browser plots on the node, see nodes.host.plots; None takes it away."""
        self.entry["plot"] = plot
        return self

    def add(self, text: str, instead: str = "", plot: dict[str, Any] | None = None) -> None:
        """Said while another node samples: above what was said of earlier runs, and sent to the page at once.

        instead: what was said earlier of the same run. plot: in the place of an earlier one.
        """
        if plot:
            self.draw(plot)
        told = [run for run in self.entry["text"].split("\n\n") if run and run not in (text, instead)]
        self.entry["text"] = "\n\n".join([text, *told][:MOST_RUNS])
        if self.node_id is not None and server():
            message = {"node": self.node_id, "display_node": self.node_id, "output": self.ui}
            prompt = getattr(server(), "last_prompt_id", None)
            server().send_sync("executed", message | {"prompt_id": prompt}, server().client_id)


def complain(report: Report | None, who: str, text: str) -> None:
    """In the console, and on the node where there is one."""
    log.warning("%s: %s", who, text)
    if report:
        report.add(text)
