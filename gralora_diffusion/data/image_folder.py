"""Images with their captions in a folder: found, checked, and refused where they cannot be used."""

import collections
import hashlib
import io
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from gralora_diffusion.console import counted, note
from gralora_diffusion.data.cache import Cache, key_of
from gralora_diffusion.data.caption_notes import note_captions
from gralora_diffusion.data.captions import (
    PLACES,
    NoCaption,
    Variation,
    by_name,
    caption_of,
    files_beside,
)
from gralora_diffusion.data.file_facts import facts_of, unchanged
from gralora_diffusion.data.folder_notes import note_left_out, note_mask_names, note_unlisted
from gralora_diffusion.data.images import EXTENSIONS, decode, open_image
from gralora_diffusion.data.listing import (
    CAPTIONS,
    NUMBERED,
    caption_stems,
    has_images,
    is_other_list,
    listing,
    printable,
    reason_by_name,
    reason_of,
    some,
)
from gralora_diffusion.data.mask_images import Mask
from gralora_diffusion.data.masks import companions
from gralora_diffusion.data.metadata import metadata_in, read_metadata
from gralora_diffusion.files import resolved
from gralora_diffusion.options import ConfigError


@dataclass(frozen=True)
class TrainingImage:
    """An image that was checked, with its caption."""

    path: Path  # for a row of a dataset, a name for messages
    caption: str
    digest: str  # SHA-256 of the file's bytes
    size: tuple[int, int]  # height and width in pixels, upright
    note: str | None = None  # what is left out, such as further frames
    read: Callable[[], bytes] | None = None  # the file's bytes, where it is not a file in a folder
    repeats: int = 1  # how often an epoch has it, beside --repeats
    concept: int = 0  # number of its concept in the run
    class_set: int = 0  # number of the class images that are trained beside it, or that it belongs to
    variation: Variation | None = None  # how its caption varies; None: as the run's options say
    prompted: bool = False  # whether the caption is a prompt that stands in for one
    mask: Mask | None = None  # with --masked_loss; None: the whole image counts

    @property
    def crop_key(self) -> int:
        """The key of the places where it is cropped at random."""
        return int(self.digest[:12], 16)

    def open(self) -> Image.Image:
        """Raises ConfigError where it is missing or has changed since it was checked."""
        try:
            with open(self.path, "rb") if self.read is None else io.BytesIO(self.read()) as file:
                return open_image(unchanged(file, self.digest))
        except Exception as error:
            problem = f"{printable(self.path)} could be used when the run started, and now cannot"
            raise ConfigError(f"{problem}: {reason_of(error)}") from None


def content_of(images: list[TrainingImage], masks: bool = True) -> str:
    """A hash of all that training takes from these images: bytes, names, captions and repeats, no folders.

    masks: whether their masks count too.
    """
    content = hashlib.sha256()
    for image in images:
        content.update(f"{image.path.name}\0{image.caption}\0{image.digest}\0".encode())
        own = image.repeats, image.class_set, image.variation
        if own != (1, 0, None):
            content.update(f"{own}\0".encode())
        if masks and image.mask:
            content.update(f"{image.mask.identity}\0".encode())
    return content.hexdigest()


def content_of_masks(images: list[TrainingImage]) -> str:
    """A hash of the masks and of what they belong to; the same for all images without masks."""
    return key_of("masks", [(image.digest, image.mask.identity) for image in images if image.mask])


def find_images(
    folder: str | Path,
    prompt: str | None,
    option: str = "instance_data_dir",
    column: str | tuple[str, ...] | None = None,
    skip: bool = False,
    cache: Cache | None = None,
    workers: int = 0,
    at_least: int = 1,
    lines: str = "first",
    mask_folder: Path | None = None,
) -> list[TrainingImage]:
    """The folder's images in order of name, each with its caption, or `prompt` where it has none.

    option: the one that names the folder. skip: leave out files that cannot be used. lines: the value of
    --caption_lines. mask_folder: with masks, perhaps a subfolder. Files that the cache does not know are
    opened and decoded here, in `workers` threads. Raises ConfigError that names all that cannot be used.
    """
    folder = Path(folder)
    files, folders, bad = listing(folder, option)
    try:
        metadata = read_metadata(folder, column)
    except (ValueError, OSError) as error:
        problem = f"{metadata_in(folder)} cannot be used: {reason_of(error)}"
        raise ConfigError(problem, option=option) from None
    images = {p for p in files if p.suffix.lower() in EXTENSIONS}
    masks = [p for p in companions(sorted(images)) if p not in metadata]
    paths = sorted(images.difference(masks) | metadata.keys())
    beside = captions_beside(folder, files, metadata)
    stems = caption_stems(images | metadata.keys())
    for path in files:
        if path not in metadata and (reason := reason_by_name(path, stems)):
            bad[path] = reason
    prompt_option = "class_prompt" if option == "class_data_dir" else "instance_prompt"
    if prompt is None and paths and not any(has_caption(p, beside[p.parent], metadata) for p in paths):
        problem = f"{folder} has no caption for any of its images"
        texts = [p for p in sorted(bad) if p.suffix.lower() in CAPTIONS or is_other_list(p.name.lower())]
        if texts:
            problem += f" ({printable(texts[0].name)}: {bad[texts[0]]})"
        ways = f"give --{prompt_option}, or captions ({PLACES})"
        if (match := NUMBERED.fullmatch(folder.name)) and match[2] and option == "instance_data_dir":
            ways += (
                f"; --{option} {printable(folder.parent)} takes repeats and captions from the folder names"
            )
        raise ConfigError(f"{problem}: {ways}", option=prompt_option)
    captions = {}
    bare = set()  # images that lack a caption and nothing else

    def inspect(path: Path) -> TrainingImage | str:
        """The image, or why it cannot be used."""
        try:
            digest, size, left_out = facts_of_file(path, cache)
            caption = caption_of(path, beside[path.parent], metadata, prompt, lines, prompt_option)
            captions[path] = caption
            prompted = caption.file is None and not caption.in_metadata
            return TrainingImage(path, caption.text, digest, size, left_out, prompted=prompted)
        except ConfigError:
            raise
        except Exception as error:  # a decoder may raise anything at all on a damaged file
            if isinstance(error, NoCaption):
                bare.add(path)
            return reason_of(error)

    found = []
    for path, result in zip(paths, inspect_all(inspect, paths, workers), strict=True):
        if isinstance(result, TrainingImage):
            found.append(result)
        else:
            bad[path] = result
    if bare and bare == bad.keys() and not skip:
        names = [str(path.relative_to(folder)) for path in sorted(bare)]
        example = printable(f"{min(bare).stem}.txt for {min(bare).name}")
        beside_it = "beside it" if len(bare) == 1 else "beside each"
        way = f"give --{prompt_option}, or write a caption {beside_it} ({example})"
        refuse_without_caption(folder, names, len(paths), way, prompt_option)
    refuse_files(folder, {printable(p.relative_to(folder)): bad[p] for p in sorted(bad)}, skip, option)
    used = {path.relative_to(folder).parts[0] for path in metadata}
    if mask_folder is not None:
        used.update(name for name in folders if resolved(folder / name) == resolved(mask_folder))
    folders = [name for name in folders if name not in used]
    note_left_out(folder, folders, [p for p in files if p not in metadata], masks)
    note_mask_names(folder, paths, images)
    note_unlisted(folder, metadata)
    if len(found) < at_least:
        problem = f"{folder} holds no images that can be used ({', '.join(sorted(EXTENSIONS))})"
        if inside := [name for name in folders if has_images(folder / name)]:
            problem += f"; move here those of its {counted(len(inside), 'subfolder')} {some(inside)}"
        raise ConfigError(problem, option=option)
    note_captions(folder, [captions[image.path] for image in found], lines, prompt)
    note_peculiarities(folder, found)
    return found


def captions_beside(
    folder: Path, files: list[Path], metadata: dict[Path, str]
) -> dict[Path, dict[str, Path]]:
    """{folder: by_name() its caption files}, of the folder, whose files these are, and those of metadata."""
    found = {folder: by_name(path for path in files if path.suffix.lower() in CAPTIONS)}
    for parent in {path.parent for path in metadata} - {folder}:
        others = parent.iterdir() if parent.is_dir() else ()
        found[parent] = by_name(path for path in others if path.suffix.lower() in CAPTIONS and path.is_file())
    return found


def has_caption(path: Path, beside: dict[str, Path], metadata: dict[Path, str]) -> bool:
    return path in metadata or any(files_beside(path, beside, suffix) for suffix in CAPTIONS)


def facts_of_file(source: Path | bytes, cache: Cache | None) -> tuple[str, tuple[int, int], str | None]:
    """(SHA-256, (height, width), what is left out) of an image file, decoded unless it is in the cache.

    Raises ValueError, for a message, where it cannot be used.
    """
    digest, facts = facts_of(source, cache, "image", size_and_note)
    return digest, tuple(facts["size"]), facts["note"]


def size_and_note(file: BinaryIO) -> dict:
    image, left_out = decode(file)
    return dict(size=[image.height, image.width], note=left_out)


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
        ways = "repair or remove what is listed, or use --on_bad_image skip"
        raise ConfigError(f"{problem}; {ways}: {names}", option=option)
    note(f"skipped {counted(len(bad), 'file')} of {where}: {names}")


def refuse_without_caption(where, names: list[str], total: int, way: str, option: str) -> None:
    """Raises ConfigError for these images, which nothing but a caption is missing from."""
    have = "has" if len(names) == 1 else "have"
    problem = f"{len(names)} of {counted(total, 'image')} in {where} {have} no caption ({some(names)})"
    raise ConfigError(f"{problem}: {way}", option=option)


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
            note(f"{files} hold the same bytes: this image is used {len(names)} times")


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
