"""Download the emoji from the npm registry and rasterize them.

Licenses are repeated in gralora_diffusion/tiny/README.md.  unicode-emoji-json (MIT): names.
@lobehub/fluent-emoji-3d (MIT): the style "3d render".  @iconify-json/noto (Apache-2.0): "drawing".
@iconify-json/twemoji (CC BY 4.0): "sticker", held out of training.
"""

import contextlib
import io
import json
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

import numpy as np
from captions import STYLES
from objects import OBJECTS
from PIL import Image

SPRITE = 72  # pixels a side: a little larger than on an image
PACKAGES = {
    "names": "unicode-emoji-json@0.9.0",
    "3d render": "@lobehub/fluent-emoji-3d@1.1.0",
    "drawing": "@iconify-json/noto@1.2.9",
    "sticker": "@iconify-json/twemoji@1.2.5",
}


def fetch_sprites(folder: Path) -> Path:
    """The file sprites.npz in this folder, made where it is absent.

    Its array `sprites` is uint8 [style, object, SPRITE, SPRITE, 4] with straight alpha.
    """
    target = folder / "sprites.npz"
    if target.exists():
        return target
    packages = download_packages(folder / "npm")
    codes = object_codes(packages / "names")
    sprites = np.zeros((len(STYLES), len(OBJECTS), SPRITE, SPRITE, 4), np.uint8)
    for s, style in enumerate(STYLES):
        kind = FluentEmoji if style == "3d render" else IconSet
        package = kind(packages / style)
        for n, code in enumerate(codes):
            sprites[s, n] = np.asarray(to_sprite(package.load(code, OBJECTS[n])))
    part = folder / "sprites.part.npz"
    np.savez_compressed(part, sprites=sprites)
    part.rename(target)
    return target


def other_sprites(folder: Path, package: str) -> dict[int, np.ndarray]:
    """{number in OBJECTS: uint8 [SPRITE, SPRITE, 4]} of those that an @iconify-json NAME@VERSION has."""
    key = package.replace("@", "-")
    wanted = {"names": PACKAGES["names"], key: f"@iconify-json/{package}"}
    packages = download_packages(folder / "npm", wanted)
    icons = IconSet(packages / key)
    found = {}
    for number, code in enumerate(object_codes(packages / "names")):
        with contextlib.suppress(KeyError):  # a set without this emoji
            found[number] = np.asarray(to_sprite(icons.load(code, OBJECTS[number])))
    return found


def object_codes(names: Path) -> list[str]:
    """The code points of each of OBJECTS, in hex."""
    emoji_by_name = {}
    for emoji, facts in read_json(names / "data-by-emoji.json").items():
        emoji_by_name[facts["name"]] = emoji
    return ["-".join(f"{ord(character):04x}" for character in emoji_by_name[name]) for name in OBJECTS]


def download_packages(folder: Path, packages: dict[str, str] = PACKAGES) -> Path:
    """The npm packages, each in a folder named by its key."""
    folder.mkdir(parents=True, exist_ok=True)
    if shutil.which("npm") is None:
        raise SystemExit("npm is needed to download the emoji packages (Debian: apt-get install npm)")
    for key, package in packages.items():
        if (folder / key / "package.json").exists():
            continue
        command = ["npm", "pack", "--silent", package]
        done = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
        with tarfile.open(folder / done.stdout.split()[-1]) as archive:
            archive.extractall(folder / key, filter="data")
        for inner in (folder / key / "package").iterdir():
            inner.rename(folder / key / inner.name)
    return folder


class FluentEmoji:
    """The package @lobehub/fluent-emoji-3d: a WebP file for each emoji."""

    def __init__(self, package: Path):
        self.folder = package / "assets"

    def load(self, code: str, name: str) -> Image.Image:
        """code: the code points in hex; some file names have the variation selector fe0f.  name: not used."""
        short = code.replace("-fe0f", "")
        files = [self.folder / f"{stem}.webp" for stem in (code, short, f"{short}-fe0f")]
        return Image.open(next(file for file in files if file.exists())).convert("RGBA")


class IconSet:
    """A package of @iconify-json: SVG of all icons in one file."""

    def __init__(self, package: Path):
        self.icons = read_json(package / "icons.json")
        self.names = read_json(package / "chars.json")
        self.by_letters = {letters(name): name for name in self.icons["icons"]}

    def load(self, code: str, name: str) -> Image.Image:
        """By the code points, or by the emoji's name in a set without them.  Raises KeyError."""
        import resvg_py

        short = code.replace("-fe0f", "")
        if self.names:
            name = self.names.get(code) or self.names.get(short) or self.names[f"{short}-fe0f"]
        else:
            name = self.by_letters[letters(name)]
        icon = self.icons["icons"].get(name)
        if not icon:
            icon = self.icons["icons"][self.icons["aliases"][name]["parent"]]
        width = self.icons.get("width", 16)
        size = f'viewBox="0 0 {width} {width}" width="288" height="288"'
        svg = f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{icon["body"]}</svg>'
        return Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg)))).convert("RGBA")


def letters(name: str) -> str:
    """A name without case, spaces and hyphens, which sets write in their own way."""
    return re.sub("[^a-z0-9]", "", name.lower())


def to_sprite(image: Image.Image) -> Image.Image:
    """The visible part of an image, scaled into the middle of a sprite with a margin of two pixels."""
    visible = image.getchannel("A").point(lambda alpha: 255 * (alpha > 8))
    image = image.crop(visible.getbbox())
    scale = (SPRITE - 4) / max(image.size)
    size = [max(1, round(side * scale)) for side in image.size]
    image = image.resize(size, Image.Resampling.LANCZOS)
    sprite = Image.new("RGBA", (SPRITE, SPRITE))
    sprite.paste(image, ((SPRITE - image.width) // 2, (SPRITE - image.height) // 2))
    return sprite


def read_json(path: Path) -> dict:
    return json.loads(path.read_text())
