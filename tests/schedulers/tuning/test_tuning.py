"""A tuning as a file, and what it says of itself: which tables are used, and what a person is told they reach."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from fewstep.samplers.calibration import Calibration
from fewstep.samplers.table import Row, Table, step_by_table
from fewstep.schedulers.tuning.tuning import KIND, Tuning, load_tuning, packed, unpacked
from hypothesis import given
from hypothesis import strategies as st
from support.examples import many

FACTS: dict[str, Any] = {"effort": "quick", "cfg": 5.0, "shift_factor": 3.0, "is_flow": True, "parts": 2, "calls": 240}


def errors(**by_calls: float) -> dict[str, list[float]]:
    """Geometric mean, mean and median, of which the first counts. by_calls: of n calls, as _n."""
    return {name.removeprefix("_"): [error, 9.0, 9.0] for name, error in by_calls.items()}


def rows(steps: int, parts: int, order: int = 4) -> tuple[Row, ...]:
    drawn = torch.randn((steps, 1 + parts * order), generator=torch.Generator().manual_seed(steps), dtype=torch.float64)
    return tuple(
        Row(float(row[0]), tuple(tuple(row[1 + p * order :][: min(n + 1, order)].tolist()) for p in range(parts)))
        for n, row in enumerate(drawn)
    )


def table(steps: int, parts: int = 2) -> Table:
    return Table(tuple(torch.linspace(1, 0, steps + 1, dtype=torch.float64).tolist()), rows(steps, parts))


def tuning(check: dict[str, Any], budgets=(4, 6, 8), **changed) -> Tuning:
    facts = FACTS | changed
    return Tuning({calls: table(calls, facts["parts"]) for calls in budgets}, facts | {"check": check})


WON = {"tuned": errors(_4=1e-2, _6=4e-3, _8=1e-3), "unmeasured": errors(_4=5e-2, _6=2e-2, _8=1e-2)}


# ---------------------------------------------------------------------------------------------------------
# Files


@pytest.mark.parametrize("parts", [1, 2])
def test_a_file_holds_all_of_it_to_the_bit(parts, tmp_path):
    found = tuning(WON, (1, 2, 3, 6, 20), parts=parts, places={"4": "logistic"}, latent=[4, 8, 8])
    found.calibration().save(tmp_path / "mine.safetensors")
    loaded = load_tuning(tmp_path / "mine.safetensors")
    assert loaded.tables == found.tables and loaded.facts == found.facts and loaded.used == found.used
    assert list(loaded.tables) == [1, 2, 3, 6, 20] and loaded.describe() == found.describe()


@many
@given(st.integers(1, 12), st.integers(1, 5), st.integers(1, 2), st.floats(-1e300, 1e300))
def test_rows_are_unpacked_as_they_were_packed(steps, order, parts, number):
    made = Table(
        tuple(float(n) for n in range(steps, -1, -1)),
        (Row(number, ((number,),) * parts), *rows(steps, parts, order)[1:]),
    )
    back = unpacked(torch.tensor(made.sigmas, dtype=torch.float64), packed(made), parts)
    assert back == made


def test_a_row_that_is_shorter_than_it_may_be_comes_back_as_the_same_step():
    last = Row(0.5, ((0.25,),))
    short = Table((3.0, 2.0, 1.0, 0.0), (*rows(2, 1), last))
    back = unpacked(torch.tensor(short.sigmas, dtype=torch.float64), packed(short), 1)

    def ask(x, sigma):
        return (x * sigma + 1,)

    x = torch.ones(1, 2, dtype=torch.float64)
    assert torch.equal(step_by_table(ask, x, back), step_by_table(ask, x, short)) and back.order == 2


ROWS = packed(table(4))


@pytest.mark.parametrize(
    "changed, words",
    [
        ({"rows 4": torch.ones(4)}, "no table for 4 calls"),
        ({"rows 4": torch.tensor(1.0)}, "no table for 4 calls"),
        ({"rows 4": torch.ones(4, 3, 3)}, "no table for 4 calls"),
        ({"rows 4": ROWS[:, :-1]}, "no table for 4 calls"),  # weights of x0 and of half a push
        ({"rows 4": ROWS[:, :1]}, "no table for 4 calls"),
        ({"rows 4": ROWS * math.nan}, "no table for 4 calls"),
        ({"rows 4": ROWS[:3]}, "no table for 4 calls"),
        ({"rows 4": torch.ones(0, 9)}, "no table for 4 calls"),
        ({"sigmas 4": torch.tensor([1.0, 0.8, 0.9, 0.1, 0.0])}, "no table for 4 calls"),
        ({"sigmas 4": torch.tensor([1.0, 0.8, 0.5, 0.1, -0.1])}, "no table for 4 calls"),
        ({"sigmas 4": torch.zeros(0)}, "no table for 4 calls"),
        ({"sigmas 4": torch.tensor([14.0, 5.0, 2.0, 0.1, 0.0])}, "of other calls or sigmas than 4"),
        ({"sigmas 5": torch.tensor([1.0, 0.8, 0.5, 0.1, 0.0]), "rows 5": ROWS}, "of other calls or sigmas than 5"),
    ],
    ids=str,
)
def test_tables_that_are_none_are_refused_in_words(changed, words, tmp_path):
    path, good = tmp_path / "given.safetensors", tuning(WON, (4,)).calibration()
    Calibration(KIND, good.tensors | changed, good.facts).save(path)
    with pytest.raises(ValueError, match=words):
        load_tuning(path)


@pytest.mark.parametrize("kept", [(), ("sigmas 4",), ("rows 4",)], ids=str)
def test_a_file_without_a_whole_table_is_refused(kept, tmp_path):
    path, good = tmp_path / "given.safetensors", tuning(WON, (4,)).calibration()
    tensors = {name: good.tensors[name] for name in kept} | {"4": torch.zeros(3), "sigmas x": torch.zeros(3)}
    Calibration(KIND, tensors, good.facts).save(path)
    with pytest.raises(ValueError, match="holds no table; tune again"):
        load_tuning(path)


@pytest.mark.parametrize(
    "changed, words",
    [
        ({"parts": 3}, "parts 3; it must be a whole number from 1 to 2"),
        ({"parts": True}, "parts True"),
        ({"is_flow": 1}, "is_flow 1; it must be true or false"),
        ({"calls": 0}, "calls 0"),
        ({"shift_factor": 0.0}, "shift_factor 0.0"),
        ({"effort": 3}, "effort 3; it must be a text"),
        ({"check": {}}, "check of another form; it must be errors by names and numbers of model calls"),
        ({"check": {"unmeasured": errors(_4=0.1)}}, "check of another form"),
        ({"check": {"tuned": {"4": []}}}, "check of another form"),
        ({"check": {"tuned": {"4": 0.1}}}, "check of another form"),
        ({"check": {"tuned": {"four": [0.1]}}}, "check of another form"),
        ({"check": {"tuned": {"0": [0.1]}}}, "check of another form"),
        ({"check": {"tuned": {"4": [-0.1]}}}, "check of another form"),
        ({"check": {"tuned": {"4": [10**400]}}}, "check of another form"),
        ({"check": {"tuned": {"4": ["small"]}}}, "check of another form"),
    ],
    ids=str,
)
def test_facts_that_cannot_be_are_refused_in_words(changed, words, tmp_path):
    path, good = tmp_path / "given.safetensors", tuning(WON, (4,)).calibration()
    Calibration(KIND, good.tensors, good.facts | changed).save(path)
    with pytest.raises(ValueError, match=f"{words}.*easure again"):
        load_tuning(path)


@pytest.mark.parametrize(
    "check",
    [
        {"tuned": {}},
        {"tuned": {"8": [0.0]}, "2m": {}},
        {"tuned": {"8": [0]}, "2m": {"8": [0.0], "20": [0.0]}},
        {"tuned": {"08": [1e-3]}, "2m": {"08": [0.1], "020": [1e-320]}},
        {"tuned": {"8": [math.nan]}, "unmeasured": {"8": [math.inf]}, "2m": {"8": [math.inf], "20": [0.0]}},
        {"tuned": {"8": [1e-9]}, "unmeasured": {"8": [math.nan]}, "2m": {"8": [math.nan], "20": [math.inf]}},
        {"tuned": {"8": [math.inf]}, "2m": {"8": [1e300], "20": [1e-300]}},
    ],
    ids=str,
)
def test_odd_but_possible_checks_are_told(check, tmp_path):
    found = tuning(check, (8,))
    found.calibration().save(tmp_path / "odd.safetensors")
    loaded = load_tuning(tmp_path / "odd.safetensors")
    assert "8 calls: error" in loaded.describe() and loaded.used in ((), (8,))


# ---------------------------------------------------------------------------------------------------------
# What is used, and what it reaches


def test_a_table_is_used_where_it_won_its_check():
    check = {"tuned": errors(_4=1e-2, _6=5e-3, _8=2e-3), "unmeasured": errors(_4=2e-2, _6=5e-3, _8=1e-3)}
    assert tuning(check).used == (4,)  # as near is not nearer
    assert "4 calls: error 1.0e-02, without Tune 2.0e-02: used" in tuning(check).describe()
    assert "8 calls: error 2.0e-03, without Tune 1.0e-03: not used" in tuning(check).describe()
    between = tuning(check | {"unmeasured": errors(_4=2e-2, _8=1e-3)})
    assert "6 calls: error 5.0e-03, without Tune about 3.5e-03: not used" in between.describe()


@pytest.mark.parametrize(
    "tuned, unmeasured, used",
    [
        (1e-3, None, True), (1e-3, math.nan, True), (1e-3, math.inf, True), (0.0, 1e-9, True),
        (1e-3, 0.0, False), (math.nan, 1e-3, False), (math.nan, None, False), (math.inf, 1e-3, False),
        (math.inf, math.inf, False),
    ],
)  # fmt: skip
def test_what_diverged_never_wins_and_always_loses(tuned, unmeasured, used):
    check = {"tuned": errors(_4=tuned)} | ({} if unmeasured is None else {"unmeasured": errors(_4=unmeasured)})
    assert tuning(check, (4,)).used == ((4,) if used else ())


def test_a_table_without_a_check_is_not_used():
    assert tuning({"tuned": {}}).used == ()


def test_between_numbers_of_calls_an_error_falls_by_a_power_law():
    found = tuning({"tuned": errors(_4=1.6e-2, _16=1e-4), "unmeasured": errors(_8=1e-2)})
    assert found.error("tuned", 4) == 1.6e-2 and found.error("tuned", 16) == 1e-4
    assert found.error("tuned", 8) == pytest.approx(math.sqrt(1.6e-2 * 1e-4))
    assert found.error("tuned", 2) == pytest.approx(1.6e-2) and found.error("tuned", 30) == pytest.approx(1e-4)
    assert found.error("unmeasured", 3) == found.error("unmeasured", 20) == pytest.approx(1e-2)
    assert found.error("nobody", 8) is None


@many
@given(st.floats(0.5, 4), st.floats(1e-3, 1), st.floats(1.05, 1.9))
def test_of_powers_what_is_reached_is_exact(power, size, gain):
    """Errors c / n^p of a rival; ours is what it has at gain times as many calls."""
    rival = {str(n): [size * n**-power] for n in (4, 8, 20)}
    found = tuning({"tuned": {"8": [size * (8 * gain) ** -power]}, "2m": rival}, (8,))
    reached = found.reaches(8, "2m")
    assert reached == pytest.approx(8 * gain, rel=1e-6)
    assert found.sentence() == f"8 calls now reach what 2m reaches with {reached:.0f}."


@pytest.mark.parametrize(
    "ours, rival, reaches",
    [
        (5e-2, errors(_4=1e-2, _20=1e-3), None),  # not even with its fewest
        (5e-4, errors(_4=1e-2, _20=1e-3), None),  # not with its most
        (1e-2, errors(_4=1e-2, _20=1e-3), 4),
        (1e-3, errors(_4=1e-2, _20=1e-3), 20),
        (1e-2, errors(_4=1e-2, _8=1e-2, _20=1e-3), 4),  # flat: with the fewest of them
        (5e-3, errors(_4=1e-2), None),
    ],
)
def test_what_a_rival_would_need(ours, rival, reaches):
    found = tuning({"tuned": errors(_8=ours), "2m": rival}, (8,)).reaches(8, "2m")
    assert found is None if reaches is None else found == pytest.approx(reaches)


def test_the_sentence_a_person_needs():
    rival = {"2m": errors(_4=1e-1, _8=5e-2, _20=2e-3)}
    assert tuning(WON | rival).sentence() == "8 calls now come nearer than 2m with 20."
    six = WON | rival | {"tuned": errors(_4=1e-2, _6=4e-3, _8=2e-2)}
    assert tuning(six).used == (4, 6) and tuning(six).sentence().startswith("6 calls now reach what 2m reaches with 1")
    worse = rival | {"tuned": errors(_4=9e-2, _6=7e-2, _8=4.9e-2), "unmeasured": WON["unmeasured"]}
    assert tuning(worse).sentence() == "No table won its check: nothing was gained on this model."
    behind = {"tuned": errors(_8=4e-2), "unmeasured": errors(_8=5e-2), "2m": errors(_4=1e-2, _20=1e-3)}
    assert tuning(behind, (8,)).sentence() == ""
    assert tuning(WON).sentence() == "6 calls now come nearer than Boost without Tune with 8."


def test_many_numbers_of_calls_are_told_in_a_few_lines():
    budgets = range(3, 23)
    check = {"tuned": {str(n): [1e-3] for n in budgets}, "unmeasured": {str(n): [1e-2] for n in budgets}}
    text = tuning(check, budgets).describe()
    assert text.count("\n") < 16 and "used too: 15, 16, 17, 18, 19, 20, 21, 22 calls" in text


def test_the_guidance_is_told():
    assert "quick: 240 model calls of one latent, cfg 5\n" in tuning(WON).describe()
    assert (
        "one latent, cfg1 3, cfg2 1 (Guider_DualCFG)\n"
        in tuning(WON, guider="cfg1 3, cfg2 1 (Guider_DualCFG) a1").describe()
    )
