"""Published Restart lists, each with its source. Intervals in noise-to-signal."""

from __future__ import annotations

from collections.abc import Callable

from .plan import Interval


def listed(*entries: tuple[int, int, float, float]) -> Callable[[int], tuple[Interval, ...]]:
    """A list that does not depend on the number of steps; entries (N_R, K, t_min, t_max)."""
    intervals = tuple(Interval(*entry) for entry in entries)
    return lambda steps: intervals


def a1111(steps: int) -> tuple[Interval, ...]:
    """The rule of AUTOMATIC1111's "Restart" sampler for a number of steps; below 20 it has none.

    Differs: its upper end is moved to a main node there, and stays at 2 here.
    """
    if steps >= 36:
        return (Interval(steps // 4 + 1, 2, 0.1, 2.0),)
    return (Interval(10, 1, 0.1, 2.0),) if steps >= 20 else ()


# arXiv 2306.14878: CIFAR-10 tables 3 and 5 (VP with Heun: 18 main steps; VP with DPM-Solver-3; EDM), ImageNet-64
# table 5 (number of the name = model calls with Heun; main steps 14, 18, 18, 18, 36 x 4), Stable Diffusion
# tables 6 to 9 (30 DDIM steps, the list chosen by the guidance scale).
PRESETS: dict[str, Callable[[int], tuple[Interval, ...]]] = {
    "a1111": a1111,
    "sd_cfg_2": listed((5, 2, 1.0, 9.0), (5, 2, 5.0, 10.0)),
    "sd_cfg_3": listed((10, 2, 0.1, 3.0)),
    "sd_cfg_5_to_8": listed((10, 2, 0.1, 2.0)),
    "cifar10_vp_43": listed((3, 2, 0.06, 0.30)),
    "cifar10_vp_55": listed((3, 5, 0.06, 0.30)),
    "cifar10_vp_75": listed((3, 10, 0.06, 0.30)),
    "cifar10_vp_115": listed((3, 20, 0.06, 0.30)),
    "cifar10_vp_519": listed((9, 30, 0.06, 0.20)),
    "cifar10_vp_dpm3": listed((3, 1, 0.06, 1.0)),
    "cifar10_edm_43": listed((3, 2, 0.14, 0.30)),
    "imagenet64_39": listed((3, 1, 19.35, 40.79), (3, 1, 1.09, 1.92), (3, 1, 0.06, 0.30)),
    "imagenet64_67": listed((5, 1, 19.35, 40.79), (5, 1, 1.09, 1.92), (5, 1, 0.59, 1.09), (5, 1, 0.06, 0.30)),
    "imagenet64_99": listed(
        (3, 1, 19.35, 40.79), (4, 1, 1.09, 1.92), (4, 4, 0.59, 1.09), (4, 1, 0.30, 0.59), (4, 4, 0.06, 0.30)
    ),
    "imagenet64_165": listed(
        (3, 1, 19.35, 40.79), (4, 1, 1.09, 1.92), (4, 5, 0.59, 1.09), (4, 5, 0.30, 0.59), (4, 10, 0.06, 0.30)
    ),
    "imagenet64_203": listed(
        (4, 1, 19.35, 40.79), (4, 1, 1.09, 1.92), (4, 5, 0.59, 1.09), (4, 5, 0.30, 0.59), (6, 6, 0.06, 0.30)
    ),
    "imagenet64_385": listed(
        (3, 1, 19.35, 40.79), (6, 1, 1.09, 1.92), (6, 5, 0.59, 1.09), (6, 5, 0.30, 0.59), (6, 20, 0.06, 0.30)
    ),
    "imagenet64_535": listed(
        (6, 1, 19.35, 40.79), (6, 1, 1.09, 1.92), (7, 6, 0.59, 1.09), (7, 6, 0.30, 0.59), (7, 25, 0.06, 0.30)
    ),
    "imagenet64_623": listed(
        (10, 3, 19.35, 40.79), (10, 3, 1.09, 1.92), (7, 6, 0.59, 1.09), (7, 6, 0.30, 0.59), (7, 25, 0.06, 0.30)
    ),
}
