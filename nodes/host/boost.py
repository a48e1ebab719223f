"""What Boost does inside whatever samples a MODEL: another sampler and other sigmas, between the same two ends.

A wrapper of the host's own kind, around the whole of a sampling; nothing is listed, rebound or patched.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any

import comfy.patcher_extension
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from comfy_execution.utils import get_executing_context
from torch import Tensor

from ...samplers.dpm_solver_v3 import Options
from ...samplers.noise_law import NoiseLaw
from ...samplers.sigmas import checked_sigmas
from ...schedulers.optimal_steps.curve import Curve
from ...schedulers.optimal_steps.schedules import Schedules
from ...schedulers.recipe import recipe_between
from ...schedulers.tuning.tuning import Tuning
from .deis import StagedSampler, deis_sampler
from .dpm_solver_v3 import Choice, dpm_solver_v3_sampler
from .dual_fast import sample_dual_fast
from .guiders import fresh, recognised
from .identity import BOOST
from .loading import searched
from .noise_law import noise_law
from .plots import schedule_plot
from .progress import Report
from .schedules import shift_of
from .tuned import choose, tuned_sampler

PACK = __name__.partition(".nodes.")[0]
OUTER = comfy.patcher_extension.WrappersMP.OUTER_SAMPLE
MOST_SHOWN = 24  # sigmas of a run, on the node
SAME_PLACE = 0.6  # of a schedule's first flow time to the run's; below it, the schedule is of another kind of noise
FEW = 8  # calls at cfg 1 up to which a model is often distilled
DISTILLED = (
    "At cfg 1 and so few steps: where this is a distilled model (Turbo, Lightning, LCM), its steps were trained in; "
    "turn Boost off for it."
)
STRONG, ENOUGH = 5.0, 16  # from that cfg on, with fewer calls, its answers led astray on one network of three
ASTRAY = (
    "So strong a guidance in so few steps leads it astray on some models: Compare shows whether it does on yours. More "
    "steps, or a tuning from Tune, help."
)

Calls = Callable[[int, bool], int]  # of a number of steps, and whether they end at sigma 0


def single(steps: int, to_zero: bool) -> int:
    return steps


def double(steps: int, to_zero: bool) -> int:
    return 2 * steps - to_zero


def triple(steps: int, to_zero: bool) -> int:
    """Three, but two in the last step but one, and one in the last."""
    return 3 * steps - 3 if steps > 1 else 1


# The host's samplers that solve the ODE and draw nothing: model calls of each, by the function's name. All others
# either draw noise of their own, follow another equation (CFG++) or choose their own steps.
ODE_SAMPLERS: dict[str, Calls] = {
    **dict.fromkeys(
        "sample_euler sample_lms sample_dpmpp_2m sample_ipndm sample_ipndm_v sample_deis sample_res_multistep "
        "sample_gradient_estimation sample_unipc sample_unipc_bh2 dpm_fast_function".split(),
        single,
    ),
    **dict.fromkeys("sample_heun sample_dpm_2 sample_exp_heun_2_x0".split(), double),
    "sample_heunpp2": triple,
}
NAMES = {
    "sample_unipc": "uni_pc",
    "sample_unipc_bh2": "uni_pc_bh2",
    "sample_deis_clock": "FewStep's DEIS",
    "sample_deis_method": "FewStep's DEIS",
    "sample_dual_fast": "DualFast",
    "sample_flow_map": "Flow Map Sampler",
    "sample_dpm_solver_v3": "DPM-Solver-v3",
    "sample_restart": "Restart",
    "sample_tuned": "Tuned Sampler",
}
DRAWS = ("s_churn", "eta")  # options with which one of these draws noise after all
log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Run:
    """One sampling of the host, as it came in. sigmas: falling."""

    guider: Any
    sampler: Any
    sigmas: tuple[float, ...]

    @cached_property
    def sampling(self):
        return self.guider.model_patcher.get_model_object("model_sampling")

    @cached_property
    def law(self) -> NoiseLaw:
        return noise_law(self.sampling)

    @property
    def steps(self) -> int:
        return len(self.sigmas) - 1

    @property
    def calls(self) -> int:
        """Guided model calls of it; its steps, where the sampler is not known."""
        return calls_of(self.sampler, self.steps, self.sigmas[-1] == 0)

    @property
    def cfg(self) -> float:
        """The highest of the guider's; 1 where it has none."""
        numbers = (value for name, value in vars(self.guider).items() if name.startswith("cfg"))
        return max((float(number) for number in numbers if isinstance(number, (int, float))), default=1.0)

    def curve(self, sigmas: Sequence[float]) -> Curve:
        return Curve(sigmas, self.law, shift_of(self.sampling, self.law))


@dataclass(frozen=True, eq=False)
class Instead:
    """What runs in its place."""

    sampler: Any
    sigmas: tuple[float, ...]
    remarks: tuple[str, ...] = ()

    @property
    def calls(self) -> int:
        return calls_of(self.sampler, len(self.sigmas) - 1, self.sigmas[-1] == 0)


@dataclass(frozen=True, eq=False)
class Boost:
    """A wrapper of OUTER_SAMPLE. sampler, sigmas, schedule, tuning: what is connected, or None.

    nodes: the graph's, by id. A connected sampler, sigmas or schedule comes before a tuning.
    """

    sampler: Any = None
    sigmas: tuple[float, ...] | None = None
    schedule: Schedules | None = None
    tuning: Tuning | None = None
    report: Report | None = None
    nodes: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, executor, noise: Tensor, latent_image: Tensor, sampler, sigmas: Tensor, *args, **given):
        if not measures(sampler):
            sampler, sigmas = self.exchanged(executor.class_obj, sampler, sigmas)
        return executor(noise, latent_image, sampler, sigmas, *args, **given)

    def exchanged(self, guider, sampler, sigmas: Tensor) -> tuple[Any, Tensor]:
        """The sampler and the sigmas to run instead; the same ones where Boost leaves a sampling alone."""
        run = Run(guider, sampler, tuple(sigmas.tolist()))
        try:
            check_run(run)
            instead = self.chosen(run)
        except ValueError as error:  # in words, ours
            self.say(f"{run.steps} steps of {name_of(sampler)}, left as they are: {error}")
            return sampler, sigmas
        told = f"{run.steps} steps of {described(run)} -> {instead.calls} calls of {name_of(instead.sampler)}"
        plot = schedule_plot({"given": run.sigmas, "Boost": instead.sigmas}, run.law)
        self.say("\n".join([f"{told}, sigmas {listed(instead.sigmas)}", *instead.remarks]), plot)
        return instead.sampler, torch.tensor(instead.sigmas, dtype=sigmas.dtype, device=sigmas.device)

    def chosen(self, run: Run) -> Instead:
        """Raises ValueError where there is nothing to exchange, or where it cannot be."""
        if self.sampler is None and self.sigmas is None and self.schedule is None:
            return self.by_tuning(run, self.tuning) if self.tuning else by_recipe(run, self.report)
        solver = run.sampler if self.sampler is None else self.sampler
        if self.sampler is None and self.schedule and not why_theirs(run.sampler):
            solver = solver_named(self.schedule.facts["solver"], run.sampler, self.report)
        steps = run.steps if solver is run.sampler else steps_for(solver, run)
        if self.schedule is None and self.sigmas is None:
            same = steps == run.steps
            return Instead(solver, run.sigmas if same else between(run, run.curve(run.sigmas), steps))
        curve, remarks = self.curve_for(run, steps)
        return Instead(solver, between(run, curve, steps), remarks)

    def curve_for(self, run: Run, steps: int) -> tuple[Curve, tuple[str, ...]]:
        """Where the steps are to be, and remarks. Raises ValueError for a schedule of another kind of model."""
        if self.schedule is None:
            sigmas = checked_sigmas(self.sigmas or (), run.law)
            if len(sigmas) < 2:
                raise ValueError(f"the connected sigmas are {len(sigmas)}; a schedule has two or more.")
            return run.curve(sigmas), ()
        curve, remarks = searched(self.schedule, recognised(run.guider), run.law, steps)
        return curve, tuple(remarks[1:])

    def by_tuning(self, run: Run, tuning: Tuning) -> Instead:
        """The table for the run's calls, or what needs no measurement. Raises ValueError for a sampler that stays."""
        if why := why_theirs(run.sampler):
            raise ValueError(why)
        here, shift = recognised(run.guider), shift_of(run.sampling, run.law)
        chosen = choose(tuning, here, run.law, shift, (run.sigmas[0], run.sigmas[-1]), run.calls)
        if chosen.table is None:
            own = by_recipe(run, self.report)
            return Instead(own.sampler, own.sigmas, (*chosen.remarks, *own.remarks))
        sampler = tuned_sampler(tuning, self.report)
        sampler.inpaint_options = run.sampler.inpaint_options
        return Instead(sampler, chosen.sigmas, chosen.remarks)

    def say(self, text: str, plot: dict[str, Any] | None = None) -> None:
        """On the node, with the name of the node that samples, where the graph tells it."""
        context = get_executing_context()
        node = self.nodes.get(context.node_id, {}) if context else {}
        who = node.get("class_type", "Sampling")
        log.info("Boost: %s: %s", who, text)
        if self.report:
            self.report.add(f"{who}: {text}", plot=plot)


def boosted(model: ModelPatcher, boost: Boost) -> ModelPatcher:
    """A clone with this Boost, instead of one that it may have had."""
    clone = model.clone()
    clone.remove_wrappers_with_key(OUTER, BOOST)
    clone.add_wrapper_with_key(OUTER, BOOST, boost)
    return clone


def has_boost(model: Any) -> bool:
    return bool(getattr(model, "wrappers", {}).get(OUTER, {}).get(BOOST))


def without_boost(guider: comfy.samplers.CFGGuider) -> comfy.samplers.CFGGuider:
    """The same guidance, in which every sampler runs as itself."""
    made = fresh(guider)
    for name, model in list(vars(made).items()):
        if isinstance(model, ModelPatcher) and has_boost(model):
            clone = model.clone()
            clone.remove_wrappers_with_key(OUTER, BOOST)
            setattr(made, name, clone)
    return made


# ---------------------------------------------------------------------------------------------------------
# What comes in


def function_of(sampler: Any) -> Any:
    return getattr(sampler, "sampler_function", None)


def name_of(sampler: Any) -> str:
    """As the host lists it, or as FewStep's node is called."""
    function = function_of(sampler)
    name = getattr(function, "__name__", type(function if function else sampler).__name__)
    return NAMES.get(name, name.removeprefix("sample_").removesuffix("_function"))


def measures(sampler: Any) -> bool:
    """Whether a measuring node of ours is at work, which wants the model's own answers where it asks."""
    return getattr(function_of(sampler), "__module__", "").startswith(f"{PACK}.nodes.measuring")


def calls_of(sampler: Any, steps: int, to_zero: bool) -> int:
    """Model calls of so many steps; their number, where the sampler is not known."""
    while function_of(sampler) is sample_dual_fast:  # which makes none of its own
        sampler = sampler.extra_options["sampler"]
    if isinstance(sampler, StagedSampler):
        return sampler.calls(steps, to_zero)
    return ODE_SAMPLERS.get(getattr(function_of(sampler), "__name__", ""), single)(steps, to_zero)


def check_run(run: Run) -> None:
    """Raises ValueError for sigmas with nothing between them to be placed."""
    sigmas = checked_sigmas(run.sigmas, run.law)
    if any(later > sigma for sigma, later in pairwise(sigmas)):
        raise ValueError("its sigmas rise, as for unsampling or a restart.")
    if len(sigmas) < 3 or sigmas[0] == sigmas[-1]:
        raise ValueError("there is no step between the first sigma and the last.")


def why_theirs(sampler: Any) -> str:
    """Why a sampler that the person chose stays; empty for those that another may stand in for."""
    function = function_of(sampler)
    name, module = getattr(function, "__name__", ""), getattr(function, "__module__", "")
    is_hosts = module.startswith("comfy.")
    draws = any(getattr(sampler, "extra_options", {}).get(option, 0) for option in DRAWS)
    if is_hosts and name in ODE_SAMPLERS and not draws:
        return ""
    connect = "Connect a sampler to Boost to exchange it."
    if module.startswith(PACK):
        return f"it is one of FewStep's. {connect}"
    if "cfg_pp" in name:
        return f"it follows an equation of its own (CFG++). {connect}"
    if "dpm_adaptive" in name:
        return f"it chooses its own steps. {connect}"
    if is_hosts:
        return f"it draws noise on its way, and another sampler would change the picture's kind. {connect}"
    return f"Boost does not know this sampler. {connect}"


def described(run: Run) -> str:
    """The sampler, and the scheduler where the sigmas are one's."""
    for name in comfy.samplers.SCHEDULER_NAMES:
        for left_out in (0, 1):  # some samplers of the host go without the last sigma but one
            try:
                theirs = comfy.samplers.calculate_sigmas(run.sampling, name, run.steps + left_out).tolist()
            except Exception as error:  # a scheduler of another pack may refuse what it likes
                log.debug("%s gives no schedule: %s", name, error)
                continue
            if (*theirs[: len(theirs) - 1 - left_out], theirs[-1]) == run.sigmas:
                return f"{name_of(run.sampler)} {name}"
    return name_of(run.sampler)


def listed(sigmas: Sequence[float]) -> str:
    shown = [f"{sigma:.4g}" for sigma in sigmas]
    return " ".join(shown if len(shown) <= MOST_SHOWN else [*shown[:MOST_SHOWN], "..."])


# ---------------------------------------------------------------------------------------------------------
# What runs instead


def by_recipe(run: Run, report: Report | None) -> Instead:
    """What needs no measurement. Raises ValueError for a sampler that stays the person's."""
    if why := why_theirs(run.sampler):
        raise ValueError(why)
    first, last = run.sigmas[0], run.sigmas[-1]
    own = recipe_between(run.law, first, last, run.calls, shift_of(run.sampling, run.law))
    sampler = deis_sampler(own.answers, own.order, own.corrector, own.ends_denoised, report)
    sampler.inpaint_options = run.sampler.inpaint_options
    return Instead(sampler, own.sigmas(run.law, first, last, run.calls), remarks_on(run))


def remarks_on(run: Run) -> tuple[str, ...]:
    """Where a recipe that was not measured on the model may be no gain."""
    distilled, strong = run.cfg == 1 and run.calls <= FEW, run.cfg >= STRONG and run.calls < ENOUGH
    return (DISTILLED,) * distilled + (ASTRAY,) * strong


def solver_named(name: str, theirs: Any, report: Report | None) -> Any:
    """The sampler for which a schedule was searched, with what the person's does under a mask."""
    if name == "dpm_solver_v3":
        solver = dpm_solver_v3_sampler(Choice(Options(), None, "data", "when_checked", report))
    else:
        solver = comfy.samplers.sampler_object(name)
    solver.inpaint_options = theirs.inpaint_options
    return solver


def steps_for(solver: Any, run: Run) -> int:
    """As many steps as the calls of the run pay for."""
    to_zero = run.sigmas[-1] == 0
    return max(n for n in range(1, run.calls + 1) if n == 1 or calls_of(solver, n, to_zero) <= run.calls)


def between(run: Run, curve: Curve, steps: int) -> tuple[float, ...]:
    """Steps by a schedule's curve, between the ends of the run. Raises ValueError for one of another kind of noise."""
    first, last = run.sigmas[0], run.sigmas[-1]
    if curve.time(min(curve.sigmas[0], 1.0) if run.law.is_flow else curve.sigmas[0]) < SAME_PLACE * curve.time(first):
        raise ValueError(
            f"the connected schedule begins at sigma {curve.sigmas[0]:.4g}, and this sampling at {first:.4g}. Connect "
            "one that was made for this model."
        )
    return curve.resampled(steps, shift_of(run.sampling, run.law), first, last)
