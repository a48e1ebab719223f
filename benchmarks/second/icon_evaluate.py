"""How good the second network is: `python3 run.py python benchmarks/second/icon_evaluate.py`.

The autoencoder: PSNR over every eleventh picture. The transformer: 100 captions spread over the data, class and words,
by 30 steps of dpmpp_2m at cfg 3; whether the nearest of all training pictures, by squared distance of pixels, is the
one that was named, the named icon in other colours, or one of its category. Error: of the velocity against the exact
posterior mean over all latents, which is known in closed form where nothing is told.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path

import icons
import numpy as np
import torch
from support.host import start_host
from torch import Tensor

start_host()
import comfy.model_management  # noqa: E402
import comfy.sample  # noqa: E402
import comfy.samplers  # noqa: E402

sys.path.append(str(Path(__file__).parents[2] / "demo"))
from evaluate import TIMES, posterior_velocity, sheet  # noqa: E402
from icon_model import conditioning, load_autoencoder, load_model  # noqa: E402

STEPS, CFG = 30, 3.0


def spread(count: int, of: int) -> Tensor:
    """Numbers of pictures, evenly over the icons and in all palettes."""
    icon = torch.arange(count) * (of // len(icons.PALETTES)) // count
    return icon * len(icons.PALETTES) + torch.arange(count) % len(icons.PALETTES)


def caption(found: icons.Icons, picture: int) -> tuple[str, str]:
    """Class and words of a picture."""
    icon, palette = divmod(int(picture), len(icons.PALETTES))
    return icons.CATEGORIES[found.categories[icon]], f"{found.names[icon]} {list(icons.PALETTES)[palette]}"


def latents_of(pictures: Tensor) -> Tensor:
    return torch.cat([load_autoencoder().encode(part) for part in pictures.split(64)])


def decoded(latents: Tensor) -> Tensor:
    """Pictures as the autoencoder answers, some values beyond [-1, 1]."""
    return torch.cat([load_autoencoder().decode(part) for part in latents.split(64)])


def pictures_of(latents: Tensor) -> Tensor:
    """In [-1, 1]."""
    return decoded(latents).clamp(-1, 1)


def psnr(pictures: Tensor) -> float:
    error = (pictures_of(latents_of(pictures)) - pictures).square().mean().item()
    return 10 * math.log10(4 / error)


def draw(variant: str, captions: list[tuple[str, str]], steps: int = STEPS, cfg: float = CFG) -> Tensor:
    """Pictures (N, 3, 64, 64) in [-1, 1], one a caption."""
    model = load_model(variant)
    noise = torch.randn((len(captions), 4, 16, 16), generator=torch.Generator().manual_seed(0))
    sampling = model.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, "simple" if variant == "flow" else "karras", steps)
    sampler, given = comfy.samplers.sampler_object("dpmpp_2m"), (conditioning(captions), conditioning([("", "")]))
    latent = torch.zeros_like(noise)
    return pictures_of(
        comfy.sample.sample_custom(model, noise, cfg, sampler, sigmas, *given, latent, disable_pbar=True)
    )


def named(drawn: Tensor, wanted: Tensor, found: icons.Icons, data: Tensor) -> dict[str, int]:
    """How many are nearest to the named picture, to the named icon in any colours, and to one of its category."""
    nearest = torch.cdist(drawn.flatten(1), data.flatten(1)).argmin(1)
    of, own = (chosen // len(icons.PALETTES) for chosen in (nearest, wanted))
    categories = torch.from_numpy(found.categories.astype(np.int64))
    same = {"picture": nearest == wanted, "icon": of == own, "category": categories[of] == categories[own]}
    return {name: int(hits.sum()) for name, hits in same.items()}


def velocity_errors(latents: Tensor, count: int = 64) -> list[dict[str, float]]:
    """Root mean squared error of u at each time, nothing told; u itself has about 1.4."""
    chosen = spread(count, len(latents))
    noise = torch.randn((count, *latents.shape[1:]), generator=torch.Generator().manual_seed(1))
    model = load_model("flow")
    comfy.model_management.load_models_gpu([model])
    ((context, more),) = conditioning([("", "")] * count)
    rows = []
    for t in TIMES:
        x = (1 - t) * latents[chosen] + t * noise
        exact = posterior_velocity(x.double(), t, latents.double()).float()
        x0 = model.model.apply_model(x, torch.full((count,), t), c_crossattn=context, y=more["pooled_output"])
        rows.append({"t": t, "error": ((x - x0) / t - exact).square().mean().sqrt().item()})
    return rows


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(prog="icon_evaluate.py", description=__doc__)
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--sheet", type=Path, help="a PNG of the first 64 drawings")
    args = parser.parse_args()
    found = icons.load()
    data = torch.from_numpy(icons.pictures(found))
    wanted = spread(args.prompts, len(data))
    print(json.dumps({"psnr": round(psnr(data[:: len(icons.PALETTES) + 1]), 2)}), flush=True)
    for variant in ("eps", "flow"):
        drawn = draw(variant, [caption(found, picture) for picture in wanted.tolist()])
        print(json.dumps({"variant": variant, "of": len(wanted), **named(drawn, wanted, found, data)}), flush=True)
        if args.sheet and variant == "flow":
            sheet(drawn[:64], 8, args.sheet)
    for row in velocity_errors(latents_of(data)):
        print(json.dumps({k: round(v, 4) for k, v in row.items()}), flush=True)


if __name__ == "__main__":
    main()
