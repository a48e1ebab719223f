"""The published lists, typed a second time from the paper's tables: a wrong digit draws a picture, too."""

from __future__ import annotations

import pytest
from fewstep.samplers.noise_law import VARIANCE_EXPLODING
from fewstep.schedulers.restart.plan import Interval, clip, snap
from fewstep.schedulers.restart.presets import PRESETS

IMAGENET = ((19.35, 40.79), (1.09, 1.92), (0.59, 1.09), (0.30, 0.59), (0.06, 0.30))
PUBLISHED = {
    "sd_cfg_2": [(5, 2, 1.0, 9.0), (5, 2, 5.0, 10.0)],
    "sd_cfg_3": [(10, 2, 0.1, 3.0)],
    "sd_cfg_5_to_8": [(10, 2, 0.1, 2.0)],
    "cifar10_vp_43": [(3, 2, 0.06, 0.30)],
    "cifar10_vp_55": [(3, 5, 0.06, 0.30)],
    "cifar10_vp_75": [(3, 10, 0.06, 0.30)],
    "cifar10_vp_115": [(3, 20, 0.06, 0.30)],
    "cifar10_vp_519": [(9, 30, 0.06, 0.20)],
    "cifar10_vp_dpm3": [(3, 1, 0.06, 1.0)],
    "cifar10_edm_43": [(3, 2, 0.14, 0.30)],
    "imagenet64_39": [(3, 1, *IMAGENET[0]), (3, 1, *IMAGENET[1]), (3, 1, *IMAGENET[4])],
    "imagenet64_67": [(5, 1, *IMAGENET[i]) for i in (0, 1, 2, 4)],
    "imagenet64_99": [(n, k, *i) for n, k, i in zip((3, 4, 4, 4, 4), (1, 1, 4, 1, 4), IMAGENET, strict=True)],
    "imagenet64_165": [(n, k, *i) for n, k, i in zip((3, 4, 4, 4, 4), (1, 1, 5, 5, 10), IMAGENET, strict=True)],
    "imagenet64_203": [(n, k, *i) for n, k, i in zip((4, 4, 4, 4, 6), (1, 1, 5, 5, 6), IMAGENET, strict=True)],
    "imagenet64_385": [(n, k, *i) for n, k, i in zip((3, 6, 6, 6, 6), (1, 1, 5, 5, 20), IMAGENET, strict=True)],
    "imagenet64_535": [(n, k, *i) for n, k, i in zip((6, 6, 7, 7, 7), (1, 1, 6, 6, 25), IMAGENET, strict=True)],
    "imagenet64_623": [(n, k, *i) for n, k, i in zip((10, 10, 7, 7, 7), (3, 3, 6, 6, 25), IMAGENET, strict=True)],
}


def test_every_published_list_is_the_papers():
    found = {
        name: [(i.steps, i.repeats, i.sigma_min, i.sigma_max) for i in preset(30)]
        for name, preset in PRESETS.items()
        if name != "a1111"
    }
    assert found == PUBLISHED


@pytest.mark.parametrize("steps, expected", [(19, ()), (20, (10, 1)), (35, (10, 1)), (36, (10, 2)), (40, (11, 2))])
def test_the_rule_of_a1111(steps, expected):
    found = PRESETS["a1111"](steps)
    assert [(i.steps, i.repeats, i.sigma_min, i.sigma_max) for i in found] == (
        [(*expected, 0.1, 2.0)] if expected else []
    )


def test_what_begins_at_the_first_sigma_is_dropped():
    kept, remarks = clip([Interval(3, 1, 2.0, 4.0)], 2.0)
    assert kept == [] and "dropped" in remarks[0]


def test_a_restart_never_begins_where_the_schedule_does():
    main = [VARIANCE_EXPLODING.ratio(sigma) for sigma in (10.0, 1.0, 0.1)]
    assert snap(Interval(3, 1, 9.0, 9.5), main) == 1
