"""Which noise law a model of the host follows."""

from __future__ import annotations

import torch

from ...samplers.noise_law import FLOW, VARIANCE_EXPLODING, NoiseLaw


def noise_law(model_sampling) -> NoiseLaw:
    """Read off the host's own noise scaling at sigma 0.5, so that kinds of model yet unknown are told apart too.

    Raises ValueError for a law that is neither.
    """
    one, zero = torch.ones(1, 1), torch.zeros(1, 1)
    kept = float(model_sampling.noise_scaling(torch.tensor([0.5]), zero, one))  # noise may be scaled in place
    for law in (VARIANCE_EXPLODING, FLOW):
        if abs(kept - law.alpha(0.5)) < 1e-3:
            return law
    raise ValueError(
        "This kind of model adds noise in a way that FewStep does not know "
        f"(at sigma 0.5 it keeps {kept:.3g} of the picture). Use the ordinary samplers with it."
    )
