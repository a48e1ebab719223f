"""GMFlow (arXiv 2504.05304): flow models that predict Gaussian mixtures, their guidance and their solvers."""

from __future__ import annotations

from comfy_api.latest import io

from . import inputs
from .host.gmflow import MODES, Choice, Guidance, gmflow_guider, gmflow_sampler
from .models.gmflow import label_conditioning, load_gmflow, model_names, path_of

CATEGORY = "FewStep/gmflow"


class FewStepLoadGMFlow(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FewStepLoadGMFlow",
            display_name="Load GMFlow (FewStep)",
            category=CATEGORY,
            description="A GMFlow model (GM-DiT) from models/diffusion_models. Its VAE is SD 1.5's: load it with Load "
            "VAE. A spectrum network beside it is loaded too.",
            inputs=[
                io.Combo.Input(
                    "name",
                    options=model_names(),
                    tooltip="A file in models/diffusion_models: of the release gmflow_imagenet_k8_ema it is "
                    "transformer/diffusion_pytorch_model.bf16.safetensors, under any name.",
                )
            ],
            outputs=[io.Model.Output()],
            **inputs.searched_as("gmflow", "gm-dit", "gaussian mixture", "unet loader"),
        )

    @classmethod
    def validate_inputs(cls, name: str = "") -> bool | str:
        return inputs.found(path_of, name)

    @classmethod
    def fingerprint_inputs(cls, name: str, **linked) -> float:
        return inputs.time_of(path_of(name))

    @classmethod
    def execute(cls, name) -> io.NodeOutput:
        return io.NodeOutput(load_gmflow(name))


class FewStepGMFlowLabel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FewStepGMFlowLabel",
            display_name="GMFlow Label (FewStep)",
            category=CATEGORY,
            description="What a GMFlow class model is to draw, in the place of a text prompt.",
            inputs=[
                io.Model.Input("model", tooltip="From Load GMFlow. The Demo Model takes text: use CLIP Text Encode."),
                io.String.Input(
                    "label",
                    default="golden retriever",
                    tooltip="A class of ImageNet: its number, 0 to 999, or its name, such as golden retriever (207). "
                    "Names come from torchvision, or from a .txt beside the model; without either only numbers.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive"),
                io.Conditioning.Output(display_name="negative"),
            ],
            **inputs.searched_as("gmflow", "imagenet", "class label"),
        )

    @classmethod
    def execute(cls, model, label) -> io.NodeOutput:
        return io.NodeOutput(*label_conditioning(model, label))


class FewStepGMFlowGuider(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FewStepGMFlowGuider",
            display_name="GMFlow Guider (FewStep)",
            category=CATEGORY,
            description="Guidance that stays inside what the model holds possible, so that strong guidance does not "
            "burn the picture. For GMFlow models, with any sampler.",
            inputs=[
                io.Model.Input("model", tooltip="A GMFlow model: from Load GMFlow, or the Demo Model as gmflow."),
                io.Conditioning.Input("positive", tooltip="From GMFlow Label, or a text prompt for the Demo Model."),
                io.Conditioning.Input("negative", tooltip="The other output of GMFlow Label, or a negative prompt."),
                io.Float.Input(
                    "strength",
                    default=0.45,
                    min=0.0,
                    max=0.99,
                    step=0.01,
                    round=0.001,
                    tooltip="How far the prediction moves towards the prompt, in standard deviations of the model's "
                    "own uncertainty, 0 to 0.99. 0: none, at half the time. It is no cfg.",
                ),
                inputs.orthogonal(
                    "Share, 0 to 1, of the guidance along the picture itself that is left out: 1 keeps colours from "
                    "saturating, 0 leaves all in."
                ),
                *inputs.percents(
                    "Where guidance begins, as a share of the run, 0 to 1.",
                    "Where it ends, as a share of the run, 0 to 1. Steps without guidance take half the time.",
                ),
            ],
            outputs=[io.Guider.Output()],
            **inputs.searched_as("gmflow", "gaussian mixture", "burn", "cfg guider"),
        )

    @classmethod
    def execute(cls, model, positive, negative, strength, orthogonal, start_percent, end_percent) -> io.NodeOutput:
        guidance = Guidance(strength, orthogonal, start_percent, end_percent)
        return io.NodeOutput(gmflow_guider(model, positive, negative, guidance))


class FewStepGMFlowSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FewStepGMFlowSampler",
            display_name="GMFlow Sampler (FewStep)",
            category=CATEGORY,
            description="A sampler for GMFlow models: between two model calls it goes on by itself, with the mixture "
            "that the model gave. For 4 to 32 calls.",
            inputs=[
                io.Combo.Input(
                    "mode",
                    options=list(MODES),
                    default="sde",
                    tooltip="sde: draws from the mixture and adds noise at every step; cleaner pictures in our tests. "
                    "ode: no noise after the start; keeps more of the model's variety.",
                ),
                io.Int.Input(
                    "order",
                    default=2,
                    min=1,
                    max=2,
                    tooltip="1, or 2: each step also looks at the one before, at no further call.",
                    **inputs.ADVANCED,
                ),
                io.Int.Input(
                    "substeps",
                    default=0,
                    min=0,
                    max=1024,
                    tooltip="Of ode: steps between two model calls, 0 to 1024. They cost next to nothing. 0: 128 "
                    "shared among the calls, as in the paper.",
                    **inputs.ADVANCED,
                ),
                io.Float.Input(
                    "temperature",
                    default=1.0,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    round=0.001,
                    tooltip="Of all steps but the last, 0.01 to 1. Below 1 the mixture is sharper and pictures are "
                    "plainer; 1 is the model's own.",
                ),
                io.Boolean.Input(
                    "spectral",
                    default=False,
                    tooltip="Of sde: draws whose pixels hang together as the model's spectrum network says. Only for "
                    "models that came with one.",
                    **inputs.ADVANCED,
                ),
            ],
            outputs=[io.Sampler.Output()],
            **inputs.searched_as("gmflow", "gm-ode", "gm-sde", "gaussian mixture"),
        )

    @classmethod
    def execute(cls, mode, order, substeps, temperature, spectral) -> io.NodeOutput:
        return io.NodeOutput(gmflow_sampler(Choice(mode, order, substeps, temperature, spectral)))
