"""The noise of PFGM++ (arXiv 2302.04265)."""

from __future__ import annotations

from comfy_api.latest import io

from ..samplers.heavy_tail import MOST
from . import inputs
from .host.heavy_tail import HeavyTailNoise
from .host.progress import Report
from .measuring.asked import SEED


class FewStepHeavyTailNoise(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FewStepHeavyTailNoise",
            display_name="Heavy Tail Noise (FewStep)",
            category="FewStep/few-step models",
            description="The starting noise of PFGM++ models: Random Noise of the same seed, stronger or weaker by one "
            "number a picture. Other models were trained without it.",
            inputs=[
                io.Int.Input(
                    "noise_seed",
                    default=0,
                    min=SEED.least,
                    max=SEED.most,
                    control_after_generate=True,
                    tooltip="As that of Random Noise.",
                ),
                io.Int.Input(
                    "dimension",
                    default=2048,
                    min=1,
                    max=MOST,
                    tooltip="D of the model, 1 to 1,000,000,000: 128 and 2048 are published. The higher, the nearer to "
                    "Random Noise.",
                ),
            ],
            outputs=[io.Noise.Output()],
            hidden=[io.Hidden.unique_id],
            **inputs.searched_as("pfgm", "pfgm++", "student t", "noise"),
            **inputs.REPORTING,
        )

    @classmethod
    def execute(cls, noise_seed, dimension) -> io.NodeOutput:
        SEED.check("noise_seed", noise_seed)
        report = Report(cls.hidden.unique_id)
        return io.NodeOutput(HeavyTailNoise(noise_seed, dimension, report), ui=report.ui)
