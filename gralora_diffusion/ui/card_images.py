"""The image of a card as HTML: a thumbnail, and over it, tinted, what its mask does not select."""

import base64
import functools
import html
import io
from pathlib import Path

from PIL import Image

from gralora_diffusion.data.images import decode, open_image
from gralora_diffusion.data.listing import reason_of
from gralora_diffusion.data.make_masks import BACKGROUND
from gralora_diffusion.data.mask_images import WHITE, gray_of

SIDE = 256  # pixels of a thumbnail
TINT = 178  # of 255: how opaque the tint of what is not selected is


def card_image(path: Path, mask: Path | None) -> str:
    """HTML, named after the file; for an image or mask that cannot be read, its name and why."""
    name = html.escape(path.name)
    image = thumbnail(path, version(path))
    if not image.startswith("data:"):
        return unreadable(path, image)
    found = f'<img src="{image}" alt="{name}">'
    if mask is None:
        return f'<div class="layers">{found}</div>'
    layer = mask_layer(mask, version(mask))
    if layer.startswith("data:"):
        return f'<div class="layers">{found}<img class="mask" src="{layer}" alt="mask of {name}"></div>'
    return f'<div class="layers">{found}</div>{unreadable(mask, layer)}'


def unreadable(path: Path, reason: str) -> str:
    return f'<p class="unreadable">{html.escape(f"{path.name}: {reason}")}</p>'


def version(path: Path) -> int:
    return path.stat().st_mtime_ns


@functools.lru_cache(maxsize=1000)
def thumbnail(path: Path, _version: int) -> str:
    """A data URL of a small copy of an image, or why it cannot be read; _version: of the file."""
    try:
        image = open_image(path)
    except Exception as error:  # a decoder may raise any error on a damaged file
        return reason_of(error)
    image.thumbnail((SIDE, SIDE))
    return data_url(image.convert("RGB"), "JPEG", quality=85)


@functools.lru_cache(maxsize=1000)
def mask_layer(path: Path, _version: int) -> str:
    """A data URL of the tint where a mask is black, clear where it is white; or why it cannot be read."""
    try:
        mask = decode(path, gray_of)[0]
    except Exception as error:  # a decoder may raise any error on a damaged file
        return reason_of(error)
    mask.thumbnail((SIDE, SIDE))
    layer = Image.new("RGBA", mask.size, BACKGROUND)
    layer.putalpha(mask.point([TINT - TINT * value // WHITE for value in range(256)]))
    return data_url(layer, "PNG")


def data_url(image: Image.Image, kind: str, **options) -> str:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(content.getvalue()).decode()}"
