"""`python3 run.py demo`: an example workflow, drawn by a private ComfyUI, saved as a PNG."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from pathlib import Path

import requests
from support.server import HostError, Server, serving
from support.workflow import to_prompt

WORKFLOW = Path(__file__).parents[1] / "example_workflows" / "first_picture.json"


def main() -> int:
    parser = argparse.ArgumentParser(prog="run.py demo", description=__doc__)
    parser.add_argument("--workflow", type=Path, default=WORKFLOW, help="a workflow saved by ComfyUI (either format)")
    parser.add_argument("--out", type=Path, default=Path.cwd() / "output", help="folder of the pictures")
    parser.add_argument("--keep", action="store_true", help="leave ComfyUI running afterwards, until Ctrl-C")
    parser.add_argument("--port", type=int, help="ComfyUI's port (a free one when left out)")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        workflow = json.loads(args.workflow.read_text(encoding="utf-8"))
        args.out.mkdir(parents=True, exist_ok=True)
        say("Starting ComfyUI ...")
        with serving(args.port) as server:
            for path in draw(server, workflow, args.out):
                print(f"The picture: {path}")
            print(
                f"ComfyUI: {server.url}" + ("" if args.keep else "  (stopped now; --keep leaves it running)"),
                flush=True,
            )
            if args.keep:
                say("ComfyUI runs until you press Ctrl-C. Example workflows: Templates > fewstep.")
                server.process.wait()
                raise HostError("ComfyUI ended by itself. Start again; the pictures are kept.")
    except json.JSONDecodeError as error:
        say(f"FewStep: {args.workflow} is not a workflow: {error}. Give a JSON file that ComfyUI saved.")
    except (HostError, OSError, ValueError, requests.RequestException) as error:
        say(f"FewStep: {error}")
    except KeyboardInterrupt:
        say("\nStopped; nothing is left running.")
        return 0 if args.keep else 130
    else:
        return 0
    return 1


def draw(server: Server, workflow: dict, out: Path) -> list[Path]:
    """Run the workflow and save its pictures under names that do not overwrite older ones."""
    prompt = to_prompt(workflow, server.get("/object_info").json())
    history = server.run(prompt, progress)
    say("")
    stamp = time.strftime("%Y%m%d-%H%M%S")
    paths = []
    for number, picture in enumerate(server.pictures(history), 1):
        paths.append(out / f"fewstep-{stamp}-{number}.png")
        paths[-1].write_bytes(picture)
    if not paths:
        raise HostError("The workflow ran but saved no picture. Add a Save Image node at its end.")
    return paths


def progress(value: int, total: int) -> None:
    print(f"\rSampling: {value} of {total}", end="", file=sys.stderr, flush=True)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
