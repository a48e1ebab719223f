"""run.py: what goes wrong is told in one sentence, with an exit code that is not 0."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(os.environ["FEWSTEP_ROOT"])


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess:
    environment = {k: v for k, v in os.environ.items() if k != "COMFYUI_PATH"} | variables
    return subprocess.run(
        [sys.executable, str(ROOT / "run.py"), *arguments], capture_output=True, text=True, env=environment, timeout=300
    )


def sentence(result: subprocess.CompletedProcess) -> str:
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    return result.stderr.strip().splitlines()[-1]


def test_a_folder_that_is_no_comfyui(tmp_path):
    assert "is not a ComfyUI folder" in sentence(run("demo", "--comfyui", str(tmp_path)))


def test_no_network_leaves_nothing_behind(tmp_path):
    """Indexes that cannot be reached, an empty cache: the next start begins anew."""
    dead = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "0", "PIP_CONFIG_FILE": os.devnull}
    unset = {"PIP_EXTRA_INDEX_URL": "", "PIP_FIND_LINKS": "", "PIP_NO_CACHE_DIR": "1"}
    result = run("demo", FEWSTEP_CACHE=str(tmp_path / "cache"), **dead, **unset)
    assert "could not be reached" in sentence(result)
    assert [p.name for p in (tmp_path / "cache").iterdir() if not p.name.endswith(".partial")] == ["lock"]


def test_a_port_in_use():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        result = run("demo", "--port", port, "--comfyui", os.environ["COMFYUI_PATH"])
    assert f"Port {port} is in use" in sentence(result)


def test_a_workflow_that_is_none(tmp_path):
    (tmp_path / "broken.json").write_text("{")
    result = run("demo", "--workflow", str(tmp_path / "broken.json"), "--comfyui", os.environ["COMFYUI_PATH"])
    assert "is not a workflow" in sentence(result)


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_leaves_nothing_running(tmp_path):
    """The whole demo with --keep, interrupted: exit code 0, no process, no folder."""
    import signal

    import requests

    process = subprocess.Popen(
        [sys.executable, str(ROOT / "run.py"), "demo", "--keep", "--out", str(tmp_path / "out"), "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"TMPDIR": str(tmp_path)},
        start_new_session=True,
    )
    assert process.stdout
    lines = [process.stdout.readline() for _ in range(2)]
    url = lines[1].split()[1]
    assert Path(lines[0].split(": ", 1)[1].strip()).exists()
    assert requests.get(url + "/system_stats", timeout=10).ok
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(180) == 0  # a busy machine is slow to end
    with pytest.raises(requests.ConnectionError):
        requests.get(url + "/system_stats", timeout=10)
    assert not list(tmp_path.glob("fewstep-*"))
