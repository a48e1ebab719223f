"""What ComfyUI's registry asks of a pack: pyproject.toml, icon, banner, and an archive that works by itself.

Rules: https://docs.comfy.org/registry/specifications and the checks that `comfy node publish` makes.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.archive import published, unpack
from support.server import Server, serving
from support.workflow import to_prompt

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(os.environ["FEWSTEP_ROOT"])
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT, COMFY = PYPROJECT["project"], PYPROJECT["tool"]["comfy"]
PICTURES = {"Icon": "icon.png", "Banner": "banner.jpg"}  # in assets/
SYSTEMS = ("OS Independent", "Microsoft", "POSIX", "MacOS")
ACCELERATORS = {
    "GPU :: NVIDIA CUDA",
    "GPU :: AMD ROCm",
    "GPU :: Intel Arc",
    "NPU :: Huawei Ascend",
    "GPU :: Apple Metal",
}
COMFY_TEST = [sys.executable, "-m", "comfy_test"]
NO_GIT = "what is published is what git keeps; this folder is no checkout of it"


# ---------------------------------------------------------------------------------------------------------
# pyproject.toml


def of_kind(kind: str) -> list[str]:
    return [c.removeprefix(kind) for c in PROJECT["classifiers"] if c.startswith(kind)]


def test_the_name_is_one_that_the_registry_takes():
    name = PROJECT["name"]
    assert re.fullmatch(r"[a-z][a-z0-9]*([-_.][a-z0-9]+)*", name) and len(name) < 100 and "comfy" not in name
    assert re.fullmatch(r"[a-z][a-z0-9-]*", COMFY["PublisherId"])
    assert re.sub(r"[^a-z0-9]", "", COMFY["DisplayName"].lower()) == name


def test_the_version_has_three_numbers_and_is_the_newest_of_the_changelog():
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert newest and re.fullmatch(r"\d+\.\d+\.\d+", PROJECT["version"])
    assert newest[1] == PROJECT["version"]


def test_what_the_project_points_to_is_there():
    assert PROJECT["license"] == {"file": "LICENSE"} and "MIT License" in (ROOT / "LICENSE").read_text()
    assert (ROOT / PROJECT["readme"]).exists()
    assert PROJECT["description"].endswith(".") and len(PROJECT["description"]) < 200


def test_one_classifier_that_is_not_known_would_drop_all_of_its_kind():
    systems, accelerators = of_kind("Operating System :: "), of_kind("Environment :: ")
    assert systems and all(system.startswith(SYSTEMS) for system in systems)
    assert accelerators and set(accelerators) <= ACCELERATORS


def test_the_lowest_comfyui_is_named_as_the_registry_reads_it_and_is_no_newer_than_this_one():
    lowest = re.fullmatch(r">=(\d+\.\d+\.\d+)", COMFY["requires-comfyui"])
    this = re.search(r'"(\d+\.\d+\.\d+)', (Path(os.environ["COMFYUI_PATH"]) / "comfyui_version.py").read_text())
    assert lowest and this
    assert [int(n) for n in lowest[1].split(".")] <= [int(n) for n in this[1].split(".")]


def test_no_key_is_misspelt():
    """The registry passes over what it does not know."""
    assert {"PublisherId", "DisplayName", "requires-comfyui"} <= set(COMFY)
    assert set(COMFY) <= {"PublisherId", "DisplayName", "requires-comfyui", "includes", *PICTURES}


def test_addresses_are_those_of_our_pictures():
    """They are filled in for a release, see CONTRIBUTING.md; an address of something else would be shown."""
    for key, name in PICTURES.items():
        assert re.fullmatch(rf"https://\S+/assets/{re.escape(name)}", COMFY.get(key, f"https://x/assets/{name}"))
        assert key in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for address in PROJECT.get("urls", {}).values():
        assert address.startswith("https://")


# ---------------------------------------------------------------------------------------------------------
# Icon and banner


def test_icon_and_banner_have_the_shape_that_the_registry_shows():
    icon, banner = (Image.open(ROOT / "assets" / name) for name in PICTURES.values())
    assert icon.format == "PNG" and icon.mode == "RGBA" and icon.size == (400, 400)
    assert banner.format == "JPEG" and banner.width * 9 == banner.height * 21
    assert icon.getchannel("A").getpixel((0, 0)) == 0  # whatever page it lies on shows around the tile
    assert sum((ROOT / "assets" / name).stat().st_size for name in PICTURES.values()) < 300_000


@pytest.mark.usefixtures("host")
@pytest.mark.parametrize("name", PICTURES.values())
def test_they_are_what_their_script_draws(name):
    """The banner's pictures too: four calls of the bundled model."""
    draw = runpy.run_path(str(ROOT / "assets" / "draw.py"))
    drawn = draw[Path(name).stem]()
    kept = Image.open(ROOT / "assets" / name).convert(drawn.mode)
    assert np.abs(np.asarray(drawn, float) - np.asarray(kept, float)).mean() < 3


# ---------------------------------------------------------------------------------------------------------
# The archive


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    """The published files where the host looks for packs; comfy-test's configuration beside them."""
    if not published():
        pytest.skip(NO_GIT)
    pack = unpack(tmp_path_factory.mktemp("base") / "custom_nodes" / "fewstep")
    shutil.copy(ROOT / "comfy-test.toml", pack)
    return pack


@pytest.fixture(scope="module")
def alone(archive) -> Iterator[Server]:
    """A real ComfyUI with the archive, to which nothing of this checkout can be imported."""
    with contextlib.ExitStack() as running:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYTHONPATH", os.environ["COMFYUI_PATH"])
            server = running.enter_context(serving(base=archive.parents[1]))
        yield server


def test_the_archive_has_what_artists_use_and_nothing_else():
    if not (files := published()):
        pytest.skip(NO_GIT)
    folders = {name.split("/")[0] for name in files if "/" in name}
    shipped = {"nodes", "samplers", "schedulers", "web", "locales", "subgraphs", "example_workflows", "demo"}
    assert folders == shipped
    assert {"__init__.py", "LICENSE", "demo/NOTICE", "demo/emoji.safetensors"} <= files
    assert sum((ROOT / name).stat().st_size for name in files) < 25e6


def test_the_archive_alone_offers_every_node_with_its_words(host, alone):
    from support.nodes import of_the_pack

    info = alone.get("/object_info").json()
    offered = {name for name, node in info.items() if node["python_module"] == "custom_nodes.fewstep"}
    assert offered == set(of_the_pack())
    assert alone.get("/extensions/fewstep/docs/FewStepBoost.md").text.startswith("#")
    assert "/extensions/fewstep/js/report.js" in alone.get("/extensions").json()
    assert "boost" in alone.get("/workflow_templates").json()["fewstep"]
    assert "FewStepBoost" in alone.get("/i18n").json()["de"]["nodeDefs"]


def test_the_archive_alone_draws(alone, archive):
    workflow = json.loads((archive / "example_workflows" / "first_picture.json").read_text(encoding="utf-8"))
    prompt = to_prompt(workflow, alone.get("/object_info").json())
    assert len(alone.pictures(alone.run(prompt))) == 1


# ---------------------------------------------------------------------------------------------------------
# comfy-test: the levels that need no network

# Not ours to mend: a style sheet is for the page or for a shadow root, and the host gives packs no other way to add one
# (its own addStylesheet does the same, and calls itself internal). Every rule of ours begins with .fewstep-.
ACCEPTED = {("js/parts.js", "shared-dom-injection")}


def test_comfy_test_finds_nothing_in_the_text_of_the_archive(archive):
    """SYNTAX and JAVASCRIPT: letters that Windows cannot print, devices by name, what could hurt other packs' pages."""
    pytest.importorskip("comfy_test")
    told = subprocess.run([*COMFY_TEST, "lint", "--json", str(archive)], capture_output=True, text=True)
    results = json.loads(told.stdout)["results"]
    assert results["syntax"]["passed"], results["syntax"]["details"]
    assert {(found["file"], found["rule"]) for found in results["javascript"]["findings"]} == ACCEPTED


def test_rules_of_the_style_sheet_are_for_our_elements_alone():
    """Why the finding above is harmless."""
    sheet = re.sub(r"/\*.*?\*/", "", (ROOT / "web" / "js" / "style.css").read_text(encoding="utf-8"), flags=re.S)
    selectors = [one.strip() for group in re.findall(r"([^{}]+)\{", sheet) for one in group.split(",")]
    assert len(selectors) > 10
    assert [one for one in selectors if not re.match(r"\.fewstep-[a-z]", one)] == []


def test_comfy_test_finds_the_archive_loaded(alone, archive, tmp_path):
    """SYNTAX to REGISTRATION in a host that runs already: it reads its log and asks it for the nodes."""
    pytest.importorskip("comfy_test")
    told = subprocess.run(
        [*COMFY_TEST, "run", "--server-url", alone.url, "--level", "registration"],
        capture_output=True,
        text=True,
        cwd=archive,
        env=os.environ | {"COMFY_TEST_LOGS_DIR": str(alone.base), "TMPDIR": str(tmp_path)},
    )
    assert told.returncode == 0, told.stdout + told.stderr
    assert "[REGISTRATION] PASSED" in told.stdout and "server.log" in told.stdout
    assert "Warnings check: 1 finding" in told.stdout and "emoji.safetensors" in told.stdout  # bundled on purpose
    assert "Hazards check: clean" in told.stdout
