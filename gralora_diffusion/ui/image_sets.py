"""Sets of pictures: HOME/pictures/NAME, with NAME.txt beside NAME.png as its caption; every file is checked before it gets there."""

import hashlib
import re
import shutil
from pathlib import Path

from PIL import Image

from gralora_diffusion.data.images import EXTENSIONS, open_picture
from gralora_diffusion.files import write_text
from gralora_diffusion.options import ConfigError
from gralora_diffusion.ui.workspace import BUNDLED, Home, folders, new_name, real_file, shown

MOST_FILES = 500  # of a set
MOST_BYTES = 50_000_000  # of a picture
LONGEST = 2000  # characters of a caption
FEW = 3


def pictures_of(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in EXTENSIONS and real_file(p))


def create(home: Home, name: str) -> str:
    name = new_name(name, "a set of pictures", home.set_names())
    (home.pictures / name).mkdir()
    return name


def add(home: Home, name: str, uploads: list[str | Path]) -> list[str]:
    """Copy what can be used into the set; returns a sentence for every file that cannot, or that needs a word."""
    folder, notes = own(home, name), []
    for upload in map(Path, uploads):
        try:
            if len(pictures_of(folder)) >= MOST_FILES:
                raise ValueError(f"the set has {MOST_FILES} pictures already")
            note = check_upload(upload)
            place = free_place(folder, upload)
            shutil.copyfile(upload, place)
            notes += [f"{upload.name}: {note}"] if note else []
        except Exception as error:  # a decoder may raise anything at all on a damaged file
            notes.append(f"{upload.name} was left out: {error}")
    return notes


def check_upload(path: Path) -> str:
    """A word on a picture that can be used; raises ValueError for one that cannot."""
    if path.suffix.lower() not in EXTENSIONS:
        raise ValueError(f"it is not a picture; pictures end in {', '.join(sorted(EXTENSIONS))}")
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"it is larger than {MOST_BYTES / 1e6:.0f} MB")
    open_picture(path)
    with Image.open(path) as image:
        return (
            "it is animated; its first picture is learnt"
            if getattr(image, "n_frames", 1) > 1 and image.format != "MPO"
            else ""
        )


def free_place(folder: Path, upload: Path) -> Path:
    """Where an upload goes: its own name in plain letters, numbered when the set has such a picture."""
    stem = re.sub(r"[^A-Za-z0-9_-]+", "-", upload.stem).strip("-")[:60] or "picture"
    taken = {p.stem.lower() for p in folder.iterdir()}
    stem = next(
        s for n in range(1, MOST_FILES + 2) if (s := stem if n == 1 else f"{stem}-{n}").lower() not in taken
    )
    return folder / (stem + upload.suffix.lower())


def own(home: Home, name: str) -> Path:
    if name == BUNDLED:
        raise ConfigError(
            "the bundled pictures stay as they are: make a set of your own, or copy them into one"
        )
    return home.picture_set(name)


def copy(home: Home, name: str, new: str) -> str:
    """A set of one's own with the pictures and captions of another."""
    source, new = home.picture_set(name), create(home, new)
    for path in pictures_of(source):
        shutil.copyfile(path, home.pictures / new / path.name)
        if caption := caption_of(path):
            write_caption(home.pictures / new / path.name, caption)
    return new


def caption_of(picture: Path) -> str:
    text = picture.with_suffix(".txt")
    try:
        return (
            " ".join(text.read_text(encoding="utf-8-sig", errors="replace").split())
            if real_file(text)
            else ""
        )
    except OSError:
        return ""


def write_caption(picture: Path, caption: str) -> None:
    """An empty one takes the file away: the trigger prompt stands in then."""
    caption, text = " ".join(caption.split()), picture.with_suffix(".txt")
    if len(caption) > LONGEST:
        raise ConfigError(
            f"the caption of {picture.name} has {len(caption)} characters; the most is {LONGEST}"
        )
    if caption:
        write_text(text, caption + "\n")
    else:
        text.unlink(missing_ok=True)


def save_captions(home: Home, name: str, captions: dict[str, str]) -> list[str]:
    """Write those that changed; returns the names of their pictures.  Names that are not in the set are refused."""
    folder = own(home, name)
    there, saved = {p.name: p for p in pictures_of(folder)}, []
    for file, caption in captions.items():
        if file not in there:
            raise ConfigError(f"the set {name} has no picture named {shown(file)}: load the page again")
        if not isinstance(caption, str):
            raise ConfigError(f"the caption of {file} is not a text")
        if " ".join(caption.split()) != caption_of(there[file]):
            write_caption(there[file], caption)
            saved.append(file)
    return saved


def remove(home: Home, name: str, file: str) -> None:
    path = {p.name: p for p in pictures_of(own(home, name))}.get(file)
    if path is None:
        raise ConfigError(f"the set {name} has no picture named {shown(file)}")
    path.unlink()
    path.with_suffix(".txt").unlink(missing_ok=True)


def checks(home: Home, name: str, resolution: int) -> list[tuple[str, str, str]]:
    """(file, what was found, what to do) of everything that is worth a look."""
    folder = home.picture_set(name)
    pictures, seen, found = pictures_of(folder), {}, []
    for path in pictures:
        try:
            image = open_picture(path)
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
            found.append((path.name, f"the same picture as {seen[same]}", "remove one of them"))
        seen.setdefault(same, path.name)
        if not caption_of(path):
            found.append(
                (path.name, "no caption of its own", "write one, or the trigger prompt of Train stands in")
            )
    if len(pictures) < FEW:
        found.insert(
            0,
            (
                name,
                f"{len(pictures) or 'no'} picture{'s' * (len(pictures) != 1)}",
                f"add some: {FEW} are few, 5 to 20 are usual",
            ),
        )
    strange = [p.name for p in folder.iterdir() if p.is_symlink()] + [p.name for p in folders(folder)]
    return found + [
        (file, "a link or a folder", "it is not learnt from; take it out") for file in sorted(strange)
    ]
