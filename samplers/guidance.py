"""Probabilistic guidance for any model: GMFlow, arXiv 2504.05304 section 3.2, with one Gaussian a latent (K = 1).

| symbol | name           | meaning                                                                             |
|--------|----------------|-------------------------------------------------------------------------------------|
| D_c    | `conditional`  | the denoised prediction under the prompt, D_u under the negative prompt             |
| d      | `difference`   | D_c - D_u, less the share `orthogonal` of its part along D_c                         |
| s      | `spread`       | deviation of x0 given x and the prompt, of all or by bands of frequency: spread.py  |
| w~     | `strength`     | how much of the spread guidance may use                                             |

Classifier-free guidance adds (cfg - 1) d to D_c, however far that leads from where x0 can be; the part along D_c makes
pictures too strong. Here the root mean square of what is added is bounded by R = w~ s, which falls with the noise.

Early it is decided what the picture shows, and there a model is not as sure as its spread says: it draws a dog for "hot
dog". So there plain cfg is left up to `prompt_cfg`, and no number is led far out of the range that D_c itself has.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .bands import parted
from .choices import check_choice
from .gmflow.guidance import LEAST_SQUARE, across, mean_square

MODES = ("cap", "fixed", "soft")
TINY = 1e-12
BEYOND = 0.05  # of the range of D_c; on the bundled model 0 costs likeness, and 0.1 colours
LARGEST = 1e30  # beyond it is infinity in float32, and infinity times tanh(0) is no number


@dataclass(frozen=True)
class ProbabilisticGuidance:
    """D_c + bias. Raises ValueError for a strength, a share or a cfg that is not allowed.

    mode: "cap", bias = d min(cfg - 1, R / rms(d)): the person's cfg, limited. "soft", bias = d (R / rms(d))
    tanh((cfg - 1) rms(d) / R): the same without a corner. "fixed", bias = d R / rms(d): the paper's, where cfg only
    turns it on.
    At cfg 1, and where both predictions agree, it is exactly D_c.
    Differs: where it is `early`, at least the bias of plain cfg at `prompt_cfg` is added, the part along D_c with it.
    """

    strength: float = 0.5
    mode: str = "cap"
    orthogonal: float = 1.0
    prompt_cfg: float = 1.0

    def __post_init__(self) -> None:
        check_choice("mode", self.mode, MODES)
        if not 0 <= self.strength < math.inf or (self.mode == "fixed" and self.strength >= 1):
            raise ValueError(
                f"The strength is {self.strength:g}; it must be 0 or more, and below 1 in the mode fixed. "
                "0.5 is a good start; more is more guidance."
            )
        if not 0 <= self.orthogonal <= 1:
            raise ValueError(f"The orthogonal share is {self.orthogonal:g}; it must be from 0 to 1.")
        if not 1 <= self.prompt_cfg < math.inf:
            raise ValueError(
                f"prompt_cfg is {self.prompt_cfg:g}; it must be 1 or more. 1 is no more than the bound, 3 holds the "
                "prompt."
            )

    def __call__(
        self,
        conditional: Tensor,
        unconditional: Tensor,
        cfg: float,
        spread: float | Tensor,
        early: bool | Tensor = False,
    ) -> Tensor:
        """(B, C, ...), in float32 at least. Items do not mix.

        spread: one number; or one an item, (B, 1, ...); or of bands of frequency, (bands, B or 1, 1, ...).
        early: one, or one an item.
        """
        dtype = torch.promote_types(conditional.dtype, torch.float32)
        conditional, unconditional = conditional.to(dtype), unconditional.to(dtype)
        if cfg == 1:
            return conditional
        reach = self.strength * (spread if isinstance(spread, Tensor) else conditional.new_tensor(spread))
        reach = reach if reach.ndim > conditional.ndim else reach[None]
        plain = conditional - unconditional
        parts = parted(across(plain, conditional, self.orthogonal), len(reach))
        guided = conditional + (parts * self.scale(size_of(parts, plain.ndim - 1, self.least), cfg, reach)).sum(0)
        least = min(self.prompt_cfg, cfg) - 1
        if early is False or least <= 0:
            return guided
        whole = self.scale(size_of(plain, plain.ndim - 1, self.least), cfg, reach.square().sum(0).sqrt())
        strong = within_range_of(conditional, conditional + plain * whole.clamp(min=least))
        return torch.where(early, strong, guided) if isinstance(early, Tensor) else strong

    @property
    def least(self) -> float:
        """Of rms(d)^2, which is divided by."""
        return LEAST_SQUARE if self.mode == "fixed" else TINY

    def scale(self, size: Tensor, cfg: float, reach: float | Tensor) -> Tensor:
        """What d is multiplied with; size: rms(d), (B, 1, ...)."""
        most = (reach / size).clamp(max=LARGEST)
        if self.mode == "fixed":
            return most
        if self.mode == "cap":
            return most.clamp(max=cfg - 1)
        return most * torch.tanh((cfg - 1) / most.clamp(min=TINY))


def size_of(difference: Tensor, dimensions: int, least: float) -> Tensor:
    """rms(d) over the last so many axes, which are kept as 1."""
    return difference.square().mean(tuple(range(-dimensions, 0)), keepdim=True).clamp(min=least).sqrt()


def within_range_of(conditional: Tensor, guided: Tensor) -> Tensor:
    """`guided`, no number of it further out than those of D_c in that channel and item, but for `BEYOND`."""
    axes = tuple(range(2, conditional.ndim))
    low, high = conditional.amin(axes, keepdim=True), conditional.amax(axes, keepdim=True)
    room = BEYOND * (high - low)
    return guided.clamp(low - room, high + room)


def acting_cfg(guided: Tensor, conditional: Tensor, unconditional: Tensor) -> Tensor:
    """The cfg that would have added as much, in the mean over the items: 1 + rms(guided - D_c) / rms(D_c - D_u)."""
    added, apart = mean_square(guided - conditional), mean_square(conditional - unconditional)
    return 1 + (added / apart.clamp(min=TINY)).sqrt().mean()
