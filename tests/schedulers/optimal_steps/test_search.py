"""The layered search and its polish, on mixtures whose every answer is known."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from fewstep.samplers.dpm_solver_v3 import DPMSolverV3, Options, Statistics
from fewstep.samplers.noise_law import FLOW, VARIANCE_EXPLODING, NoiseLaw
from fewstep.schedulers.optimal_steps import (
    V3,
    Euler,
    Multistep2M,
    Objective,
    Replay,
    Student,
    Task,
    follow,
    most_calls,
    polish,
    search,
)
from fewstep.schedulers.optimal_steps.polish import trials
from fewstep.schedulers.optimal_steps.search import Promise
from fewstep.schedulers.optimal_steps.students import State
from support.examples import LONG, mostly
from support.mixture import GuidedMixture, converged, picture_like
from support.recording import Recording

LAWS = {"ve": VARIANCE_EXPLODING, "flow": FLOW}
SHAPE = (2, 4, 4)
STUDENTS = ["euler", "2m", "v3"]


def v3_student(law: NoiseLaw) -> V3:
    lam = torch.linspace(-6, 6, 25, dtype=torch.float64)
    l = torch.sigmoid(-lam).view(-1, 1, 1, 1)  # noqa: E741
    return V3(DPMSolverV3(law, Statistics(lam, l, -2 + 2 * l, 0 * l), Options()), torch.Size(SHAPE))


def student_named(name: str, law: NoiseLaw) -> Student:
    if name == "v3":
        return v3_student(law)
    return Euler() if name == "euler" else Multistep2M()


def problem(
    seed: int,
    law: NoiseLaw,
    student: Student,
    nodes: int = 10,
    cfg: float = 1.0,
    count: int = 4,
    free: bool = False,
    lowest: float = 0.05,
) -> Task:
    """A random mixture, and `nodes` nodes of a teacher with eight sub-steps each."""
    generator = torch.Generator().manual_seed(seed)
    components = int(torch.randint(2, 12, (1,), generator=generator))
    mixture = picture_like(channels=2, size=4, components=components, classes=2, seed=seed)
    denoise = Recording(GuidedMixture(mixture, law, torch.randint(0, 2, (count,), generator=generator), cfg))
    noise = torch.randn((count, *SHAPE), generator=generator, dtype=torch.float64)
    top = 0.995 if law.is_flow else 14.6
    ratios = torch.logspace(math.log10(law.ratio(top)), math.log10(lowest), 8 * (nodes - 1) + 1, dtype=torch.float64)
    teacher = follow(denoise, noise * top, law, law.sigma(ratios).tolist(), every=8)
    denoise.sigmas.clear()
    starts = range(nodes) if free else (0,)
    return Task(denoise, student, law, teacher, lambda sigma: noise * sigma, starts)


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
@pytest.mark.parametrize("name", STUDENTS)
@pytest.mark.parametrize("free", [False, True])
def test_what_a_search_claims_is_what_a_replay_gives(law, name, free):
    task = problem(3, law, student_named(name, law), free=free)
    task = replace(task, ends=(law.sigma(0.02), 0.0))
    for steps, found in search(task, 5, contenders=2).items():
        assert len(found.sigmas) == steps + 1
        assert Replay(task).cost(found.sigmas) == pytest.approx(found.cost, rel=1e-7)


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
def test_the_v3_student_is_the_solver(law):
    """Step by step it goes where the whole plan goes."""
    student = v3_student(law)
    task = problem(5, law, student)
    sigmas = (*task.teacher.sigmas[::2], 0.0)
    whole = student.solver(task.denoise, task.start(sigmas[0]), torch.tensor(sigmas, dtype=torch.float64))
    torch.testing.assert_close(Replay(task).end(sigmas), whole, rtol=1e-9, atol=1e-9)


def test_the_v3_student_ends_with_the_models_answer_where_it_should():
    student = replace(v3_student(FLOW), ends_below=1.0)
    task = problem(5, FLOW, student)
    sigmas = (*task.teacher.sigmas[::3], 0.0)
    solver = replace(student.solver, options=Options(last_step="denoised"))
    whole = solver(task.denoise, task.start(sigmas[0]), torch.tensor(sigmas, dtype=torch.float64))
    torch.testing.assert_close(Replay(task).end(sigmas), whole, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
def test_the_teacher_is_far_more_accurate_than_its_grid(law):
    """Against the exact solution; euler on the same nodes is what the paper's students follow."""
    task = problem(1, law, Euler(), nodes=40, lowest=0.003)
    sigmas = task.teacher.sigmas
    end = converged(task.denoise, task.start(sigmas[0]), sigmas[0])
    theirs = Replay(task).end((*sigmas, 0.0))
    ours = (task.teacher.end - end).square().mean()
    assert ours < 1e-3 * (theirs - end).square().mean()


@pytest.mark.parametrize("name", ["euler", "2m"])
def test_the_polished_schedule_is_the_best_there_is(name):
    """Over all schedules on seven nodes, ends among them too: within 5 % in at least 95 % of random mixtures."""
    good, count = 0, 100 if LONG else 24
    for seed in range(count):
        law = list(LAWS.values())[seed % 2]
        task = problem(seed, law, student_named(name, law), nodes=7, cfg=(1.0, 4.0)[seed // 2 % 2], count=2)
        places = [*task.teacher.sigmas, 0.0]
        task = replace(task, ends=places)
        replay = Replay(task)
        best = min(replay.cost((places[0], *rest)) for rest in itertools.combinations(places[1:], 4))
        found = search(task, 4, contenders=3)[4]
        good += polish(replay, found.sigmas, places, 3).cost <= 1.05 * best
    assert good >= 0.95 * count


@pytest.mark.parametrize("name", STUDENTS)
def test_more_contenders_and_polishing_never_cost_accuracy(name):
    task = problem(7, FLOW, student_named(name, FLOW), nodes=12, cfg=4.0)
    one = search(task, 4)[4]
    polished = polish(Replay(task), one.sigmas, [*task.teacher.sigmas, 0.0], 3)
    assert polished.cost <= one.cost
    assert polish(Replay(task), polished.sigmas, [*task.teacher.sigmas, 0.0], 0) == polished


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
@pytest.mark.parametrize("name", mostly("2m", longer=("euler", "v3")))
def test_a_searched_schedule_is_better_than_even_steps(law, name):
    """In lambda, of equal numbers of steps."""
    task = problem(11, law, student_named(name, law), nodes=25)
    found = search(task, 8, contenders=3)
    even = {n: Replay(task).cost([*task.teacher.sigmas[:: 24 // n][:n], 0.0]) for n in (6, 8)}  # 24 can be parted so
    assert all(found[n].cost < 0.9 * cost for n, cost in even.items())


def test_many_steps_go_on_from_one_state():
    """No step changes what another one starts from."""
    for name in STUDENTS:
        task = problem(5, FLOW, student_named(name, FLOW))
        replay = Replay(task).runs[0]
        state = replay.known(task.teacher.sigmas[:4])
        first = [task.student.reach(state, sigma) for sigma in task.teacher.sigmas[4:]]
        for sigma in task.teacher.sigmas[4:]:
            task.student.move(state, sigma)
        for x, sigma in zip(first, task.teacher.sigmas[4:], strict=True):
            assert torch.equal(x, task.student.reach(state, sigma))


@pytest.mark.parametrize(
    "sigmas, node, stride, tried",
    [
        ((8.0, 2.0, 0.0), 1, 1, [(8.0, 4.0, 0.0), (8.0, 1.0, 0.0)]),
        ((8.0, 2.0, 0.0), 1, 2, []),
        ((8.0, 2.0, 0.0), 0, 1, [(4.0, 2.0, 0.0)]),
        ((8.0, 2.0, 0.0), 2, 1, [(8.0, 2.0, 1.0)]),
        ((8.0, 3.0, 0.0), 1, 1, [(8.0, 4.0, 0.0), (8.0, 1.0, 0.0)]),
        ((4.0, 2.0, 1.0), 0, 1, [(8.0, 2.0, 1.0)]),
        ((4.0, 2.0, 1.0), 2, 1, [(4.0, 2.0, 0.0)]),
        ((8.0, 4.0, 0.0), 1, 2, [(8.0, 1.0, 0.0)]),
    ],
)
def test_a_node_is_tried_a_stride_up_and_down_between_its_neighbours(sigmas, node, stride, tried):
    assert list(trials(sigmas, node, [8.0, 4.0, 2.0, 1.0, 0.0], stride)) == tried


def test_polishing_calls_no_more_than_it_said():
    for free in (False, True):
        task = problem(2, FLOW, Euler(), nodes=30, free=free)
        found = search(task, 6)[6]
        task.denoise.sigmas.clear()  # type: ignore[attr-defined]
        polish(Replay(task), found.sigmas, [*task.teacher.sigmas, 0.0], 4, start_moves=free)
        assert task.denoise.calls <= most_calls(6, 4, free)  # type: ignore[attr-defined]


def test_nodes_that_may_not_be_asked_at_are_for_ends_only():
    task = replace(problem(2, VARIANCE_EXPLODING, Multistep2M(), nodes=20), lowest=0.05)
    places = [*task.teacher.sigmas, 0.04, 0.03, 0.02, 0.01, 0.0]
    found = polish(Replay(task), search(task, 5)[5].sigmas, places, 5)
    assert found.sigmas[-2] >= 0.05


@pytest.mark.parametrize("free", mostly(True, longer=(False,)))
def test_fifty_nodes_ten_steps_four_trajectories_in_a_thousand_calls(free):
    """All numbers of steps together, with a teacher of a hundred calls; and a corridor costs little accuracy."""
    task = problem(4, FLOW, Euler(), nodes=50, cfg=4.0, free=free)
    wide = search(task, 10)
    task.denoise.sigmas.clear()  # type: ignore[attr-defined]
    narrow = search(task, 10, width=15)
    assert 4 * (100 + task.denoise.calls) <= 1000  # type: ignore[attr-defined]
    ratios = [narrow[n].cost / wide[n].cost for n in range(2, 11)]
    assert max(ratios) < 1.5 and sum(ratios) / 9 < 1.2


def test_the_answer_in_x0_is_compared_where_it_is_asked_for():
    """With two contenders a node, the one whose x0 is nearer goes on: another search, whose claims hold too."""
    task = problem(12, FLOW, Multistep2M(), nodes=14, cfg=4.0)
    in_x0 = replace(task, objective=Objective(space="x0"))
    found = search(in_x0, 6, contenders=2)
    assert found != search(task, 6, contenders=2)
    assert Replay(in_x0).cost(found[6].sigmas) == pytest.approx(found[6].cost, rel=1e-7)


@pytest.mark.parametrize("nodes", [6, 7])
@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
def test_what_a_node_promises_is_a_step_of_the_student_on_the_teachers_way(law, nodes):
    """With the memory of the node before it: for a step to j of the one as far above i, for an end of the next."""
    task = replace(problem(3, law, Multistep2M(), nodes), ends=(law.sigma(0.02),))
    sigmas, states, answers = task.teacher.sigmas, task.teacher.states, task.teacher.denoised
    hops, last = Promise(task, 3).hops()

    def at(i: int, before: int) -> State:
        if before < 0:
            return State((sigmas[i],), states[i], (answers[i],))
        return State((sigmas[before], sigmas[i]), states[i], (answers[i], answers[before]))

    for i in range(nodes):
        end = task.end_errors(task.student.reach(at(i, i - 1), task.ends[0]), task.ends[0])
        assert last[i] == pytest.approx(float(task.objective.reduce(end)) ** (1 / task.objective.p))
        for j in range(i + 1, nodes):
            before = max(2 * i - j, 0) if i else -1
            step = task.objective.errors(task.student.reach(at(i, before), sigmas[j]), states[j])
            root = float(task.objective.reduce(step)) ** (1 / task.objective.p)
            scale = math.hypot(law.alpha(sigmas[j]), law.deviation(sigmas[j]))
            assert hops[i, j] == pytest.approx(root / scale)
        assert hops[i, : i + 1].tolist() == [math.inf] * (i + 1)


def test_a_tie_goes_to_the_predecessor_with_the_most_noise():
    """A model that answers the same everywhere: every schedule is exact."""
    task = problem(0, FLOW, Euler(), nodes=6)
    constant = torch.ones((4, *SHAPE), dtype=torch.float64)
    task = replace(task, denoise=lambda x, sigma: constant)
    task = replace(task, teacher=follow(task.denoise, task.start(0.995), FLOW, task.teacher.sigmas))
    assert search(task, 2)[2].sigmas[:2] == task.teacher.sigmas[:2]


def test_the_objective():
    x, target = torch.zeros(2, 3, 5, 2, 2), torch.zeros(2, 3, 5, 2, 2)
    x[0, 2] = 3.0
    x[:, 0, 2] = 2.0
    assert Objective().errors(x, target).tolist() == pytest.approx([9 / 3 + 4 / 15, 4 / 15])
    assert Objective(p=1.0, channels=2).errors(x, target).tolist() == pytest.approx([2 / 10, 2 / 10])
    assert Objective(channels=1, frames=2).errors(x, target).tolist() == [0, 0]
    assert Objective(channels=1, frames=3).errors(x, target).tolist() == pytest.approx([4 / 3, 4 / 3])
    errors = torch.tensor([[1.0, 100.0, 10.0], [1.0, torch.nan, 1.0]])
    assert Objective().reduce(errors)[0] == pytest.approx(10)
    assert Objective(reduction="mean").reduce(errors)[0] == pytest.approx(37)
    assert Objective(reduction="median").reduce(errors)[0] == pytest.approx(10)
    assert Objective().reduce(errors)[1] > 1e9


@pytest.mark.parametrize("given, words", [({"p": 0.0}, "above 0"), ({"reduction": "worst"}, "choose one of geometric")])
def test_what_cannot_be_an_objective_is_said(given, words):
    with pytest.raises(ValueError, match=words):
        Objective(**given)


@pytest.mark.parametrize("steps", [0, 11])
def test_more_steps_than_nodes_are_refused(steps):
    with pytest.raises(ValueError, match="the grid allows 1 to 10"):
        search(problem(0, FLOW, Euler()), steps)
