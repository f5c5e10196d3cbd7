"""Images with their captions in a folder: found, checked, and told in one sentence if they cannot be used."""

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

from gralora_diffusion.console import note
from gralora_diffusion.data.cache import Cache, key_of
from gralora_diffusion.data.captions import METADATA, PLACES, caption_of, read_metadata
from gralora_diffusion.data.images import DRAWINGS, EXTENSIONS, MAX_BYTES, decode, open_image
from gralora_diffusion.options import ConfigError

IGNORED = {"thumbs.db", "desktop.ini", "readme.md", METADATA}
DOCUMENTS = {
    ".md",
    ".rst",
    ".log",
    ".csv",
    ".toml",
    ".yaml",
    ".yml",
    ".ini",
    ".npz",
}  # never an image nor a caption: left out, and said


@dataclass(frozen=True)
class TrainingImage:
    path: Path  # for a row of a data set, a name to tell it by
    caption: str
    digest: str  # SHA-256 of the file's bytes
    size: tuple[int, int]  # height and width in pixels, upright
    note: str | None = None  # what is left out of it
    read: Callable[[], bytes] | None = None  # the file's bytes, where it is not a file in a folder

    def open(self) -> Image.Image:
        """Raises ConfigError if it has gone or changed since it was checked."""
        try:
            with open(self.path, "rb") if self.read is None else io.BytesIO(self.read()) as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != self.digest:
                    raise ValueError("its content has changed")
                file.seek(0)
                return open_image(file)
        except Exception as error:
            raise ConfigError(
                f"{shown(self.path)} could be used when the run began, and no longer can: {plain(error)}"
            ) from None


def find_images(
    folder: str | Path,
    prompt: str | None,
    option="--instance_data_dir",
    column: str | None = None,
    skip=False,
    cache: Cache | None = None,
    workers=0,
    least: int = 1,
) -> list[TrainingImage]:
    """The folder's images in order of name, each with its caption; `prompt` stands in where there is none (captions.caption_of).

    Every file that the cache does not know is opened and decoded here, in `workers` threads.
    Raises ConfigError with one sentence that names all files that cannot be used, unless they are to be skipped.
    """
    folder = Path(folder)
    files, folders, bad = listing(folder, option)
    try:
        metadata = read_metadata(folder, column)
    except (ValueError, OSError) as error:
        raise ConfigError(f"{folder / METADATA} cannot be used: {plain(error)}") from None
    paths = sorted({p for p in files if p.suffix.lower() in EXTENSIONS} | metadata.keys())
    beside = {f"{p.stem}{p.suffix.lower()}": p for p in files if p.suffix.lower() in (".txt", ".json")}
    stems = {p.stem for p in paths}
    bad |= {p: reason for p in files if p not in metadata and (reason := why_not(p, stems))}

    def examine(path: Path) -> TrainingImage | str:
        try:
            digest, size, note = known(path, cache)
            return TrainingImage(path, caption_of(path, beside, metadata, prompt), digest, size, note)
        except ConfigError:
            raise
        except Exception as error:  # a decoder may raise anything at all on a damaged file
            return plain(error)

    captioned = metadata.keys() | {
        p for p in paths for suffix in (".txt", ".json") if f"{p.stem}{suffix}" in beside
    }
    if prompt is None and paths and captioned.isdisjoint(paths):
        raise ConfigError(
            f"{folder} has no caption for any of its images: give --instance_prompt, or captions ({PLACES})"
        )
    results = dict(zip(paths, check(examine, paths, workers), strict=True))
    found = {path: result for path, result in results.items() if isinstance(result, TrainingImage)}
    bad |= {path: result for path, result in results.items() if not isinstance(result, TrainingImage)}
    refuse(folder, {shown(path.relative_to(folder)): reason for path, reason in sorted(bad.items())}, skip)
    if folders:
        note(f"{folder} has sub-folders, which are left out: {', '.join(map(shown, folders))}")
    if documents := [shown(p.name) for p in files if p.suffix.lower() in DOCUMENTS and p not in metadata]:
        note(
            f"{folder} holds files that are neither images nor captions, which are left out: {', '.join(documents)}"
        )
    if len(found) < least:
        raise ConfigError(f"{folder} holds no images that can be used ({', '.join(sorted(EXTENSIONS))})")
    tell(folder, list(found.values()))
    return list(found.values())


def listing(folder: Path, option: str) -> tuple[list[Path], list[str], dict[Path, str]]:
    """(files in order of name, names of sub-folders, {entry that is neither: reason})"""
    files, folders, bad = [], [], {}
    try:
        if not folder.is_dir():
            raise ConfigError(f"{shown(folder)} is not a folder: {option} must name a folder with images")
        entries = sorted(
            p for p in folder.iterdir() if not p.name.startswith(".") and p.name.lower() not in IGNORED
        )
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"the folder of {option} cannot be read: {error}") from None
    for path in entries:
        try:
            mode = path.stat().st_mode
        except OSError as error:
            bad[path] = plain(error)
            continue
        if stat.S_ISDIR(mode):
            folders.append(path.name)
        elif stat.S_ISREG(mode):
            files.append(path)
        else:
            bad[path] = "a pipe, a socket or a device, not a file"
    return files, folders, bad


def why_not(path: Path, stems: set[str]) -> str | None:
    """Why a file of the folder cannot be used, as far as its name tells."""
    suffix = path.suffix.lower()
    if suffix in EXTENSIONS | DOCUMENTS or (suffix in (".txt", ".json") and path.stem in stems):
        return None
    if suffix in (".txt", ".json"):
        return f"a text file that is no image's caption: there is no image named {shown(path.stem)}"
    return "a drawing, not pixels: export it as PNG" if suffix in DRAWINGS else "not an image"


def known(source: Path | bytes, cache: Cache | None) -> tuple[str, tuple[int, int], str | None]:
    """(SHA-256, (height, width), note) of an image file; decoded unless the cache knows its bytes.  Raises ValueError in plain words."""
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
            image, note = decode(file)
            facts = dict(size=[image.height, image.width], note=note)
            if cache:
                cache.put_facts(key, facts)
    return digest, tuple(facts["size"]), facts["note"]


def check(examine: Callable, items: Iterable, workers: int) -> list:
    """examine(item) for each, in threads, without Pillow's warnings: of bombs, which are refused, and of damaged EXIF."""
    with warnings.catch_warnings(action="ignore"):  # here, once: it is not made for threads
        return list(ahead(examine, items, workers))


def refuse(where, bad: dict[str, str], skip: bool) -> None:
    """Raises ConfigError that names all bad files, or says how many are skipped."""
    if not bad:
        return
    by_reason = {
        reason: ", ".join(name for name, other in bad.items() if other == reason) for reason in bad.values()
    }
    names = "; ".join(f"{which} ({reason})" for reason, which in by_reason.items())
    if not skip:
        raise ConfigError(
            f"{where} holds {len(bad)} file(s) that cannot be used, mend them, take them out, or give --on_bad_image skip: {names}"
        )
    note(f"{len(bad)} file(s) of {where} are skipped: {names}")


def tell(where, images: list[TrainingImage]) -> None:
    """What one should know about images that are used."""
    same = collections.defaultdict(list)
    for image in images:
        same[image.digest].append(shown(image.path.name))
        if image.note:
            note(f"{shown(image.path.name)} {image.note}")
    for names in same.values():
        if len(names) > 1:
            note(
                f"{' and '.join(names)} in {where} hold the same bytes: that image counts {len(names)} times"
            )


def ahead(function: Callable, items: Iterable, workers: int) -> Iterator:
    """function(item) for each item, in order; computed in threads, two each ahead of what is taken."""
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


def shown(name) -> str:
    """A name as one line of text, whatever characters it has."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in str(name)
    )


def plain(error: Exception) -> str:
    """An error's words in one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return shown(" ".join(str(error).split())[:300] or type(error).__name__)
