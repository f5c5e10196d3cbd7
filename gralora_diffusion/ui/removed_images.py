"""Images and masks that were removed from a set; they can be put back while they are in the bin."""

import threading
from pathlib import Path

from gralora_diffusion.console import counted
from gralora_diffusion.data.images import EXTENSIONS
from gralora_diffusion.data.masks import ENDINGS, LABELS, stem_of, without_masks
from gralora_diffusion.data.metadata import METADATA
from gralora_diffusion.files import delete, move_all
from gralora_diffusion.options import ConfigError
from gralora_diffusion.ui import metadata_rows, removed
from gralora_diffusion.ui.caption_files import captions_beside
from gralora_diffusion.ui.image_sets import editable, images_of
from gralora_diffusion.ui.workspace import Workspace, quoted, real_file

ONE_AT_A_TIME = threading.Lock()  # one change at a time


def remove(workspace: Workspace, name: str, files: list[str]) -> str:
    """Move images of a set, with captions and masks, to where undo_remove() finds them.

    Returns what was moved, in words.
    """
    with ONE_AT_A_TIME:
        images = named(workspace, name, files)
        folder = editable(workspace, name)
        stays = {stem_of(path) for path in images_of(folder) if path not in images}
        moved = []
        for image in images:
            if stem_of(image) not in stays:  # else its caption and mask belong to another image too
                moved += [*captions_beside(image).values(), *masks_beside(image)]
            moved.append(image)
        return move_away(workspace, name, list(dict.fromkeys(moved)), [image.name for image in images])


def remove_masks(workspace: Workspace, name: str, files: list[str]) -> str:
    """The same for the masks of images alone."""
    with ONE_AT_A_TIME:
        moved = []
        for image in named(workspace, name, files):
            moved += masks_beside(image)
        if not moved:
            raise ConfigError("none of the selected images has a mask")
        return move_away(workspace, name, list(dict.fromkeys(moved)))


def named(workspace: Workspace, name: str, files: list[str]) -> list[Path]:
    """The images of a set with these names.  Raises ConfigError for a name that is no image's."""
    images = {path.name: path for path in images_of(editable(workspace, name))}
    if not files:
        raise ConfigError("no image is selected: tick Select on the images first")
    for file in files:
        if file not in images:
            raise ConfigError(f"the dataset {name} has no image named {quoted(file)}")
    return [images[file] for file in dict.fromkeys(files)]


def masks_beside(image: Path) -> list[Path]:
    """The files that training takes for masks of the image, by their names."""
    stems = {stem_of(image) + ending for ending in ENDINGS}
    files = [path for path in image.parent.iterdir() if path.suffix.lower() in EXTENSIONS]
    return sorted(path for path in files if stem_of(path) in stems and real_file(path))


def move_away(workspace: Workspace, name: str, paths: list[Path], rows_of: list[str] = ()) -> str:
    """rows_of: images whose lines in metadata.jsonl or metadata.csv leave with them."""
    source = workspace.images / name
    rows = metadata_rows.rows_of(source, rows_of)
    folder = removed.new_removal(workspace.removed_images / name)
    try:
        if rows:
            metadata_rows.add(folder, rows)
        move_all({path: folder / path.name for path in paths})
    except BaseException:
        delete(folder)
        raise
    if rows:
        metadata_rows.remove(source, rows_of)
    return described(paths)


def removals(workspace: Workspace, name: str) -> list[Path]:
    """The folders of what was removed from a set and can be put back, the latest last."""
    return removed.removals(workspace.removed_images / name)


def undo_remove(workspace: Workspace, name: str) -> str:
    """Put back what was removed from a set last; returns what it was.

    An image whose name is taken by now gets a free one, with its captions and masks.
    """
    with ONE_AT_A_TIME:
        folder = editable(workspace, name)
        found = removals(workspace, name)
        if not found:
            raise ConfigError(f"nothing was deleted from {name} in the last {removed.DAYS} days")
        files = sorted(path for path in found[-1].iterdir() if path.name != METADATA)
        targets = places(files, folder)
        for target in targets.values():
            if target.exists():  # a mask, whose image has another by now
                raise ConfigError(f"the dataset {name} has another {target.name} now: delete that one first")
        move_all(targets)
        restore_rows(found[-1], folder, {path.name: target.name for path, target in targets.items()})
        delete(found[-1])
        return described(list(targets.values()))


def restore_rows(removal: Path, folder: Path, names: dict[str, str]) -> None:
    """Put the lines of metadata.jsonl back; names: {name of an image before: now}."""
    file = removal / METADATA
    if not file.is_file():
        return
    rows = []
    for row in metadata_rows.rows_in(file):
        before = Path(row["file_name"]).name
        rows.append(row | dict(file_name=names.get(before, before)))
    metadata_rows.add(folder, rows)


def places(files: list[Path], folder: Path) -> dict[Path, Path]:
    """{file of a removal: where it goes in the folder of the set}."""
    targets = {path: folder / path.name for path in files}
    images = [path for path in files if path.suffix.lower() in EXTENSIONS]
    taken = {path.stem.lower() for path in (*folder.iterdir(), *files)}
    for stem in sorted({path.stem for path in images if not is_mask_of(path, images)}):
        stems = {stem.lower() + ending for ending in ("", *ENDINGS)}
        own = [path for path in files if path.stem.lower() in stems]
        if not any(targets[path].exists() for path in own):
            continue
        free = free_stem(stem, taken)
        for path in own:
            targets[path] = folder / f"{free}{path.stem[len(stem) :]}{path.suffix}"
            taken.add(targets[path].stem.lower())
    return targets


def free_stem(stem: str, taken: set[str]) -> str:
    """STEM-2, STEM-3, ...: the first that neither an image nor its mask has."""
    number = 2
    while any(f"{stem}-{number}{ending}".lower() in taken for ending in ("", *ENDINGS)):
        number += 1
    return f"{stem}-{number}"


def described(paths: list[Path]) -> str:
    """Files of a removal in words: the name of the image or mask, or how many."""
    images = [path for path in paths if path.suffix.lower() in EXTENSIONS]
    masks = [path for path in images if is_mask_of(path, images)]
    shown = [path for path in images if path not in masks] or masks
    if len(shown) == 1:
        return shown[0].name
    return counted(len(shown), "mask" if shown == masks else "image")


def is_mask_of(path: Path, images: list[Path]) -> bool:
    """Whether it is named as a mask: of one of these images, or with none of its own there."""
    if path not in without_masks(images):
        return True
    return stem_of(path).endswith(tuple(ending for ending in ENDINGS if ending not in LABELS))
