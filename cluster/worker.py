"""One worker: a real ComfyUI with the pack, and the line on which its measuring nodes ask for parts."""

from __future__ import annotations

import contextlib
import os
import queue
import secrets
import shutil
import tempfile
import threading
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from typing import Any

from fewstep.cluster.board import Asked, Ended, Failed, Made, Said
from fewstep.nodes.measuring import crew
from support.server import Died, HostError, Server, serving

KEPT = Path("models") / "fewstep"  # where the nodes keep what they measured
OUTPUT = Path("output")  # and where they save tables and pictures
SAVED = ".safetensors"


def found_in(base: Path) -> dict[str, Path]:
    """What a measurement leaves in a host's folder, by its place there."""
    there = [*(base / KEPT).rglob(f"*{SAVED}"), *(path for path in (base / OUTPUT).rglob("*") if path.is_file())]
    return {path.relative_to(base).as_posix(): path for path in there}


class Worker:
    """An actor of Ray. Each of its calls tells the host something, and returns what the host says next.

    arguments: the host's own. variables: of its environment. folder: for what it writes, on this machine.
    """

    def __init__(self, arguments: str, variables: dict[str, str], folder: str | None):
        self.base = Path(tempfile.mkdtemp(prefix="fewstep-", dir=folder))
        secret = secrets.token_bytes(32)
        self.listener = Listener(("127.0.0.1", 0), authkey=secret)
        os.environ |= variables
        os.environ["PYTHONHASHSEED"] = "0"  # in which order the host takes the nodes hangs on it
        os.environ["COMFYUI_ARGUMENTS"] = arguments
        os.environ[crew.VARIABLE] = f"{self.listener.address[1]} {secret.hex()}"
        self.said: queue.Queue[Said] = queue.Queue()
        self.running = contextlib.ExitStack()
        self.line: Connection
        self.done, self.began = 0, 0  # calls of the model: now, and when the part was begun

    def begin(self, prompt: dict, files: dict[str, bytes]) -> Said:
        """Start the host, with these files in its folder, and run the workflow."""
        for name, content in files.items():
            path = self.base / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        try:
            server = self.running.enter_context(serving(base=self.base))
        except HostError as error:
            return Failed(str(error), died=True)
        threading.Thread(target=self.listen, daemon=True).start()
        threading.Thread(target=self.run, args=(server, prompt, files), daemon=True).start()
        return self.said.get()

    def answer(self, order: str, given: Any) -> Said:
        """As nodes/measuring/crew.py understands it: make a part, or go on with all results."""
        self.began = self.done
        try:
            self.line.send((order, given))
        except OSError:
            pass  # the host has ended, which is said by `run`
        return self.said.get()

    def calls(self) -> int:
        """Of the model, since the part was begun."""
        return max(self.done - self.began, 0)

    def close(self) -> None:
        self.running.close()
        shutil.rmtree(self.base, ignore_errors=True)

    def listen(self) -> None:
        """What the measuring nodes say."""
        with contextlib.suppress(EOFError, OSError):
            self.line = self.listener.accept()
            while True:
                kind, *said = self.line.recv()
                self.said.put(Asked(*said) if kind == crew.ASKED else Made(*said))

    def run(self, server: Server, prompt: dict, files: dict[str, bytes]) -> None:
        try:
            history = server.run(prompt, self.progress, patience=None, whole=True)  # others may take long
        except (HostError, OSError) as error:
            self.said.put(Failed(str(error), died=isinstance(error, (Died, OSError))))
            return
        found = {name: path.read_bytes() for name, path in found_in(self.base).items()}
        new = {name: content for name, content in found.items() if files.get(name) != content}
        self.said.put(Ended(new, server.reports(history)))

    def progress(self, value: int, total: int) -> None:
        self.done = value
