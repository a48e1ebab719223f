"""The exact mixture as a MODEL of the host: BaseModel, ModelPatcher and the host's own prediction types.

Call `support.host.start_host()` before importing this. The network answers what makes the host's
`calculate_denoised` return the exact posterior mean, so eps, v, EDM and flow all run their own arithmetic.
"""

from __future__ import annotations

import comfy.conds
import comfy.latent_formats
import comfy.model_management
import comfy.model_patcher
import comfy.supported_models_base
import torch
from comfy.model_base import BaseModel, ModelType
from fewstep.samplers.noise_law import FLOW, VARIANCE_EXPLODING
from torch import Tensor, nn

from .mixture import GuidedMixture, Mixture
from .recording import Failing

TYPES = {"eps": ModelType.EPS, "v": ModelType.V_PREDICTION, "edm": ModelType.EDM, "flow": ModelType.FLOW}


class MixtureLatent(comfy.latent_formats.LatentFormat):
    """middle: what the files call 0 in the model's own scale, as FLUX's and SD3's formats have."""

    latent_channels = 4

    def __init__(self, middle: float = 0.0):
        self.middle = middle

    def process_in(self, latent: Tensor) -> Tensor:
        return latent - self.middle

    def process_out(self, latent: Tensor) -> Tensor:
        return latent + self.middle


class MixtureNetwork(nn.Module):
    """(input, timestep, context (B, 1, 1): the label; sigma and the host's model sampling) -> the model output."""

    dtype = torch.float32

    def __init__(self, mixture: Mixture, is_flow: bool):
        super().__init__()
        self.mixture, self.law = mixture, FLOW if is_flow else VARIANCE_EXPLODING
        self.failing: Failing | None = None  # see `fail`

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor, sigma: Tensor, sampling, **host) -> Tensor:
        sigma = sigma.double()
        x = x.double() / sampling.calculate_input(sigma, torch.ones_like(x, dtype=torch.float64))
        denoised = self.denoise(x, sigma, context[:, 0, 0].round().long())
        # calculate_denoised is a + b * output: solve it for the output
        a = sampling.calculate_denoised(sigma, torch.zeros_like(x), x)
        b = sampling.calculate_denoised(sigma, torch.ones_like(x), x) - a
        output = (denoised - a) / b
        return (self.failing(output, float(sigma[0])) if self.failing else output).float()

    def denoise(self, x: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
        (at,) = set(sigma.tolist())  # the host's samplers give a batch one sigma
        return GuidedMixture(self.mixture, self.law, labels)(x, at)


class MixtureModel(BaseModel):
    """The network is told the exact sigma: the host rounds the timestep of eps and v to a whole number."""

    def _apply_model(self, x, t, *args, **kwargs):
        return super()._apply_model(x, t, *args, sigma=t, sampling=self.model_sampling, **kwargs)


class StreamsNetwork(nn.Module):
    """A network for each stream of a latent, none of which knows of the others: all is known that each knows alone.

    shapes: of the latents that came in, as the host unpacked them.
    """

    dtype = torch.float32

    def __init__(self, networks: list[MixtureNetwork]):
        super().__init__()
        self.streams = nn.ModuleList(networks)
        self.shapes: list[list[tuple[int, ...]]] = []

    def forward(self, x: list[Tensor], timesteps: Tensor, **given) -> list[Tensor]:
        self.shapes.append([tuple(part.shape) for part in x])
        flat = [part.reshape(*part.shape[:2], *part.shape[-2:]) for part in x]  # a video of one frame
        answers = [network(part, timesteps, **given) for network, part in zip(self.streams, flat, strict=True)]
        return [answer.view_as(part) for answer, part in zip(answers, x, strict=True)]


class StreamsModel(MixtureModel):
    """As LTX's and MiniMax's models of the host: it asks for the shapes of the streams."""

    def extra_conds(self, **given):
        return super().extra_conds(**given) | {"latent_shapes": comfy.conds.CONDConstant(given["latent_shapes"])}


def mixture_model(mixture: Mixture, kind: str, shift: float = 1.0) -> comfy.model_patcher.ModelPatcher:
    """A MODEL of kind eps, v, edm or flow (with a shift)."""
    return model_of(MixtureModel, MixtureNetwork(mixture, is_flow=kind == "flow"), kind, shift)


def streams_model(mixtures: list[Mixture], kind: str, shift: float = 1.0) -> comfy.model_patcher.ModelPatcher:
    """A MODEL of nested latents, a mixture for each stream."""
    networks = [MixtureNetwork(mixture, is_flow=kind == "flow") for mixture in mixtures]
    return model_of(StreamsModel, StreamsNetwork(networks), kind, shift)


def model_of(made: type[BaseModel], network: nn.Module, kind: str, shift: float) -> comfy.model_patcher.ModelPatcher:
    config = comfy.supported_models_base.BASE({"disable_unet_model_creation": True, "in_channels": 4})
    config.latent_format, config.sampling_settings = MixtureLatent(), {"shift": shift, "sigma_data": 1.0}
    config.memory_usage_factor, config.unet_extra_config = 0.1, {}
    device = comfy.model_management.get_torch_device()
    model = made(config, TYPES[kind], device=device)
    model.diffusion_model = network
    return comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=device)


def fail(patcher: comfy.model_patcher.ModelPatcher, at: int, error: BaseException | None = None) -> None:
    """From model call `at` on, the network raises `error`, or answers NaN when there is none."""
    patcher.model.diffusion_model.failing = Failing(lambda output, sigma: output, at, error)


def label_conditioning(labels: list[int]) -> list:
    """CONDITIONING of one class an item of the batch; -1 is the whole mixture (the unconditional side)."""
    return [[torch.tensor(labels, dtype=torch.float32).reshape(-1, 1, 1), {}]]
