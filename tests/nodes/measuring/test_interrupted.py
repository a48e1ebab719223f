"""Estimate, search, spread and tune, stopped at one model call after another: what is kept, what the next queue finds.

A stride in the suite; every call with FEWSTEP_LONG=1.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.examples import LONG
from support.mixture import picture_like
from support.nodes import outside_of_a_graph

pytestmark = pytest.mark.usefixtures("host")
SIZE = 8
COMMON = {"cfg": 1.0, "seed": 0, "latent_image": {"samples": torch.zeros(1, 4, SIZE, SIZE)}}
ESTIMATE = {"images": 3, "levels": 6, "pooling": "global", "derivative": "differences"}
SEARCH = {
    "steps": 2,
    "solver": "dpmpp_2m",
    "teacher_steps": 20,
    "trajectories": 2,
    "start": "auto",
    "polish": 1,
    "denoise": 1.0,
}
QUESTIONS: dict[str, dict[str, Any]] = {
    "FewStepEstimateStatistics": ESTIMATE,
    "FewStepMeasureSpread": {"images": 3, "levels": 6},
    "FewStepSearchSchedule": SEARCH,
    "FewStepTune": {"effort": "quick"},
}
KEPT = {  # model calls after which something is finished, and how many at least are spared then
    "FewStepEstimateStatistics": (13, 13),
    "FewStepMeasureSpread": (26, 26),
    "FewStepSearchSchedule": (21, 19),
    "FewStepTune": (34, 34),
}


def forget() -> None:
    """All interrupted work."""
    from fewstep.nodes import dpm_solver_v3, guidance, optimal_steps, tune

    for module in (dpm_solver_v3, guidance, optimal_steps, tune):
        module.interrupted.works.clear()


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path) -> Path:
    import folder_paths

    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
    known = {name: paths for name, paths in folder_paths.folder_names_and_paths.items() if name != "fewstep"}
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", known)
    forget()
    return tmp_path / "fewstep"


def model():
    from support.host_mixture import mixture_model

    return mixture_model(picture_like(size=SIZE, components=4), "flow", 3.0)


def node_class(name: str):
    from fewstep.nodes import dpm_solver_v3, guidance, optimal_steps, tune

    modules = (dpm_solver_v3, guidance, optimal_steps, tune)
    (found,) = (vars(module)[name] for module in modules if name in vars(module))
    return outside_of_a_graph(found)


class Asked:
    """A node that is queued again and again on one model, whose calls are counted and may fail."""

    def __init__(self, name: str):
        self.node, self.changes, self.patcher = node_class(name), QUESTIONS[name], model()
        network = self.patcher.model.diffusion_model
        self.calls, self.at = 0, -1
        self.error: BaseException = AssertionError("no error was asked for")
        original = network.denoise

        def denoise(x, sigma, labels):
            self.calls += 1
            if self.calls == self.at:
                raise self.error
            return original(x, sigma, labels)

        network.denoise = denoise

    def fresh(self, folder: Path) -> tuple[list[float], int]:
        """The result that nothing stopped, and its model calls; its file is gone."""
        answer = self.queue(save_as="fresh")
        (folder / "fresh.safetensors").unlink()
        return answer, self.calls

    def queue(self, at: int = -1, error: BaseException | None = None, **changed) -> list[float]:
        """All numbers of the result. at: the model call, from 1, that raises `error`."""
        from support.host_mixture import label_conditioning

        self.calls, self.at, self.error = 0, at, error or self.error
        prompts = {"positive": label_conditioning([0]), "negative": label_conditioning([-1])}
        given = {"model": self.patcher} | prompts | COMMON | self.changes | changed
        return numbers_of(self.node.execute(**given).args[-1])


def numbers_of(result) -> list[float]:
    if hasattr(result, "statistics"):
        checks = [e for errors in result.facts["check"].values() for e in errors.values()]
        return [*result.statistics.l.flatten().tolist(), *result.statistics.s.flatten().tolist(), *checks]
    if hasattr(result, "squares"):
        return [*result.squares.tolist(), result.facts["check"]]
    if hasattr(result, "tables"):
        checks = [e for checked in result.facts["check"].values() for errors in checked.values() for e in errors]
        return [
            number for tensor in result.calibration().tensors.values() for number in tensor.flatten().tolist()
        ] + checks
    compared = [error for errors in result.facts["compared"].values() for error in errors]
    return [sigma for sigmas in result.sigmas.values() for sigma in sigmas] + compared


def saved(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*")) if folder.exists() else []


def interruption() -> BaseException:
    import comfy.model_management

    return comfy.model_management.InterruptProcessingException()


def places(calls: int) -> list[int]:
    """Calls at which it is stopped: all of them, or a few with the first and the last."""
    return list(range(1, calls + 1)) if LONG else [1, calls // 3, 2 * calls // 3, calls]


@pytest.mark.parametrize("name", QUESTIONS)
def test_cancelled_at_any_call_the_next_queue_gives_what_a_fresh_one_gives(name, folder):
    asked = Asked(name)
    fresh, total = asked.fresh(folder)
    for at in places(total):
        error = interruption()
        with pytest.raises(type(error)):
            asked.queue(at, error, save_as=f"at {at}")
        assert saved(folder) == []
        assert asked.queue(save_as=f"at {at}") == fresh
        done, spared = KEPT[name]
        assert asked.calls <= total and (at <= done or asked.calls <= total - spared)
        assert saved(folder) == [f"at {at}.safetensors"]
        (folder / f"at {at}.safetensors").unlink()


@pytest.mark.parametrize("name", QUESTIONS)
def test_an_error_half_way_keeps_what_was_done(name, folder):
    asked = Asked(name)
    fresh, total = asked.fresh(folder)
    errors = [RuntimeError("out of memory"), KeyError("a patch"), MemoryError()]
    for error in errors if LONG or name != "FewStepTune" else errors[:1]:
        with pytest.raises(type(error)):
            asked.queue(total * 3 // 4, error)
        assert saved(folder) == []
        assert asked.queue(save_as="after") == fresh and asked.calls < total
        (folder / "after.safetensors").unlink()


def test_an_error_half_way_is_not_taken_for_a_missing_derivative():
    """Forward mode works on this model; what breaks later is said, and not measured on in another way."""
    asked = Asked("FewStepEstimateStatistics")
    fresh = asked.queue(derivative="auto", save_as="fresh")
    Path(folder_of() / "fresh.safetensors").unlink()
    with pytest.raises(RuntimeError, match="out of memory"):
        asked.queue(6, RuntimeError("out of memory"), derivative="auto")
    assert asked.queue(derivative="auto", save_as="after") == fresh


def folder_of() -> Path:
    from fewstep.nodes.host.files import folder

    return folder()


OTHERS: dict[str, list[dict[str, Any]]] = {
    "FewStepEstimateStatistics": [{"seed": 1}, {"levels": 7}, {"pooling": "channel"}, {"derivative": "forward_mode"}],
    "FewStepMeasureSpread": [{"seed": 1}, {"levels": 7}, {"estimator": "derivative"}, {"images": 2}],
    "FewStepSearchSchedule": [{"seed": 1}, {"solver": "euler"}, {"start": "sigma_max"}, {"polish": 0}],
    "FewStepTune": [{"seed": 1}, {"cfg": 2.0}],
}


@pytest.mark.parametrize("name", QUESTIONS)
def test_what_was_interrupted_is_not_mixed_into_another_question(name, folder):
    for number, changed in enumerate(OTHERS[name]):
        asked = Asked(name)
        forget()
        fresh = asked.queue(save_as=f"fresh {number}", **changed)
        (folder / f"fresh {number}.safetensors").unlink()
        with pytest.raises(type(interruption())):
            asked.queue(30, interruption())
        assert asked.queue(save_as=f"other {number}", **changed) == fresh
        (folder / f"other {number}.safetensors").unlink()


def test_what_an_interrupted_estimate_measured_is_counted_once(folder):
    """Six images are begun with none known; then two are kept in a file; six again, of which three are in memory."""
    asked = Asked("FewStepEstimateStatistics")
    whole = asked.queue(images=6, save_as="whole")
    with_check = asked.calls
    (folder / "whole.safetensors").unlink()
    with pytest.raises(type(interruption())):
        asked.queue(3 * 13 + 2, interruption(), images=6)
    from fewstep.nodes import dpm_solver_v3

    parts = next(iter(dpm_solver_v3.interrupted.works.values()))
    assert list(parts.done) == ["batch 1", "batch 2", "batch 3"]
    held = dict(parts.done)
    assert asked.queue(images=2, save_as="some") and asked.calls == with_check - 6 * 13
    parts.done.update(held)  # as if the file had come from another machine meanwhile
    (folder / "some.safetensors").unlink()
    again = asked.queue(images=6, save_as="again")
    assert again == pytest.approx(whole, rel=1e-6)
