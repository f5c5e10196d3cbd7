"""Images as files that the page may serve."""

import os
from pathlib import Path

from PIL import Image

from gralora_diffusion.data.images import open_image
from gralora_diffusion.options import ConfigError
from gralora_diffusion.sdxl.image_text import save_image
from gralora_diffusion.ui.workspace import Workspace

_copies: dict[tuple, str] = {}  # {(file, mtime, size, largest side): its served copy}


def save_served(workspace: Workspace, image: Image.Image, name: str) -> str:
    """The path of a new PNG that the page may serve."""
    path = workspace.new_served_path(name)
    save_image(image, path)
    return str(path)


def save_small(workspace: Workspace, image: Image.Image, name: str) -> str:
    """The path of a new JPEG that the page may serve: a preview, without texts."""
    path = workspace.new_served_path(name)
    image.save(path, "JPEG", quality=88)
    return str(path)


def still_served(path: str | None) -> bool:
    """Whether a served file is still there; if so it counts as handed out now, and is not deleted soon."""
    try:
        os.utime(path)
    except (OSError, TypeError):
        return False
    return True


def check_served(paths: list[str], advice: str) -> None:
    """Raises ConfigError, with what to do, where one of these files was deleted because of its age."""
    found = [still_served(path) for path in paths]  # of each, so that none is deleted soon
    if not all(found):
        raise ConfigError(f"these images were generated too long ago: {advice}")


def served_copy(workspace: Workspace, path: Path, max_side: int | None = None) -> str:
    """A copy of an image that the page may serve, of at most max_side pixels a side; one for each file."""
    stat = path.stat()
    key = (path, stat.st_mtime_ns, stat.st_size, max_side)
    if not still_served(_copies.get(key)):
        image = open_image(path)
        if max_side:
            image.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
        _copies[key] = save_served(workspace, image, f"{path.parent.name}-{path.stem}.png")
    return _copies[key]
