"""The preview of an adapter: an image of the same name beside its file, and a thumbnail in its header."""

import base64
import io
import shutil
from pathlib import Path

from PIL import Image

from gralora_diffusion.files import complete_or_absent
from gralora_diffusion.formats.run_files import named_after

THUMBNAIL = 256  # pixels of its longer side at most


def jpeg_of_image(image: Image.Image, side: int) -> str:
    """The image as a JPEG in base64, its longer side at most `side` pixels."""
    small = image.convert("RGB")
    small.thumbnail((side, side))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=85)
    return base64.b64encode(buffer.getvalue()).decode()


def thumbnail_url(path: Path) -> str:
    """The PNG as a data: URL of at most 256 x 256 pixels."""
    with Image.open(path, formats=["PNG"]) as image:  # anybody may have written the folder of a run
        return f"data:image/jpeg;base64,{jpeg_of_image(image, THUMBNAIL)}"


def last_sample(run: Path, step: int | None = None) -> Path | None:
    """The first sample image after this step, by default after the last one that has some; None without."""
    folders = all_samples(run) if step is None else [run / "samples" / f"step-{step:05d}"]
    for folder in reversed(folders):
        images = sorted(folder.glob("*.png"))
        if images:
            return images[0]
    return None


def all_samples(run: Path) -> list[Path]:
    """The folders of sample images by step, without step 0, which shows the base."""
    found = {}
    for folder in (run / "samples").glob("step-*"):
        number = folder.name.removeprefix("step-")
        if number.isascii() and number.isdigit() and int(number):
            found[int(number)] = folder
    return [found[step] for step in sorted(found)]


def preview_of(adapter: Path) -> Path | None:
    """The preview of a run folder or of an adapter file in it; None without one."""
    run = adapter if adapter.is_dir() else adapter.parent
    if not (run / "config.json").is_file():
        return None
    own = named_after(run, ".png")
    return own if own.is_file() else last_sample(run)


def copy_preview(image: Path, target: Path) -> None:
    """A copy of the image, complete or absent."""
    with complete_or_absent(target) as part:
        shutil.copyfile(image, part)
