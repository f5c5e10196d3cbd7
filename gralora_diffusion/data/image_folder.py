"""Images with their captions in a folder: found, checked, and refused where they cannot be used."""

import collections
import hashlib
import io
import os
import stat
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import PIL
from PIL import Image

from gralora_diffusion.console import counted, note
from gralora_diffusion.data.cache import Cache, key_of
from gralora_diffusion.data.captions import METADATA, PLACES, caption_of, read_metadata
from gralora_diffusion.data.images import EXTENSIONS, MAX_BYTES, VECTOR_GRAPHICS, decode, open_image
from gralora_diffusion.options import ConfigError

IGNORED = {"thumbs.db", "desktop.ini", "readme.md", METADATA}
CAPTIONS = (".txt", ".json")
# Documents are neither images nor captions; they are left out with a note.
DOCUMENTS = {".md", ".rst", ".log", ".csv", ".toml", ".yaml", ".yml", ".ini", ".npz"}
HEIF = {".heic", ".heif", ".hif"}


@dataclass(frozen=True)
class TrainingImage:
    """An image that was checked, with its caption."""

    path: Path  # for a row of a dataset, a name for messages
    caption: str
    digest: str  # SHA-256 of the file's bytes
    size: tuple[int, int]  # height and width in pixels, upright
    note: str | None = None  # what is left out, such as further frames
    read: Callable[[], bytes] | None = None  # the file's bytes, where it is not a file in a folder

    def open(self) -> Image.Image:
        """Raises ConfigError where it is missing or has changed since it was checked."""
        try:
            with open(self.path, "rb") if self.read is None else io.BytesIO(self.read()) as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != self.digest:
                    raise ValueError("its content has changed")
                file.seek(0)
                return open_image(file)
        except Exception as error:
            problem = f"{printable(self.path)} could be used when the run started, and now cannot"
            raise ConfigError(f"{problem}: {reason_of(error)}") from None


def find_images(
    folder: str | Path,
    prompt: str | None,
    option: str = "instance_data_dir",
    column: str | None = None,
    skip: bool = False,
    cache: Cache | None = None,
    workers: int = 0,
    at_least: int = 1,
) -> list[TrainingImage]:
    """The folder's images in order of name, each with its caption, or `prompt` where it has none.

    option: the one that names the folder. skip: leave out files that cannot be used. Files that the cache
    does not know are opened and decoded here, in `workers` threads. Raises ConfigError that names all files
    that cannot be used.
    """
    folder = Path(folder)
    files, folders, bad = listing(folder, option)
    try:
        metadata = read_metadata(folder, column)
    except (ValueError, OSError) as error:
        problem = f"{folder / METADATA} cannot be used: {reason_of(error)}"
        raise ConfigError(problem, option=option) from None
    paths = sorted({p for p in files if p.suffix.lower() in EXTENSIONS} | metadata.keys())
    beside = {f"{p.stem}{p.suffix.lower()}": p for p in files if p.suffix.lower() in CAPTIONS}
    stems = {p.stem for p in paths}
    for path in files:
        if path not in metadata and (reason := reason_by_name(path, stems)):
            bad[path] = reason
    if prompt is None and paths and not any(has_caption(p, beside, metadata) for p in paths):
        problem = f"{folder} has no caption for any of its images"
        ways = f"give --instance_prompt, or captions ({PLACES})"
        raise ConfigError(f"{problem}: {ways}", option="instance_prompt")

    def inspect(path: Path) -> TrainingImage | str:
        """The image, or why it cannot be used."""
        try:
            digest, size, left_out = facts_of_file(path, cache)
            caption = caption_of(path, beside, metadata, prompt)
            return TrainingImage(path, caption, digest, size, left_out)
        except ConfigError:
            raise
        except Exception as error:  # a decoder may raise anything at all on a damaged file
            return reason_of(error)

    found = []
    for path, result in zip(paths, inspect_all(inspect, paths, workers), strict=True):
        if isinstance(result, TrainingImage):
            found.append(result)
        else:
            bad[path] = result
    refuse_files(folder, {printable(p.relative_to(folder)): bad[p] for p in sorted(bad)}, skip, option)
    note_left_out(folder, folders, [p for p in files if p not in metadata])
    if len(found) < at_least:
        problem = f"{folder} holds no images that can be used ({', '.join(sorted(EXTENSIONS))})"
        raise ConfigError(problem, option=option)
    note_peculiarities(folder, found)
    return found


def has_caption(path: Path, beside: dict[str, Path], metadata: dict[Path, str]) -> bool:
    return path in metadata or any(f"{path.stem}{suffix}" in beside for suffix in CAPTIONS)


def note_left_out(folder: Path, folders: list[str], files: list[Path]) -> None:
    """Note which subfolders and documents are not read."""
    if folders:
        note(f"{folder} has subfolders, which are left out: {', '.join(map(printable, folders))}")
    documents = [printable(path.name) for path in files if path.suffix.lower() in DOCUMENTS]
    if documents:
        names = ", ".join(documents)
        note(f"{folder} holds files that are neither images nor captions, which are left out: {names}")


def listing(folder: Path, option: str) -> tuple[list[Path], list[str], dict[Path, str]]:
    """(files in order of name, names of subfolders, {entry that is neither: reason})."""
    files, folders, bad = [], [], {}
    try:
        if not folder.is_dir():
            problem = f"{printable(folder)} is not a folder: --{option} must name a folder of images"
            raise ConfigError(problem, option=option)
        entries = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    except ConfigError:
        raise
    except (OSError, ValueError) as error:
        raise ConfigError(f"the folder of --{option} cannot be read: {error}", option=option) from None
    for path in entries:
        if path.name.lower() in IGNORED:
            continue
        try:
            mode = path.stat().st_mode
        except OSError as error:
            bad[path] = reason_of(error)
            continue
        if stat.S_ISDIR(mode):
            folders.append(path.name)
        elif stat.S_ISREG(mode):
            files.append(path)
        else:
            bad[path] = "a pipe, a socket or a device, not a file"
    return files, folders, bad


def reason_by_name(path: Path, stems: set[str]) -> str | None:
    """Why a file cannot be used, judged by its name alone. stems: those of the images."""
    suffix = path.suffix.lower()
    if suffix in EXTENSIONS | DOCUMENTS or (suffix in CAPTIONS and path.stem in stems):
        return None
    if suffix in CAPTIONS:
        return f"a caption without an image: there is no image named {printable(path.stem)}"
    if suffix in VECTOR_GRAPHICS:
        return "vector graphics, not pixels: export it as PNG"
    if suffix in HEIF:
        return "HEIC is not supported: convert it to JPEG or PNG"
    if suffix == ".caption":
        return f"a caption format that is not supported: rename it to {printable(path.stem)}.txt"
    return "not an image"


def facts_of_file(source: Path | bytes, cache: Cache | None) -> tuple[str, tuple[int, int], str | None]:
    """(SHA-256, (height, width), what is left out) of an image file, decoded unless it is in the cache.

    Raises ValueError, for a message, where it cannot be used.
    """
    length = os.path.getsize(source) if isinstance(source, Path) else len(source)
    if length == 0:
        raise ValueError("empty file")
    if length > MAX_BYTES:
        raise ValueError(f"{length:,} bytes is more than the limit of {MAX_BYTES:,}")
    with open(source, "rb") if isinstance(source, Path) else io.BytesIO(source) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        key = key_of("image", 1, PIL.__version__, digest)
        facts = cache.facts(key) if cache else None
        if facts is None:
            file.seek(0)
            image, left_out = decode(file)
            facts = dict(size=[image.height, image.width], note=left_out)
            if cache:
                cache.put_facts(key, facts)
    return digest, tuple(facts["size"]), facts["note"]


def inspect_all(inspect: Callable, items: Iterable, workers: int) -> list:
    """inspect(item) for each, in threads.

    Without Pillow's warnings about large images, which are refused, and damaged EXIF; filters are not
    thread-safe, so that they are set once, here.
    """
    with warnings.catch_warnings(action="ignore"):
        return list(in_threads(inspect, items, workers))


def refuse_files(where, bad: dict[str, str], skip: bool, option: str) -> None:
    """Raises ConfigError that names all bad files, {name: reason}; with `skip`, only notes them."""
    if not bad:
        return
    by_reason = collections.defaultdict(list)
    for name, reason in bad.items():
        by_reason[reason].append(name)
    names = "; ".join(f"{', '.join(members)} ({reason})" for reason, members in by_reason.items())
    if not skip:
        problem = f"{where} holds {counted(len(bad), 'file')} that cannot be used"
        ways = "repair or remove them, or use --on_bad_image skip"
        raise ConfigError(f"{problem}, {ways}: {names}", option=option)
    note(f"skipped {counted(len(bad), 'file')} of {where}: {names}")


def note_peculiarities(where, images: list[TrainingImage]) -> None:
    """Note what is left out of images, and which are the same."""
    same = collections.defaultdict(list)
    for image in images:
        same[image.digest].append(printable(image.path.name))
        if image.note:
            note(f"{printable(image.path.name)} {image.note}")
    for names in same.values():
        if len(names) > 1:
            files = f"{' and '.join(names)} in {where}"
            note(f"{files} hold the same bytes: that image counts {len(names)} times")


def in_threads(function: Callable, items: Iterable, workers: int) -> Iterator:
    """function(item) for each item, in order; each thread computes up to two ahead of what is taken."""
    if workers == 0:
        yield from map(function, items)
        return
    waiting = collections.deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) >= 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


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
