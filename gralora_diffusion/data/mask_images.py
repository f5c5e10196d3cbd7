"""Masks as pixels: read in any mode, checked, and cropped exactly as their images are.

White is what a run trains on, black is background. A mask is a file, or the alpha channel of the image.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from PIL import Image

from gralora_diffusion.data.cache import Cache
from gralora_diffusion.data.file_facts import facts_of, unchanged
from gralora_diffusion.data.images import crop_places, decode, has_alpha, in_8_bits, on_color
from gralora_diffusion.data.listing import printable, reason_of
from gralora_diffusion.options import ConfigError

WHITE = 255
HALF_WHITE = 128  # what the brightest pixel of a mask must reach, since a black JPEG is not quite black


@dataclass(frozen=True)
class Mask:
    """A mask that was checked."""

    path: Path  # of the mask, or of the image whose alpha channel it is
    digest: str  # SHA-256 of that file
    is_alpha: bool = False

    @property
    def identity(self) -> str:
        """What distinguishes it from other masks, wherever its file is."""
        return f"{'alpha' if self.is_alpha else 'mask'} {self.digest}"

    def open(self) -> Image.Image:
        """L, upright. Raises ConfigError where it is missing or has changed since it was checked."""
        try:
            with open(self.path, "rb") as file:
                return decode(unchanged(file, self.digest), alpha_of if self.is_alpha else gray_of)[0]
        except Exception as error:  # a decoder may raise anything at all on a damaged file
            problem = f"the mask {printable(self.path)} could be used when the run started, and now cannot"
            raise ConfigError(f"{problem}: {reason_of(error)}", option="masked_loss") from None


def gray_of(image: Image.Image) -> Image.Image:
    """L of an image in any mode; what is transparent is black."""
    return on_color(in_8_bits(image), "black").convert("L")


def alpha_of(image: Image.Image) -> Image.Image:
    """L: the alpha channel, or white where there is none."""
    if has_alpha(image):
        return image.convert("RGBA").getchannel("A")
    return Image.new("L", image.size, WHITE)


def mask_in_file(path: Path, image: Path, size: tuple[int, int], cache: Cache | None) -> Mask:
    """The mask in a file, for an image of this (height, width).

    Raises ValueError, for a message, where it cannot be used.
    """
    digest, facts = facts_of(path, cache, "mask", gray_facts)
    if not same_aspect(facts["size"], size):
        its, others = (f"{width} x {height} pixels" for height, width in (facts["size"], size))
        problem = f"a mask of {its}, and its image {printable(image.name)} has {others}"
        raise ValueError(f"{problem}: give both the same aspect ratio")
    check_brightness(facts["brightest"], "a mask")
    return Mask(path, digest)


def mask_in_alpha(path: Path, cache: Cache | None) -> Mask | None:
    """The alpha channel of an image; None where no pixel is transparent.

    Raises ValueError, for a message, where it cannot be used.
    """
    digest, facts = facts_of(path, cache, "alpha", alpha_facts)
    if facts["darkest"] == WHITE:
        return None
    check_brightness(facts["brightest"], "an alpha channel")
    return Mask(path, digest, is_alpha=True)


def check_brightness(brightest: int, what: str) -> None:
    """Raises ValueError for a mask that selects nothing."""
    if brightest < HALF_WHITE:
        problem = f"{what} that selects nothing: its brightest value is {brightest} of {WHITE}"
        raise ValueError(f"{problem}, and white is what is trained on")


def gray_facts(file: BinaryIO) -> dict:
    return facts_of_gray(decode(file, gray_of)[0])


def alpha_facts(file: BinaryIO) -> dict:
    return facts_of_gray(decode(file, alpha_of)[0])


def facts_of_gray(mask: Image.Image) -> dict:
    darkest, brightest = mask.getextrema()
    return dict(size=[mask.height, mask.width], darkest=darkest, brightest=brightest)


def same_aspect(first: tuple[int, int], second: tuple[int, int]) -> bool:
    """Whether one (height, width) is the other one scaled, up to a pixel of rounding."""
    (height, width), (other_height, other_width) = sorted((tuple(first), tuple(second)))
    by_height = abs(width - other_width * height / other_height)
    by_width = abs(height - other_height * width / other_width)
    return min(by_height, by_width) <= 1


def mask_crops_of(
    mask: Image.Image,
    size: tuple[int, int],
    shape: tuple[int, int],
    center_crop: bool,
    mirrored: bool,
    key: int,
    scale: int,
) -> torch.Tensor:
    """The crops of a mask, on the grid of the latents: [n, h, w] in [0, 1].

    size: (height, width) of its image. The crops are at the places of crops_of(), and sizes change by area
    averaging only. scale: pixels on a side of each cell of the grid.
    """
    resized, places = crop_places(size, shape, center_crop, key)
    height, width = shape
    mask = mask.resize(resized, Image.Resampling.BOX)
    crops = []
    for top, left in places:
        crop = mask.crop((left, top, left + width, top + height))
        values = torch.frombuffer(bytearray(crop.tobytes()), dtype=torch.uint8).view(1, height, width)
        cells = torch.nn.functional.avg_pool2d(values.float() / WHITE, scale)[0]
        crops.append(cells.flip(-1) if mirrored else cells)
    return torch.stack(crops)
