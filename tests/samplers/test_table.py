"""A solver by table: what a table may be, and that formulas written as tables are those solvers."""

from __future__ import annotations

import math

import pytest
import torch
from fewstep.samplers.clock import LogisticClock
from fewstep.samplers.deis import DEIS, make_plan
from fewstep.samplers.noise_law import FLOW, VARIANCE_EXPLODING, NoiseLaw
from fewstep.samplers.table import Row, Table, step_by_table
from fewstep.schedulers.optimal_steps.students import Euler, Multistep2M, State, Student
from hypothesis import given
from hypothesis import strategies as st
from support.examples import many
from support.mixture import GuidedMixture, picture_like
from support.recording import Recording

CLOCK = LogisticClock(1.6, 1.3)
LAWS = pytest.mark.parametrize("law", [VARIANCE_EXPLODING, FLOW], ids=["ve", "flow"])
SIGMAS = {False: (14.6, 5.0, 2.0, 1.1, 0.4, 0.1, 0.0), True: (1.0, 0.93, 0.8, 0.6, 0.35, 0.1, 0.0)}


def noise(*shape: int, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


def of_one_part(denoise):
    return lambda x, sigma: (denoise(x, sigma),)


def deis_table(sigmas, law: NoiseLaw, order: int, ends_denoised: bool = False) -> Table:
    hops = make_plan(sigmas, law, CLOCK, order, corrector=False, ends_denoised=ends_denoised)
    return Table(tuple(sigmas), tuple(Row(hop.decay, (hop.weights,)) for hop in hops))


def euler_table(sigmas) -> Table:
    steps = zip(sigmas, sigmas[1:], strict=False)
    return Table(tuple(sigmas), tuple(Row(t / s, ((1 - t / s,),)) for s, t in steps))


def table_of_2m(sigmas) -> Table:
    """dpmpp_2m (arXiv 2211.01095, algorithm 2) in tau = -ln sigma, written out."""
    rows = []
    for n, (s, t) in enumerate(zip(sigmas, sigmas[1:], strict=False)):
        share = math.log(s / t) / (2 * math.log(sigmas[n - 1] / s)) if n and t else 0.0
        gain = 1 - t / s
        rows.append(Row(t / s, ((gain * (1 + share), -gain * share) if n else (gain,),)))
    return Table(tuple(sigmas), tuple(rows))


def students_end(student: Student, denoise, x: torch.Tensor, sigmas) -> torch.Tensor:
    state = State((sigmas[0],), x)
    for sigma in sigmas[1:]:
        state = student.move(student.know(state, denoise(state.x, state.sigmas[-1])), sigma)
    return state.x


def differ(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest difference, by the largest number."""
    return float((one - other).abs().max() / other.abs().max())


# ---------------------------------------------------------------------------------------------------------
# Formulas as tables


@LAWS
@pytest.mark.parametrize("ends_denoised", [False, True])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_the_weights_of_deis_are_deis(law, order, ends_denoised):
    denoise, sigmas = GuidedMixture(picture_like(size=4), law), SIGMAS[law.is_flow]
    x = sigmas[0] * noise(2, 4, 4, 4)
    table = deis_table(sigmas, law, order, ends_denoised)
    solved = DEIS(law, CLOCK, order, corrector=False, ends_denoised=ends_denoised)(denoise, x, sigmas)
    assert table.order == order and differ(step_by_table(of_one_part(denoise), x, table), solved) < 1e-12


@LAWS
@pytest.mark.parametrize("made, student", [(euler_table, Euler()), (table_of_2m, Multistep2M())], ids=["euler", "2m"])
def test_the_weights_of_euler_and_2m_are_those(law, made, student):
    denoise, sigmas = GuidedMixture(picture_like(size=4), law, cfg=3.0), SIGMAS[law.is_flow]
    x = sigmas[0] * noise(2, 4, 4, 4)
    assert (
        differ(step_by_table(of_one_part(denoise), x, made(sigmas)), students_end(student, denoise, x, sigmas)) < 1e-12
    )


def test_a_push_has_weights_of_its_own():
    """Those of the answer at another cfg: x0 + (cfg' - cfg) / cfg push, which is guidance at cfg'."""
    mixture, sigmas = picture_like(size=4), SIGMAS[True]
    labels, x = torch.tensor([0, 3]), noise(2, 4, 4, 4)
    weak, strong = (GuidedMixture(mixture, FLOW, labels, cfg) for cfg in (2.0, 5.0))
    without = GuidedMixture(mixture, FLOW)

    def ask(x, sigma):
        answer = weak(x, sigma)
        return answer, answer - without(x, sigma)

    rows = [Row(row.kept, (row.weights[0], tuple(1.5 * w for w in row.weights[0]))) for row in table_of_2m(sigmas).rows]
    end = step_by_table(ask, x, Table(sigmas, tuple(rows)))
    assert differ(end, students_end(Multistep2M(), strong, x, sigmas)) < 1e-12
    assert differ(end, students_end(Multistep2M(), weak, x, sigmas)) > 1e-3


# ---------------------------------------------------------------------------------------------------------
# The run


def test_one_call_at_every_sigma_but_the_last_and_every_step_is_told():
    table, told = deis_table(SIGMAS[True], FLOW, 3), []
    recorded = Recording(GuidedMixture(picture_like(size=4), FLOW))
    answers = []

    def ask(x, sigma):
        answers.append((x, recorded(x, sigma)))
        return (answers[-1][1],)

    step_by_table(ask, noise(1, 4, 4, 4), table, on_step=lambda *step: told.append(step))
    assert recorded.sigmas == list(SIGMAS[True][:-1])
    assert [(number, sigma) for number, sigma, _, _ in told] == list(enumerate(SIGMAS[True][:-1]))
    for (x, answer), (_, _, shown, denoised) in zip(answers, told, strict=True):
        assert shown is x and denoised is answer


def test_answers_beyond_the_tables_parts_have_no_say():
    table = euler_table((1.0, 0.5, 0.0))
    x = noise(1, 4)
    alone = step_by_table(lambda x, sigma: (x * sigma,), x, table)
    assert torch.equal(step_by_table(lambda x, sigma: (x * sigma, x + 7), x, table), alone)
    two = Table(table.sigmas, tuple(Row(row.kept, (row.weights[0], (0.5,))) for row in table.rows))
    with pytest.raises(ValueError):
        step_by_table(lambda x, sigma: (x * sigma,), x, two)


def test_a_short_row_does_not_forget_answers_for_the_rows_after_it():
    """By hand: x = kept x + sum of weights times answers, the newest first."""
    rows = (Row(0.5, ((1.0,),)), Row(0.5, ((2.0, 3.0),)), Row(0.5, ((1.0,),)), Row(0.25, ((1.0, 10.0, 100.0, 1000.0),)))
    answers = iter([1.0, 2.0, 3.0, 4.0])
    end = step_by_table(
        lambda x, sigma: (x * 0 + next(answers),), torch.zeros(1), Table((4.0, 3.0, 2.0, 1.0, 0.0), rows)
    )
    x = 0.5 * (0.5 * (0.5 * 0 + 1) + 2 * 2 + 3 * 1) + 3
    assert float(end) == 0.25 * x + 4 + 30 + 200 + 1000


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_latents_type_is_kept_and_every_item_is_its_own(dtype):
    table, x = deis_table(SIGMAS[True], FLOW, 4), noise(3, 4, 4, 4, dtype=torch.float64).to(dtype)

    def ask(x, sigma):
        return (x.tanh() * (1 - sigma),)

    end, before = step_by_table(ask, x, table), x.clone()
    assert end.dtype == dtype and torch.equal(x, before)
    apart = torch.cat([step_by_table(ask, one, table) for one in x.split(1)])
    assert torch.equal(apart, end)


def weights_for(rows: int, order: int, parts: int) -> st.SearchStrategy[tuple[Row, ...]]:
    number = st.floats(-2, 2, width=32)
    row = [st.builds(Row, number, st.tuples(*[st.tuples(*[number] * min(n + 1, order))] * parts)) for n in range(rows)]
    return st.tuples(*row)


@many
@given(st.data(), st.integers(1, 6), st.integers(1, 4), st.integers(1, 2))
def test_a_run_is_linear_in_the_start_and_the_answers(data, steps, order, parts):
    """Of any table: for answers that do not depend on x, and the same as the sum of what each of them adds."""
    rows = data.draw(weights_for(steps, order, parts))
    table = Table((*(float(n) for n in range(steps, 0, -1)), 0.0), rows)
    assert table.parts == parts and table.order == min(order, steps)
    x, answers = noise(1, 3), noise(steps, parts, 1, 3)

    def end(x, answers):
        return step_by_table(lambda _, sigma: tuple(answers[steps - round(sigma)]), x, table)

    whole = end(x, answers)
    pieces = end(x, answers * 0)
    for n in range(steps):
        for part in range(parts):
            one = torch.zeros_like(answers)
            one[n, part] = answers[n, part]
            pieces = pieces + end(x * 0, one)
    assert (whole - pieces).abs().max() <= 1e-9 * (1 + whole.abs().max() + pieces.abs().max())


@many
@given(st.lists(st.floats(2**-10, 128, width=32), min_size=2, max_size=8, unique=True), st.floats(-3, 3), st.booleans())
def test_what_answers_are_constant_and_weights_add_up_ends_there(sigmas, constant, to_zero):
    falling = (*sorted(sigmas, reverse=True), *([0.0] if to_zero else []))
    table, x = table_of_2m(falling), torch.full((1, 2), constant, dtype=torch.float64)
    end = step_by_table(lambda x, sigma: (torch.full_like(x, constant),), x, table)
    largest = max(sum(map(abs, row.weights[0])) for row in table.rows)
    assert (end - constant).abs().max() <= 1e-12 * (1 + abs(constant)) * (1 + largest) * len(falling)


# ---------------------------------------------------------------------------------------------------------
# What is no table

ONE, TWO = Row(0.5, ((0.5,),)), Row(0.5, ((1.0, -0.5),))


@pytest.mark.parametrize(
    "sigmas, rows, words",
    [
        ((1.0,), (), "one more than rows"),
        ((), (), "one more than rows"),
        ((1.0, 0.0), (), "one more than rows"),
        ((1.0, 0.5, 0.0), (ONE,), "one more than rows"),
        ((1.0, 0.0), (ONE, TWO), "one more than rows"),
        ((0.5, 1.0), (ONE,), "falling sigmas"),
        ((1.0, 1.0), (ONE,), "falling sigmas"),
        ((1.0, -0.1), (ONE,), "falling sigmas"),
        ((1.0, math.nan), (ONE,), "falling sigmas"),
        ((math.nan, 0.0), (ONE,), "falling sigmas"),
        ((1.0, 0.0), (Row(0.5, ()),), "one or two parts"),
        ((1.0, 0.0), (Row(0.5, ((1.0,), (1.0,), (1.0,))),), "one or two parts"),
        ((1.0, 0.5, 0.0), (ONE, Row(0.5, ((1.0, 0.5), (1.0, 0.5)))), "the same one or two parts"),
        ((1.0, 0.0), (TWO,), "Row 1 of a table has weights of answers that are not there yet"),
        ((1.0, 0.5, 0.0), (ONE, Row(0.5, ((1.0, 1.0, 1.0),))), "Row 2 of a table has weights of answers"),
        ((1.0, 0.0), (Row(0.5, ((),)),), "Row 1 of a table"),
        ((1.0, 0.5, 0.0), (Row(0.5, ((1.0,), (1.0,))), Row(0.5, ((1.0, 0.5), (1.0,)))), "Row 2 .* either part"),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_no_table_is_refused_in_words(sigmas, rows, words):
    with pytest.raises(ValueError, match=words):
        Table(sigmas, rows)
