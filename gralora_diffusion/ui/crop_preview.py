"""What training cuts of each image of a set, by the trainer's own functions."""

from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

from gralora_diffusion.data.file_facts import facts_of
from gralora_diffusion.data.image_folder import TrainingImage, size_and_note
from gralora_diffusion.data.images import bucket_of, crop_places, open_image
from gralora_diffusion.options import ConfigError
from gralora_diffusion.ui.image_sets import images_of
from gralora_diffusion.ui.workspace import Workspace, quoted

LEAST, MOST = 64, 8192  # of the resolution, as in TrainConfig
SHOWN = 24  # images
SIDE = 320  # pixels of a preview
DIMMED = 0.72  # how dark what is cut away is
LINE = (45, 212, 191)


@dataclass(frozen=True)
class Crops:
    """Where an image is cut, all in pixels of the resized image.

    size: (width, height) that it is resized to. shape: (height, width) of the crops. places: (top, left).
    scale: of the resizing; above 1 the image is enlarged.
    """

    size: tuple[int, int]
    shape: tuple[int, int]
    places: tuple[tuple[int, int], ...]
    scale: float

    @property
    def text(self) -> str:
        height, width = self.shape
        cut = 1 - width * height / (self.size[0] * self.size[1])
        parts = [f"{width} x {height}", f"{100 * cut:.0f} % cut away" if cut > 0.005 else "nothing cut away"]
        if len(self.places) > 1:
            parts.append(f"at {len(self.places)} places")
        if self.scale > 1.005:
            parts.append(f"enlarged {self.scale:.3g} times: too small")
        return ", ".join(parts)


def crops_in_training(path: Path, resolution: int, by_aspect: bool, center_crop: bool) -> Crops:
    """Of an image file, as a run with these options cuts it.  Raises ValueError or OSError."""
    digest, facts = facts_of(path, None, "image", size_and_note)
    image = TrainingImage(path, "", digest, tuple(facts["size"]))
    shape = bucket_of(image.size, resolution, by_aspect)
    size, places = crop_places(image.size, shape, center_crop, image.crop_key)
    scale = max(shape[0] / image.size[0], shape[1] / image.size[1])
    return Crops(size, shape, tuple(places), scale)


def preview(path: Path, crops: Crops) -> Image.Image:
    """The image, small, what no crop holds dimmed, the crops in outline."""
    image = open_image(path)
    image.thumbnail((SIDE, SIDE))
    scale = image.width / crops.size[0], image.height / crops.size[1]
    dark = Image.blend(image, Image.new("RGB", image.size), DIMMED)
    boxes = [box_of(place, crops.shape, scale) for place in crops.places]
    for box in boxes:
        dark.paste(image.crop(box), box[:2])
    draw = ImageDraw.Draw(dark)
    for left, top, right, bottom in boxes:
        draw.rectangle((left, top, right - 1, bottom - 1), outline=LINE, width=2)
    return dark


def box_of(
    place: tuple[int, int], shape: tuple[int, int], scale: tuple[float, float]
) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of a crop in a preview that is so much smaller."""
    top, left = place
    height, width = shape
    across, down = scale
    return (
        round(left * across),
        round(top * down),
        round((left + width) * across),
        round((top + height) * down),
    )


def previews(
    workspace: Workspace, name: str, resolution, by_aspect: bool, center_crop: bool
) -> list[tuple[Image.Image, str]]:
    """(preview, what is cut) of the first images of a set; an image that cannot be read is left out."""
    resolution = checked_resolution(resolution)
    found = []
    for path in images_of(workspace.image_set(name))[:SHOWN]:
        try:
            crops = crops_in_training(path, resolution, bool(by_aspect), bool(center_crop))
            found.append((preview(path, crops), f"{path.name}: {crops.text}"))
        except Exception:  # a decoder may raise any error on a damaged file; Check images names it
            continue
    if not found:
        raise ConfigError(f"the dataset {name} has no images to crop: add some first")
    return found


def checked_resolution(value) -> int:
    """Raises ConfigError for what is no resolution."""
    try:
        resolution = int(value)
    except (TypeError, ValueError, OverflowError):
        resolution = 0
    if not LEAST <= resolution <= MOST:
        rule = f"it must be a whole number of pixels from {LEAST} to {MOST}"
        raise ConfigError(f"the resolution is {quoted(value)}; {rule}")
    return resolution
