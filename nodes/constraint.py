"""Pictures held to what is known of them: the manifold-constrained gradient (arXiv 2206.00941)."""

from __future__ import annotations

from comfy_api.latest import io

from . import inputs
from .host.constraint import MOST_ITERATIONS, MOST_RADIUS, MOST_SCALE, OPERATORS, Wanted, constrained
from .host.progress import Report
from .host.slope import GRADIENTS
from .measuring.asked import check_model


class FewStepManifoldConstraint(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FewStepManifoldConstraint",
            display_name="Manifold Constraint (FewStep)",
            category="FewStep/guidance",
            description="Draws what goes with what is known of a picture: a part of it, a small, a grey or a blurred "
            "version. The rest follows by the model's own gradient, instead of meeting it at a seam. For any sampler; "
            "every call takes twice as long.",
            inputs=[
                io.Model.Input("model", tooltip="With its LoRAs and guidance, as it will be sampled."),
                io.Latent.Input(
                    "measurement",
                    tooltip="What is known, encoded with this model's VAE: for inpaint the picture, for the others the "
                    "small, grey or blurred picture itself.",
                ),
                io.Combo.Input(
                    "operator",
                    options=list(OPERATORS),
                    default="inpaint",
                    tooltip="inpaint: all but the masked part is known. downsample 2, 4, 8: a version smaller by that. "
                    "grey: only brightness. blur: a blurred version.",
                ),
                io.Float.Input(
                    "scale",
                    default=1.0,
                    min=0.0,
                    max=MOST_SCALE,
                    step=0.05,
                    round=0.001,
                    tooltip="How far the unknown follows the known, 0 to 10 times what the gradient says. 1 is right "
                    "for any number of steps; 0 takes no gradient.",
                ),
                io.Boolean.Input(
                    "project",
                    default=True,
                    tooltip="Whether what is known is put in exactly. Off: it only pulls, as far as scale says.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="White where something new is drawn, as for Set Latent Noise Mask; without it that of the "
                    "measurement. With downsample and grey: white where the measurement says nothing.",
                ),
                io.Float.Input(
                    "blur_radius",
                    default=2.0,
                    min=0.0,
                    max=MOST_RADIUS,
                    step=0.1,
                    round=0.001,
                    optional=True,
                    tooltip="Of blur: standard deviation of the Gaussian, 0 to 64 numbers of the latent; one is 8 "
                    "pixels with most VAEs.",
                    **inputs.ADVANCED,
                ),
                io.Combo.Input(
                    "gradient",
                    options=list(GRADIENTS),
                    default="differences",
                    optional=True,
                    tooltip="differences: from a second model call nearby. No more memory, any model. model: through "
                    "the model, as published, which takes much memory. auto: model, and differences where that fails.",
                    **inputs.ADVANCED,
                ),
                io.Int.Input(
                    "iterations",
                    default=1,
                    min=1,
                    max=MOST_ITERATIONS,
                    optional=True,
                    tooltip="Gradients in a call, 1 to 8. More are nearer to what really goes with the known, each "
                    "for about another call.",
                    **inputs.ADVANCED,
                ),
            ],
            outputs=[io.Model.Output()],
            hidden=[io.Hidden.unique_id],
            **inputs.searched_as("mcg", "dps", "inverse problem", "inpaint", "super resolution", "colorize"),
            **inputs.REPORTING,
        )

    @classmethod
    def execute(
        cls,
        model,
        measurement,
        operator,
        scale,
        project,
        mask=None,
        blur_radius=2.0,
        gradient="differences",
        iterations=1,
    ) -> io.NodeOutput:
        check_model(model)
        report = Report(cls.hidden.unique_id)
        wanted = Wanted(operator, scale, project, blur_radius, gradient, iterations, report=report)
        held, remark = constrained(model, measurement, mask, wanted)
        return io.NodeOutput(held, ui=report.say(remark).ui)
