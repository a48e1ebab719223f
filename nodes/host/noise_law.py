"""Which noise law a model of the host follows."""

from __future__ import annotations

import torch

from ...samplers.noise_law import FLOW, VARIANCE_EXPLODING, NoiseLaw


def noise_law(model_sampling) -> NoiseLaw:
    """Read off the host's own noise scaling at sigma 0.5, so that kinds of model yet unknown are told apart too.

    Raises ValueError for a law that is neither.
    """
    one, zero = torch.ones(1, 1), torch.zeros(1, 1)
    half = torch.tensor([0.5])
    kept = float(model_sampling.noise_scaling(half, zero.clone(), one.clone()))  # noise may be scaled in place
    scale = float(model_sampling.noise_scaling(half, one.clone(), zero.clone())) / 0.5
    if abs(kept - VARIANCE_EXPLODING.alpha(0.5)) < 1e-3:
        return VARIANCE_EXPLODING
    if abs(kept - FLOW.alpha(0.5)) < 1e-3:
        if scale <= 0:
            raise ValueError(
                f"The noise scale of this model is {scale:g}, so a picture would start from nothing. Set noise_scale "
                "above 0 in Model Noise Scale; most models want 1."
            )
        return FLOW if abs(scale - 1) < 1e-6 else NoiseLaw(is_flow=True, scale=scale)
    raise ValueError(
        "This kind of model adds noise in a way that FewStep does not know "
        f"(at sigma 0.5 it keeps {kept:.3g} of the picture). Use the ordinary samplers with it."
    )


def check_unit_noise(model_sampling) -> None:
    """Raises ValueError for a model whose noise is not of unit strength, where a method knows no other."""
    scale = noise_law(model_sampling).scale
    if scale != 1:
        raise ValueError(
            f"The noise scale of this model is {scale:g}, and GMFlow's mixtures are of noise of scale 1. Remove Model "
            "Noise Scale, or set it to 1."
        )
