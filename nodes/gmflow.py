"""GMFlow (arXiv 2504.05304): flow models that predict Gaussian mixtures, their guidance and their solvers."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from . import inputs
from .host.gmflow import MODES, Choice, Guidance, gmflow_guider, gmflow_sampler
from .host.policies import PolicyChoice, policy_remarks, policy_sampler, schedule_for
from .host.progress import Report
from .models.gmflow import label_conditioning, load_gmflow, model_names, path_of

CATEGORY = "FewStep/gmflow"


class FewStepLoadGMFlow(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FewStepLoadGMFlow",
            display_name="Load GMFlow (FewStep)",
            category=CATEGORY,
            description="A pi-Flow adapter on FLUX.1, FLUX.2 or Qwen-Image: pictures in 4 model calls, with the "
            "pi-Flow Sampler. Or a GMFlow model (GM-DiT) by itself, with SD 1.5's VAE.",
            inputs=[
                io.Combo.Input(
                    "name",
                    options=model_names(),
                    tooltip="A pi-Flow adapter in models/loras (loras/ in this list), such as gmflux_k8_piid_4step or "
                    "gmqwen_k8_piid_4step. Or a GM-DiT in models/diffusion_models: of gmflow_imagenet_k8_ema it is "
                    "transformer/diffusion_pytorch_model.bf16.safetensors.",
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="Of an adapter: the model that it goes on, from Load Diffusion Model, of any precision. "
                    "LoRAs may come before or after. A GM-DiT needs none.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.01,
                    round=0.001,
                    optional=True,
                    tooltip="Of an adapter: how much its LoRA parts count, -10 to 10. 1: as it was made. A little more "
                    "gives contrast, less noise and clearer writing. Its last layer always counts whole.",
                ),
            ],
            outputs=[io.Model.Output()],
            **inputs.searched_as(
                *["pi-flow", "piflow", "4 steps", "flux few steps", "qwen image few steps", "gmflow", "gm-dit"],
                *["gaussian mixture", "unet loader"],
            ),
        )

    @classmethod
    def validate_inputs(cls, name: str = "") -> bool | str:
        return inputs.found(path_of, name)

    @classmethod
    def fingerprint_inputs(cls, name: str, **linked) -> float:
        return inputs.time_of(path_of(name))

    @classmethod
    def execute(cls, name, model=None, strength=1.0) -> io.NodeOutput:
        return io.NodeOutput(load_gmflow(name, model, strength))


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


class FewStepPiFlowSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FewStepPiFlowSampler",
            display_name="pi-Flow Sampler (FewStep)",
            category=CATEGORY,
            description="Sampler and sigmas for a model with a pi-Flow adapter from Load GMFlow: each model call "
            "decides a policy, which is followed by itself to the next. For Sampler Custom Advanced with Basic Guider.",
            inputs=[
                io.Model.Input("model", tooltip="The model that will be sampled, with its adapter."),
                io.Int.Input(
                    "steps",
                    default=4,
                    min=1,
                    max=1000,
                    tooltip="Model calls, 1 to 1000: 4 for adapters named 4step, 8 for those named 8step. More calls "
                    "than that are fine for a mixture policy.",
                ),
                inputs.denoise(
                    "Share of the way to begin with, 0.01 to 1, of a picture that is there already. 1: from noise."
                ),
                io.Float.Input(
                    "noise",
                    default=0.0,
                    min=0.0,
                    max=1000.0,
                    step=0.05,
                    round=0.001,
                    tooltip="Noise that is put back at every step, 0 to 1000. 0: none, as in the paper. 1: as much as "
                    "DDPM does. More: nearly all of it anew.",
                    **inputs.ADVANCED,
                ),
                io.Float.Input(
                    "temperature",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    round=0.001,
                    tooltip="Of a mixture policy in all steps but the last, 0 to 1. 0: the authors' choice, 0.1 for "
                    "each step before the last. Lower is sharper and plainer; 1 is the model's own.",
                ),
                io.Int.Input(
                    "substeps",
                    default=128,
                    min=1,
                    max=1024,
                    tooltip="Steps along the policies, 1 to 1024, shared among the calls. They cost next to nothing.",
                    **inputs.ADVANCED,
                ),
                io.Float.Input(
                    "last_step",
                    default=0.5,
                    min=0.05,
                    max=1.0,
                    step=0.05,
                    round=0.001,
                    tooltip="Length of the last step as a share of the others, 0.05 to 1. Adapters were made at 0.5.",
                    **inputs.ADVANCED,
                ),
            ],
            outputs=[io.Sampler.Output(), io.Sigmas.Output()],
            hidden=[io.Hidden.unique_id],
            **inputs.searched_as(
                *["pi-flow", "piflow", "4 steps", "few steps", "flux few steps", "qwen image few steps", "dx policy"],
                "gmflow",
            ),
            **inputs.REPORTING,
        )

    @classmethod
    def execute(cls, model, steps, denoise, noise, temperature, substeps, last_step) -> io.NodeOutput:
        report = Report(cls.hidden.unique_id)
        choice = PolicyChoice(substeps, temperature or None, noise, report)
        sampler, sigmas = policy_sampler(choice), schedule_for(model, steps, last_step, denoise)
        report.say(policy_remarks(model, steps, last_step, denoise, choice))
        return io.NodeOutput(sampler, torch.tensor(sigmas), ui=report.ui)
