"""Captions for all images of a folder, in NAME.txt beside each, from a model."""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from gralora_diffusion.data.captioner import Captioner
from gralora_diffusion.data.captions import by_name, files_beside
from gralora_diffusion.data.file_names import composed
from gralora_diffusion.data.images import open_image
from gralora_diffusion.data.listing import CAPTIONS, is_list_of_another_case, listing, reason_of
from gralora_diffusion.data.make_masks import folders_in, images_of
from gralora_diffusion.data.metadata import metadata_in, read_metadata
from gralora_diffusion.files import write_text
from gralora_diffusion.options import ConfigError

MAX_CHARACTERS = 1000  # of a caption; the text encoders read far less


@dataclass(frozen=True)
class Job:
    """An image and the file for its caption."""

    name: str  # of the image, from the folder that was named
    image: Path
    caption: Path
    present: bool  # whether it has a caption


@dataclass
class Written:
    """What write_captions() did, by name."""

    captions: dict[str, str] = field(default_factory=dict)
    kept: list[str] = field(default_factory=list)  # images with a caption of their own
    bad: dict[str, str] = field(default_factory=dict)  # {image: why it has no caption}


def jobs_of(folder: Path) -> list[Job]:
    """Those of a folder, or of its subfolders such as "10_sks dog".

    Raises ConfigError for two images whose captions would be in one file, and a damaged metadata.jsonl.
    """
    jobs, images = [], {}
    for where in folders_in(folder):
        files, _, bad = listing(where, "folder")
        for path in filter(is_list_of_another_case, bad):
            raise ConfigError(f"{path} cannot be used: {bad[path]}", option="folder")
        beside = by_name(files)
        try:
            metadata = read_metadata(where, None)
        except (ValueError, OSError) as error:
            problem = f"{metadata_in(where)} cannot be used: {reason_of(error)}"
            raise ConfigError(problem, option="folder") from None
        for image in images_of(where):
            caption = beside.get(composed(f"{image.stem}.txt"), image.with_suffix(".txt"))
            other = images.setdefault(caption, image)
            if other != image:
                problem = f"{other.name} and {image.name} of {where} would share the caption {caption.name}"
                raise ConfigError(f"{problem}: rename one of them", option="folder")
            own = list(itertools.chain(*(files_beside(image, beside, end) for end in CAPTIONS)))
            present = image in metadata or any(path.read_bytes().strip() for path in own)
            jobs.append(Job(str(image.relative_to(folder)), image, caption, present))
    return jobs


def write_captions(jobs: Iterable[Job], captioner: Captioner, prefix: str, overwrite: bool) -> Written:
    """Write the captions, each complete or absent; those that are present are kept without `overwrite`.

    Raises ConfigError where the model itself cannot be used.
    """
    written = Written()
    for job in jobs:
        if job.present and not overwrite:
            written.kept.append(job.name)
            continue
        try:
            text = caption_by(captioner, job.image, prefix)
            write_text(job.caption, f"{text}\n")
            written.captions[job.name] = text
        except ConfigError:
            raise
        except Exception as error:  # a decoder may raise anything at all on a damaged file
            written.bad[job.name] = reason_of(error)
    return written


def caption_by(captioner: Captioner, image: Path, prefix: str) -> str:
    """The caption of an image; raises any error for a damaged one, ValueError for an empty caption."""
    caption = one_line(captioner.of(open_image(image)))
    if not caption:
        raise ValueError("the model gives an empty caption")
    return shortened(f"{prefix}, {caption}" if prefix else caption)


def one_line(text: str) -> str:
    """With single spaces, and without control characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def shortened(text: str) -> str:
    """At most MAX_CHARACTERS, cut after a word or tag."""
    if len(text) <= MAX_CHARACTERS:
        return text
    return text[:MAX_CHARACTERS].rpartition(" ")[0].rstrip(" ,") or text[:MAX_CHARACTERS]
