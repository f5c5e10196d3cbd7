"""Sets of images: HOME/images/NAME, with NAME.txt beside NAME.png as its caption; every file is checked before it gets there."""

import hashlib
import re
import shutil
from pathlib import Path

from PIL import Image

from gralora_diffusion.data.images import EXTENSIONS, open_image
from gralora_diffusion.files import write_text
from gralora_diffusion.options import ConfigError
from gralora_diffusion.ui.workspace import BUNDLED, Workspace, folders, new_name, real_file, shown

MOST_FILES = 500  # of a set
MOST_BYTES = 50_000_000  # of an image
LONGEST = 2000  # characters of a caption
FEW = 3


def images_of(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in EXTENSIONS and real_file(p))


def create(home: Workspace, name: str) -> str:
    name = new_name(name, "a set of images", home.set_names())
    (home.images / name).mkdir()
    return name


def add(home: Workspace, name: str, uploads: list[str | Path]) -> list[str]:
    """Copy what can be used into the set; returns a sentence for every file that cannot, or that needs a word."""
    folder, notes = own(home, name), []
    for upload in map(Path, uploads):
        try:
            if len(images_of(folder)) >= MOST_FILES:
                raise ValueError(f"the set has {MOST_FILES} images already")
            note = check_upload(upload)
            place = free_place(folder, upload)
            shutil.copyfile(upload, place)
            notes += [f"{upload.name}: {note}"] if note else []
        except Exception as error:  # a decoder may raise anything at all on a damaged file
            notes.append(f"{upload.name} was left out: {error}")
    return notes


def check_upload(path: Path) -> str:
    """A word on an image that can be used; raises ValueError for one that cannot."""
    if path.suffix.lower() not in EXTENSIONS:
        raise ValueError(f"it is not an image; images end in {', '.join(sorted(EXTENSIONS))}")
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"it is larger than {MOST_BYTES / 1e6:.0f} MB")
    open_image(path)
    with Image.open(path) as image:
        return (
            "it is animated; its first image is learnt"
            if getattr(image, "n_frames", 1) > 1 and image.format != "MPO"
            else ""
        )


def free_place(folder: Path, upload: Path) -> Path:
    """Where an upload goes: its own name in plain letters, numbered when the set has such an image."""
    stem = re.sub(r"[^A-Za-z0-9_-]+", "-", upload.stem).strip("-")[:60] or "image"
    taken = {p.stem.lower() for p in folder.iterdir()}
    stem = next(
        s for n in range(1, MOST_FILES + 2) if (s := stem if n == 1 else f"{stem}-{n}").lower() not in taken
    )
    return folder / (stem + upload.suffix.lower())


def own(home: Workspace, name: str) -> Path:
    if name == BUNDLED:
        raise ConfigError(
            "the bundled images stay as they are: make a set of your own, or copy them into one"
        )
    return home.image_set(name)


def copy(home: Workspace, name: str, new: str) -> str:
    """A set of one's own with the images and captions of another."""
    source, new = home.image_set(name), create(home, new)
    for path in images_of(source):
        shutil.copyfile(path, home.images / new / path.name)
        if caption := caption_of(path):
            write_caption(home.images / new / path.name, caption)
    return new


def caption_of(image: Path) -> str:
    text = image.with_suffix(".txt")
    try:
        return (
            " ".join(text.read_text(encoding="utf-8-sig", errors="replace").split())
            if real_file(text)
            else ""
        )
    except OSError:
        return ""


def write_caption(image: Path, caption: str) -> None:
    """An empty one takes the file away: the trigger prompt stands in then."""
    caption, text = " ".join(caption.split()), image.with_suffix(".txt")
    if len(caption) > LONGEST:
        raise ConfigError(f"the caption of {image.name} has {len(caption)} characters; the most is {LONGEST}")
    if caption:
        write_text(text, caption + "\n")
    else:
        text.unlink(missing_ok=True)


def save_captions(home: Workspace, name: str, captions: dict[str, str]) -> list[str]:
    """Write those that changed; returns the names of their images.  Names that are not in the set are refused."""
    folder = own(home, name)
    there, saved = {p.name: p for p in images_of(folder)}, []
    for file, caption in captions.items():
        if file not in there:
            raise ConfigError(f"the set {name} has no image named {shown(file)}: load the page again")
        if not isinstance(caption, str):
            raise ConfigError(f"the caption of {file} is not a text")
        if " ".join(caption.split()) != caption_of(there[file]):
            write_caption(there[file], caption)
            saved.append(file)
    return saved


def remove(home: Workspace, name: str, file: str) -> None:
    path = {p.name: p for p in images_of(own(home, name))}.get(file)
    if path is None:
        raise ConfigError(f"the set {name} has no image named {shown(file)}")
    path.unlink()
    path.with_suffix(".txt").unlink(missing_ok=True)


def checks(home: Workspace, name: str, resolution: int) -> list[tuple[str, str, str]]:
    """(file, what was found, what to do) of everything that is worth a look."""
    folder = home.image_set(name)
    images, seen, found = images_of(folder), {}, []
    for path in images:
        try:
            image = open_image(path)
        except Exception as error:  # a decoder may raise anything at all on a damaged file
            found.append((path.name, f"cannot be used: {error}", "remove it"))
            continue
        if min(image.size) < resolution:
            found.append(
                (
                    path.name,
                    f"{image.width} x {image.height} pixels, less than {resolution}",
                    "take a larger one, or a lower resolution",
                )
            )
        if max(image.size) > 2 * min(image.size):
            found.append(
                (
                    path.name,
                    f"{image.width} x {image.height} pixels: squares are cut out of it",
                    "crop it to the subject",
                )
            )
        same = hashlib.sha256(image.tobytes()).hexdigest()
        if same in seen:
            found.append((path.name, f"the same image as {seen[same]}", "remove one of them"))
        seen.setdefault(same, path.name)
        if not caption_of(path):
            found.append(
                (path.name, "no caption of its own", "write one, or the trigger prompt of Train stands in")
            )
    if len(images) < FEW:
        found.insert(
            0,
            (
                name,
                f"{len(images) or 'no'} image{'s' * (len(images) != 1)}",
                f"add some: {FEW} are few, 5 to 20 are usual",
            ),
        )
    strange = [p.name for p in folder.iterdir() if p.is_symlink()] + [p.name for p in folders(folder)]
    return found + [
        (file, "a link or a folder", "it is not learnt from; take it out") for file in sorted(strange)
    ]
