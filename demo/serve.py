"""`python3 run.py serve`: ComfyUI with the pack linked in, for development; workflows and pictures are kept."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from pathlib import Path

from support.server import HostError, serving


def main() -> int:
    parser = argparse.ArgumentParser(prog="run.py serve", description=__doc__)
    parser.add_argument("--port", type=int, help="ComfyUI's port (a free one when left out)")
    parser.add_argument(
        "--base", type=Path, default=Path.home() / "fewstep-serve", help="folder of input, output, user"
    )
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        args.base.mkdir(parents=True, exist_ok=True)
        with serving(args.port, args.base) as server:
            print(f"ComfyUI: {server.url}  (log: {server.base / 'server.log'}; Ctrl-C stops it)", flush=True)
            while server.process.poll() is None:
                time.sleep(0.5)
        raise HostError("ComfyUI ended by itself; its log says why.")
    except (HostError, OSError) as error:
        print(f"FewStep: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0


if __name__ == "__main__":
    sys.exit(main())
