"""What a folder of images holds, judged by names alone."""

import re
import stat
from collections.abc import Iterable
from pathlib import Path

from gralora_diffusion.data.file_names import composed
from gralora_diffusion.data.images import EXTENSIONS, NO_JXL, OTHER_RASTERS, RAW, VECTOR_GRAPHICS
from gralora_diffusion.data.metadata import METADATA, METADATA_CSV, is_list_name, metadata_in
from gralora_diffusion.files import resolved
from gralora_diffusion.options import ConfigError

IGNORED = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "readme.md", METADATA, METADATA_CSV}
IGNORED_FOLDERS = {"__macosx", "@eadir", "_latent_cache", "_t_e_cache"}
CACHES = {".npz", ".aae"}  # of other trainers, and edits of a phone: ignored
MARK_OF_THE_WEB = ":zone.identifier"  # what Windows knows of a download, as a file of its own
LISTS_ELSEWHERE = {"caption", "captions", "metadata", "meta_cap", "meta_clean", "meta_lat", "prompts", "tags"}
TABLES_ELSEWHERE = LISTS_ELSEWHERE | {"data", "dataset", "labels", "train"}
CAPTIONS = (".txt", ".caption", ".json")
# Documents are neither images nor captions; they are left out with a note.
DOCUMENTS = {
    ".md", ".rst", ".log", ".csv", ".toml", ".yaml", ".yml", ".ini", ".xmp", ".mov", ".mp4",
}  # fmt: skip
NAMED = 10  # files that a note names
NUMBERED = re.compile(r"0*(\d{1,4})(?:_(.*))?", re.S)  # "20240501_beach" is a date


def listing(folder: Path, option: str) -> tuple[list[Path], list[str], dict[Path, str]]:
    """(files in order of name, names of subfolders, {entry that is neither: reason})."""
    files, folders, bad = [], [], {}
    name = "FOLDER" if option == "folder" else f"--{option}"  # FOLDER: of a command without flags
    try:
        if not folder.is_dir():
            problem = f"{printable(folder)} is not a folder: {name} must name a folder of images"
            raise ConfigError(problem, option=option)
        entries = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    except ConfigError:
        raise
    except (OSError, ValueError) as error:
        what = name if option == "folder" else f"the folder of {name}"
        raise ConfigError(f"{what} cannot be read: {error}", option=option) from None
    images = {path.stem for path in entries if path.suffix.lower() in EXTENSIONS}
    for path in entries:
        if is_list_of_another_case(path):
            bad[path] = f"captions are read from {path.name.lower()}, in lower case: rename it"
            continue
        if is_ignored(path.name.lower()):
            continue
        if is_other_list(path.name.lower()) and path.stem not in images:
            bad[path] = f"a list of captions by its name, which is read as {METADATA} or {METADATA_CSV} alone"
            continue
        try:
            mode = path.stat().st_mode
        except OSError as error:
            bad[path] = reason_of(error)
            continue
        if stat.S_ISDIR(mode):
            if path.name.lower() not in IGNORED_FOLDERS and not leads_up(path):
                folders.append(path.name)
        elif stat.S_ISREG(mode):
            files.append(path)
        else:
            bad[path] = "a pipe, a socket or a device, not a file"
    return files, folders, bad


def is_ignored(name: str) -> bool:
    """Whether a file of this name, in lower case, is neither used nor worth a note."""
    return name in IGNORED or Path(name).suffix in CACHES or name.endswith(MARK_OF_THE_WEB)


def is_other_list(name: str) -> bool:
    """Whether a file of this name, in lower case, lists captions for another program."""
    stem, _, ending = name.rpartition(".")
    if ending == "txt":
        return stem in LISTS_ELSEWHERE
    return stem in TABLES_ELSEWHERE and ending in ("csv", "tsv", "json", "jsonl", "parquet")


def is_list_of_another_case(path: Path) -> bool:
    """Whether it is a metadata.jsonl or metadata.csv in upper case, where that is another name."""
    name = path.name.lower()
    if name == path.name or not is_list_name(name):
        return False
    own = path.with_name(name)
    return not (own.exists() and path.exists() and own.samefile(path))


def leads_up(folder: Path) -> bool:
    """Whether it is a link to a folder that it is in."""
    target = resolved(folder)
    parent = resolved(folder.parent)
    return folder.is_symlink() and (target == parent or target in parent.parents)


def caption_stems(images: Iterable[Path]) -> dict[str, set[str]]:
    """{NAME and NAME.png of images in lower case: spellings}; the names of captions begin with them."""
    found = {}
    for path in images:
        for stem in (composed(path.stem), composed(path.name)):
            found.setdefault(stem.lower(), set()).add(stem)
    return found


def is_among(stem: str, stems: dict[str, set[str]]) -> bool:
    """Whether it is one of caption_stems(), in its own case."""
    return composed(stem) in stems.get(composed(stem).lower(), ())


def reason_by_name(path: Path, stems: dict[str, set[str]]) -> str | None:
    """Why a file cannot be used, judged by its name alone. stems: caption_stems() of the images."""
    suffix, has_image = path.suffix.lower(), is_among(path.stem, stems)
    if suffix in EXTENSIONS | DOCUMENTS or (suffix in CAPTIONS and has_image):
        return None
    if suffix in CAPTIONS:
        spellings = stems.get(composed(path.stem).lower())
        case = f", but {printable(min(spellings))}: rename one of them" if spellings else ""
        return f"a caption without an image: there is no image named {printable(path.stem)}{case}"
    if suffix in VECTOR_GRAPHICS:
        return "vector graphics, not pixels: export it as PNG"
    if suffix == ".jxl":
        return NO_JXL
    if suffix in OTHER_RASTERS:
        return "a format of images that is not read: export it as PNG or JPEG"
    if suffix in RAW:
        return "a raw photo: export it as JPEG or PNG"
    if has_image:
        return "neither an image nor a caption by its name: captions end in .txt, .caption or .json"
    return "not an image"


def numbered(folder: Path) -> list[tuple[Path, int, str]]:
    """[(subfolder, repeats, words)] of the subfolders that kohya's scripts read, such as "10_sks dog".

    In order of name; none where the folder cannot be read.
    """
    found = []
    try:
        paths = sorted(folder.iterdir())
        for path in paths:
            name = numbered_name(path.name)
            if name and path.is_dir() and not leads_up(path):
                found.append((path, *name))
    except (OSError, ValueError):
        return []
    return found


def numbered_name(name: str) -> tuple[int, str] | None:
    """(repeats, words) of a folder's name such as "10_sks dog"; None for other names."""
    match = NUMBERED.fullmatch(name) if len(name) <= 255 else None
    if not match or not int(match[1]):
        return None
    return int(match[1]), " ".join((match[2] or "").split())


def has_images(folder: Path) -> bool:
    """Whether the folder itself holds or names images."""
    try:
        names = [path.name.lower() for path in folder.iterdir() if not path.name.startswith(".")]
    except (OSError, ValueError):
        return False
    return metadata_in(folder) is not None or any(name.endswith(tuple(EXTENSIONS)) for name in names)


def some(names: list[str]) -> str:
    """Up to NAMED of the names, in one line."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(map(printable, names[:NAMED])) + more


def printable(name) -> str:
    """A name as one line of text, whatever characters it has."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in str(name)
    )


def reason_of(error: Exception) -> str:
    """An error's message in one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return printable(" ".join(str(error).split())[:300] or type(error).__name__)
