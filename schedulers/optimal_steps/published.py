"""The schedules that were published, and what they were made for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """sigmas: of a flow model, as published, with 0 for the 0.001 that some interpolations put there.

    shift: t = shift u / (1 + (shift - 1) u).
    """

    sigmas: tuple[float, ...]
    shift: float
    made_for: str


# The tables of arXiv 2503.21774's authors. Which grids they come from was found by matching all their values:
# FLUX is nodes 198 193 189 185 180 170 155 121 56 22 of a 200-step teacher at mu 1.15, and Wan nodes 100 99 98 97 96
# 95 94 93 91 89 88 86 83 78 72 65 56 41 19 5 of a 100-step teacher at shift 5 with time steps cut to integers; the
# shift of 8 that is named for it in discussions does not fit. Chroma's fits no such grid.
PUBLISHED = {
    "FLUX (published)": Published(
        (0.9968, 0.9886, 0.9819, 0.975, 0.966, 0.9471, 0.9158, 0.8287, 0.5512, 0.2808, 0.0),
        2.718281828459045**1.15,
        "FLUX.1 dev, 10 euler steps, 1024x1024 (mu 1.15), guidance 3.5; searched under a teacher of 200 steps",
    ),
    "Wan (published)": Published(
        (
            *(1.0, 0.997, 0.995, 0.993, 0.991, 0.989, 0.987, 0.985, 0.98, 0.975, 0.973),
            *(0.968, 0.96, 0.946, 0.927, 0.902, 0.864, 0.776, 0.539, 0.208, 0.0),
        ),
        5.0,
        "Wan 2.1, 20 euler steps, shift 5 (not 8); searched under a teacher of 100 steps",
    ),
    "Chroma (hand-made)": Published(
        (
            *(0.992, 0.99, 0.988, 0.985, 0.982, 0.978, 0.973, 0.968, 0.961, 0.953, 0.943, 0.931, 0.917, 0.9),
            *(0.881, 0.858, 0.832, 0.802, 0.769, 0.731, 0.69, 0.646, 0.599, 0.55, 0.501, 0.451, 0.402, 0.355),
            *(0.311, 0.27, 0.232, 0.199, 0.169, 0.143, 0.12, 0.101, 0.084, 0.07, 0.058, 0.048, 0.0),
        ),
        1.0,
        "Chroma, 40 steps; drawn by hand, not searched",
    ),
}
