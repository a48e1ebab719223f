"""What Compare makes of its figures: curves, sentences, tables, files, chart and grid; no host, no model."""

from __future__ import annotations

import csv
import io
import json
import math
from typing import Any

import pytest
import torch
from support import metrics

pytestmark = pytest.mark.usefixtures("host")


def row(label="euler simple", calls=8, error=0.01, seconds=1.0, **changed):
    from fewstep.nodes.measuring.comparing.figures import Row

    given: dict[str, Any] = {"errors": (error, error), "seconds": (seconds, seconds), "distance": 0.1}
    return Row(label, calls, calls=calls, **(given | changed))


def told(**changed):
    from fewstep.nodes.measuring.comparing.words import Told

    return Told(**({"images": 2, "seed": 3, "cfg": 5.0, "reference_steps": 100, "known": 1e-6} | changed))


def by_law(label: str, factor: float, order: float, per_call: float, calls=(4, 8, 16), **changed):
    """Rows whose error is factor * calls^-order, at so many seconds a call."""
    return [row(label, n, factor * n**-order, per_call * n, **changed) for n in calls]


# ---------------------------------------------------------------------------------------------------------
# Curves


def test_between_two_numbers_of_calls_a_curve_is_a_straight_line_of_logarithms():
    from fewstep.nodes.measuring.comparing.figures import curves

    (curve,) = curves(by_law("a", 1.0, 2.0, 0.5))
    assert curve.error_at(0.5 * 6) == pytest.approx(6**-2) and curve.calls_for(11**-2) == pytest.approx(11)
    assert curve.error_at(0.5 * 4 * 0.97) == pytest.approx(4**-2)  # as good as there
    assert curve.error_at(1.0) is None and curve.error_at(9.0) is None
    assert curve.calls_for(1e-9) is None and curve.calls_for(1.0) == 4


def test_a_curve_that_comes_near_only_once_is_read_there():
    from fewstep.nodes.measuring.comparing.figures import Curve

    curve = Curve("a", (row(calls=4, error=0.1), row(calls=8, error=0.02), row(calls=12, error=0.05)))
    calls = curve.calls_for(0.05)
    assert calls is not None and 4 < calls < 8


def test_a_mean_of_errors_survives_zero_and_nan():
    from fewstep.nodes.measuring.comparing.figures import geometric

    assert geometric([1e-2, 1e-4]) == pytest.approx(1e-3)
    assert geometric([0.0]) == pytest.approx(1e-12) and geometric([math.nan, 1.0]) == pytest.approx(1e3)


def test_the_distance_of_sets_is_the_sliced_energy_distance():
    from fewstep.nodes.measuring.comparing.figures import sliced_energy_distance

    draws = torch.Generator().manual_seed(0)
    x, y = (torch.randn((400, 3, 4, 4), generator=draws) for _ in range(2))
    ours, theirs = (f(x, 1.5 * y + 0.3) for f in (sliced_energy_distance, metrics.sliced_energy_distance))
    assert ours == pytest.approx(theirs, rel=0.05) and ours > 0.05
    assert abs(sliced_energy_distance(x, y)) < 0.02 and sliced_energy_distance(x, x.clone()) == pytest.approx(
        0, abs=1e-12
    )


def test_large_latents_are_projected_in_parts(monkeypatch):
    from fewstep.nodes.measuring.comparing import figures

    draws = torch.Generator().manual_seed(0)
    x, y = (torch.randn((30, 50), generator=draws) + shift for shift in (0.0, 1.0))
    whole = figures.sliced_energy_distance(x, y)
    monkeypatch.setattr(figures, "NUMBERS", 50 * 7)
    assert figures.sliced_energy_distance(x, y) == pytest.approx(whole, rel=0.3) and whole > 0.1


# ---------------------------------------------------------------------------------------------------------
# Sentences


def said(rows, **changed) -> str:
    from fewstep.nodes.measuring.comparing.words import sentences

    return "\n".join(sentences(rows, told(**changed)))


def test_the_first_sentence_is_the_one_a_person_needs():
    rows = [*by_law("euler simple", 0.98, 1.0, 0.1), *by_law("good", 0.5, 1.0, 0.15)]
    text = said(rows)
    assert text.startswith(
        "At 8 calls good is nearest to the converged picture: error 0.062. euler simple needs 15.7 calls"
    )
    # 8 calls of euler are 0.8 s, in which the other makes 5.33.
    assert f"In the same time, 0.8 s (euler simple, 8 calls): good {0.5 / (0.8 / 0.15):.2g}, euler simple 0.12." in text
    assert "2 pictures, seeds 3 to 4, cfg 5. The converged picture is known to 1.0e-06: 100 and 50 steps" in text


def test_the_yardstick_may_be_out_of_reach_absent_or_the_best():
    euler = by_law("euler simple", 0.98, 1.0, 0.1)
    assert "euler simple is not there with 16 calls: 0.061." in said([*euler, *by_law("good", 0.01, 1.0, 0.1)])
    assert said([*euler, *by_law("poor", 9.0, 1.0, 0.1)]).startswith(
        "At 8 calls euler simple is nearest to the converged picture: error 0.12.\n"
    )
    assert "euler" not in said(by_law("only", 0.01, 1.0, 0.1))


def test_an_entry_of_the_persons_is_told_what_others_do_in_its_time():
    own = row("mine", 6, 0.03, 0.7, own=True), row("mine too", 8, 0.02, 0.7, own=True)
    rows = [*own, *by_law("good", 0.5, 1.0, 0.1)]
    text = said(rows)
    assert "mine takes 0.7 s for 0.03; good has 0.071 by then." in text and "mine too takes" in text


def test_what_stands_in_for_an_error_is_said():
    rows = [row(kind="sde", label="er_sde"), row(kind="other", label="pp")]
    rows.append(row(label="x", refused="it broke.", calls=0))
    text = said(rows)
    assert text.startswith("Every entry draws noise of its own") and "er_sde: drawing noise on the way" in text
    assert "pp: CFG++ follows another equation" in text and "With fewer than 16 pictures it is mostly chance." in text
    assert "x was left out: it broke." in text and "chance" not in said(rows, images=16)


def test_a_reference_that_is_no_better_than_the_entries_is_said():
    assert "raise reference_steps" in said([row(error=1e-3)], known=5e-4)
    assert "raise reference_steps" not in said([row(error=1e-3)], known=1e-4)


# ---------------------------------------------------------------------------------------------------------
# Table and files


ROWS = (
    dict(label="b|c", calls=8, error=0.02),
    dict(label="sde", calls=8, kind="sde"),
    dict(label="a", calls=8, error=0.01),
    dict(label="few", calls=4, error=0.5),
    dict(label="no, \"never\"", calls=0, refused="it wants\nwhat is not there"),
)  # fmt: skip


def test_the_table_is_by_calls_and_the_nearest_comes_first():
    from fewstep.nodes.measuring.comparing.words import table

    lines = table([row(**one) for one in ROWS]).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [line[0] for line in cells] == ["entry", cells[1][0], "few", "a", "b/c", "sde"]
    assert cells[5][2:] == ["draws noise", "", "", "", "1", "0.1"] and cells[3][2] == "0.01"
    assert len({len(line) for line in lines}) == 1 and set(lines[1]) <= set("|-: ")


def test_csv_and_json_are_read_back():
    from fewstep.nodes.measuring.comparing.words import as_csv, as_json

    rows = [row(**one) for one in ROWS]
    lines = list(csv.DictReader(io.StringIO(as_csv(rows))))
    document = json.loads(as_json(rows, told(), {"prediction": "FLOW"}))
    assert document["compared"]["prediction"] == "FLOW" and document["compared"]["known"] == 1e-6
    for line, one in zip(lines, document["rows"], strict=True):
        assert {name: value if value is None else str(value) for name, value in one.items() if name in line} == {
            name: value or None for name, value in line.items()
        }
    assert lines[4]["label"] == 'no, "never"' and lines[4]["error"] == "" and lines[1]["error"] == ""
    assert lines[1]["distance"] == "0.1" and document["rows"][0]["errors_of_pictures"] == [0.02, 0.02]


# ---------------------------------------------------------------------------------------------------------
# Pictures


@pytest.mark.parametrize("count", [1, 5, 30])
def test_names_at_the_curves_do_not_cover_each_other(count):
    from fewstep.nodes.measuring.comparing.chart import spread_out

    gap = min(0.047, 0.96 / count)
    heights = spread_out(sorted((0.3 + 0.01 * (n % 3) for n in range(count)), reverse=True), gap)
    assert all(high - low >= gap * 0.999 for high, low in zip(heights, heights[1:], strict=False))
    assert all(0 <= height <= 1 for height in heights)


def test_names_stay_where_there_is_room():
    from fewstep.nodes.measuring.comparing.chart import spread_out

    assert spread_out([0.9, 0.5, 0.1], 0.05) == [0.9, 0.5, 0.1]


@pytest.mark.parametrize(
    "rows",
    [
        [dict(calls=8)],
        [dict(calls=8, error=0.0, seconds=1e-5), dict(calls=8, error=1e9, label="$x^2")],
        [dict(kind="sde", calls=4), dict(kind="sde", calls=8)],
        [dict(label=f"sampler number {n}", calls=n % 3 + 4, error=0.1 / (n + 1)) for n in range(30)],
    ],
    ids=["one point", "odd", "noise alone", "many"],
)
def test_any_rows_are_a_chart(rows):
    from fewstep.nodes.measuring.comparing.chart import comparison_chart

    image, remark = comparison_chart([row(**one) for one in rows], told())
    assert remark == "" and image is not None and image.shape[0] == 1 and image.shape[-1] == 3 and image.std() > 0.02


def test_the_grid_has_a_cell_for_every_row_and_the_converged_picture():
    from fewstep.nodes.measuring.comparing.grid import grid

    rows = [row("a", 4), row("a", 8), row("b", 8, kind="sde")]
    colours = [torch.full((1, 3, 10, 20), value) for value in (0.2, 0.4, 0.6)]
    image = grid(rows, colours, torch.full((1, 3, 10, 20), 1.0), lambda latent: latent.movedim(1, -1))
    cell = (10 * 7) * (20 * 7)  # enlarged by whole pixels to 128 or more
    for shade in (0.2, 0.4, 0.6, 1.0):
        assert int((image[..., 0] - shade).abs().lt(1e-3).sum()) >= cell


def test_a_large_picture_is_made_smaller():
    from fewstep.nodes.measuring.comparing.grid import fitted

    assert fitted(torch.zeros(1, 2048, 1024, 3)).shape == (512, 256, 3)
    assert fitted(torch.zeros(1, 300, 200, 3)).shape == (300, 200, 3)
