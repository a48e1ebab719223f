"""The folder of calibrations: names, and results that nothing may lose."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from fewstep.samplers import calibration
from fewstep.samplers.calibration import Calibration
from fewstep.samplers.spread import Spread, load_spread

pytestmark = pytest.mark.usefixtures("host")
ASKED = {"images": 8, "levels": 3, "cfg": 5.0, "estimator": "residual", "latent": [4, 16, 16]}


def spread(number: float = 1.0, **facts) -> Spread:
    ratios = torch.tensor([10.0, 1.0, 0.1])
    return Spread(ratios, number * ratios, torch.ones(3), ASKED | {"check": 0.1} | facts)


@pytest.fixture
def folder(monkeypatch, tmp_path) -> Path:
    import folder_paths

    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", {})
    (tmp_path / "fewstep").mkdir()
    return tmp_path / "fewstep"


def path_for(name: str, **facts):
    from fewstep.nodes.host import files

    return files.path_for(name, "default", ASKED | facts, load_spread)


# ---------------------------------------------------------------------------------------------------------
# Names

REFUSED = {
    "x" * 300: "longer than 255 bytes",
    "x" * 245: "longer than 255 bytes",  # with -2 and the suffix
    "\u6f22" * 90: "longer than 255 bytes",
    "a/" * 3000 + "a": "Give another name",
    "a\0b": "no name of a file",
    "a\nb": "no name of a file",
    "\ud800": "no name of a file",
    "sub/": "ends in a slash",
    "sub\\": "ends in a slash",
    ".hidden": "begins with a dot",
    "sub/.hidden": "begins with a dot",
    "../out": "leads out",
    "sub\\..\\..\\out": "leads out",
    "/etc/x": "leads out",
    "C:\\x": "leads out",
    "\\\\server\\share\\x": "leads out",
    ".": "leads out",
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_name_that_cannot_be_is_refused_before_anything_is_measured(folder, name):
    with pytest.raises(ValueError, match=REFUSED[name]):
        path_for(name)


@pytest.mark.parametrize("name", [*REFUSED, "", " ", 5, None, ["a"], "absent"])
def test_loading_a_name_that_cannot_be_is_said(folder, name):
    from fewstep.nodes import inputs
    from fewstep.nodes.host.files import find

    with pytest.raises(ValueError, match="name|There is no"):
        find(name)
    assert isinstance(inputs.found(find, name), str)


@pytest.mark.parametrize(
    "name", ["mine", "sub/mine", "sub\\mine", "a.b", " mine ", "\u00e9t\u00e9 \u6f22", "x" * 239, "ab:c"]
)
def test_what_is_saved_is_offered_and_found(folder, name):
    from fewstep.nodes.host.files import find, keep, names_of

    path, found = path_for(name)
    assert found is None
    line = keep(spread(), path, fresh=True)
    (offered,) = names_of("spread")
    assert line == f"models/fewstep/{offered}" and "\\" not in offered
    assert find(offered) == find(offered.replace("/", "\\")) == path
    assert path_for(name)[1].facts == spread().facts


def test_links_and_linked_folders_are_offered_and_found(folder, tmp_path):
    from fewstep.nodes.host.files import find, names_of, statistics_names

    elsewhere = tmp_path / "elsewhere"
    spread().calibration().save(elsewhere / "far.safetensors")
    for name, key in (("l.npz", "l"), ("sb.npz", "s")):
        np.savez(elsewhere / name, **{key: np.ones(3)})
    (folder / "linked.safetensors").symlink_to(elsewhere / "far.safetensors")
    (folder / "folder").symlink_to(elsewhere, target_is_directory=True)
    (elsewhere / "round").symlink_to(folder, target_is_directory=True)
    (folder / "gone.safetensors").symlink_to(tmp_path / "nothing")
    (folder / ".git").mkdir()
    spread().calibration().save(folder / ".git" / "hidden.safetensors")
    assert names_of("spread") == ["folder/far.safetensors", "linked.safetensors"]
    assert all(load_spread(find(name)) for name in names_of("spread"))
    assert statistics_names() == ["folder"] and find("folder").is_dir()


def test_a_broken_file_hides_no_other(folder):
    """One with metadata nested deeper than Python goes, one of another form, one that is none."""
    import safetensors.torch
    from fewstep.nodes.host.files import names_of

    spread().calibration().save(folder / "good.safetensors")
    for number, text in enumerate(('{"kind":' + "[" * 100_000, "[]", "3", '{"kind": ["spread"]}', '{"kind": {}}', "{")):
        safetensors.torch.save_file({"a": torch.ones(1)}, folder / f"{number}.safetensors", metadata={"fewstep": text})
    (folder / "none.safetensors").write_bytes(b"\xff" * 100)
    (folder / "folder.safetensors").mkdir()
    assert names_of("spread") == ["good.safetensors"]


# ---------------------------------------------------------------------------------------------------------
# What was asked for


def test_only_the_result_of_the_same_question_is_found(folder):
    from fewstep.nodes.host.files import keep

    keep(spread(), path_for("mine")[0], fresh=True)
    assert path_for("mine")[1] is not None
    for changed in ({"images": 64}, {"cfg": 5.1}, {"latent": [4, 16, 8]}, {"further": 1}):
        path, found = path_for("mine", **changed)
        assert found is None and path.name == "mine-2.safetensors"
    keep(spread(functions="unknown 1"), folder / "unknown.safetensors", fresh=True)
    assert path_for("unknown", functions="unknown 2")[1] is None


def test_another_number_of_images_is_another_file():
    from fewstep.nodes.host.files import key_of

    assert key_of(ASKED) != key_of(ASKED | {"images": 64})


# ---------------------------------------------------------------------------------------------------------
# Nothing is lost


def test_two_writers_of_one_name_keep_both(folder):
    from fewstep.nodes.host.files import keep, names_of

    path = path_for("mine")[0]  # both were told that the name is free
    barrier = threading.Barrier(8)
    lines = []

    def write(number: int) -> None:
        barrier.wait()
        lines.append(keep(spread(number + 1.0, seed=number), path, fresh=True))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(names_of("spread")) == 8 == len(set(lines)) == len(list(folder.iterdir()))
    seeds = {load_spread(folder / name).facts["seed"] for name in names_of("spread")}
    assert seeds == set(range(8))


def test_where_links_are_not_to_be_had_nothing_is_overwritten_either(folder, monkeypatch):
    from fewstep.nodes.host.files import keep

    def no_links(*paths):
        raise OSError(errno.EPERM, "not on this file system")

    monkeypatch.setattr(os, "link", no_links)
    path = path_for("mine")[0]
    assert [keep(spread(seed=n), path, fresh=True) for n in range(2)] == [
        "models/fewstep/mine.safetensors",
        "models/fewstep/mine-2.safetensors",
    ]


FAULTS = {errno.ENOSPC: "the disk is full", errno.EROFS: "may not be written", errno.EIO: "Input/output error"}


@pytest.mark.parametrize("code", FAULTS)
@pytest.mark.parametrize("at", ["fsync", "replace", "link"])
def test_a_disk_that_fails_loses_nothing(folder, monkeypatch, code, at):
    from fewstep.nodes.host.files import keep, names_of

    path = folder / "mine.safetensors"
    keep(spread(1.0), path, fresh=True)

    def fails(*given):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(calibration.os, at, fails)
    if at == "link":
        monkeypatch.setattr(calibration.os, "replace", fails)
    line = keep(spread(2.0), folder / "other.safetensors" if at == "link" else path, fresh=at == "link")
    assert line.startswith("Not saved") and FAULTS[code] in line and "The result is used" in line
    assert names_of("spread") == ["mine.safetensors"] == [path.name for path in folder.iterdir()]
    assert load_spread(path).squares.tolist() == pytest.approx(spread(1.0).squares.double().tolist())


def test_a_file_in_the_place_of_the_folder_is_said(folder):
    from fewstep.nodes.host.files import keep

    (folder / "sub").write_text("a file")
    path, found = path_for("sub/mine")
    assert found is None and "a file stands in the place" in keep(spread(), path, fresh=True)
    folder.joinpath("sub").unlink()
    folder.rmdir()
    folder.write_text("a file")
    assert "a file stands in the place" in keep(spread(), folder / "mine.safetensors", fresh=True)


def test_a_save_replaces_the_file_it_extends(folder):
    from fewstep.nodes.host.files import keep

    path = folder / "mine.safetensors"
    for number in (1.0, 2.0):
        assert keep(spread(number), path, fresh=False) == "models/fewstep/mine.safetensors"
    assert load_spread(path).squares[0] == 20 and len(list(folder.iterdir())) == 1


def test_a_calibration_knows_its_kind_before_its_tensors_are_read(folder, monkeypatch):
    """A checkpoint of many gigabytes that is chosen by mistake is refused at once."""
    path = folder / "large.safetensors"
    Calibration("statistics", {"large": torch.ones(100)}, {}).save(path)
    monkeypatch.setattr(calibration, "real", lambda *given: pytest.fail("a tensor was read"))
    with pytest.raises(ValueError, match="holds 'statistics', not 'spread'"):
        load_spread(path)
