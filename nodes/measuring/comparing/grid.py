"""The pictures of a comparison: a row an entry, a column a number of calls, the converged one on top."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .figures import ODE, Row
from .words import short

Decode = Callable[[Tensor], Tensor]  # of latents (1, ...) an IMAGE (1, H, W, 3)
SMALLEST, LARGEST = 128, 512  # pixels of a picture's longer side
EDGE, LINE = 6, 18
GROUND, LIGHT, DIM = (32, 32, 32), (235, 235, 235), (150, 150, 150)


def decoder(vae: Any, latent_format: Any) -> tuple[Decode | None, str]:
    """By a VAE, else by the host's own rough colours; and what to say of it."""
    if vae is not None:
        return (lambda latent: first_frame(vae.decode(latent))), ""
    factors = getattr(latent_format, "latent_rgb_factors", None)
    if factors is None:
        return None, "Connect a VAE for the grid of pictures."
    bias = getattr(latent_format, "latent_rgb_factors_bias", None)
    return (lambda latent: rough(latent, factors, bias)), "The grid has rough colours: connect a VAE for its pictures."


def first_frame(pictures: Tensor) -> Tensor:
    """(1, H, W, 3) of an IMAGE, or of a video (1, T, H, W, 3)."""
    flat = pictures.reshape(-1, *pictures.shape[-3:])
    return flat[:1, ..., :3].float().cpu()


def rough(latent: Tensor, factors: Any, bias: Any) -> Tensor:
    """As the host's previews: each channel has a colour."""
    x = latent.float()
    x = x[:, :, 0] if x.ndim == 5 else x
    x = x if x.ndim == 4 else x[:, :, None]
    matrix = torch.tensor(factors)
    if x.shape[1] != len(matrix):
        raise ValueError(f"The latents have {x.shape[1]} channels, and colours are known of {len(matrix)}.")
    colours = torch.einsum("bchw,cd->bhwd", x, matrix) + (torch.tensor(bias) if bias is not None else 0)
    return ((colours + 1) / 2).clamp(0, 1)


def grid(rows: Sequence[Row], firsts: Sequence[Tensor], converged: Tensor | None, decode: Decode) -> Tensor:
    """An IMAGE (1, H, W, 3). firsts: of every row, in their order, a latent (1, ...); converged: one too."""
    labels = list(dict.fromkeys(row.label for row in rows))
    columns = sorted({row.calls for row in rows})
    top = None if converged is None else fitted(decode(converged))
    cells = {(row.label, row.calls): (row, fitted(decode(one))) for row, one in zip(rows, firsts, strict=True)}
    height, width = next(iter(cells.values()))[1].shape[:2]
    left = EDGE * 2 + max(int(font().getlength(label)) for label in [*labels, "converged"])
    lines: list[str | None] = [*([] if top is None else [None]), *labels]
    size = (left + len(columns) * (width + EDGE) + EDGE, LINE + EDGE + len(lines) * (height + LINE + EDGE))
    sheet = Image.new("RGB", size, GROUND)
    pen = ImageDraw.Draw(sheet)
    for number, calls in enumerate(columns):
        pen.text((left + number * (width + EDGE), EDGE), f"{calls} calls", LIGHT, font())
    for line, label in enumerate(lines):
        y = LINE + EDGE + line * (height + LINE + EDGE)
        pen.text((EDGE, y + height // 2 - LINE // 2), label or "converged", LIGHT, font())
        if label is None and top is not None:
            sheet.paste(as_picture(top), (left, y))
        for number, calls in enumerate(columns):
            found = cells.get((label or "", calls))
            if found:
                x = left + number * (width + EDGE)
                sheet.paste(as_picture(found[1]), (x, y))
                pen.text((x, y + height + 2), under(found[0]), DIM, font(11))
    return torch.from_numpy(np.asarray(sheet, np.float32) / 255)[None]


def under(row: Row) -> str:
    """What stands below a picture: of the first of them, not of all."""
    return f"error {short(row.errors[0])}" if row.kind == ODE else "another picture"


def fitted(picture: Tensor) -> Tensor:
    """(H, W, 3), enlarged by whole pixels or made smaller, so that a person sees it."""
    height, width = picture.shape[1:3]
    longest = max(height, width)
    if longest < SMALLEST:
        factor = -(-SMALLEST // longest)
        return picture[0].repeat_interleave(factor, 0).repeat_interleave(factor, 1)
    if longest <= LARGEST:
        return picture[0]
    size = (max(round(height * LARGEST / longest), 1), max(round(width * LARGEST / longest), 1))
    return F.interpolate(picture.movedim(-1, 1), size, mode="area")[0].movedim(0, -1)


def as_picture(picture: Tensor) -> Image.Image:
    return Image.fromarray((picture.nan_to_num().clamp(0, 1) * 255).round().byte().numpy())


def font(size: int = 13) -> Any:
    try:
        return ImageFont.load_default(size)
    except (TypeError, OSError):  # of an older Pillow, or one without FreeType
        return ImageFont.load_default()


def page(text: str) -> Tensor:
    """An IMAGE (1, H, W, 3) that says why there is no other."""
    lines = text.split("\n")
    width = EDGE * 2 + max(int(font().getlength(line)) for line in lines)
    sheet = Image.new("RGB", (max(width, 64), EDGE * 2 + LINE * len(lines)), GROUND)
    ImageDraw.Draw(sheet).multiline_text((EDGE, EDGE), text, LIGHT, font())
    return torch.from_numpy(np.asarray(sheet, np.float32) / 255)[None]
