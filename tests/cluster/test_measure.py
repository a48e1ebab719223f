"""`python3 run.py measure` as a person runs it: real Ray, real ComfyUI, beside the same workflow queued in one.

One thread each, because the last digits of a product of matrices depend on their number.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file
from support.examples import long_form
from support.gmflow import weights
from support.goldens import FOLDER
from support.server import free_port, serving

ROOT = Path(os.environ["FEWSTEP_ROOT"])
PARTS = 4 + 2 * 4 + 2  # batches, checks of two at four numbers of calls; batches of the spread
CALLS = 4 * 13 + 2 * 3 * 43 + 2 * (20 + 6)
pytestmark = [long_form, pytest.mark.skipif(sys.platform == "win32", reason="signals")]  # Ray is 300 MB


def node(kind: str, **inputs) -> dict:
    return {"class_type": kind, "inputs": inputs}


LINKED = {"model": ["1", 0], "positive": ["2", 0], "negative": ["3", 0], "latent_image": ["4", 0], "cfg": 3.0}
STATISTICS = {"images": 4, "levels": 6, "pooling": "global", "derivative": "differences", "save_as": "statistics"}
GRAPH = {
    "1": node("FewStepDemoModel", variant="flow"),
    "2": node("CLIPTextEncode", clip=["1", 1], text="red apple"),
    "3": node("CLIPTextEncode", clip=["1", 1], text=""),
    "4": node("EmptyLatentImage", width=256, height=256, batch_size=1),
    "5": node("FewStepEstimateStatistics", **LINKED, seed=0, **STATISTICS),
    "6": node("FewStepMeasureSpread", **LINKED, seed=0, images=2, levels=6, save_as="spread"),
}


class Run:
    """The command, begun."""

    def __init__(self, folder: Path, workers: int | None, graph: dict | None = None, *arguments: str):
        path = folder / "workflow.json"
        path.write_text(json.dumps(graph or GRAPH))
        self.out = folder / f"out{workers}"
        command = [str(ROOT / "run.py"), "measure", str(path), "--out", str(self.out)]
        command += ["--workers", str(workers)] if workers else []
        self.drawn = folder / f"output{workers}"
        command += ["--output-directory", str(self.drawn), "--kept", str(folder / "kept")]
        self.process = subprocess.Popen(
            [sys.executable, *command, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
        self.text = ""

    def until(self, pattern: str) -> re.Match:
        """What the command has said so far, up to a line that holds the pattern."""
        assert self.process.stdout
        while not (found := re.search(pattern, self.text)):
            letter = self.process.stdout.read(1)
            assert letter, self.text
            self.text += letter
        return found

    def end(self, code: int = 0) -> str:
        self.text += self.process.communicate(timeout=900)[0]
        assert self.process.returncode == code, self.text
        return self.text

    def hosts(self) -> list[int]:
        """Process ids of its ComfyUI."""
        import psutil

        children = psutil.Process(self.process.pid).children(recursive=True)
        return [child.pid for child in children if any(part.endswith("main.py") for part in child.cmdline())]


def graph_with(kind: str, **inputs) -> dict:
    return {number: GRAPH[number] for number in "1234"} | {"5": node(kind, **LINKED, seed=0, **inputs)}


TUNE = graph_with("FewStepTune", effort="quick", save_as="tuning")
SEARCHED = {"steps": 4, "teacher_steps": 20, "trajectories": 6, "polish": 2, "denoise": 1.0, "start": "auto"}
SEARCH = graph_with("FewStepSearchSchedule", **SEARCHED, solver="dpmpp_2m", save_as="schedule")
COMPARE = graph_with("FewStepCompare", reference_steps=20, images=3, calls="4, 6")
COMPARE["5"]["inputs"] |= {"entries.entry0": ["6", 0], "entries.entry1": ["9", 0]}
COMPARE |= {
    "6": node("FewStepEntry", label="draws noise", sampler=["7", 0], sigmas=["8", 0]),
    "7": node("KSamplerSelect", sampler_name="euler_ancestral"),
    "8": node("BasicScheduler", model=["1", 0], scheduler="simple", steps=5, denoise=1.0),
    "9": node("FewStepEntry", label="cannot run", sampler=["10", 0], sigmas=["8", 0]),
    "10": node("SamplerLCMUpscale", scale_ratio=1.5, scale_steps=2, upscale_method="bislerp"),  # another size
}


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict[str, tuple]:
    return measured_alone(tmp_path_factory.mktemp("alone"), GRAPH)


def measured_alone(base: Path, graph: dict) -> dict[str, tuple]:
    """What one ComfyUI measures of the same workflow, and keeps."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("OMP_NUM_THREADS", "1")
        with serving(base=base) as server:
            server.run(graph)
    return contents(base / "models" / "fewstep")


def contents(folder: Path) -> dict[str, tuple]:
    """By name: the sums and numbers, and the facts."""
    return {path.name: (load_file(path), facts(path)) for path in folder.glob("*.safetensors")}


def facts(path: Path) -> dict:
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return json.loads(header["__metadata__"]["fewstep"])


def check_equal(folder: Path, alone: dict[str, tuple]) -> None:
    found = contents(folder)
    assert found.keys() == alone.keys() and found
    for name, (tensors, told) in alone.items():
        assert found[name][1] == told and found[name][0].keys() == tensors.keys()
        for key, tensor in tensors.items():
            assert (found[name][0][key] - tensor).abs().max() <= 1e-12 * tensor.abs().max()


@pytest.mark.parametrize("workers", (1, 2, 4))
def test_any_number_of_workers_makes_the_files_of_one_graph(tmp_path, alone, workers):
    run = Run(tmp_path, workers)
    said = run.end()
    assert f"{PARTS} parts, {CALLS} model calls; 0 workers replaced." in said
    assert f"{CALLS}/{CALLS}" in said and re.search(r"<\d+:\d\d", said)
    check_equal(run.out, alone)
    if workers > 2:
        return
    again = Run(tmp_path, workers)  # the files are there
    assert "0 parts, 0 model calls" in again.end()


def test_a_tuning_too(tmp_path):
    run = Run(tmp_path, 2, TUNE)
    assert "241 model calls" in run.end()
    check_equal(run.out, measured_alone(tmp_path / "alone", TUNE))


@pytest.mark.parametrize("workers", (1, 3))
def test_a_search_too(tmp_path, workers):
    run = Run(tmp_path, workers, SEARCH)
    run.end()
    check_equal(run.out, measured_alone(tmp_path / "alone", SEARCH))


def compared(folder: Path, number: int = 1) -> list[dict]:
    """The rows of a comparison, without what its pictures took of time."""
    (path,) = folder.rglob(f"compare_{number:05}_.json")
    return [{k: v for k, v in row.items() if "second" not in k} for row in json.loads(path.read_text())["rows"]]


def test_a_comparison_too_and_the_next_has_its_own_number(tmp_path):
    """With a sampler that draws noise, and one that cannot run."""
    measured_alone(tmp_path / "alone", COMPARE)
    rows = compared(tmp_path / "alone" / "output")
    assert len(rows) > 8 and any(row["kind"] == "sde" for row in rows) and any(row["refused"] for row in rows)
    for number, workers in ((1, 2), (2, 2)):
        run = Run(tmp_path, workers, COMPARE)
        said = run.end()
        assert f"compare_{number:05}_chart.png" in said
        assert compared(run.drawn, number) == rows


def test_a_search_goes_on_without_a_worker_that_is_killed(tmp_path):
    """The one in its place comes to where the others are by what they found."""
    import psutil

    run = Run(tmp_path, 2, SEARCH)
    run.until(r"\| [5-9]\d\d/\d+")  # the teacher has 264
    psutil.Process(run.hosts()[0]).kill()
    assert "1 workers replaced." in run.end()
    check_equal(run.out, measured_alone(tmp_path / "alone", SEARCH))


@pytest.mark.parametrize("what", ["host", "actor"])
def test_a_worker_that_is_killed_is_replaced_and_its_part_made_once(tmp_path, alone, what):
    import psutil

    run = Run(tmp_path, 2)
    run.until(r"\| [1-9]\d*/\d+")
    (victim, *_) = run.hosts()
    process = psutil.Process(victim)
    (process if what == "host" else process.parent()).kill()
    run.until("A worker ended; another takes its place")
    assert f"{PARTS} parts, {CALLS} model calls; 1 workers replaced." in run.end()
    check_equal(run.out, alone)


def test_stopped_by_ctrl_c_the_same_command_goes_on(tmp_path, alone):
    run = Run(tmp_path, 2)
    run.until(r"\| ([2-9]\d|\d{3})/\d+")
    hosts = run.hosts()
    os.killpg(run.process.pid, signal.SIGINT)
    assert "Finished parts are kept" in run.end(130)
    time.sleep(1)
    assert not any(Path(f"/proc/{host}").exists() for host in hosts)
    again = Run(tmp_path, 2)
    said = again.end()
    assert re.search(rf"{PARTS} parts \([1-9]\d* by an earlier run\), {CALLS} model calls", said)
    check_equal(again.out, alone)


def test_a_part_that_fails_is_named(tmp_path):
    """A cfg at which the model's answers lead nowhere."""
    broken = {**GRAPH["5"], "inputs": GRAPH["5"]["inputs"] | {"cfg": 100.0}}
    said = Run(tmp_path, 1, {number: one for number, one in {**GRAPH, "5": broken}.items() if number != "6"}).end(1)
    assert re.search(r"FewStep: batch \d failed. FewStepEstimateStatistics: .*Lower the cfg", said)


def test_what_comfyui_would_run_only_a_part_of_is_refused(tmp_path):
    broken = {**GRAPH["5"], "inputs": GRAPH["5"]["inputs"] | {"cfg": 1e9}}
    said = Run(tmp_path, 1, {**GRAPH, "5": broken}).end(1)
    assert "ComfyUI refused the workflow: FewStepEstimateStatistics: Value 1000000000.0 bigger than max" in said


@pytest.fixture
def cluster(tmp_path):
    """Two nodes of Ray, as of two machines with a GPU each, which no ComfyUI looks for here; and its address."""
    address = f"127.0.0.1:{free_port()}"
    few = ["--num-cpus", "1", "--num-gpus", "1", "--object-store-memory", "200000000", "--block"]
    head = ["--head", "--port", address.rpartition(":")[2], "--include-dashboard", "false"]
    own = os.environ | {"RAY_AUTH_TOKEN": secrets.token_hex(32), "OMP_NUM_THREADS": "1"}
    with contextlib.ExitStack() as running:
        for place in (head, ["--address", address]):
            command = [sys.executable, str(ROOT / "run.py"), "ray", "start", *place, *few]
            node = subprocess.Popen(command, env=own, stdout=subprocess.PIPE, text=True, start_new_session=True)
            running.callback(node.wait)
            running.callback(os.killpg, node.pid, signal.SIGTERM)
            assert node.stdout and any("runtime started" in line for line in node.stdout)
        yield address, own["RAY_AUTH_TOKEN"]


def test_a_ray_of_two_nodes_has_a_worker_a_gpu(tmp_path, alone, cluster, monkeypatch):
    address, token = cluster
    monkeypatch.setenv("RAY_AUTH_TOKEN", token)
    run = Run(tmp_path, None, GRAPH, "--ray", address)
    assert "Starting 2 ComfyUI" in run.end()
    check_equal(run.out, alone)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
    refused = Run(tmp_path, 1, GRAPH, "--ray", address).end(1)
    assert "does not let this machine in" in refused and "RAY_AUTH_TOKEN" in refused


def test_a_ray_that_is_not_there_is_said_at_once(tmp_path):
    assert "No Ray answers at 127.0.0.1:9: " in Run(tmp_path, 1, None, "--ray", "127.0.0.1:9").end(1)


def test_arguments_of_comfyui_reach_it(tmp_path):
    """A picture in a folder that only they name."""
    from PIL import Image

    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (256, 256), "white").save(tmp_path / "pictures" / "white.png")
    pictures = {"4": node("VAEEncode", pixels=["7", 0], vae=["1", 2]), "7": node("LoadImage", image="white.png")}
    graph = {number: one for number, one in (GRAPH | pictures).items() if number != "5"}
    assert "2 parts, 12 model calls" in Run(tmp_path, 1, graph, "--input-directory", str(tmp_path / "pictures")).end()


def gmdit_elsewhere(folder: Path) -> Path:
    """The tiny GM-DiT in a folder that no host knows, and the file that tells a host of it."""
    networks = folder / "elsewhere" / "networks"
    networks.mkdir(parents=True)
    shutil.copy(FOLDER / "gmflow" / "tiny_gmdit.safetensors", networks / "tiny.safetensors")
    (networks / "tiny.json").write_text(json.dumps(weights("tiny_gmdit")[1]))
    told = folder / "paths.yaml"
    told.write_text(json.dumps({"mine": {"base_path": str(networks.parent), "diffusion_models": "networks"}}))
    return told


def test_a_model_in_another_folder_is_found_by_every_worker(tmp_path, monkeypatch):
    """The host's own extra model paths, of a file that is named from where the command is given."""
    monkeypatch.chdir(tmp_path)
    paths = gmdit_elsewhere(tmp_path)
    graph = {
        "1": node("FewStepLoadGMFlow", name="tiny.safetensors"),
        "2": node("FewStepGMFlowLabel", model=["1", 0], label="3"),
        "4": node("EmptyLatentImage", width=64, height=64, batch_size=1),
        "6": node(
            "FewStepMeasureSpread", **LINKED | {"negative": ["2", 1]}, seed=0, images=2, levels=6, save_as="spread"
        ),
    }
    assert "refused the workflow: FewStepLoadGMFlow" in Run(tmp_path, 1, graph).end(1)
    run = Run(tmp_path, 2, graph, "--extra-model-paths-config", paths.name)
    assert f"2 parts, {2 * (20 + 6)} model calls; 0 workers replaced." in run.end()
    monkeypatch.setenv("COMFYUI_ARGUMENTS", f"--extra-model-paths-config {paths}")
    check_equal(run.out, measured_alone(tmp_path / "alone", graph))


def test_a_workflow_that_cannot_be_shared_is_refused_before_anything_starts(tmp_path):
    said = Run(tmp_path, 2, {"1": node("KSampler")}).end(1)
    assert "FewStep: " in said and "has no node that measures" in said
    assert "Starting" not in said
