"""The pictures, classes and words of the second network: IconPark, each icon as the shares of its four colours.

`python3 -m pip install resvg-py==0.5.0 && python3 benchmarks/second/icons.py` makes icons.npz anew (npm fetches the
package); training and benchmarks only read that file. A drawn icon is its shares times the colours of a palette, so
one file of shares holds every icon in every palette.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import re
import subprocess
import tarfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

PACKAGE = "@iconify-json/icon-park@1.2.4"
ARCHIVE = "iconify-json-icon-park-1.2.4.tgz"
SHA256 = "c1a25212a31602aca93c3fa6f6b3288e89b9d7811afc132dfd78506e9d586b6f"
SIZE = 64
ICONS = Path(__file__).with_name("icons.npz")

# Things, in the order of the classes. Arrows, interface signs, charts and brands are left out.
CATEGORIES = (
    "Animals", "Baby", "Build", "Clothes", "Energy", "Foods", "Game", "Hands", "Hardware", "Health", "Industry",
    "Life", "Makeups", "Measurement", "Money", "Music", "Office", "Peoples", "Safe", "Sports", "Time", "Travel",
    "Weather",
)  # fmt: skip
ROLES = ("#000", "#2F88FF", "#fff", "#43CCF8")  # of the package: outline, fill, inner line, inner fill

# By the word that names it: outline, fill, inner line, inner fill, and the paper.
PALETTES = {
    "red": ("#3a0d12", "#d7263d", "#fff3ee", "#ff9f8a", "#ffffff"),
    "orange": ("#4a2500", "#ff8c1a", "#fff8ec", "#ffd08a", "#ffffff"),
    "yellow": ("#5b4300", "#ffd21f", "#8a5a00", "#fff0a3", "#fff9e6"),
    "green": ("#0b3d20", "#2fae5b", "#eafff0", "#a4e8b8", "#ffffff"),
    "teal": ("#003b40", "#17a2a8", "#e8ffff", "#93e4e0", "#e9f7f6"),
    "blue": ("#0c1b4d", "#2f6bff", "#ffffff", "#43ccf8", "#ffffff"),
    "purple": ("#2b0f4f", "#8a4fe0", "#fbf4ff", "#d4b3ff", "#f6f0ff"),
    "pink": ("#5a1038", "#ff6fae", "#fff2f8", "#ffc3de", "#ffffff"),
    "brown": ("#2f1b0e", "#9c6236", "#fff5e8", "#dcb48c", "#fbf3e7"),
    "night": ("#f2f5ff", "#3c4a78", "#ffd166", "#7f8fc9", "#10152b"),
}


@dataclass(frozen=True)
class Icons:
    """What icons.npz holds. shares: (N, 4, 64, 64) uint8, of 255; what is left of 255 is paper.

    names: "apple one"; categories: numbers of CATEGORIES. A picture has the number icon * len(PALETTES) + palette.
    """

    shares: np.ndarray
    names: tuple[str, ...]
    categories: np.ndarray

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def vocabulary(self) -> list[str]:
        """Every word of every caption, sorted."""
        return sorted({word for name in self.names for word in name.split()} | set(PALETTES))


def load(path: Path = ICONS) -> Icons:
    with np.load(path) as file:
        return Icons(file["shares"], tuple(json.loads(str(file["names"]))), file["categories"])


def palettes() -> np.ndarray:
    """All palettes, (P, 5, 3) float32 in [-1, 1], the paper last."""
    values = [[[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in colours] for colours in PALETTES.values()]
    return np.array(values, np.float32) / 127.5 - 1


def pictures(icons: Icons) -> np.ndarray:
    """All pictures, (N * P, 3, 64, 64) float32 in [-1, 1], by their numbers."""
    shares = icons.shares.astype(np.float32) / 255
    whole = np.concatenate([shares, (1 - shares.sum(1, keepdims=True)).clip(0)], axis=1)
    drawn = np.einsum("nkhw,pkc->npchw", whole, palettes(), optimize=True)
    return drawn.reshape(-1, 3, SIZE, SIZE).clip(-1, 1)


def words(name: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", name.lower())


def download(folder: Path) -> Path:
    """The unpacked package below `folder`, fetched by npm and checked once."""
    folder.mkdir(parents=True, exist_ok=True)
    archive = folder / ARCHIVE
    if not archive.exists():
        subprocess.run(["npm", "pack", "--silent", PACKAGE], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    if hashlib.sha256(archive.read_bytes()).hexdigest() != SHA256:
        raise ValueError(f"{archive} is not the archive that icons.npz was made from. Delete it and start again.")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, members=[m for m in tar if m.name.endswith(".json")], filter="data")
    return folder / "package"


def drawn(body: str, size: tuple[int, int], colours: tuple[str, ...]) -> np.ndarray:
    """One icon on black, its roles in the given colours: (3, 64, 64) uint8."""
    import resvg_py
    from PIL import Image

    of_role = dict(zip(ROLES, colours, strict=True))
    painted = re.sub("|".join(f'(?<="){role}(?=")' for role in ROLES), lambda found: of_role[found[0]], body)
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size[0]} {size[1]}">{painted}</svg>'
    png = resvg_py.svg_to_bytes(svg_string=svg, width=SIZE, height=SIZE, background="#000")
    return np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGB").resize((SIZE, SIZE))).transpose(2, 0, 1)


def shares(body: str, size: tuple[int, int]) -> np.ndarray:
    """(4, 64, 64): painting is linear in the colours, so a role's share is the channel that it alone fills."""
    three = drawn(body, size, ("#f00", "#0f0", "#00f", "#000"))
    return np.concatenate([three, drawn(body, size, ("#000", "#000", "#000", "#f00"))[:1]])


def make(folder: Path) -> Icons:
    """All icons of CATEGORIES that show their main fill or line in at least a fiftieth of the square."""
    package = download(folder)
    bodies = json.loads((package / "icons.json").read_text(encoding="utf-8"))
    groups = json.loads((package / "metadata.json").read_text(encoding="utf-8"))["categories"]
    found = []
    for number, category in enumerate(CATEGORIES):
        for name in groups[category]:
            icon = bodies["icons"][name]
            size = (icon.get("width", bodies["width"]), icon.get("height", bodies["height"]))
            found.append((shares(icon["body"], size), " ".join(words(name)), number))
    kept = [one for one in found if one[0].mean() * 4 > 255 / 50]
    drawings, names, numbers = zip(*kept, strict=True)
    return Icons(np.stack(drawings), names, np.array(numbers, np.uint8))


def main() -> None:
    parser = argparse.ArgumentParser(prog="icons.py", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path(".icons"), help="where the package goes")
    parser.add_argument("--out", type=Path, default=ICONS)
    args = parser.parse_args()
    icons = make(args.folder)
    np.savez_compressed(
        args.out, shares=icons.shares, names=np.array(json.dumps(icons.names)), categories=icons.categories
    )
    print(f"{len(icons)} icons, {len(icons.vocabulary)} words: {args.out}, {args.out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
