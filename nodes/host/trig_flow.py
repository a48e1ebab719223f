"""TrigFlow models in the host: their model sampling, and their schedules."""

from __future__ import annotations

import comfy.model_sampling
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...samplers.facts import is_number
from ...samplers.trig_flow import HIGHEST, read_times, schedule
from .noise_law import noise_law

LOWEST = 0.002  # sigma: where EDM's schedules end before 0
OF_FLOW = (
    "This model is loaded as a flow model. If it was distilled by rCM (Wan), take it as it is: it needs only TrigFlow "
    "Schedule."
)


class TrigFlowSampling(comfy.model_sampling.V_PREDICTION, comfy.model_sampling.ModelSamplingContinuousEDM):
    """F of (x_t / s_d, t): the algebra is v prediction's with s_d, and the network is told the angle itself."""

    def timestep(self, sigma: Tensor) -> Tensor:
        return (sigma / self.sigma_data).atan()

    def sigma(self, timestep: Tensor) -> Tensor:
        return self.sigma_data * timestep.tan()

    def noise_scaling(self, sigma, noise, latent_image, max_denoise=False):
        """Where nothing of the picture is left, noise and data together have the deviation that the network knows."""
        sigma = comfy.model_sampling.reshape_sigma(sigma, noise.ndim)
        strength = (sigma**2 + self.sigma_data**2) ** 0.5 if max_denoise else sigma
        return noise * strength + latent_image


def trig_flow_model(model: ModelPatcher, sigma_data: float) -> tuple[ModelPatcher, str]:
    """The MODEL with this model sampling, and a remark. Raises ValueError for a sigma_data that is none."""
    if not is_number(sigma_data, 0.01, 100):
        raise ValueError(f"sigma_data is {sigma_data!r}; it must be a number from 0.01 to 100.")
    sampling = TrigFlowSampling()
    sampling.set_parameters(LOWEST, HIGHEST, float(sigma_data))
    is_flow = noise_law(model.get_model_object("model_sampling")).is_flow
    clone = model.clone()
    clone.add_object_patch("model_sampling", sampling)
    return clone, OF_FLOW if is_flow else ""


def trig_flow_schedule(model: ModelPatcher, steps: int, times: str, own_times: str = "") -> Tensor:
    """SIGMAS for the host's lcm. own_times: angles instead of the preset's. Raises ValueError, in words."""
    sampling = model.get_model_object("model_sampling")
    law = noise_law(sampling)
    sigma_data = 1.0 if law.is_flow else float(getattr(sampling, "sigma_data", 1.0))
    first = min(law.sigma(HIGHEST), float(sampling.sigma_max))
    asked = read_times(own_times) if own_times.strip() else times
    return torch.tensor(schedule(law, steps, asked, sigma_data, first), dtype=torch.float32)
