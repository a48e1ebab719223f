"""A private ComfyUI over its real HTTP API: start it, queue a workflow, follow it, fetch the pictures."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import requests
import websocket

HOST = Path(__file__).with_name("host.py")
START_SECONDS = 300
NOT_IN_LIST = "Value not in list"  # newer hosts refuse by themselves what a combo does not offer
PREVIEW, TEXT = 1, 3  # the host's numbers of binary messages


class HostError(Exception):
    """The host did not do what was asked; the message says what a person can do."""


class Died(HostError):
    """The host has ended."""


class Cancelled(HostError):
    """The workflow was cancelled while it ran."""


@dataclass(frozen=True)
class Server:
    """A running ComfyUI. Made by `serving`."""

    url: str
    base: Path
    process: subprocess.Popen

    def get(self, path: str, **query) -> requests.Response:
        response = requests.get(self.url + path, params=query, timeout=60)
        response.raise_for_status()
        return response

    def log(self) -> str:
        return (self.base / "server.log").read_text(encoding="utf-8", errors="replace")

    def run(
        self,
        prompt: dict,
        on_progress: Callable[[int, int], None] | None = None,
        on_bytes: Callable[[int, bytes], None] | None = None,
        on_report: Callable[[str], None] | None = None,
        patience: float | None = 600,
        whole: bool = False,
    ) -> dict:
        """Queue an API-format workflow, wait for its end, return its history entry.

        patience: seconds without a word from the host, after which it counts as dead. whole: of a workflow that the
        host would run only in part, nothing is run.

        on_bytes is told the binary messages: PREVIEW and a picture, or TEXT and what a node prints on itself.
        on_report is told what the pack's nodes say that stays on them.
        """
        client = uuid.uuid4().hex
        address = self.url.replace("http", "ws", 1) + f"/ws?clientId={client}"
        with contextlib.closing(websocket.create_connection(address, timeout=patience)) as events:
            queued = requests.post(self.url + "/prompt", json={"prompt": prompt, "client_id": client}, timeout=60)
            if queued.status_code != 200 or (whole and queued.json().get("node_errors")):
                raise HostError(f"ComfyUI refused the workflow: {refusal(queued)}")
            number = queued.json()["prompt_id"]
            self.follow(events, number, on_progress or ignored, on_bytes or ignored, on_report or ignored)
        return self.get(f"/history/{number}").json()[number]

    def follow(self, events, number: str, on_progress: Callable, on_bytes: Callable, on_report: Callable) -> None:
        """Read events until the workflow has ended; its failure is raised."""
        while True:
            message = self.received(events)
            if not message:
                continue
            if isinstance(message, bytes):
                on_bytes(int.from_bytes(message[:4], "big"), message[4:])
                continue
            event = json.loads(message)
            data = event.get("data", {})
            if data.get("prompt_id") not in (None, number):
                continue
            if event["type"] == "progress":
                on_progress(data["value"], data["max"])
            elif event["type"] == "executed":
                list(map(on_report, said_in(data.get("output"))))
            elif event["type"] == "execution_error":
                raise HostError(f"{data['node_type']}: {data['exception_message'].strip()}")
            elif event["type"] == "execution_interrupted":
                raise Cancelled(f"cancelled in {data['node_type']}")
            elif event["type"] == "executing" and data["node"] is None:  # sent when the history is written
                return

    def received(self, events) -> str | bytes:
        try:
            return events.recv()
        except (OSError, websocket.WebSocketException) as error:
            raise Died(f"ComfyUI stopped while it worked. Its last words:\n{last_lines(self.log())}") from error

    def reports(self, history: dict) -> str:
        """What the pack's nodes said that stays on them."""
        return "\n".join(text for output in history["outputs"].values() for text in said_in(output))

    def cancel(self) -> None:
        """What the browser's Cancel button does."""
        requests.post(self.url + "/interrupt", timeout=60).raise_for_status()

    def pictures(self, history: dict) -> list[bytes]:
        """The PNG files that the workflow saved, in the order of its nodes; not what nodes only show."""
        shown = [i for output in history["outputs"].values() for i in output.get("images", [])]
        found = [image for image in shown if image["type"] == "output"]
        keys = ("filename", "subfolder", "type")
        return [self.get("/view", **{k: image[k] for k in keys}).content for image in found]


def said_in(output: dict | None) -> list[str]:
    """What stays on a node, of its UI output."""
    return [entry["text"] for entry in (output or {}).get("fewstep", [])]


def ignored(*_) -> None:
    """For events that nobody asked about."""


def refusal(response: requests.Response) -> str:
    """What a person needs of a 400 answer: the node and its errors."""
    body = response.json()
    nodes = [
        f"{node['class_type']}: {error['message']} ({error['details']})"
        for node in (body.get("node_errors") or {}).values()
        for error in node["errors"]
    ]
    return "; ".join(nodes) or body["error"]["message"]


def last_lines(text: str, count: int = 15) -> str:
    return "\n".join(text.splitlines()[-count:])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def check_port(port: int) -> int:
    """The port, if nobody listens on it."""
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            raise HostError(f"Port {port} is in use. Stop what uses it, or give another --port.")
    return port


@contextlib.contextmanager
def serving(port: int | None = None, base: Path | None = None, packs: tuple[Path, ...] = ()) -> Iterator[Server]:
    """A ComfyUI with the pack (and further `packs`) linked in; gone when the block ends, with all that it wrote.

    `base` keeps its folder instead (the person's workflows and pictures).
    """
    folder = base or Path(tempfile.mkdtemp(prefix="fewstep-"))
    port = check_port(port) if port else free_port()
    process = None
    try:
        for pack in (Path(os.environ["FEWSTEP_ROOT"]), *packs):
            link(pack, folder / "custom_nodes" / ("fewstep" if pack == Path(os.environ["FEWSTEP_ROOT"]) else pack.name))
        process = launch(port, folder)
        server = Server(f"http://127.0.0.1:{port}", folder, process)
        wait_until_ready(server)
        check_packs(server)
        yield server
    finally:
        if process:
            end(process)
        if base is None:
            shutil.rmtree(folder, ignore_errors=True)


def link(pack: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        return
    try:
        target.symlink_to(pack, target_is_directory=True)
    except OSError:
        if sys.platform != "win32":
            raise
        import _winapi

        _winapi.CreateJunction(str(pack), str(target))


def launch(port: int, base: Path) -> subprocess.Popen:
    main = Path(os.environ["COMFYUI_PATH"]) / "main.py"
    arguments = ["--base-directory", str(base), "--port", str(port), "--disable-auto-launch"]
    arguments += ["--preview-method", "auto"]
    database = (base / "user" / "comfyui.db").resolve()  # by default it is that of the ComfyUI folder, the person's own
    database.parent.mkdir(exist_ok=True)
    arguments += ["--database-url", f"sqlite:///{database.as_posix()}"]
    arguments += shlex.split(os.environ.get("COMFYUI_ARGUMENTS", ""))  # such as --front-end-root FOLDER
    with (base / "server.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, str(HOST), str(main), *arguments],
            stdin=subprocess.PIPE,  # its end tells the server that we are gone
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is ours to handle
        )


def wait_until_ready(server: Server) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            raise HostError(f"ComfyUI did not start. Its last words:\n{last_lines(server.log())}")
        with contextlib.suppress(requests.RequestException):
            server.get("/system_stats")
            return
        time.sleep(0.2)
    raise HostError(f"ComfyUI did not answer within {START_SECONDS} s. Its last words:\n{last_lines(server.log())}")


def check_packs(server: Server) -> None:
    """The host goes on without a pack that fails to load; we do not."""
    failed = [line for line in server.log().splitlines() if "IMPORT FAILED" in line and "custom_nodes" in line]
    if failed:
        raise HostError("ComfyUI could not load the pack:\n" + last_lines(server.log(), 60))


def end(process: subprocess.Popen) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
