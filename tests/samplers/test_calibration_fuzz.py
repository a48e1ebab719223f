"""Files that are cut, flipped, mutated or half written: refused in words, or of use. FEWSTEP_LONG=1 tries more."""

from __future__ import annotations

import io
import json
import math
import os
import signal
import struct
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from fewstep.samplers import calibration, facts
from fewstep.samplers.calibration import Calibration, kind_of
from fewstep.samplers.dpm_solver_v3.measured import load_measured, load_published
from fewstep.samplers.noise_law import FLOW, VARIANCE_EXPLODING
from fewstep.samplers.spread import load_spread
from fewstep.samplers.table import step_by_table
from fewstep.schedulers.optimal_steps.curve import Curve
from fewstep.schedulers.optimal_steps.schedules import load_schedules
from fewstep.schedulers.tuning.tuning import load_tuning
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.examples import LONG

FUZZ = settings(
    max_examples=5000 if LONG else 300,
    deadline=None,
    derandomize=not LONG,
    suppress_health_check=list(HealthCheck),
    database=None,
)
COMMON = {"cfg": 5.0, "images": 8, "levels": 8, "channels": 4, "prediction": "EPS", "shift": None, "model": "a" * 12}
ERRORS = [0.1, 0.2, 0.15]


def statistics() -> Calibration:
    lam, generator = torch.linspace(-3, 4, 8, dtype=torch.float64), torch.Generator().manual_seed(0)
    shape = (8, 1, 1, 1)
    one = torch.ones(shape, dtype=torch.float64)
    second = 1 + torch.rand(8, 6, 1, 1, 1, generator=generator, dtype=torch.float64)
    tensors = {
        "lam": lam, "count": 100 * one, "first": torch.rand(8, 3, 1, 1, 1, generator=generator, dtype=torch.float64),
        "second": 100 * second, "probe_count": 100 * one, "probe": 30 * one,
    }  # fmt: skip
    check = {"5": {"1": 1.0, "2": 1.5, "without": 2.0}, "10": {"1": 1.0, "2": 0.5, "without": 2.0}}
    own = {"check": check, "batches": 4, "batch": 2, "derivative": "differences", "pooling": "global"}
    return Calibration("statistics", tensors, COMMON | own)


def spread() -> Calibration:
    ratios = torch.logspace(2, -2, 8, dtype=torch.float64)
    tensors = {"ratios": ratios, "squares": 8 * ratios**2 / (1 + ratios**2), "counts": torch.full_like(ratios, 8)}
    return Calibration("spread", tensors, COMMON | {"estimator": "residual", "check": 0.1})


def schedule() -> Calibration:
    tensors = {str(n): torch.linspace(1, 0, n + 1, dtype=torch.float64) for n in (5, 8, 10, 20)}
    own = {
        "solver": "dpmpp_2m", "steps": 8, "shift_factor": 3.0, "is_flow": True, "denoise": 1.0, "chosen": "searched",
        "compared": {"searched": ERRORS, "beta": ERRORS}, "errors": {n: ERRORS for n in tensors},
        "latent": [4, 16, 16, "empty"],
    }  # fmt: skip
    return Calibration("schedule", tensors, COMMON | own)


def tuning() -> Calibration:
    """Of two parts, at two numbers of calls; rows are kept, and four weights of x0 and of the push."""
    tensors: dict[str, torch.Tensor] = {}
    for calls in (4, 8):
        tensors[f"sigmas {calls}"] = torch.linspace(1, 0, calls + 1, dtype=torch.float64)
        tensors[f"rows {calls}"] = torch.full((calls, 9), 0.25, dtype=torch.float64)
    check = {"tuned": {"4": ERRORS, "8": ERRORS}, "unmeasured": {"4": [0.3, 0.4, 0.3]},
             "dpmpp_2m simple": {"4": [0.4], "8": [0.2], "20": [0.05]}}  # fmt: skip
    own = {
        "effort": "quick", "shift_factor": 3.0, "is_flow": True, "parts": 2, "calls": 240, "check": check,
        "places": {"4": "logistic", "8": "edm"}, "latent": [4, 16, 16],
    }  # fmt: skip
    return Calibration("tuning", tensors, COMMON | own)


def use_statistics(path: Path) -> None:
    measured = load_measured(path)
    measured.describe()
    for calls in (1, 5, 7, 100):
        assert measured.best_order(calls) in (1, 2, None)
    assert measured.statistics.l_at(0.3).isfinite().all()


def use_spread(path: Path) -> None:
    found = load_spread(path)
    found.describe()
    assert all(not math.isnan(found.at(ratio)) for ratio in (0.0, 1e-3, 1.0, 1e3, math.inf))


def use_schedule(path: Path) -> None:
    found = load_schedules(path)
    found.describe()
    law = FLOW if found.facts["is_flow"] else VARIANCE_EXPLODING
    for steps in (1, 8, 9, 40):
        sigmas = found.sigmas[found.nearest(steps)]
        for shift, start in ((None, None), (1.0, 0.5), (5.0, None)):
            drawn = Curve(sigmas, law, found.facts["shift_factor"]).resampled(steps, shift, start)
            assert len(drawn) == steps + 1 and all(map(math.isfinite, drawn))


def use_tuning(path: Path) -> None:
    found = load_tuning(path)
    found.describe()
    for calls, table in found.tables.items():
        end = step_by_table(lambda x, sigma: (x * 0 + 1, x * 0 - 1), torch.zeros(1, 2), table)
        assert len(table.rows) == calls and end.shape == (1, 2)
        for rival in found.rivals:
            reached = found.reaches(calls, rival)
            assert reached is None or reached > 0 or math.isnan(reached)


KINDS: dict[str, tuple[Callable[[], Calibration], Callable[[Path], None]]] = {
    "statistics": (statistics, use_statistics),
    "spread": (spread, use_spread),
    "schedule": (schedule, use_schedule),
    "tuning": (tuning, use_tuning),
}


def refused_or_used(path: Path, use: Callable[[Path], None]) -> bool:
    """Whether it is of use. Anything but a sentence for the person fails the test."""
    kind_of(path)
    try:
        use(path)
    except ValueError as error:
        assert type(error) in (ValueError, calibration.Refused) and len(str(error)) > 20, repr(error)
        return False
    return True


def whole(kind: str, path: Path) -> bytes:
    KINDS[kind][0]().save(path)
    return path.read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_file_is_used(kind, tmp_path):
    path = tmp_path / "a.safetensors"
    whole(kind, path)
    assert refused_or_used(path, KINDS[kind][1]) and kind_of(path) == kind


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_of_the_format_before_is_read(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(calibration, "FORMAT", 1)
    path = tmp_path / "a.safetensors"
    whole(kind, path)
    monkeypatch.undo()
    assert calibration.FORMAT == 2 and refused_or_used(path, KINDS[kind][1])


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_cut_at_any_length_is_refused_in_words(kind, tmp_path):
    path = tmp_path / "a.safetensors"
    data = whole(kind, path)
    for length in range(0, len(data), 1 if LONG else 7):
        path.write_bytes(data[:length])
        assert not refused_or_used(path, KINDS[kind][1])


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_with_flipped_bits_is_refused_in_words_or_used(kind, tmp_path):
    path = tmp_path / "a.safetensors"
    data = whole(kind, path)

    @FUZZ
    @given(st.lists(st.integers(0, 8 * len(data) - 1), min_size=1, max_size=4))
    def flipped(bits: list[int]) -> None:
        changed = bytearray(data)
        for bit in bits:
            changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bytes(changed))
        refused_or_used(path, KINDS[kind][1])

    flipped()


NASTY: list[Any] = [
    None, True, False, 0, -1, 1, 10**400, -(10**400), 1e308, -1e308, math.nan, math.inf, -math.inf, 1e-320, "", "x",
    "8", "\u00b2", [], {}, [[]], [1], ["a"], {"a": 1}, {"": None}, {"0": ERRORS}, {"5": {}}, {"5": ERRORS},
    {"5": {"1": "a", "2": 1, "without": 1}}, {"tuned": {}}, {"tuned": {"4": ERRORS}}, {"tuned": {"8": [0.0]}, "a": {}},
    {"tuned": {"8": [0]}, "a": {"08": [0.0], "20": [1e-320]}}, {"tuned": {"8": [10**400]}}, {"tuned": {"8": [-1.0]}},
    {"tuned": {"8": [math.nan]}, "unmeasured": {"4": [math.inf]}, "a": {"4": [math.inf], "20": [0]}},
    {"\u0665": ERRORS}, {"9" * 400: ERRORS}, "x" * 100_000,
]  # fmt: skip


def deep(levels: int, kind: str = "[") -> str:
    return "[" * levels + "]" * levels if kind == "[" else '{"a":' * levels + "1" + "}" * levels


def texts_of(facts: dict[str, Any]) -> st.SearchStrategy[str]:
    """JSON of facts with some lacking, of another value, or nested deep."""
    anything = st.recursive(
        st.sampled_from(NASTY) | st.floats() | st.integers() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=3) | st.just("5"), inner, max_size=3),
        max_leaves=6,
    )
    names = st.sampled_from([*facts, "identity", "further"])
    changed = st.dictionaries(names, anything, max_size=3)
    lacking = st.sets(st.sampled_from(list(facts)), max_size=2)
    nested = st.sampled_from(["", deep(500), deep(900, "{"), deep(100_000), deep(100_000, "{")])

    def text(changed: dict[str, Any], lacking: set[str], nested: str) -> str:
        found = {name: value for name, value in (facts | changed).items() if name not in lacking}
        written = json.dumps(found)
        return written[:-1] + f', "nested": {nested}}}' if nested and found else written

    return st.builds(text, changed, lacking, st.just("") | nested)


@pytest.mark.parametrize("kind", KINDS)
def test_facts_of_any_form_are_refused_in_words_or_used(kind, tmp_path):
    path, good = tmp_path / "a.safetensors", KINDS[kind][0]()
    heads = st.sampled_from([f'"format": {n}' for n in (1, 2)] * 5 + ['"format": null', '"format": [2]', '"a": 1'])
    used = []

    @FUZZ
    @given(texts_of(good.facts), heads)
    def mutated(text: str, head: str) -> None:
        metadata = {calibration.KEY: f'{{{head}, "kind": "{kind}", "facts": {text}}}'}
        path.write_bytes(safetensors.torch.save(good.tensors, metadata=metadata))
        used.append(refused_or_used(path, KINDS[kind][1]))

    mutated()
    assert 0 < sum(used) < len(used)


@pytest.mark.parametrize("kind", KINDS)
def test_tables_of_any_form_are_refused_in_words_or_used(kind, tmp_path):
    path, good = tmp_path / "a.safetensors", KINDS[kind][0]()
    shapes = st.lists(st.integers(0, 5), max_size=5).map(tuple)
    values = st.sampled_from([0.0, 1.0, -1.0, 1e-300, 1e300, 1e16, math.nan, math.inf])
    types = st.sampled_from([torch.float64, torch.float16, torch.int64, torch.bool, torch.complex64, torch.uint8])
    fresh = st.builds(
        lambda shape, value, kind: torch.full(shape, value, dtype=torch.float64).to(kind), shapes, values, types
    )
    spoilt = st.builds(lambda name, value: (name, value), st.sampled_from([*good.tensors, "3", "x"]), fresh)
    scaled = st.builds(lambda name, by: (name, good.tensors[name] * by), st.sampled_from([*good.tensors]), values)

    @FUZZ
    @given(st.lists(spoilt | scaled, min_size=1, max_size=2))
    def mutated(changed: list[tuple[str, torch.Tensor]]) -> None:
        Calibration(kind, good.tensors | dict(changed), good.facts).save(path)
        refused_or_used(path, KINDS[kind][1])

    mutated()


@pytest.mark.parametrize("kind", KINDS)
def test_every_needed_fact_is_named_when_it_lacks(kind, tmp_path):
    path, good = tmp_path / "a.safetensors", KINDS[kind][0]()
    for name in facts.NEEDED[kind]:
        Calibration(kind, good.tensors, {n: v for n, v in good.facts.items() if n != name}).save(path)
        with pytest.raises(ValueError, match=f"lacks {name}"):
            KINDS[kind][1](path)


def test_a_header_that_claims_terabytes_is_said(tmp_path):
    path = tmp_path / "a.safetensors"
    head = {
        "__metadata__": {calibration.KEY: "{}"},
        "a": {"dtype": "F64", "shape": [2**40], "data_offsets": [0, 2**43]},
    }
    text = json.dumps(head).encode()
    for length in (len(text), 2**45, 2**63 - 1):
        path.write_bytes(struct.pack("<Q", length) + text)
        assert not refused_or_used(path, use_spread)


# ---------------------------------------------------------------------------------------------------------
# The authors' files


def authors(folder: Path) -> dict[str, bytes]:
    generator = np.random.default_rng(0)
    np.savez_compressed(folder / "l.npz", l=generator.random((6, 4, 4, 4), dtype=np.float32))
    np.savez(folder / "sb.npz", s=generator.random((6, 4, 4, 4)), b=generator.random((6, 4, 4, 4)))
    return {name: (folder / name).read_bytes() for name in ("l.npz", "sb.npz")}


def use_authors(folder: Path) -> None:
    measured = load_published(folder, -2.7, 3.5)
    assert measured.statistics.l_at(0.3).isfinite().all() and measured.describe()


def test_the_authors_files_cut_anywhere_are_refused_in_words(tmp_path):
    for name, data in authors(tmp_path).items():
        for length in range(0, len(data), 1 if LONG else 13):
            (tmp_path / name).write_bytes(data[:length])
            assert not refused_or_used(tmp_path, use_authors)
        (tmp_path / name).write_bytes(data)
    assert refused_or_used(tmp_path, use_authors)


def test_the_authors_files_with_flipped_bits_are_refused_in_words_or_used(tmp_path):
    data = authors(tmp_path)

    @FUZZ
    @given(st.sampled_from(sorted(data)), st.lists(st.integers(0, 2**20), min_size=1, max_size=4))
    def flipped(name: str, bits: list[int]) -> None:
        changed = bytearray(data[name])
        for bit in bits:
            changed[bit // 8 % len(changed)] ^= 1 << bit % 8
        (tmp_path / name).write_bytes(bytes(changed))
        refused_or_used(tmp_path, use_authors)
        (tmp_path / name).write_bytes(data[name])

    flipped()


def header(text: str, data: bytes = b"") -> bytes:
    """An .npy file with any header."""
    padded = text.encode().ljust(118) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(padded)) + padded + data


ODD: dict[str, Any] = {
    "a text": np.array(["a", "b"]),
    "an object": np.array([{"a": 1}], dtype=object),
    "complex numbers": np.ones((2, 1, 1, 1), dtype=complex),
    "dates": np.array(["2020-01-01"], dtype="datetime64[D]"),
    "records": np.zeros(3, dtype=[("a", "f4"), ("b", "i4")]),
    "a number": np.float64(3),
    "nothing": np.zeros((0, 4, 4, 4)),
    "no channels": np.zeros((6, 0, 4, 4)),
    "another number of levels": np.zeros((5, 4, 4, 4)),
    "a row": np.zeros(6),
    "NaN": np.full((6, 4, 4, 4), np.nan),
    "terabytes": header("{'descr': '<f8', 'fortran_order': False, 'shape': (6, 4, 400000, 4000000)}"),
    "petabytes": header("{'descr': '<f8', 'fortran_order': False, 'shape': (6, 4, 400000000, 40000000000)}"),
    "a nested header": header("(" * 100 + ")" * 100),
    "no header": header("'"),
    "no array": b"",
}


@pytest.mark.parametrize("what", ODD)
def test_odd_arrays_in_the_authors_files_are_refused_in_words(what, tmp_path):
    authors(tmp_path)
    odd, file = ODD[what], io.BytesIO()
    if isinstance(odd, bytes):
        file.write(odd)
    else:
        np.save(file, odd, allow_pickle=True)
    with zipfile.ZipFile(tmp_path / "l.npz", "w") as archive:
        archive.writestr("l.npy", file.getvalue())
    assert not refused_or_used(tmp_path, use_authors)


# ---------------------------------------------------------------------------------------------------------
# Half-way through saving


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no copy of a process there")
def test_killed_while_saving_the_file_is_the_one_before_or_the_one_after(tmp_path):
    """Nothing half written has the name, and nothing that was there is lost."""
    path, good = tmp_path / "mine.safetensors", spread()
    good.save(path)
    large = good.tensors | {"more": torch.ones(300_000)}
    seeds, halves = set(), 0
    for attempt in range(200 if LONG else 20):
        before, writer = path.stat().st_ino, os.fork()
        while not writer:  # this is the copy, until it is killed
            Calibration("spread", large, good.facts | {"seed": attempt}).save(path)
        # Now while it writes, now a little after it has written; how long that takes is the machine's affair.
        while path.stat().st_ino == before if attempt % 2 else not any(tmp_path.glob(".*.partial")):
            time.sleep(0.0002)
        time.sleep(0.0007 * attempt if attempt % 2 else 0)
        os.kill(writer, signal.SIGKILL)
        os.waitpid(writer, 0)
        assert refused_or_used(path, use_spread)
        seeds.add(load_spread(path).facts.get("seed"))
        left = [one for one in tmp_path.iterdir() if one != path]
        assert all(one.name.startswith(".") and one.suffix == ".partial" for one in left)
        halves += len(left)
        for one in left:
            one.unlink()
    assert len(seeds) > 2 and halves > 0  # it was killed while it wrote, too


@pytest.mark.skipif(sys.platform == "win32", reason="no such limit there")
def test_a_limit_on_the_size_of_files_leaves_the_old_file(tmp_path):
    import resource

    path = tmp_path / "mine.safetensors"
    data = whole("spread", path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
        with pytest.raises(OSError):
            spread().save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_bytes() == data and list(tmp_path.iterdir()) == [path]


def test_budgets_are_shown_in_the_order_of_numbers(tmp_path):
    """JSON sorts them as texts: 10, 20, 5, 8."""
    for kind, load in (("statistics", load_measured), ("schedule", load_schedules)):
        path, good = tmp_path / f"{kind}.safetensors", KINDS[kind][0]()
        name = "check" if kind == "statistics" else "errors"
        entry = next(iter(good.facts[name].values()))
        Calibration(kind, good.tensors, good.facts | {name: dict.fromkeys(("10", "20", "5", "8"), entry)}).save(path)
        ending = " calls: error" if kind == "statistics" else ": 1"
        places = [load(path).describe().rindex(f" {n}{ending}".lstrip()) for n in ("5", "8", "10", "20")]
        assert places == sorted(places)
