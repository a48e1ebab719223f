"""A clock of noise: a parameter u in which a model's answers change evenly on the way from noise to picture.

Steps of equal length in it are placed where they are needed (schedulers/placed.py), and a polynomial in it follows the
answers (samplers/deis.py). Both see the noise itself, never the number of a step or the kind of model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from .noise_law import NoiseLaw


@dataclass(frozen=True)
class LogisticClock:
    """u = 1 / (1 + (sigma~ / centre)^(-1 / width)), from 0 without noise to 1 where everything is noise.

    The logistic distribution function of ln sigma~: half of the steps lie above `centre`, a noise-to-signal ratio.
    At width 1 it is the time of a flow model of shift `centre`; wider ones put more steps at either end.
    """

    centre: float
    width: float = 1.0

    def __post_init__(self) -> None:
        if not (0 < self.centre < float("inf") and 0 < self.width < float("inf")):
            raise ValueError(f"A clock's centre and width must be above 0; given: {self.centre:g}, {self.width:g}.")

    def __call__(self, ratio: Tensor) -> Tensor:
        """u of noise-to-signal ratios, 0 and infinity among them."""
        return 1 / (1 + (ratio / self.centre) ** (-1 / self.width))

    def ratio(self, u: Tensor) -> Tensor:
        """The noise-to-signal ratio at each u from 0 to 1."""
        return self.centre * (u / (1 - u)) ** self.width


@dataclass(frozen=True)
class PowerClock:
    """u = sigma~ ^ power, without end. Even steps in it are the schedule of EDM (arXiv 2206.00364 eq. 5) at 1 / rho."""

    power: float

    def __post_init__(self) -> None:
        if not 0 < self.power < float("inf"):
            raise ValueError(f"A clock's power must be above 0; given: {self.power:g}.")

    def __call__(self, ratio: Tensor) -> Tensor:
        """u of noise-to-signal ratios."""
        return ratio**self.power

    def ratio(self, u: Tensor) -> Tensor:
        """The noise-to-signal ratio at each u."""
        return u ** (1 / self.power)


Clock = LogisticClock | PowerClock  # on which steps can be placed: it has a way back
Time = Callable[[Tensor], Tensor]  # what a polynomial can be in: noise-to-signal ratios -> u


def log_noise(ratio: Tensor) -> Tensor:
    """ln sigma~, minus half the log signal-to-noise ratio; infinite where there is no noise, or nothing else."""
    return ratio.log()


def hosts_sigma(law: NoiseLaw) -> Clock:
    """The clock that shows the host's sigma: `law.sigma`, at the infinite ratio too."""
    return LogisticClock(law.scale) if law.is_flow else PowerClock(1.0)
