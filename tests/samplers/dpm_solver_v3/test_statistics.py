"""The table: what it takes, what it refuses, and what it says outside of itself."""

import math

import pytest
import torch
from fewstep.samplers.dpm_solver_v3 import Statistics

LAM = torch.tensor([-1.0, 0.0, 2.0])


def table(**changes) -> Statistics:
    values = {"lam": LAM, "l": torch.ones(3, 1, 1, 1), "s": torch.zeros(3, 1, 1, 1), "b": torch.zeros(3, 1, 1, 1)}
    return Statistics(**(values | changes))


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values).view(-1, 1, 1, 1)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"lam": torch.tensor([0.0])}, "2 levels or more"),
        ({"l": torch.ones(4, 1, 1, 1)}, r"3 levels, l \(4, 1, 1, 1\)"),
        ({"s": torch.ones(3, 2, 1, 1)}, r"but s \(3, 2, 1, 1\)"),
        ({"l": torch.ones(3, 4), "s": torch.ones(3, 4), "b": torch.ones(3, 4)}, "measure them again"),
        ({"b": column(0, math.nan, 0)}, "NaN or infinite numbers in b"),
        ({"l": column(0, math.inf, 0)}, "NaN or infinite numbers in l"),
        ({"lam": torch.tensor([-1.0, math.inf, 2.0])}, "NaN or infinite numbers in lam"),
        ({"lam": torch.tensor([-1.0, 2.0, 0.0])}, "must rise"),
        ({"lam": torch.tensor([0.0, 0.0, 1.0])}, "must rise"),
    ],
)
def test_a_broken_table_is_refused_in_words(changes, words):
    with pytest.raises(ValueError, match=words):
        table(**changes)


def test_it_is_float64_on_the_cpu_whatever_it_was_made_from():
    statistics = table(lam=LAM.half(), l=torch.ones(3, 1, 1, 1, requires_grad=True))
    tensors = (statistics.lam, statistics.l, statistics.s, statistics.b)
    assert all(t.dtype == torch.float64 and t.device.type == "cpu" and not t.requires_grad for t in tensors)


def test_l_is_linear_between_the_levels_one_before_them_and_held_behind():
    statistics = table(l=column(0.9, 0.5, 0.1))
    at = {-math.inf: 1, -5: 1, -1.04: 0.9, -1: 0.9, -0.5: 0.7, 0: 0.5, 1: 0.3, 2: 0.1, 9: 0.1}
    assert [statistics.l_at(lam).item() for lam in at] == pytest.approx(list(at.values()))


@pytest.mark.parametrize(
    "s, b, s_behind, b_behind",
    [(-1.5, 0.3, -1.5, 0.3), (-4.0, 0.4, -2.0, 0.2), (3.0, 0.4, 0.0, 0.0), (0.0, 0.4, 0.0, 0.0)],
    ids=["held", "too steep", "growing", "at rest"],
)
def test_behind_the_table_s_is_held_within_its_limits_and_b_keeps_the_resting_point(s, b, s_behind, b_behind):
    statistics = table(s=column(0, 0, s), b=column(0, 0, b))
    values = statistics.on_pieces(torch.tensor([2.0, 5.0], dtype=torch.float64), slice(None))
    assert values.flatten().tolist() == pytest.approx([1, 1, s_behind, s_behind, b_behind, b_behind])


def test_before_the_table_it_is_data_prediction_on_either_side_of_the_jump():
    statistics = table(l=column(0.9, 0.5, 0.1), s=column(1, 1, 1), b=column(2, 2, 2))
    edges = torch.tensor([-3.0, statistics.start, -1.0, 0.0], dtype=torch.float64)
    values = statistics.on_pieces(edges, slice(None))[..., 0]
    assert values[0].tolist() == [pytest.approx([1, 1]), pytest.approx([0.9, 0.9]), pytest.approx([0.9, 0.5])]
    assert values[1].tolist() == [[0, 0], [1, 1], [1, 1]]
    assert values[2].tolist() == [[0, 0], [2, 2], [2, 2]]


def test_a_table_per_pixel_is_pooled_for_other_sizes():
    generator = torch.Generator().manual_seed(0)
    tables = torch.randn((3, 3, 2, 4, 5), generator=generator, dtype=torch.float64)
    statistics = Statistics(LAM, *tables)
    pooled = statistics.pooled_by_channel()
    assert statistics.is_per_pixel and not pooled.is_per_pixel
    assert not Statistics(LAM, *tables[..., 0]).is_per_pixel  # bands
    torch.testing.assert_close(pooled.s[:, :, 0, 0], tables[1].mean((2, 3)))
