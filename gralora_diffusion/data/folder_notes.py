"""Notes on a folder of images: what is in it and not used, or used though its name says otherwise."""

from pathlib import Path

from gralora_diffusion.console import counted, note
from gralora_diffusion.data.images import EXTENSIONS
from gralora_diffusion.data.listing import DOCUMENTS, printable, some
from gralora_diffusion.data.masks import split_name, without_masks
from gralora_diffusion.data.metadata import LISTS


def note_left_out(folder: Path, folders: list[str], files: list[Path], masks: list[Path]) -> None:
    """Note which subfolders, documents and masks are not read."""
    if folders:
        what = f"{counted(len(folders), 'subfolder')}, left out"
        note(f"{folder} has {what}: {', '.join(map(printable, folders))}")
    documents = [printable(path.name) for path in files if path.suffix.lower() in DOCUMENTS]
    if documents:
        names = ", ".join(documents)
        what = f"{counted(len(documents), 'file')} with neither an image nor a caption, left out"
        note(f"{folder} holds {what}: {names}")
    if masks:
        what = f"{counted(len(masks), 'mask')} beside the images, not trained on"
        note(f"{folder} holds {what}: {printable(masks[0].name)}{' and others' if len(masks) > 1 else ''}")


def note_unlisted(folder: Path, metadata: dict[Path, str]) -> None:
    """Note which images in the subfolders of metadata.jsonl or metadata.csv it does not name."""
    for parent in sorted({path.parent for path in metadata} - {folder}):
        names = sorted(path.name for path in parent.iterdir()) if parent.is_dir() else []
        images = [name for name in names if Path(name).suffix.lower() in EXTENSIONS and name[0] != "."]
        others = [path for path in without_masks(map(parent.joinpath, images)) if path not in metadata]
        if others:
            what = f"{counted(len(others), 'image')} that {LISTS} does not name, left out"
            note(f"{parent} holds {what}: {some([path.name for path in others])}")


def note_mask_names(folder: Path, paths: list[Path], images: set[Path]) -> None:
    """Note which images are trained on though their names are those of masks."""
    named = [path for path in paths if split_name(path)]
    if named and len(named) < len(images):
        what = f"{counted(len(named), 'image')} whose names are those of masks"
        note(f"{folder} holds {what}, trained on as any other: {some([path.name for path in named])}")
