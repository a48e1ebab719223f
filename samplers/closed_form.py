"""Closed-form diffusion models, arXiv 2310.12395: the denoiser of a finite set of pictures, without training.

Of N pictures x_i, at x = alpha x0 + v e,

    D(x) = sum of w_i x_i,    w = softmax of -|x - alpha x_i|^2 / (2 v^2),                     (the exact score)

which ends at one of the pictures. Smoothed (sigma-CFDM) it is the mean of D over draws around x, and ends between some
that are near. With y = x / alpha and draws e_m a draw only moves the logarithms of the weights:

    D_s(x) = mean over m of D(alpha (y + s e_m)),    log w_mi = log w_i + alpha^2 / v^2 s <e_m, x_i>.

Differs: the draws are the same for every x and every sigma, so D_s is a function, and the gradient of something: its
Jacobian is symmetric and has no negative eigenvalue. The paper's implementations draw anew at every step.
Differs: s is told in distances from a picture to the nearest other, because a fixed one means less the larger pictures
are; and it is around y, so that eps and flow models are the same model.
Differs: weights of all but the nearest are left out where a number of neighbours is given; the paper estimates them
from a few drawn at random, which makes every answer noisy.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

DRAWS = 64  # around x. More change little: the mean is over which of a few pictures is nearest
SEED = 0
AT_ONCE = 2**24  # numbers whose squares are summed at a time
MEASURED = 256  # pictures whose nearest is looked for


@dataclass(frozen=True, eq=False)
class ClosedForm:
    """pictures: (N, ...). shifts: (M, N), s <e_m, x_i>; None is exact. neighbours: per x, 0 for all."""

    pictures: Tensor
    shifts: Tensor | None = None
    neighbours: int = 0

    def __call__(self, x: Tensor, alpha: Tensor, deviation: Tensor) -> Tensor:
        """D at x (B, ...), each at its own alpha and deviation (B,). In float32 at least, whatever x is."""
        work = torch.promote_types(x.dtype, torch.float32)
        flat, pictures = x.flatten(1).to(work), self.pictures.flatten(1).to(work)
        alpha, deviation = (one.to(work)[:, None] for one in (alpha, deviation))
        weights, rows = self.weights(flat, pictures, alpha, deviation)
        return (weights @ pictures[rows]).view_as(x).to(x.dtype)

    def weights(self, x: Tensor, pictures: Tensor, alpha: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Of the pictures `rows`, (B, R), and which those are."""
        kept = self.nearest(x, pictures, alpha, v)
        rows = torch.arange(len(pictures), device=x.device) if kept is None else kept.any(0).nonzero().flatten()
        logs = -square_distances(x, alpha, pictures, rows) / (2 * v**2)
        if kept is not None:
            logs = logs.masked_fill(~kept[:, rows], -torch.inf)
        if self.shifts is None:
            return logs.softmax(1), rows
        moved = logs[:, None] + (alpha / v)[:, None] ** 2 * self.shifts.to(logs)[:, rows]
        return moved.softmax(2).mean(1), rows

    def nearest(self, x: Tensor, pictures: Tensor, alpha: Tensor, v: Tensor) -> Tensor | None:
        """(B, N), which pictures are looked at; None for all. By a product of matrices, exact but for rounding."""
        if not 0 < self.neighbours < len(pictures):
            return None
        rough = alpha * (x.detach() @ pictures.T) - alpha**2 / 2 * pictures.square().sum(1)
        found = rough.topk(self.neighbours, dim=1).indices
        return torch.zeros_like(rough, dtype=torch.bool).scatter_(1, found, True)


def square_distances(x: Tensor, alpha: Tensor, pictures: Tensor, rows: Tensor) -> Tensor:
    """|x - alpha x_i|^2, (B, R), of differences: the expanded square loses what decides at little noise to rounding."""
    most = max(AT_ONCE // max(x.numel(), 1), 1)
    parts = [(x[:, None] - alpha[:, None] * pictures[some]).square().sum(2) for some in rows.split(most)]
    return torch.cat(parts, 1)


@dataclass(frozen=True, eq=False)
class PictureSet:
    """pictures (N, ...) in a latent's scale, with what is measured on them once."""

    pictures: Tensor

    @cached_property
    def flat(self) -> Tensor:
        return self.pictures.flatten(1)

    @cached_property
    def nearest(self) -> float:
        """From a picture to the nearest other: the median, of some of them where there are many. 0 for a single one."""
        count = len(self.flat)
        if count < 2:
            return 0.0
        some = torch.linspace(0, count - 1, min(count, MEASURED), device=self.flat.device).round().long()
        one = torch.ones(1, 1).to(self.flat)
        found = []
        for row in some.split(1):
            distances = square_distances(self.flat[row], one, self.flat, torch.arange(count, device=self.flat.device))
            found.append(distances[0].index_fill(0, row, torch.inf).min())
        return float(torch.stack(found).sqrt().median())

    @property
    def farthest(self) -> float:
        """From 0 to the picture that is farthest."""
        return float(self.flat.square().sum(1).max().sqrt())

    def shifts(self, smoothing: float) -> Tensor | None:
        """Those of ClosedForm, (M, N), at `smoothing` times the distance to the nearest other picture."""
        if smoothing * self.nearest == 0:
            return None
        generator = torch.Generator().manual_seed(SEED)
        draws = (torch.randn(self.flat.shape[1], generator=generator) for _ in range(DRAWS))
        return smoothing * self.nearest * torch.stack([self.flat @ draw.to(self.flat) for draw in draws])


def latent_scale(farthest: float, sigma_max: float) -> float:
    """By which pictures are multiplied so that at sigma_max nothing tells them apart: the farthest is half of it away.

    Noise of unit strength a number is far too little to tell large pictures apart, whose distances grow with the root
    of their size; sampling would begin at the picture of the least contrast, whatever the seed.
    """
    return sigma_max / 2 / farthest if farthest > 0 else 1.0


def resized(pictures: Tensor, height: int, width: int) -> Tensor:
    """(N, C, height, width): the middle of each as far as it has that shape, made smaller or larger."""
    had_height, had_width = pictures.shape[-2:]
    if (had_height, had_width) == (height, width):
        return pictures
    scale = min(had_height / height, had_width / width)
    rows, columns = (max(round(side * scale), 1) for side in (height, width))
    top, left = (had_height - rows) // 2, (had_width - columns) // 2
    middle = pictures[..., top : top + rows, left : left + columns]
    return nn.functional.interpolate(middle, (height, width), mode="bilinear", antialias=True)
