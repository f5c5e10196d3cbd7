"""Zip archives among the uploads: their images and captions as files of one folder."""

import re
import zipfile
from pathlib import Path, PurePosixPath

from gralora_diffusion.data.captions import MAX_BYTES as MAX_CAPTION_BYTES
from gralora_diffusion.data.images import EXTENSIONS
from gralora_diffusion.data.listing import numbered_name
from gralora_diffusion.data.metadata import METADATA, METADATA_CSV
from gralora_diffusion.ui.image_sets import MAX_FILES

MAX_BYTES = 50_000_000  # of an image
MAX_ZIP_BYTES = 2_000_000_000  # of what an archive holds
MAX_NAME = 80  # bytes of a folder's name in a file's
CAPTIONS = {".txt", ".caption", ".json"}
LINES = {Path(name).suffix for name in (METADATA, METADATA_CSV)}
READABLE = EXTENSIONS | CAPTIONS | LINES


def unzip(archive: Path, folder: Path, concepts: dict[Path, str]) -> list[Path]:
    """The images and captions of an archive, in `folder` under the names of flat_names().

    Fills concepts, {file: the name of its folder in the archive}, for folders such as "10_sks dog". Raises
    ValueError for an archive with too many or too large files, or that is encrypted.
    """
    folder.mkdir()
    with zipfile.ZipFile(archive) as file:
        members = [member for member in file.infolist() if is_wanted(member)]
        if len(members) > 2 * MAX_FILES:
            raise ValueError(f"it holds more than {2 * MAX_FILES} files")
        if sum(member.file_size for member in members) > MAX_ZIP_BYTES:
            raise ValueError(f"it holds more than {MAX_ZIP_BYTES / 1e9:.0f} GB")
        if any(member.flag_bits & 1 for member in members):
            raise ValueError("it is encrypted: unpack it first")
        paths = []
        for member, name in zip(members, flat_names(members), strict=True):
            path = folder / name
            if path.exists():
                raise ValueError(f"it holds two files named {name}")
            limit = MAX_CAPTION_BYTES if path.suffix.lower() in CAPTIONS else MAX_BYTES
            if member.file_size > limit:
                raise ValueError(f"{name} in it is larger than {limit / 1e6:g} MB")
            with file.open(member) as source:
                path.write_bytes(source.read(limit + 1)[:limit])
            paths.append(path)
            concept = PurePosixPath(member.filename).parent.name
            if numbered_name(concept):
                concepts[path] = concept
    return paths


def is_wanted(member: zipfile.ZipInfo) -> bool:
    """Whether it is an image or a caption, and none of the copies that macOS puts into archives."""
    path = PurePosixPath(member.filename)
    hidden = path.name.startswith(".") or "__MACOSX" in path.parts
    return not member.is_dir() and not hidden and path.suffix.lower() in READABLE


def flat_names(members: list[zipfile.ZipInfo]) -> list[str]:
    """The name of each file without its folders.

    Where two concepts of kohya hold images of the same name, theirs, with captions and masks, begin with the
    words of these folders: "10_sks dog/1.png" and "5_cat/1.png" become "sks-dog-1.png" and "cat-1.png".
    Other folders may hold masks or class images, and lists name files: with those, names stay equal.
    """
    folders: dict[str, set] = {}  # {stem: the folders with an image of that stem}
    paths = [PurePosixPath(member.filename) for member in members]
    for path in paths:
        if path.suffix.lower() in EXTENSIONS:
            folders.setdefault(path.stem.lower(), set()).add(path.parent)
    shared = set().union(*(found for found in folders.values() if len(found) > 1))
    has_list = any(path.suffix.lower() in LINES for path in paths)
    if has_list or not all(is_concept(folder) for folder in shared):
        return [path.name for path in paths]
    prefixes = prefixes_of(shared)
    return [prefixes.get(path.parent, "") + path.name for path in paths]


def is_concept(folder: PurePosixPath) -> bool:
    """Whether it is a folder such as "10_sks dog" of training images, not of class images."""
    return numbered_name(folder.name) is not None and "reg" not in folder.parts


def prefixes_of(concepts: set[PurePosixPath]) -> dict[PurePosixPath, str]:
    """{folder: what its files' names begin with}: its words, or its whole name where two have equal words."""
    words = {folder: in_a_name(numbered_name(folder.name)[1] or folder.name) for folder in concepts}
    if len(set(words.values())) < len(words):
        words = {folder: in_a_name(folder.name) for folder in concepts}
    return {folder: f"{text}-" for folder, text in words.items()}


def in_a_name(text: str) -> str:
    """The text as a part of a file's name, of at most MAX_NAME bytes."""
    found = re.sub(r"[^\w-]+", "-", text).strip("-").encode()[:MAX_NAME]
    return found.decode(errors="ignore")
