"""GMFlow, arXiv 2504.05304: Gaussian mixtures on latents, their solvers and guidance, and the networks."""

from .checkpoint import GMDiTConfig, check_state_dict
from .guidance import Prediction, guided
from .mixture import Mixture, x0_from_u
from .network import GMDiT, SpectrumNetwork
from .solver import GMFlow, MixtureDenoiser
from .spectral import SpectralDraw

__all__ = [
    "GMDiT",
    "GMDiTConfig",
    "GMFlow",
    "Mixture",
    "MixtureDenoiser",
    "Prediction",
    "SpectralDraw",
    "SpectrumNetwork",
    "check_state_dict",
    "guided",
    "x0_from_u",
]
