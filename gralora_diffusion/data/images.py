"""Image files, good and bad: decoded to RGB, and cropped to the shapes that a run trains on."""

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import torch
from PIL import Image

from gralora_diffusion.sdxl.base import time_ids
from gralora_diffusion.seeding import generator

HEIF = {".heic", ".heif", ".hif"}
JPEG = {".jpg", ".jpeg", ".jpe", ".jfif", ".pjpeg", ".mpo"}  # a phone's MPO is a JPEG
EXTENSIONS = {".png", ".apng", *JPEG, ".webp", ".bmp", ".dib", ".tif", ".tiff", ".gif", ".avif", *HEIF}
# Never EPS, for which Pillow would start Ghostscript.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "DIB", "TIFF", "GIF", "AVIF", "HEIF")
RAW = {".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf"}
LAYERS = {".psd", ".psb", ".xcf", ".kra", ".clip"}  # of programs to draw with
OTHER_RASTERS = LAYERS | {".tga", ".jp2", ".j2k", ".jpx", ".exr", ".hdr", ".dds", ".qoi"}
VECTOR_GRAPHICS = {".svg", ".svgz", ".eps", ".ps", ".pdf", ".ai"}
NO_HEIF = "HEIC, which needs a package: pip install 'gralora-diffusion[heic]', or convert it to JPEG or PNG"
NO_JXL = "JPEG XL, which is not supported: convert it to PNG or JPEG, for instance with djxl"
NO_AVIF = "AVIF, which this Pillow does not read: pip install --upgrade pillow, or convert it to PNG"
BY_HEADER = {  # the beginning of a file, behind its first `n` bytes: why it cannot be used
    (0, b"\xff\x0a"): NO_JXL,
    (4, b"JXL "): NO_JXL,
    **{(4, b"ftyp" + kind): NO_HEIF for kind in (b"heic", b"heix", b"heim", b"hevc", b"mif1", b"msf1")},
    **{(4, b"ftyp" + kind): NO_AVIF for kind in (b"avif", b"avis")},
}
MAX_PIXELS = 89_478_485  # Pillow's own limit for a decompression bomb
MAX_BYTES = 2**30  # of an image file
MIN_SIDE = 16
MAX_ASPECT = 10
CROPS = 4  # of an image without --center_crop
ORIENTATION = 0x0112  # the EXIF tag
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def open_image(source: Path | BinaryIO) -> Image.Image:
    """RGB, upright by its EXIF, transparency on white, 16 bits scaled to 8.

    Raises ValueError, for a message, where it cannot be used.
    """
    return decode(source)[0]


def decode(
    source: Path | BinaryIO, convert: Callable[[Image.Image], Image.Image] | None = None
) -> tuple[Image.Image, str | None]:
    """(image as open_image() gives it, what is left out or None).

    convert: to other channels than to_rgb()'s. Raises ValueError as open_image().
    """
    Image.init()  # all plugins; AVIF is not in every Pillow
    add_heif()
    try:
        with Image.open(source, formats=[f for f in FORMATS if f in Image.OPEN]) as image:
            check_header(image)
            animated = image.format not in ("MPO", "HEIF") and getattr(image, "is_animated", False)
            image.load()
            left_out = "has several frames or pages, and the first is used" if animated else None
            return (convert or to_rgb)(upright(image)), left_out
    except Image.UnidentifiedImageError:
        raise ValueError(unidentified(source)) from None
    except Image.DecompressionBombError:
        raise ValueError(f"it has more pixels than the limit of {MAX_PIXELS:,}") from None
    except MemoryError:
        raise ValueError("it does not fit into memory") from None


@functools.cache
def add_heif() -> bool:
    """Let Pillow read HEIC, if the package pillow-heif is installed; returns whether it is."""
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True


def unidentified(source: Path | BinaryIO) -> str:
    """Why Pillow does not know a file, judged by how it begins."""
    if isinstance(source, Path):
        with open(source, "rb") as file:
            begin = file.read(16)
    else:
        source.seek(0)
        begin = source.read(16)
    for (skipped, mark), reason in BY_HEADER.items():
        if begin[skipped:].startswith(mark) and not (reason is NO_HEIF and add_heif()):
            return reason
    return "not an image, despite its name"


def check_header(image: Image.Image) -> None:
    """Raises ValueError before anything is decoded."""
    size = f"{image.width} x {image.height} pixels"
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"{size} is more than the limit of {MAX_PIXELS:,}")
    if max(image.size) > MAX_ASPECT * min(image.size):
        raise ValueError(f"{size} is too narrow: crop it to an aspect ratio below {MAX_ASPECT}")
    if min(image.size) < MIN_SIDE:
        raise ValueError(f"{size} is too small: each side must be at least {MIN_SIDE}")
    if image.mode == "F":
        raise ValueError("an image of floating-point numbers: save it with 8 or 16 bits")


def upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF demands."""
    try:
        turn = UPRIGHT.get(image.getexif().get(ORIENTATION))
    except Exception:  # damaged EXIF does not affect the pixels; its parser may raise anything
        turn = None
    return image if turn is None else image.transpose(turn)


def to_rgb(image: Image.Image) -> Image.Image:
    """Transparency on white, 16 bits scaled to 8."""
    return on_color(in_8_bits(image), "white")


def in_8_bits(image: Image.Image) -> Image.Image:
    """16 bits scaled to 8."""
    if image.mode.startswith("I"):
        if image.getextrema()[1] > 65535:
            raise ValueError("an image of 32-bit numbers: save it with 8 or 16 bits")
        image = image.point(lambda v: v / 257).convert("L")
    return image


def on_color(image: Image.Image, color: str) -> Image.Image:
    """RGB, transparency on this color."""
    if has_alpha(image):
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, color), image).convert("RGB")
    return image.convert("RGB")


def has_alpha(image: Image.Image) -> bool:
    return "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info


def to_pixels(image: Image.Image) -> torch.Tensor:
    """[3, h, w] in [-1, 1]"""
    data = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(image.height, image.width, 3)
    return data.permute(2, 0, 1).float() / 127.5 - 1


def buckets(resolution: int) -> list[tuple[int, int]]:
    """Shapes (height, width) of about resolution^2 pixels and at most 4:1, in steps of resolution/16.

    At 1024 that is SDXL's step of 64 (arXiv 2307.01952, appendix I).
    """
    step = max(8, resolution // 16 // 8 * 8)
    sides = range((resolution // step + 1) * step, 2 * resolution + 1, step)
    wide = [(resolution**2 // side // step * step, side) for side in sides]
    return [(resolution, resolution), *wide, *(shape[::-1] for shape in wide)]


def bucket_of(size: tuple[int, int], resolution: int, by_aspect: bool) -> tuple[int, int]:
    """The shape (height, width) that an image of this (height, width) is cropped to.

    It is the bucket with the nearest logarithm of the aspect ratio, or the square.
    """
    if not by_aspect:
        return resolution, resolution
    aspect = math.log(size[1] / size[0])
    return min(buckets(resolution), key=lambda b: abs(math.log(b[1] / b[0]) - aspect))


def crops_of(
    image: Image.Image,
    shape: tuple[int, int],
    center_crop: bool,
    mirrored: bool,
    interpolation: str,
    key: int,
) -> list[tuple]:
    """[(pixels [3, h, w], time ids [6])] of the image, resized to cover `shape` (height, width) and cropped.

    It is cropped in the middle, or at random places that depend on `key`. Mirrored crops are the mirror
    images of the others; their time ids count from the left of the mirrored image.
    """
    size, places = crop_places((image.height, image.width), shape, center_crop, key)
    original = image.height, image.width
    height, width = shape
    image = image.resize(size, Image.Resampling[interpolation.removesuffix("_exact").upper()])
    crops = []
    for top, left in places:
        pixels = to_pixels(image.crop((left, top, left + width, top + height)))
        if mirrored:
            pixels, left = pixels.flip(-1), image.width - width - left
        crops.append((pixels, time_ids(original, (top, left), shape)))
    return crops


def crop_places(
    size: tuple[int, int], shape: tuple[int, int], center_crop: bool, key: int
) -> tuple[tuple[int, int], list[tuple[int, int]]]:
    """((width, height) that an image of this (height, width) is resized to, [(top, left)] of its crops)."""
    height, width = shape
    scale = max(height / size[0], width / size[1])
    resized = max(width, round(size[1] * scale)), max(height, round(size[0] * scale))
    spare = torch.tensor([resized[1] - height, resized[0] - width])
    if center_crop:
        places = [(spare // 2).tolist()]
    else:
        places = (torch.rand(CROPS, 2, generator=generator(key)) * (spare + 1)).long().tolist()
    return resized, list(dict.fromkeys(map(tuple, places)))
