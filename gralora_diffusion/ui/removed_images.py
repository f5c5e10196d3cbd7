"""Images and masks that were removed from a set; they can be put back while they are in the bin."""

import os
from collections.abc import Callable
from pathlib import Path

from gralora_diffusion.console import counted
from gralora_diffusion.data.images import EXTENSIONS
from gralora_diffusion.data.listing import CAPTIONS
from gralora_diffusion.data.masks import LABELS, split_name, stem_in, stem_of, without_masks
from gralora_diffusion.data.metadata import METADATA
from gralora_diffusion.files import move_all, move_back
from gralora_diffusion.options import ConfigError
from gralora_diffusion.ui import metadata_rows, removed
from gralora_diffusion.ui.caption_files import captions_beside
from gralora_diffusion.ui.image_sets import editable, images_of
from gralora_diffusion.ui.locks import changing
from gralora_diffusion.ui.workspace import Workspace, quoted, real_file


def remove(workspace: Workspace, name: str, files: list[str]) -> str:
    """Move images of a set, with captions and masks, to where undo_remove() finds them.

    Returns what was moved, in words.
    """
    with changing(editable(workspace, name)):
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
    with changing(editable(workspace, name)):
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
    files = [path for path in image.parent.iterdir() if path.suffix.lower() in EXTENSIONS]
    return sorted(path for path in files if is_mask(path, image) and real_file(path))


def is_mask(path: Path, image: Path) -> bool:
    """Whether the file has the name of a mask of the image beside it."""
    of_mask = split_name(path)
    return of_mask is not None and stem_in(path.parent, of_mask[0]) == stem_of(image)


def move_away(workspace: Workspace, name: str, paths: list[Path], rows_of: list[str] = ()) -> str:
    """rows_of: images whose lines in metadata.jsonl or metadata.csv leave with them.

    Where it fails all stays as it was; a file that cannot go back stays in the removal, and can be undone.
    """
    source = workspace.images / name
    rows = metadata_rows.rows_of(source, rows_of)
    folder = removed.new_removal(workspace.removed_images / name)
    try:
        if rows:
            metadata_rows.add(folder, rows)
        targets = {path: folder / path.name for path in paths}
        move_all(targets)
        if rows:
            undo_on_error(targets, lambda: metadata_rows.remove(source, rows_of))
    except BaseException:
        drop_emptied(folder)
        raise
    return described(paths)


def undo_on_error(moved: dict[Path, Path], change: Callable[[], None]) -> None:
    """Call change(); where it fails, what move_all() has moved goes back."""
    try:
        change()
    except BaseException:
        move_back(moved)
        raise


def drop_emptied(removal: Path) -> None:
    """Delete a removal, unless it holds files of the set."""
    if all(path.name == METADATA for path in removal.iterdir()):
        (removal / METADATA).unlink(missing_ok=True)
        removal.rmdir()


def removals(workspace: Workspace, name: str) -> list[Path]:
    """The folders of what was removed from a set and can be put back, the latest last."""
    return removed.removals(workspace.removed_images / name)


def undo_remove(workspace: Workspace, name: str) -> str:
    """Put back what was removed from a set last; returns what it was.

    An image whose name is taken by now gets a free one, with its captions and masks.
    """
    with changing(editable(workspace, name)):
        folder = editable(workspace, name)
        found = removals(workspace, name)
        if not found:
            raise ConfigError(f"nothing was deleted from {name} in the last {removed.DAYS} days")
        files = sorted(path for path in found[-1].iterdir() if path.name != METADATA)
        targets = places(files, folder)
        for target in targets.values():
            if os.path.lexists(target):  # a mask, whose image has another by now
                raise ConfigError(f"the dataset {name} now has another {target.name}: delete it first")
        rows = restored_rows(found[-1], targets)  # before anything moves
        move_all(targets)
        if rows:
            undo_on_error(targets, lambda: metadata_rows.add(folder, rows))
        drop_emptied(found[-1])
        return described(list(targets.values()))


def restored_rows(removal: Path, targets: dict[Path, Path]) -> list[dict]:
    """The lines of a removal's images, which have the names of their targets."""
    rows = metadata_rows.rows_in(removal / METADATA)
    names = {path.name: target.name for path, target in targets.items()}
    rows = [row | dict(file_name=names.get(Path(row["file_name"]).name)) for row in rows]
    return [row for row in rows if row["file_name"]]


def places(files: list[Path], folder: Path) -> dict[Path, Path]:
    """{file of a removal: where it goes in the folder of the set}; no two go to one place."""
    targets = {path: folder / path.name for path in files}
    images = [path for path in files if path.suffix.lower() in EXTENSIONS]
    taken = {path.name.lower() for path in (*folder.iterdir(), *files)}
    for stem, own in groups(files, images).items():
        if not any(os.path.lexists(targets[path]) for path in own):
            continue
        number = free_number(stem, taken)
        for path in own:
            targets[path] = folder / with_number(path, stem, number)
            taken.add(targets[path].name.lower())
    return targets


def with_number(path: Path, stem: str, number: int) -> str:
    """The name of an image, its caption or its mask when the image's stem gets a number.

    Each keeps its letters, for two may differ in case alone.
    """
    of_mask = split_name(path)
    if of_mask and of_mask[0].lower() == stem.lower():
        return f"{of_mask[0]}-{number}{of_mask[1]}{path.suffix}"
    return f"{path.name[: len(stem)]}-{number}{path.name[len(stem) :]}"


def groups(files: list[Path], images: list[Path]) -> dict[str, list[Path]]:
    """{stem of images: these, with their captions, NAME.txt or NAME.png.txt, and their masks}."""
    found = {path.stem: [] for path in images if not is_mask_of(path, images)}
    for path in files:
        stems = [path.stem, *(split_name(path) or ())[:1]]
        if path.suffix.lower() in CAPTIONS:
            stems = [path.stem, Path(path.stem).stem]
        same = [stem for stem in stems if stem in found]
        lower = {stem.lower() for stem in stems}
        same += [stem for stem in found if stem.lower() in lower]  # as masks are found
        if same:
            found[same[0]].append(path)
    return found


def free_number(stem: str, taken: set[str]) -> int:
    """The first from 2 with which STEM-NUMBER is no image's name, nor that of its captions and masks."""
    number = 2
    while any(begins_with(name, f"{stem}-{number}".lower()) for name in taken):
        number += 1
    return number


def begins_with(name: str, stem: str) -> bool:
    """Whether the name is the stem, or goes on after it with an ending."""
    return name.startswith(stem) and not name[len(stem) :][:1].isalnum()


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
    of_mask = split_name(path)
    return of_mask is not None and of_mask[1] not in LABELS
