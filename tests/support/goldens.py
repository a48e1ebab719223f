"""Recorded arrays of the authors' code (tests/goldens), and the exact model that they were recorded on."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Self

FOLDER = Path(os.environ["FEWSTEP_ROOT"], "tests", "goldens")


@dataclass(frozen=True)
class Arrays:
    """A file of arrays, and its model, a mixture of isotropic Gaussians N(m_k, s_k^2 I)."""

    arrays: dict[str, Any]

    @classmethod
    def load(cls, name: str) -> Self:
        """From a path below tests/goldens, without its ending."""
        with np.load(FOLDER / f"{name}.npz") as file:
            return cls({key: file[key] for key in file.files})

    def tensor(self, key: str) -> Tensor:
        return torch.from_numpy(np.asarray(self.arrays[key]))

    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """E[x0 | x] at noise-to-signal ratio sigma."""
        variance = self.tensor("gmm_stds") ** 2
        total = variance + sigma**2
        means = self.tensor("gmm_means").flatten(1)
        away = x.flatten(1)[:, None] - means
        log_weights = self.tensor("gmm_weights").log() - away.square().sum(2) / (2 * total)
        weights = (log_weights - away.shape[2] / 2 * total.log()).softmax(1)
        posterior = means + (variance / total)[:, None] * away
        return torch.einsum("bk,bkd->bd", weights, posterior).view_as(x)
