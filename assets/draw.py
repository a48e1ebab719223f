"""The registry's icon and banner: `python3 run.py python assets/draw.py`. Writes icon.png and banner.jpg beside it.

Both show what the pack is for: a few model calls, down a falling curve, from noise to the picture. The icon is drawn
here; the banner's pictures are the states of one real run of the bundled model, four calls with Boost on its line.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from support.host import start_host

start_host()
import comfy.sample  # noqa: E402
from fewstep.nodes.host.boost import Boost, boosted  # noqa: E402
from fewstep.nodes.models.demo import EmojiLatent, load_clip, load_model  # noqa: E402

HERE = Path(__file__).parent
FINE = 4  # drawn so many times larger, then made smaller: smooth edges
DUSK, NIGHT, LINE, EDGE = (46, 52, 82), (15, 17, 27), (203, 211, 235), (92, 100, 140)
WHITE, PALE = (255, 255, 255), (178, 187, 212)
RED, DARK, GREEN = np.array((245, 70, 52)), np.array((168, 20, 40)), (104, 196, 84)
ICON, BANNER = (400, 400), (1260, 540)
ICON_DOTS = ((64, 76, 31), (80, 182, 36), (130, 276, 42), (286, 272, 102))  # x, y, half of the width
BANNER_TILES = ((98, 104, 62), (232, 262, 70), (432, 330, 82), (696, 352, 102), (1044, 358, 138))
NOISE = (1.0, 0.72, 0.4, 0.0)  # share of it in the icon's dots
PROMPT, SEED, CALLS, CFG = "red apple", 1, 4, 3.0


# ---------------------------------------------------------------------------------------------------------
# Shapes


def ground(width: int, height: int) -> Image.Image:
    """Dusk above, night below."""
    down = np.linspace(0, 1, height)[:, None, None]
    rows = (1 - down) * np.array(DUSK) + down * np.array(NIGHT)
    return Image.fromarray(np.broadcast_to(rows, (height, width, 3)).astype(np.uint8))


def curve(dots: tuple) -> np.ndarray:
    """Points (N, 2) of a smooth line through the dots' centres: Catmull and Rom's cubic between each two."""
    at = np.array([dot[:2] for dot in dots], dtype=float)
    at = np.vstack([2 * at[0] - at[1], at, 2 * at[-1] - at[-2]])
    t = np.linspace(0, 1, 300)[:, None]
    parts = [
        (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3) / 2
        for a, b, c, d in zip(at, at[1:], at[2:], at[3:], strict=False)
    ]
    return np.concatenate(parts)


def draw_curve(picture: Image.Image, dots: tuple, width: float) -> None:
    draw, half = ImageDraw.Draw(picture), width * FINE / 2
    for x, y in curve(dots) * FINE:
        draw.ellipse((x - half, y - half, x + half, y + half), fill=LINE)


def lay(picture: Image.Image, dot: tuple[int, int, int], filled: Image.Image, rim: int, corner: float) -> None:
    """A square picture at the dot, with a rim of light. corner: 1 is a disc, 0 a square."""
    x, y, half = (value * FINE for value in dot)
    for grown, colour in ((rim * FINE, Image.new("RGB", (1, 1), LINE)), (0, filled)):
        side = 2 * (half + grown)
        mask = Image.new("L", (side, side))
        ImageDraw.Draw(mask).rounded_rectangle((0, 0, side - 1, side - 1), corner * side / 2, fill=255)
        at = (x - side // 2, y - side // 2)
        picture.paste(colour.resize(mask.size, Image.Resampling.BICUBIC), at, mask)


# ---------------------------------------------------------------------------------------------------------
# Icon


def apple(size: int) -> np.ndarray:
    """A red ball in the light, (size, size, 3)."""
    y, x = np.mgrid[0:size, 0:size] / size
    shade = np.clip(np.hypot(x - 0.4, y - 0.36) / 0.72, 0, 1)[..., None] ** 1.6
    shine = np.clip(1 - np.hypot((x - 0.31) / 0.13, (y - 0.3) / 0.17), 0, 1)[..., None] ** 0.5
    ball = (1 - shade) * RED + shade * DARK
    return ball + 0.75 * shine * (255 - ball)


def noisy(size: int, share: float, generator: np.random.Generator) -> Image.Image:
    """The ball behind so much noise, in blocks as a latent has them."""
    blocks = generator.uniform(20, 255, (6, 6, 3))
    noise = np.asarray(Image.fromarray(blocks.astype(np.uint8)).resize((size, size), Image.Resampling.NEAREST))
    return Image.fromarray((share * noise + (1 - share) * apple(size)).astype(np.uint8))


def leaf(picture: Image.Image, x: float, y: float, size: float) -> None:
    """Where two circles overlap, from (x, y) up and to the right."""
    one, other = (Image.new("L", picture.size) for _ in range(2))
    ImageDraw.Draw(one).ellipse((x, y - size, x + 2 * size, y + size), fill=255)
    ImageDraw.Draw(other).ellipse((x - size, y - 2 * size, x + size, y), fill=255)
    both = Image.fromarray(np.minimum(np.asarray(one), np.asarray(other)))
    picture.paste(GREEN, mask=both)


def icon() -> Image.Image:
    """Four dots on a falling curve; nothing outside of the rounded tile."""
    width, height = (side * FINE for side in ICON)
    picture, generator = ground(width, height), np.random.default_rng(3)
    draw_curve(picture, ICON_DOTS, 11)
    for dot, share in zip(ICON_DOTS, NOISE, strict=True):
        lay(picture, dot, noisy(2 * dot[2] * FINE, share, generator), 4 if share else 0, corner=1)
    x, y, radius = ICON_DOTS[-1]
    leaf(picture, x * FINE, (y - radius + 12) * FINE, 66 * FINE)
    tile, corner = Image.new("L", picture.size), ((0, 0, width - 1, height - 1), 88 * FINE)
    ImageDraw.Draw(picture).rounded_rectangle(*corner, outline=EDGE, width=4 * FINE)  # told from a dark page
    ImageDraw.Draw(tile).rounded_rectangle(*corner, fill=255)
    picture.putalpha(tile)
    return picture.resize(ICON, Image.Resampling.LANCZOS)


# ---------------------------------------------------------------------------------------------------------
# Banner


def states() -> list[Image.Image]:
    """What is sampled, before the first call and after each."""
    model, clip = boosted(load_model("flow"), Boost()), load_clip()
    wanted, other = (clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in (PROMPT, ""))
    latent = torch.zeros(1, 3, 64, 64)
    noise = comfy.sample.prepare_noise(latent, SEED)
    found: list[torch.Tensor] = []
    last = comfy.sample.sample(
        model, noise, CALLS, CFG, "euler", "simple", wanted, other, latent, seed=SEED, disable_pbar=True,
        callback=lambda step, x0, x, total: found.append(EmojiLatent().process_out(x.cpu())),
    )  # fmt: skip
    pixels = [(picture[0].clamp(-1, 1) + 1) * 127.5 for picture in [*found, last.cpu()]]
    return [Image.fromarray(p.permute(1, 2, 0).byte().numpy()) for p in pixels]


def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """One that comes with matplotlib, so that every machine draws the same."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", name)), size * FINE)


def banner() -> Image.Image:
    width, height = (side * FINE for side in BANNER)
    picture = ground(width, height)
    draw_curve(picture, BANNER_TILES, 7)
    draw = ImageDraw.Draw(picture)
    names = ["noise", "1 call", *(f"{count} calls" for count in range(2, CALLS + 1))]
    for tile, state, name in zip(BANNER_TILES, states(), names, strict=True):
        lay(picture, tile, state, 4, corner=0.3)
        x, y, half = tile
        draw.text((x * FINE, (y + half + 12) * FINE), name, PALE, font(20), anchor="ma")
    draw.text((340 * FINE, 56 * FINE), "FewStep", WHITE, font(76, bold=True), anchor="la")
    draw.text((345 * FINE, 158 * FINE), "The converged picture in the fewest model calls", PALE, font(27), anchor="la")
    return picture.resize(BANNER, Image.Resampling.LANCZOS)


if __name__ == "__main__":
    icon().save(HERE / "icon.png", optimize=True)
    banner().save(HERE / "banner.jpg", quality=88, optimize=True)
