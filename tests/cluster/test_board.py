"""Who makes which part, and what is kept: without Ray and without a host."""

from __future__ import annotations

import pytest
from fewstep.cluster.board import ALL, MAKE, Asked, Board, Made, Stop

CALLS = {"batch 1": 10, "batch 2": 10, "check": 40}
STAGE = Asked("statistics-1", 100, CALLS)


def worked(board: Board, workers: list[int], stage: Asked = STAGE) -> dict[str, int]:
    """Every worker makes what it is dealt until all wait or go on; which part was made by whom."""
    made: dict[str, int] = {}
    for worker in workers:
        board.ask(worker, stage)
    while orders := {worker: order for worker in workers if (order := board.order(worker)) and order[0] == MAKE}:
        for worker, (_, name) in orders.items():
            assert isinstance(name, str) and name not in made
            made[name] = worker
            board.made(worker, Made(name, name.encode()))
    return made


@pytest.mark.parametrize("count", [1, 2, 4])
def test_every_part_is_dealt_once_the_longest_first_and_all_are_given_to_all(tmp_path, count):
    board, workers = Board(tmp_path), list(range(count))
    made = worked(board, workers)
    assert board.total == 100
    assert list(made)[0] == "check" and set(made) == set(CALLS)
    assert set(made.values()) == set(workers[:3])
    for worker in workers:
        assert board.order(worker) == (ALL, tuple(CALLS))
        assert board.results(worker) == {name: name.encode() for name in CALLS}
    assert board.calls == 60 and board.found == 0
    assert board.told() == "3 parts, 60 model calls; 0 workers replaced."


def test_who_finds_nothing_free_waits_for_the_others(tmp_path):
    board, stage = Board(tmp_path), Asked("statistics-1", 10, {"batch 1": 10})
    board.ask(0, stage)
    board.ask(1, stage)
    assert board.order(0) == (MAKE, "batch 1") and board.order(1) is None
    board.made(0, Made("batch 1", b"1"))
    assert board.order(1) == (ALL, ("batch 1",))


def test_the_part_of_a_worker_that_died_is_dealt_again_and_what_it_finished_is_not(tmp_path):
    board = Board(tmp_path)
    board.ask(0, STAGE)
    assert board.order(0) == (MAKE, "check")
    board.made(0, Made("check", b"check"))
    _, lost = board.order(0) or ("", "")
    assert board.lost(0, "") == lost != "check"
    assert set(worked(board, [1])) == {"batch 1", "batch 2"}
    assert board.calls == 60 and board.told().endswith("1 workers replaced.")


def test_a_part_that_costs_three_workers_is_named(tmp_path):
    board = Board(tmp_path)
    for worker in range(2):
        board.ask(worker, STAGE)
        assert board.order(worker) == (MAKE, "check") and board.lost(worker, "") == "check"
    board.ask(2, STAGE)
    assert board.order(2)
    with pytest.raises(Stop, match="3 workers ended while it made check. Out of memory"):
        board.lost(2, "Out of memory")


def test_three_that_end_before_they_are_given_a_part(tmp_path):
    board = Board(tmp_path)
    assert board.lost(0, "") == board.lost(1, "") == ""
    with pytest.raises(Stop, match="before it was given a part. The port is taken."):
        board.lost(2, "The port is taken.")


def test_what_was_finished_is_found_by_the_next_run_and_forgotten_at_the_end(tmp_path):
    first = Board(tmp_path)
    first.ask(0, STAGE)
    for _ in range(2):
        first.made(0, Made((first.order(0) or ("", ""))[1], b"kept"))  # type: ignore[arg-type]
    again = Board(tmp_path)
    assert set(worked(again, [0])) == {"batch 2"}
    assert (again.found, again.calls) == (50, 10) and again.results(0)["check"] == b"kept"
    assert again.told() == "3 parts (2 by an earlier run), 60 model calls; 0 workers replaced."
    again.forget()
    assert not list(tmp_path.iterdir())
    other = Board(tmp_path)
    assert set(worked(other, [0])) == set(CALLS)


def test_another_question_finds_nothing_of_it(tmp_path):
    worked(Board(tmp_path), [0])
    assert set(worked(Board(tmp_path), [0], STAGE._replace(key="statistics-2"))) == set(CALLS)


def test_a_half_written_part_does_not_count(tmp_path):
    worked(Board(tmp_path), [0])
    for path in (tmp_path / STAGE.key).iterdir():
        path.rename(path.with_suffix(".partial"))
    assert set(worked(Board(tmp_path), [0])) == set(CALLS)


def test_workers_that_measure_different_things_are_told(tmp_path):
    board = Board(tmp_path)
    board.ask(0, STAGE)
    board.ask(1, STAGE)
    board.ask(0, STAGE._replace(key="spread-1"))  # the first is on its second node
    board.ask(1, STAGE._replace(key="spread-1"))
    with pytest.raises(Stop, match="do not measure the same .spread-1, not statistics-1."):
        board.ask(2, STAGE._replace(key="spread-1"))
