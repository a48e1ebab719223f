"""The light Schroedinger bridge (arXiv 2310.01174): one set of pictures takes over what another's channels are like."""

from __future__ import annotations

from comfy_api.latest import io

from . import inputs
from .host.light_bridge import LEAST_NOISE, MOST_COMPONENTS, MOST_NOISE, bridged
from .host.progress import Report


class FewStepLightBridge(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FewStepLightBridge",
            display_name="Light Bridge (FewStep)",
            category="FewStep/sampling",
            description="Gives a set of pictures the colours, brightness and contrast of another set, each picture its "
            "own of them: what is in the pictures stays. Fitted here, in seconds on the CPU; no model.",
            inputs=[
                io.Latent.Input("source", tooltip="The pictures that change, a batch; more than a few are better."),
                io.Latent.Input(
                    "target", tooltip="The pictures whose colours are wanted, of the same VAE. Any size and number."
                ),
                io.Int.Input(
                    "components",
                    default=5,
                    min=1,
                    max=MOST_COMPONENTS,
                    tooltip="Kinds of pictures that may be told apart in the target, 1 to 64. 1 is one change for all.",
                    **inputs.ADVANCED,
                ),
                io.Float.Input(
                    "noise",
                    default=0.1,
                    min=LEAST_NOISE,
                    max=MOST_NOISE,
                    step=0.01,
                    round=0.0001,
                    tooltip="How freely a picture finds its colours, 0.01 to 100. Low: the nearest to its own. 1 and "
                    "above: any of the target's, by chance.",
                ),
                inputs.fixed_seed("Of the chance in it."),
            ],
            outputs=[io.Latent.Output()],
            hidden=[io.Hidden.unique_id],
            **inputs.searched_as("schrodinger bridge", "optimal transport", "color transfer", "color match", "adain"),
            **inputs.REPORTING,
        )

    @classmethod
    def execute(cls, source, target, components, noise, seed) -> io.NodeOutput:
        report = Report(cls.hidden.unique_id)
        moved, said = bridged(source, target, components, noise, seed, report)
        return io.NodeOutput(moved, ui=report.say(said).ui)
