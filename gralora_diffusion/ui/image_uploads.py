"""Uploads into a set of images: images, captions beside them, and zip archives of both."""

import re
import shutil
import tempfile
from pathlib import Path

from PIL import Image

from gralora_diffusion.console import counted
from gralora_diffusion.data.captions import clean, from_json, from_text
from gralora_diffusion.data.images import EXTENSIONS, open_image
from gralora_diffusion.data.listing import numbered_name, printable, reason_of
from gralora_diffusion.data.masks import LABELS, MASKS, split_name
from gralora_diffusion.data.metadata import LISTS, is_list_name, read_list
from gralora_diffusion.ui.caption_files import caption_of, write_caption
from gralora_diffusion.ui.image_sets import MAX_FILES, editable, images_of
from gralora_diffusion.ui.locks import changing
from gralora_diffusion.ui.workspace import RESERVED, Workspace
from gralora_diffusion.ui.zip_uploads import CAPTIONS, LINES, MAX_BYTES, READABLE, unzip

ACCEPTED = READABLE | {".zip"}
SOME = 5  # repeats that a note names


def add(workspace: Workspace, name: str, uploads: list[str | Path]) -> tuple[int, list[str]]:
    """Copy what is usable into a set: (how many images, a note on each file that is unusable or special).

    A caption goes to the image with the same name, of this upload or of the set, and so does a mask.
    """
    folder = editable(workspace, name)
    notes = []
    with tempfile.TemporaryDirectory(dir=workspace.scratch) as scratch:
        concepts: dict[Path, str] = {}
        files = unpacked([Path(upload) for upload in uploads], Path(scratch), notes, concepts)
        captions = [path for path in files if path.suffix.lower() in CAPTIONS]
        lines = [path for path in files if path.suffix.lower() in LINES]
        images = [path for path in files if path not in captions and path not in lines]
        images.sort(key=lambda path: bool(mask_ending(path)))  # a mask after its image
        by_stem = {path.stem: path for path in images_of(folder)}
        masks = 0
        placed = {}  # {image of the upload: its file in the set}
        for upload in images:
            is_mask = masked_image(upload, by_stem) is not None or mask_ending(upload) in LABELS
            target = add_image(folder, upload, by_stem, notes)
            if target is None:
                continue
            by_stem[upload.stem] = target
            if not is_mask:
                placed[upload] = target
            elif mask_ending(upload) in MASKS:
                masks += 1
            else:
                notes.append(f"{upload.name}: a condition image, which is not used")
        for upload in lines:
            add_lines(upload, by_stem, notes)
        for upload in captions:  # as in training, a caption beside the image counts more
            add_caption(upload, by_stem.get(upload.stem), notes)
        add_words(placed, concepts, notes)
        if masks:
            notes.append(f"{counted(masks, 'mask')} added: turn on Masked loss under Train to use masks")
    return len(placed), notes


def add_words(placed: dict[Path, Path], concepts: dict[Path, str], notes: list[str]) -> None:
    """Caption images of folders such as "10_sks dog" as training does, and note what is lost of such names.

    placed: {image of the upload, which is no mask: its file in the set}; concepts: as unzip() fills it.
    """
    found = set()
    for name in dict.fromkeys(concepts[upload] for upload in placed if upload in concepts):
        images = [path for upload, path in placed.items() if concepts.get(upload) == name]
        repeats, words = numbered_name(name)
        found.add(repeats)
        bare = [path for path in images if words and not caption_of(path)]
        try:
            for path in bare:
                write_caption(path, words)
        except (ValueError, OSError) as error:
            notes.append(f"{printable(name)}: its words are not used as captions: {reason_of(error)}")
            continue
        moved = "its image is" if len(images) == 1 else "its images are"
        note = f"{printable(name)}: {moved} in this dataset now"
        if bare:
            note += f'; {counted(len(bare), "image")} without a caption got "{printable(words)}"'
        notes.append(note)
    note_on_repeats(found, notes)


def note_on_repeats(repeats: set[int], notes: list[str]) -> None:
    """What to do about the repeats of kohya's folders, which a dataset does not keep; nothing for 1 alone."""
    if len(repeats) > 1:
        numbers = ", ".join(map(str, sorted(repeats)[:SOME]))
        notes.append(
            f"the folders have different repeats ({numbers}), but a dataset uses all images equally often; "
            "to keep the repeats, copy the folders as they are into images/NAME in the page's home folder"
        )
    elif repeats - {1}:
        (number,) = repeats
        notes.append(f"for {number} repeats of all images, set Repeats per epoch under Train to {number}")


def unpacked(uploads: list[Path], folder: Path, notes: list[str], concepts: dict[Path, str]) -> list[Path]:
    """The uploads, with the files of each zip archive in its place; concepts: as unzip() fills it."""
    files = []
    for number, upload in enumerate(uploads):
        if upload.suffix.lower() != ".zip":
            files.append(upload)
            continue
        try:
            files += unzip(upload, folder / str(number), concepts)
        except Exception as error:  # each way of compression raises errors of its own on a damaged archive
            can_tell = isinstance(error, ValueError | OSError | NotImplementedError)
            reason = reason_of(error) if can_tell else "it is not a zip archive, or is damaged"
            notes.append(f"{upload.name} was left out: {reason}")
    return files


def add_image(folder: Path, upload: Path, by_stem: dict[str, Path], notes: list[str]) -> Path | None:
    """Copy an image into the folder; None, and a note, where it cannot be used.

    by_stem: {stem of an upload or of an image of the set: its file there}.
    """
    try:
        note = check_upload(upload)
        with changing(folder):
            if len(images_of(folder)) >= MAX_FILES:
                raise ValueError(f"the dataset already has {MAX_FILES} images")
            target = mask_path(upload, by_stem) or free_path(folder, upload)
            copy_new(upload, target)
    except Exception as error:  # a decoder may raise any error on a damaged file
        notes.append(f"{upload.name} was left out: {reason_of(error)}")
        return None
    if note:
        notes.append(f"{upload.name}: {note}")
    return target


def copy_new(upload: Path, target: Path) -> None:
    """Copy a file to a name that nothing has, complete or absent.  Raises FileExistsError."""
    with open(target, "xb"):
        pass
    try:
        shutil.copyfile(upload, target)
    except BaseException:
        target.unlink()
        raise


def add_caption(upload: Path, image: Path | None, notes: list[str]) -> None:
    """Write an uploaded caption beside its image; a note where there is none, or it cannot be used."""
    try:
        if image is None:
            raise ValueError("no image has its name")
        text = from_json(upload) if upload.suffix.lower() == ".json" else from_text(upload, "first").text
        if not text:
            raise ValueError("it holds no text")
        write_caption(image, text)
    except (ValueError, OSError) as error:
        notes.append(f"{upload.name} was left out: {reason_of(error)}")


def add_lines(upload: Path, by_stem: dict[str, Path], notes: list[str]) -> None:
    """Write the captions of an uploaded list beside their images; a note on what cannot be used.

    The list is named as in LISTS, in any case.
    """
    try:
        if not is_list_name(upload.name):
            raise ValueError(f"only {LISTS} may hold the captions of several images")
        others = [p.name for p in upload.parent.iterdir() if is_list_name(p.name) and p != upload]
        if others:  # in a zip archive
            raise ValueError(f"there is {others[0]} too: remove one of the two")
        found = read_list(upload, None)
    except (ValueError, OSError) as error:
        notes.append(f"{upload.name} was left out: {reason_of(error)}")
        return
    without = blank = 0
    for path, text in found.items():
        image = by_stem.get(path.stem)
        try:
            caption = clean(text, upload.name)
            without += image is None
            blank += image is not None and not caption
            if image is not None and caption:
                write_caption(image, caption)
        except (ValueError, OSError) as error:
            notes.append(f"{path.name} got no caption: {reason_of(error)}")
    if without:
        notes.append(f"{upload.name}: {counted(without, 'line')} without an image of that name")
    if blank:
        notes.append(f"{upload.name}: {counted(blank, 'line')} without a caption")


def check_upload(path: Path) -> str:
    """A note on an image that can be used, or ""; raises ValueError for one that cannot."""
    if path.suffix.lower() not in EXTENSIONS:
        raise ValueError(f"it is not an image; images end in {', '.join(sorted(EXTENSIONS))}")
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"it is larger than {MAX_BYTES / 1e6:.0f} MB")
    open_image(path)
    with Image.open(path) as image:
        animated = getattr(image, "n_frames", 1) > 1 and image.format != "MPO"
    return "it is animated; only its first frame is used" if animated else ""


def mask_ending(path: Path) -> str:
    """What the name of a mask ends in; "" for other images."""
    of_mask = split_name(path)
    return of_mask[1] if of_mask else ""


def masked_image(upload: Path, by_stem: dict[str, Path]) -> Path | None:
    """The image that the upload is the mask of; None where it is no mask, or of no image."""
    of_mask = split_name(upload)
    return by_stem.get(of_mask[0]) if of_mask else None


def mask_path(upload: Path, by_stem: dict[str, Path]) -> Path | None:
    """Where the mask of an image goes; None for what is the mask of none. Raises ValueError where one is."""
    image = masked_image(upload, by_stem)
    if image is None:
        return None
    target = image.with_name(f"{image.stem}{mask_ending(upload)}{upload.suffix.lower()}")
    if target.exists():
        raise ValueError(f"{image.name} already has a mask of this name: delete it first")
    return target


def free_path(folder: Path, upload: Path) -> Path:
    """Where an upload goes: under its own name in ASCII letters, numbered when the set has such an image.

    What marks it as no image to train on stays the end of its name.
    """
    stem, label = split_name(upload) or (upload.stem, "")
    if label not in LABELS:
        stem, label = upload.stem, ""
    stem = re.sub(r"[^A-Za-z0-9_-]+", "-", stem).strip("-")[:60] or "image"
    if RESERVED.fullmatch(stem):
        stem = f"image-{stem}"
    taken = {path.stem.lower() for path in folder.iterdir()}
    name = f"{stem}{label}"
    number = 1
    while name.lower() in taken:
        number += 1
        name = f"{stem}-{number}{label}"
    return folder / f"{name}{upload.suffix.lower()}"
