"""The pictures and words that the bundled model learns: Noto Emoji, on white, 64x64."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

PACKAGE = "emoji-datasource-google@16.0.0"
ARCHIVE = "emoji-datasource-google-16.0.0.tgz"
SHA256 = "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438"
SIZE = 64

# What a person would type into a first prompt. Flags, skin tones, keycaps and signs are left out: they are
# drawn by number or by letter, which a network of this size cannot learn beside the rest.
CATEGORIES = {"Smileys & Emotion", "Animals & Nature", "Food & Drink"}
SUBCATEGORIES = {"sky & weather", "sport", "clothing", "musical-instrument"}


@dataclass(frozen=True)
class Emoji:
    """One picture with its words: name ("red apple"), aliases ("apple"), category and subcategory."""

    file: str
    name: str
    aliases: tuple[str, ...]
    category: str
    subcategory: str


def words(text: str) -> list[str]:
    """The lower-case words of a text, digits included."""
    return re.findall(r"[a-z0-9]+", text.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "").replace("'", ""))


def download(folder: Path) -> Path:
    """The unpacked data package below `folder`, fetched by npm and checked once."""
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "package" / "emoji.json").exists():
        return folder / "package"
    archive = folder / ARCHIVE
    if not archive.exists():
        subprocess.run(["npm", "pack", "--silent", PACKAGE], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    if hashlib.sha256(archive.read_bytes()).hexdigest() != SHA256:
        raise ValueError(f"{archive} is not the archive the model was trained on. Delete it and start again.")
    with tarfile.open(archive) as tar:
        members = [m for m in tar if m.name.startswith(("package/emoji.json", "package/img/google/64/"))]
        tar.extractall(folder, members=members, filter="data")
    return folder / "package"


def select(package: Path) -> list[Emoji]:
    """The emoji that serve, in the order of the file."""
    entries = json.loads((package / "emoji.json").read_text(encoding="utf-8"))
    return [
        Emoji(e["image"], e["name"].lower(), tuple(e["short_names"]), e["category"], e["subcategory"])
        for e in sorted(entries, key=lambda e: e["sort_order"])
        if e["has_img_google"] and (e["category"] in CATEGORIES or e["subcategory"] in SUBCATEGORIES)
    ]


def pictures(package: Path, emoji: list[Emoji]) -> np.ndarray:
    """All pictures on white, (N, 3, 64, 64) float32 in [-1, 1]."""
    return np.stack([picture(package / "img" / "google" / "64" / e.file) for e in emoji])


def picture(path: Path) -> np.ndarray:
    drawn = Image.open(path).convert("RGBA").resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    white = Image.alpha_composite(Image.new("RGBA", drawn.size, "white"), drawn).convert("RGB")
    return np.asarray(white, np.float32).transpose(2, 0, 1) / 127.5 - 1


def vocabulary(emoji: list[Emoji]) -> list[str]:
    """Every word of every caption, sorted."""
    texts = (t for e in emoji for t in (e.name, *e.aliases, e.category, e.subcategory))
    return sorted({word for text in texts for word in words(text)})


def caption(emoji: Emoji, rng: np.random.Generator) -> list[str]:
    """The words shown with a picture: its name for the most part, an alias or category at times, now and then none."""
    draw = rng.random()
    if draw < 0.1:
        return []
    text = words(emoji.name)
    if draw < 0.25:
        text = text + words(str(rng.choice(emoji.aliases)))
    elif draw < 0.35:
        text = text + words(emoji.subcategory if rng.random() < 0.5 else emoji.category)
    elif draw < 0.45:
        text = words(str(rng.choice(emoji.aliases)))
    elif draw < 0.5:
        text = words(emoji.subcategory)
    return list(dict.fromkeys(text))
