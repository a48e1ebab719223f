"""What the facts of a file may be: every limit, from both sides."""

from __future__ import annotations

import math
from typing import Any

import pytest
from fewstep.samplers import facts
from fewstep.samplers.facts import check_facts

STATISTICS = {"images": 8, "batches": 4, "levels": 8, "cfg": 5.0, "derivative": "differences"}
SPREAD = {"images": 8, "levels": 8, "cfg": 5.0, "estimator": "residual", "check": 0.1}
SCHEDULE = {
    **{"solver": "dpmpp_2m", "steps": 8, "cfg": 5.0, "shift_factor": 3.0, "is_flow": True, "chosen": "searched"},
    **{"compared": {"searched": [0.1]}, "errors": {"8": [0.1, 0.2]}},
}
KINDS: dict[str, dict[str, Any]] = {"statistics": STATISTICS, "spread": SPREAD, "schedule": SCHEDULE}
COUNTS = ("identity", "batch", "teacher_steps", "trajectories", "prompts")
TEXTS = (
    *("model", "patches", "functions", "latent_format", "prediction", "sampling", "prompt", "guider"),
    *("references", "statistics", "start", "pooling"),
)
WHOLE = {
    **{("statistics", name): (1, 10**9) for name in (*COUNTS, "images", "batches", "levels")},
    **{("spread", name): (1, 10**9) for name in ("images", "levels")},
    ("schedule", "steps"): (1, 10**5),
    ("spread", "channels"): (1, 10**6),
    ("schedule", "polish"): (0, 10**9),
}
NUMBERS = {
    **{(kind, "cfg"): (-1e6, 1e6) for kind in KINDS},
    ("statistics", "shift"): (-1e6, 1e6),
    ("spread", "sigma_max"): (0.0, 1e9),
    ("spread", "sigma_min"): (0.0, 1e9),
    ("schedule", "denoise"): (1e-6, 1.0),
    ("schedule", "shift_factor"): (1e-3, 1e4),
    ("spread", "check"): (0.0, 1e300),
}
DEEPEST: list[Any] = [[[[[["six"]]]]]]


def holds(kind: str, name: str, value: Any) -> bool:
    """Whether a file of the kind may have the fact."""
    try:
        check_facts(kind, KINDS[kind] | {name: value}, "mine.safetensors")
    except ValueError as error:
        assert str(error).startswith(f"mine.safetensors has {name} ") and str(error).endswith(". Measure again.")
        return False
    return True


@pytest.mark.parametrize(("kind", "name"), WHOLE)
def test_a_whole_number_from_its_least_to_its_most(kind, name):
    least, most = WHOLE[kind, name]
    assert all(holds(kind, name, value) for value in (least, least + 1, most - 1, most))
    assert not any(holds(kind, name, value) for value in (least - 1, most + 1, float(least), True, "1", None, [1]))


@pytest.mark.parametrize(("kind", "name"), NUMBERS)
def test_a_number_from_its_least_to_its_most(kind, name):
    least, most = NUMBERS[kind, name]
    beyond = (math.nextafter(least, -math.inf), math.nextafter(most, math.inf), -math.inf, math.inf)
    assert all(holds(kind, name, value) for value in (least, most, (least + most) / 2, 1))
    assert not any(holds(kind, name, value) for value in (*beyond, True, "1", [1.0]))


def test_nothing_and_nan_where_they_mean_something():
    """A model without a shift, and a spread whose halves could not be compared."""
    assert holds("statistics", "shift", None) and not holds("statistics", "cfg", None)
    assert holds("spread", "check", math.nan) and not holds("spread", "cfg", math.nan)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *(("statistics", name) for name in (*TEXTS, "derivative")),
        *(("schedule", "solver"), ("schedule", "chosen"), ("spread", "estimator")),
    ],
)
def test_a_text_has_at_most_a_thousand_characters(kind, name):
    assert holds(kind, name, "") and holds(kind, name, 1000 * "x")
    assert not any(holds(kind, name, value) for value in (1001 * "x", 1, None, ["x"]))


def test_a_flag_is_true_or_false():
    assert holds("schedule", "is_flow", False) and not any(holds("schedule", "is_flow", n) for n in (0, 1, "true"))


@pytest.mark.parametrize("budget", ["1", "9", "10", "99999", "999999"])
def test_a_number_of_calls(budget):
    assert holds("schedule", "errors", {budget: [0.1]})


@pytest.mark.parametrize("budget", ["", "0", "000", "-1", "1.0", "1e3", " 8", "\u0664", "\u00b2", "1000000"])
def test_what_is_no_number_of_calls(budget):
    assert not holds("schedule", "errors", {budget: [0.1]})
    assert not holds("statistics", "check", {budget: {"1": 1.0, "2": 1.0, "without": 1.0}})


def test_errors_by_numbers_of_calls_and_by_names():
    right: list[Any] = [[0.0], [0.1, 5], [math.nan], [math.inf]]
    wrong: list[Any] = [[], 0.1, [None], ["0.1"], [True], [0.1, "0.1"], {}]
    for entry in right:
        assert holds("schedule", "errors", {"8": entry}) and holds("schedule", "compared", {"beta": entry})
    for entry in wrong:
        assert not holds("schedule", "errors", {"8": entry}) and not holds("schedule", "compared", {"beta": entry})
    assert not holds("schedule", "errors", [0.1]) and not holds("schedule", "compared", [0.1])
    assert holds("schedule", "errors", {}) and not holds("schedule", "compared", {})
    assert holds("schedule", "compared", {1000 * "x": [0.1]}) and not holds("schedule", "compared", {1001 * "x": [0.1]})


def test_a_check_of_statistics_has_three_errors():
    good = {"1": 0, "2": 1e300, "without": 1.0}
    assert holds("statistics", "check", {"5": good})
    assert not any(holds("statistics", "check", value) for value in ([good], {"5": [1.0, 1.0, 1.0]}, 1.0))
    for name in good:
        assert not any(holds("statistics", "check", {"5": good | {name: bad}}) for bad in (-1e-9, math.inf, None, "1"))
        assert not holds("statistics", "check", {"5": {other: good[other] for other in good if other != name}})


def test_other_facts_are_nested_six_deep_at_most():
    assert holds("spread", "other", DEEPEST) and not holds("spread", "other", [DEEPEST])
    assert holds("spread", "other", {"a": DEEPEST[0]}) and not holds("spread", "other", {"a": 1, "b": DEEPEST})
    assert not holds("spread", "other", [1, DEEPEST, 1])
    shallow: tuple[Any, ...] = (None, "x", 10**40, math.nan, [], {})
    assert all(holds("spread", "other", value) for value in shallow)


@pytest.mark.parametrize("kind", KINDS)
def test_facts_that_lack_are_named(kind):
    for name in KINDS[kind]:
        if name in facts.NEEDED[kind]:
            with pytest.raises(ValueError, match=f"^mine lacks {name}; measure again.$"):
                check_facts(kind, {other: KINDS[kind][other] for other in KINDS[kind] if other != name}, "mine")
    with pytest.raises(ValueError, match=f"^mine lacks {', '.join(KINDS[kind])}; measure again.$"):
        check_facts(kind, {}, "mine")
    check_facts("another kind", {}, "mine")


@pytest.mark.parametrize(
    "name, value, said",
    [
        ("sigma_max", -1, "sigma_max -1; it must be a number from 0 to 1e+09"),
        ("batch", 0, "batch 0; it must be a whole number from 1 to 1000000000"),
        ("shift", "3", "shift '3'; it must be a number from -1e+06 to 1e+06 or nothing"),
        ("check", -1.0, "check -1.0; it must be a number from 0 to 1e+300 or NaN"),
        ("model", [1], "model of another form; it must be a text of at most 1000 characters"),
        ("model", {}, "model of another form; it must be a text of at most 1000 characters"),
        ("other", [DEEPEST], "other of another form; it must be at most 6 lists in lists"),
        ("cfg", 10**30 - 1, f"cfg {10**30 - 1}; it must be a number from -1e+06 to 1e+06"),
        ("cfg", -(10**30), "cfg of more than 30 digits; it must be a number from -1e+06 to 1e+06"),
        ("cfg", 38 * "x", f"cfg '{38 * 'x'}'; it must be a number from -1e+06 to 1e+06"),
        ("cfg", 39 * "x", f"cfg '{36 * 'x'}...; it must be a number from -1e+06 to 1e+06"),
    ],
)
def test_what_is_wrong_is_said(name, value, said):
    with pytest.raises(ValueError) as told:
        check_facts("spread", SPREAD | {name: value}, "mine.safetensors")
    assert str(told.value) == f"mine.safetensors has {said}. Measure again."


def test_the_words_of_the_other_rules():
    for kind, name, words in (
        ("schedule", "is_flow", "true or false"),
        ("schedule", "compared", "errors by names of schedules"),
        ("schedule", "errors", "errors by numbers of model calls"),
        ("statistics", "check", "errors by numbers of model calls"),
    ):
        with pytest.raises(ValueError, match=f"has {name} 7; it must be {words}. Measure again"):
            check_facts(kind, KINDS[kind] | {name: 7}, "mine")


def test_a_long_name_is_cut():
    with pytest.raises(ValueError, match=f"^mine has {40 * 'n'} of another form; "):
        check_facts("spread", SPREAD | {60 * "n": [DEEPEST]}, "mine")
