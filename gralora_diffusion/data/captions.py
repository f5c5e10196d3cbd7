"""The captions of images: where they are found, and how they are varied."""

import hashlib
import json
import os
from pathlib import Path

import torch

from gralora_diffusion.seeding import generator

MAX_BYTES = 65_536
METADATA = "metadata.jsonl"
PLACES = f"NAME.txt or NAME.json beside NAME.png, or lines of {METADATA}"
COLUMNS = ("text", "caption")  # of metadata.jsonl, where --caption_column names none
ORDERS = 8  # of a caption's tags with --shuffle_captions; bounded, since their embeddings are cached


def clean(text, where: str) -> str:
    """The caption with single spaces; raises ValueError, for a message, where it cannot be used."""
    if not isinstance(text, str):
        raise ValueError(f"its caption in {where} is {type(text).__name__}, not text")
    if "\0" in text:
        raise ValueError(f"its caption in {where} holds a NUL character")
    if len(text.encode(errors="replace")) > MAX_BYTES:
        raise ValueError(f"its caption in {where} is longer than {MAX_BYTES:,} bytes")
    if not (text := " ".join(text.split())):
        raise ValueError(f"its caption in {where} is empty")
    return text


def read_text(path: Path, limit: int = MAX_BYTES) -> str:
    """A caption file's text; raises ValueError, for a message, where it cannot be used."""
    if not path.is_file():
        raise ValueError(f"its caption {path.name} is not a file")
    if path.stat().st_size > limit:
        raise ValueError(f"its caption {path.name} is longer than {limit:,} bytes")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"its caption {path.name} is not UTF-8 text") from None


def caption_of(path: Path, beside: dict[str, Path], metadata: dict[str, str], prompt: str | None) -> str:
    """From NAME.txt, else NAME.json, else metadata.jsonl, else the prompt.

    beside: {file name: caption file}. Raises ValueError, for a message, where it cannot be used.
    """
    if text := beside.get(f"{path.stem}.txt"):
        return clean(read_text(text), text.name)
    if words := beside.get(f"{path.stem}.json"):
        return clean(from_json(words), words.name)
    if path in metadata:
        return clean(metadata[path], METADATA)
    if prompt is None:
        raise ValueError(f"no caption: give --instance_prompt for such images, or captions, {PLACES}")
    return prompt


def from_json(path: Path) -> str:
    """The value of "caption" or "text", then "tags", a string or a list, as kohya's scripts have them.

    Raises ValueError, for a message, where they cannot be used.
    """
    text = read_text(path)
    try:
        entry = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(f"its caption {path.name} is not JSON") from None
    if not isinstance(entry, dict) or not entry.keys() & {"caption", "text", "tags"}:
        raise ValueError(f'its caption {path.name} is not a JSON object with "caption", "text" or "tags"')
    tags = entry.get("tags") or ""
    if isinstance(tags, list) and all(isinstance(tag, str) for tag in tags):
        tags = ", ".join(tags)
    parts = [part for part in (entry.get("caption", entry.get("text")), tags) if part]
    return ", ".join(clean(part, path.name) for part in parts)


def read_metadata(folder: Path, column: str | None) -> dict[Path, str]:
    """{image: caption} of the folder's metadata.jsonl, in the format of Hugging Face's imagefolder.

    Raises ValueError that names the line.
    """
    path = folder / METADATA
    if not os.path.lexists(path):
        return {}
    if not path.is_file():
        raise ValueError("it is not a file")
    found, root = {}, folder.resolve()
    try:
        with open(path, encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                image, caption = read_line(line, column, f"line {number}")
                if ".." in Path(image).parts or root not in (root / image).resolve().parents:
                    raise ValueError(f"line {number} names a file outside the folder")
                if folder / image in found:
                    raise ValueError(f"line {number} names {image} a second time")
                found[folder / image] = caption
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8 text") from None
    return found


def read_line(line: str, column: str | None, where: str) -> tuple[str, str]:
    """(file name, caption) of a line of metadata.jsonl."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        raise ValueError(f"{where} is not JSON") from None
    image = entry.get("file_name") if isinstance(entry, dict) else None
    if not image or not isinstance(image, str) or "\0" in image:
        raise ValueError(f'{where} has no "file_name"')
    columns = (column,) if column else COLUMNS
    for name in columns:
        if name in entry:
            return image, entry[name]
    raise ValueError(f"{where} has no {' or '.join(map(repr, columns))}")


def orders(caption: str, shuffle: bool, keep: int) -> list[str]:
    """The forms of a caption in training: itself, or up to ORDERS orders of its comma-separated tags.

    The first `keep` tags stay in place. The orders follow from the caption alone, so that later runs find
    their embeddings in the cache.
    """
    tags = [tag.strip() for tag in caption.split(",") if tag.strip()]
    if not shuffle or len(tags) - keep < 2:
        return [caption]
    key = int.from_bytes(hashlib.sha256(caption.encode(errors="replace")).digest()[:7], "big")
    forms = {}
    for n in range(ORDERS):
        order = torch.randperm(len(tags) - keep, generator=generator(key, n)).tolist()
        shuffled = [tags[keep + i] for i in order]
        forms[", ".join(tags[:keep] + shuffled)] = None
    return list(forms)


def tokens_cut(pipeline, caption: str) -> int:
    """How many tokens of a caption the text encoders do not read: they read 77, start and end included."""
    extra = []
    for tokenizer in (pipeline.tokenizer, pipeline.tokenizer_2):
        tokens = tokenizer(caption, truncation=False).input_ids
        extra.append(len(tokens) - tokenizer.model_max_length)
    return max(0, *extra)
