"""`python3 run.py measure WORKFLOW.json`: a measuring node's work, shared by many GPUs and machines on Ray.

Every worker holds a real ComfyUI and runs the workflow; the parts of the measurement (images, batches, schedules) are
dealt out, and what comes out are the files that one ComfyUI would have written. Arguments that are not listed go to
ComfyUI, such as --extra-model-paths-config FILE.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import math
import os
import shlex
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_worker_niceness", "0")  # of a Ray that is started here: its workers are what is waited for

import ray  # noqa: E402
from fewstep.cluster import workflow  # noqa: E402
from fewstep.cluster.board import Asked, Board, Ended, Failed, Made, Said, Stop  # noqa: E402
from fewstep.cluster.worker import KEPT, OUTPUT, SAVED, Worker  # noqa: E402
from fewstep.nodes.measuring.crew import ALL  # noqa: E402
from ray.exceptions import RayActorError  # noqa: E402
from tqdm import tqdm  # noqa: E402

ROOT = Path(os.environ["FEWSTEP_ROOT"])
STORE_BYTES = 200 * 2**20  # of Ray's object store, where it is started here; more goes to disk
CLOSING_SECONDS = 20
STAGES = 4  # whose results stay in Ray's store: a new worker in place of another begins with the first
HANDED_ON = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")  # of the environment, to workers on this machine


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="run.py measure", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workflow", type=Path, help="of Workflow > Export (API)")
    parser.add_argument("--ray", metavar="ADDRESS", help="of a Ray that runs (HOST:6379); else one is started here")
    parser.add_argument("--workers", type=int, help="how many (one a GPU; 1 without any)")
    parser.add_argument("--gpus", type=int, help="how many the workers share (all that Ray knows of)")
    parser.add_argument("--out", type=Path, default=Path("fewstep"), help="a models/fewstep folder (./fewstep)")
    parser.add_argument("--output-directory", type=Path, default=Path("output"), help="for Compare's files (./output)")
    kept = Path(os.environ["FEWSTEP_CACHE"]) / "measure"
    parser.add_argument("--kept", type=Path, default=kept, help="for parts of a run that was stopped (the cache)")
    args, host = parser.parse_known_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        check_counts(args)
        prompt = workflow.read(args.workflow)
        board = Board(args.kept / digest_of_pack())
        with ray_for(args) as hire:
            places = {KEPT: args.out, OUTPUT: args.output_directory}
            driver = Driver(prompt, known(places, prompt), board, lambda: hire(shlex.join(host)))
            ended = driver.run(workers_of(args))
        save(ended, places)
        say(f"{board.told()} Measured in {driver.seconds:.1f} s.")
        board.forget()
    except (Stop, ValueError, OSError, RuntimeError) as error:
        say(f"FewStep: {error}")
        return 1
    except KeyboardInterrupt:
        say("\nFewStep: stopped. Finished parts are kept: the same command goes on with them.")
        return 130
    return 0


def check_counts(args: argparse.Namespace) -> None:
    """Raises ValueError for numbers that are none."""
    for name, least in (("workers", 1), ("gpus", 0)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise ValueError(f"--{name} is {value}; it must be {least} or more.")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# ---------------------------------------------------------------------------------------------------------
# Files


def known(places: dict[Path, Path], prompt: dict) -> dict[str, bytes]:
    """What is there already: every host finds it as if it lay in its own folder. places: by folders of a host's.

    Of what was drawn the names alone, so that the next has its own number.
    """
    measured = {KEPT / path.relative_to(places[KEPT]): path.read_bytes() for path in places[KEPT].rglob(f"*{SAVED}")}
    inside = [path.relative_to(places[OUTPUT]) for path in places[OUTPUT].rglob("*") if path.is_file()]
    drawn = {OUTPUT / path: b"" for path in inside if path.as_posix().startswith(workflow.prefixes(prompt))}
    return {path.as_posix(): content for path, content in (measured | drawn).items()}


def save(ended: Ended, places: dict[Path, Path]) -> None:
    for name, content in ended.files.items():
        (inside,) = (folder for folder in places if Path(name).is_relative_to(folder))
        path = places[inside] / Path(name).relative_to(inside)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        print(f"Saved: {path}")
    print(ended.said, flush=True)


def digest_of_pack() -> str:
    """Parts that another version of the pack made are not taken for this one's."""
    digest = hashlib.sha256()
    for path in sorted(path for name in ("nodes", "samplers", "schedulers") for path in (ROOT / name).rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


# ---------------------------------------------------------------------------------------------------------
# Ray


def workers_of(args: argparse.Namespace) -> int:
    return args.workers or gpus_of(args) or 1


def gpus_of(args: argparse.Namespace) -> int:
    return int(ray.cluster_resources().get("GPU", 0)) if args.gpus is None else args.gpus


def check_reached(address: str) -> None:
    """Raises ValueError where nobody listens there, for which Ray itself would wait ten minutes."""
    host, _, port = address.rpartition("//")[2].rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, ValueError) as error:
        raise ValueError(
            f"No Ray answers at {address}: {error}. Give HOST:PORT of a machine on which `python3 run.py ray start "
            "--head --port PORT` was run."
        ) from error


def join(address: str) -> None:
    """Raises ValueError where nobody listens there, or lets nobody in."""
    check_reached(address)
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"Ray at {address} does not let this machine in: {error}. Give the token that `python3 run.py ray "
            "get-auth-token` prints on the first machine in the variable RAY_AUTH_TOKEN, and the same version of Ray."
        ) from error


@contextlib.contextmanager
def ray_for(args: argparse.Namespace) -> Iterator[Callable[[str], Any]]:
    """Connected; given is what makes a worker, of the host's arguments."""
    folder = None if args.ray else tempfile.mkdtemp(prefix="fewstep-")
    cores = os.cpu_count() or 1
    try:
        if args.ray:
            join(args.ray)
        else:
            here = {"num_cpus": max(cores, args.workers or 1), "object_store_memory": STORE_BYTES}
            alone = {"include_dashboard": False, "_node_ip_address": "127.0.0.1", "log_to_driver": False}
            ray.init(address="local", logging_level="ERROR", **here, **alone)
        count = workers_of(args)
        needs = {"num_cpus": 1, "num_gpus": gpus_of(args) / count}
        threads = {} if args.ray else {"OMP_NUM_THREADS": str(max(1, cores // count))}
        variables = threads | {name: os.environ[name] for name in HANDED_ON if name in os.environ}
        actor = ray.remote(max_concurrency=2, scheduling_strategy="SPREAD", **needs)(Worker)
        yield lambda arguments: actor.remote(arguments, variables, folder)
    finally:
        ray.shutdown()
        if folder:
            shutil.rmtree(folder, ignore_errors=True)


class Driver:
    """Deals the parts of a workflow's measurement to workers, which it replaces where they die."""

    def __init__(self, prompt: dict, files: dict[str, bytes], board: Board, hire: Callable[[], Any]):
        self.prompt, self.files, self.board, self.make_worker = prompt, files, board, hire
        self.workers: dict[int, Any] = {}
        self.pending: dict[Any, int] = {}  # what a worker was told, and will answer
        self.stages: dict[tuple[str, tuple[str, ...]], Any] = {}  # results, in Ray's store
        self.hired = 0
        self.asked_at = math.inf  # when a host first asked
        self.seconds = 0.0  # from then on

    def run(self, count: int) -> Ended:
        """Raises Stop where a part failed."""
        say(f"Starting {count} ComfyUI ...")
        try:
            for _ in range(count):
                self.hire()
            with tqdm(desc="Model calls", unit="", dynamic_ncols=True) as bar:
                while not (ended := self.heard()):
                    self.show(bar)
                self.show(bar)
                return ended
        finally:
            self.dismiss()

    def hire(self) -> None:
        number = self.hired = self.hired + 1
        self.workers[number] = self.make_worker()
        self.pending[self.workers[number].begin.remote(self.prompt, self.files)] = number

    def heard(self) -> Ended | None:
        """What came within a second, and what follows from it."""
        ready, _ = ray.wait(list(self.pending), timeout=1)
        for answer in ready:
            worker = self.pending.pop(answer)
            said = what_was_said(answer)
            if isinstance(said, Ended):
                self.seconds = max(time.monotonic() - self.asked_at, 0.0)
                return said
            self.note(worker, said)
            self.deal()
        return None

    def note(self, worker: int, said: Asked | Made | Failed) -> None:
        if isinstance(said, Asked):
            self.asked_at = min(self.asked_at, time.monotonic())
            self.board.ask(worker, said)
        elif isinstance(said, Made):
            self.board.made(worker, said)
        elif said.died:
            lost = self.board.lost(worker, said.why)
            tqdm.write(f"A worker ended; another takes its place{f' and makes {lost}' if lost else ''}.", sys.stderr)
            ray.kill(self.workers.pop(worker))
            self.hire()
        else:
            part = self.board.making.get(worker)
            raise Stop(f"{part} failed. {said.why}" if part else said.why)

    def deal(self) -> None:
        """An order to every worker that has none and can have one."""
        busy = set(self.pending.values())
        for worker in [worker for worker in self.board.asks if worker not in busy]:
            order = self.board.order(worker)
            if order is None:
                continue
            what, given = order
            told = self.results_for(worker) if what == ALL else given
            self.pending[self.workers[worker].answer.remote(what, told)] = worker

    def results_for(self, worker: int) -> Any:
        """Of its stage, which is put into Ray's store once for all workers."""
        key, _, calls = self.board.asks[worker]
        stage = (key, tuple(calls))
        if stage not in self.stages:
            if len(self.stages) == STAGES:
                del self.stages[next(iter(self.stages))]
            self.stages[stage] = ray.put(self.board.results(worker))
        return self.stages[stage]

    def show(self, bar: tqdm) -> None:
        board = self.board
        bar.total, bar.initial = board.total or None, board.found
        bar.update(max(board.found + board.calls + self.under_way() - bar.n, 0))

    def under_way(self) -> int:
        """Model calls of parts that are not finished, as far as their workers say at once."""
        asked = {self.workers[worker].calls.remote(): worker for worker in self.board.making}
        said, _ = ray.wait(list(asked), num_returns=len(asked), timeout=0.5) if asked else ([], [])
        total = 0
        for answer in said:
            with contextlib.suppress(RayActorError):
                total += min(ray.get(answer), self.board.most(asked[answer]))
        return total

    def dismiss(self) -> None:
        """Hosts end and take their folders with them; what does not answer is killed."""
        closing = [worker.close.remote() for worker in self.workers.values()]
        with contextlib.suppress(Exception):
            ray.wait(closing, num_returns=len(closing), timeout=CLOSING_SECONDS)
        for worker in self.workers.values():
            ray.kill(worker)


def what_was_said(answer: Any) -> Said:
    try:
        return ray.get(answer)
    except RayActorError as error:
        return Failed(f"Ray says: {str(error).splitlines()[0]}", died=True)


if __name__ == "__main__":
    sys.exit(main())
