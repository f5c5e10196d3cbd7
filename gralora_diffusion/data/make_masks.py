"""Masks of all images of a folder, made by a model, and a sheet of them to look at."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from gralora_diffusion.data.images import EXTENSIONS, open_image
from gralora_diffusion.data.listing import has_images, listing, numbered, printable, reason_of
from gralora_diffusion.data.mask_images import decode, gray_of
from gralora_diffusion.data.masks import MASKS, first_of, stem_of, stems_of, without_masks
from gralora_diffusion.data.saliency import Saliency
from gralora_diffusion.files import complete_or_absent, resolved
from gralora_diffusion.options import ConfigError

TILE, LABEL, COLUMNS = 160, 16, 8  # pixels, pixels, tiles of the sheet
MOST_TILES = 1000
BACKGROUND = (30, 60, 230)  # what is not selected is tinted with it


@dataclass(frozen=True)
class Job:
    """An image, the file for its mask, and the mask that it has already."""

    name: str  # of the image, from the folder that was named
    image: Path
    mask: Path
    present: Path | None


@dataclass
class Made:
    """What make_masks() did, by name."""

    written: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)  # images with a mask of their own
    bad: dict[str, str] = field(default_factory=dict)  # {image: why it has no mask}
    tiles: list[Image.Image] = field(default_factory=list)  # of the sheet


def folders_in(folder: Path) -> list[Path]:
    """The folder, or its subfolders such as "10_sks dog" where it holds no images itself."""
    subfolders = [] if has_images(folder) else [path for path, _, _ in numbered(folder)]
    return subfolders or [folder]


def images_of(folder: Path) -> list[Path]:
    """The images of a folder by name, without masks. Raises ConfigError where there are none."""
    files = [path for path in listing(folder, "folder")[0] if path.suffix.lower() in EXTENSIONS]
    found = without_masks(files)
    if not found:
        raise ConfigError(f"{printable(folder)} holds no images", option="folder")
    return found


def jobs_of(folder: Path, output: Path | None, overwrite: bool) -> list[Job]:
    """Those of a folder, or of its numbered subfolders.

    Raises ConfigError for a mask that is to be replaced by one of another name, and for two images whose
    masks would be one file.
    """
    jobs, owners = [], {}
    for images in folders_in(folder):
        where = images if output is None else output / images.relative_to(folder)
        present = listing(where, "output_dir" if output else "folder")[0] if where.is_dir() else []
        masks = stems_of(path for path in present if path.suffix.lower() in EXTENSIONS)
        for image in images_of(images):
            path = where / f"{image.stem}-masklabel.png"
            other = owners.setdefault(stem_of(path), image)
            if other != image:
                problem = (
                    f"{other.name} and {image.name} of {printable(images)} would share the mask {path.name}"
                )
                raise ConfigError(f"{problem}: rename one of them", option="folder")
            has = first_of(masks, stem_of(where / image.name), MASKS if output is None else ("", *MASKS))
            if has and overwrite and stem_of(has) == stem_of(path) and has != path:
                problem = f"{printable(has)} would be a second mask beside {path.name}"
                raise ConfigError(f"{problem}: remove it first", option="overwrite")
            jobs.append(Job(str(image.relative_to(folder)), image, path, has))
    return jobs


def make_masks(jobs: Iterable[Job], saliency: Saliency, threshold: float, overwrite: bool) -> Made:
    """Write the masks, each complete or absent; those that are present are kept without `overwrite`."""
    made = Made()
    for job in jobs:
        try:
            image = open_image(job.image)
            if job.present and not overwrite:
                mask = decode(job.present, gray_of)[0]
                made.kept.append(job.name)
            else:
                mask = saliency.mask(image, threshold)
                if mask.getextrema()[1] == 0:
                    raise ValueError("nothing stands out: lower the threshold, or draw its mask")
                with complete_or_absent(job.mask) as part:
                    mask.save(part, "PNG")
                made.written.append(job.name)
            if len(made.tiles) < MOST_TILES:
                made.tiles.append(tile(image, mask, job.name))
        except Exception as error:  # a decoder may raise anything at all on a damaged file
            made.bad[job.name] = reason_of(error)
    return made


def tile(image: Image.Image, mask: Image.Image, name: str) -> Image.Image:
    """The image, small, with all that its mask does not select tinted; its name below."""
    small = image.copy()
    small.thumbnail((TILE, TILE))
    tinted = Image.blend(small, Image.new("RGB", small.size, BACKGROUND), 0.7)
    shown = Image.composite(small, tinted, mask.resize(small.size, Image.Resampling.BOX))
    page = Image.new("RGB", (TILE, TILE + LABEL), "white")
    page.paste(shown, ((TILE - small.width) // 2, (TILE - small.height) // 2))
    ImageDraw.Draw(page).text((2, TILE + 1), printable(name)[:26], "black", ImageFont.load_default(11))
    return page


def check_sheet(sheet: Path, folder: Path) -> None:
    """Raises ConfigError for a sheet that would become an image to train on."""
    where = resolved(sheet.parent)
    folders = [resolved(path) for path in folders_in(folder)]
    if where in (resolved(folder), *folders):
        problem = f"the sheet {printable(sheet)} would be one of the images to train on"
        raise ConfigError(f"{problem}: name another file with --sheet", option="sheet")
    if sheet.suffix.lower() not in (".jpg", ".jpeg", ".png"):
        raise ConfigError(f"--sheet {printable(sheet)} must end in .jpg or .png", option="sheet")


def write_sheet(tiles: list[Image.Image], path: Path) -> None:
    """All tiles in rows, complete or absent."""
    rows = -(-len(tiles) // COLUMNS)
    page = Image.new("RGB", (min(len(tiles), COLUMNS) * TILE, rows * (TILE + LABEL)), "white")
    for number, picture in enumerate(tiles):
        row, column = divmod(number, COLUMNS)
        page.paste(picture, (column * TILE, row * (TILE + LABEL)))
    with complete_or_absent(path) as part:
        page.save(part, "PNG" if path.suffix.lower() == ".png" else "JPEG", quality=88)
