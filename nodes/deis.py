"""DEIS (arXiv 2204.13902): the solvers of the exponential integrator, on a clock of your own."""

from __future__ import annotations

from comfy_api.latest import io

from . import inputs
from .host.deis import CLOCKS, METHODS, deis_method_sampler
from .host.progress import Report


class FewStepDEIS(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FewStepDEIS",
            display_name="DEIS (FewStep)",
            category="FewStep/sampling",
            description="The whole family of DEIS, with the clock of your model instead of a fixed one. One model call "
            "a step, but for rhork. For flow models and few steps take order 2.",
            inputs=[
                io.Combo.Input(
                    "method",
                    options=list(METHODS),
                    default="tab",
                    tooltip="tab: a polynomial in the clock below. rhoab: in sigma, whatever the clock. ipndm: the "
                    "fixed weights of even steps. rhork: Runge-Kutta, as many model calls a step as the order.",
                ),
                io.Int.Input(
                    "order",
                    default=2,
                    min=1,
                    max=4,
                    tooltip="How many answers a step looks at, 1 to 4. 1 is Euler. 2 is steady on every model; 3 and 4 "
                    "are nearer at a low cfg, and lose at a high cfg with few steps.",
                    **inputs.ADVANCED,
                ),
                io.Combo.Input(
                    "clock",
                    options=list(CLOCKS),
                    default="log_snr",
                    tooltip="Of tab: in what the answers are taken to change evenly. log_snr: the logarithm of the "
                    "noise, for eps and v models. model: the time that the network is told, for flow models. sigma: "
                    "as rhoab.",
                ),
            ],
            outputs=[io.Sampler.Output()],
            hidden=[io.Hidden.unique_id],
            **inputs.searched_as("deis", "ipndm", "lms", "adams bashforth", "runge kutta", "rk4"),
            **inputs.REPORTING,
        )

    @classmethod
    def execute(cls, method, order, clock) -> io.NodeOutput:
        report = Report(cls.hidden.unique_id)
        return io.NodeOutput(deis_method_sampler(method, order, clock, report), ui=report.ui)
