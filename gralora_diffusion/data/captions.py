"""The captions of images: where they are found, and how they are varied."""

import functools
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch

from gralora_diffusion.data.file_names import composed
from gralora_diffusion.data.listing import CAPTIONS
from gralora_diffusion.data.metadata import LISTS, has_words
from gralora_diffusion.data.text_files import Text, kind_of, lines_of, read_text
from gralora_diffusion.data.wildcards import wildcard_forms
from gralora_diffusion.sdxl.prompt_weights import split_at_commas
from gralora_diffusion.seeding import generator

MAX_BYTES = 65_536
PLACES = f"NAME.txt, NAME.caption or NAME.json beside NAME.png, or lines of {LISTS}"
ORDERS = 8  # of a caption's tags with --shuffle_captions; bounded, since their embeddings are cached


LINES = "\n"  # between the lines of a caption that are drawn at random


class Variation(NamedTuple):
    """How captions vary in training: the options of the same names."""

    caption_dropout: float = 0.0
    shuffle_captions: bool = False
    keep_tokens: int = 0
    caption_wildcards: bool = False

    @classmethod
    def of(cls, config) -> "Variation":
        """That of a TrainConfig."""
        return cls(*(getattr(config, name) for name in cls._fields))


class NoCaption(ValueError):
    """An image has neither a caption nor a prompt that stands in for it."""


class ForeignJson(ValueError):
    """A .json beside an image holds no caption: it may be another program's."""


class Caption(NamedTuple):
    """An image's caption, and what is worth a note about it."""

    text: str
    file: str | None = None  # name of its file
    lines: int = 1  # of that file
    guessed: bool = False  # see Text
    empty: str | None = None  # name of a caption file without words, which counts as none
    unused: str | None = None  # name of a file with another caption
    in_metadata: bool = False  # whether it is in one of LISTS, and not in a file of its own


def clean(text, where: str) -> str:
    """The caption with single spaces, which may be empty; raises ValueError, for a message."""
    if not isinstance(text, str):
        raise ValueError(f"its caption in {where} is {kind_of(text)}, not text")
    if "\0" in text:
        raise ValueError(f"its caption in {where} holds a NUL character: save it as UTF-8")
    if len(text.encode(errors="replace")) > MAX_BYTES:
        raise ValueError(f"its caption in {where} is longer than {MAX_BYTES:,} bytes")
    return " ".join(text.split())


def caption_of(
    path: Path,
    beside: dict[str, Path],
    metadata: dict[Path, str],
    prompt: str | None,
    lines: str = "first",
    prompt_option: str = "instance_prompt",
) -> Caption:
    """From NAME.txt, NAME.caption, NAME.json, metadata.jsonl, or the prompt: the first that has words.

    beside: {file name: caption file}. lines: which lines of a text file are used (--caption_lines).
    Raises NoCaption where there is none, ValueError, for a message, if it cannot be used.
    """
    files = [file for suffix in CAPTIONS for file in files_beside(path, beside, suffix)]
    readers = [functools.partial(from_file, file, lines) for file in files]
    if path in metadata:
        readers.append(functools.partial(from_metadata, metadata[path]))
    found, foreign = [], None
    for read in readers:
        try:
            found.append(read())
        except ForeignJson as error:
            foreign = foreign or error
        except ValueError:
            if not any(caption.text for caption in found):  # else it may be another program's
                raise
    if foreign and not any(caption.text for caption in found):
        raise foreign
    if caption := first_with_words(found):
        return caption
    empty = next((caption.file or LISTS for caption in found), None)
    if prompt is None and empty:
        raise ValueError(f"its caption in {empty} is empty, and there is no --{prompt_option}")
    if prompt is None:
        raise NoCaption(f"no caption: give --{prompt_option} for such images, or captions, {PLACES}")
    return Caption(prompt, empty=empty)


def by_name(files: Iterable[Path]) -> dict[str, Path]:
    """{name with its ending in lower case, spelled in one way: file} of caption files."""
    return {composed(f"{path.stem}{path.suffix.lower()}"): path for path in files}


def files_beside(path: Path, beside: dict[str, Path], suffix: str) -> list[Path]:
    """NAME.txt and NAME.png.txt of NAME.png, as far as they are in by_name()."""
    names = [composed(f"{name}{suffix}") for name in (path.stem, path.name)]
    return [beside[name] for name in names if name in beside]


def from_file(path: Path, lines: str) -> Caption:
    """The caption in a file, which may be empty. Raises ValueError, for a message, if it cannot be used."""
    if path.suffix.lower() == ".json":
        return Caption(from_json(path), path.name)
    return from_text(path, lines)


def from_metadata(text) -> Caption:
    return Caption(clean(text, LISTS), in_metadata=True)


def first_with_words(found: list[Caption]) -> Caption | None:
    """The first caption that is not empty, with the source of another one that is different."""
    found = [caption for caption in found if caption.text]
    if not found:
        return None
    others = [caption.file or LISTS for caption in found if caption.text != found[0].text]
    return found[0]._replace(unused=others[0] if others else None)


def from_text(path: Path, lines: str) -> Caption:
    """The caption in a text file: its first line with words, all of them joined, or all to draw one."""
    content = caption_file(path)
    found = [line for line in lines_of(content.text) if line.strip()]
    if lines == "first":
        text = clean(found[0] if found else "", path.name)
    else:
        separator = LINES if lines == "random" else " "
        text = separator.join(clean(line, path.name) for line in found)
    return Caption(text, path.name, len(found), content.guessed)


def caption_file(path: Path) -> Text:
    """Raises ValueError, for a message, where it cannot be used."""
    try:
        return read_text(path, MAX_BYTES)
    except ValueError as error:
        raise ValueError(f"its caption {error}") from None


def from_json(path: Path) -> str:
    """The value of "caption" or "text", then "tags", a string or a list, as kohya's scripts have them.

    Raises ValueError, for a message, where they cannot be used.
    """
    try:
        entry = json.loads(caption_file(path).text)
    except (json.JSONDecodeError, RecursionError):
        raise ValueError(f"its caption {path.name} is not JSON") from None
    if not isinstance(entry, dict) or not entry.keys() & {"caption", "text", "tags"}:
        raise ForeignJson(f'its caption {path.name} is not a JSON object with "caption", "text" or "tags"')
    tags = entry.get("tags") or ""
    if isinstance(tags, list) and all(isinstance(tag, str) for tag in tags):
        tags = ", ".join(tags)
    captions = [entry[name] for name in ("caption", "text") if has_words(entry.get(name))]
    parts = [part for part in (*captions[:1], tags) if part]
    words = [clean(part, path.name) for part in parts]
    return ", ".join(filter(None, words))


def forms_of(caption: str, variation: Variation, weighted: bool = False) -> list[str]:
    """Every form of a caption in training but the dropped one, each as likely as the others.

    weighted: whether brackets set weights, which stay around their words.
    """
    forms = []
    for line in caption.split(LINES):
        for form in wildcard_forms(line) if variation.caption_wildcards else [line]:
            forms += orders(form, variation.shuffle_captions, variation.keep_tokens, weighted)
    return forms


def orders(caption: str, shuffle: bool, keep: int, weighted: bool = False) -> list[str]:
    """The forms of a caption in training: itself, or up to ORDERS orders of its comma-separated tags.

    The first `keep` tags stay in place. The orders follow from the caption alone, so that later runs find
    their embeddings in the cache.
    """
    parts = split_at_commas(caption) if weighted else caption.split(",")
    tags = [tag.strip() for tag in parts if tag.strip()]
    if not shuffle or len(tags) - keep < 2:
        return [caption]
    key = int.from_bytes(hashlib.sha256(caption.encode(errors="replace")).digest()[:7], "big")
    forms = {}
    for n in range(ORDERS):
        order = torch.randperm(len(tags) - keep, generator=generator(key, n)).tolist()
        shuffled = [tags[keep + i] for i in order]
        forms[", ".join(tags[:keep] + shuffled)] = None
    return list(forms)
