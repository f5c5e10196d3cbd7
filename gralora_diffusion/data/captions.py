"""The words that belong to images: where they are found, and how they are varied."""

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
ORDERS = 8  # that --shuffle_captions shows a caption in: their embeddings are kept on disk, so there must be a bound


def clean(text, where: str) -> str:
    """White space folded; raises ValueError in plain words if that leaves nothing to learn."""
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
    if not path.is_file():
        raise ValueError(f"its caption {path.name} is not a file")
    if path.stat().st_size > limit:
        raise ValueError(f"its caption {path.name} is longer than {limit:,} bytes")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"its caption {path.name} is not UTF-8 text") from None


def caption_of(path: Path, beside: dict[str, Path], metadata: dict[str, str], prompt: str | None) -> str:
    """NAME.txt, else NAME.json, else the line of metadata.jsonl, else the prompt.  Raises ValueError in plain words."""
    if text := beside.get(f"{path.stem}.txt"):
        return clean(read_text(text), text.name)
    if words := beside.get(f"{path.stem}.json"):
        return clean(from_json(words), words.name)
    if path in metadata:
        return clean(metadata[path], METADATA)
    if prompt is None:
        raise ValueError(f"no caption: give --instance_prompt to stand in, or captions, {PLACES}")
    return prompt


def from_json(path: Path) -> str:
    """ "caption" (or "text"), and "tags" after it, as a string or a list: kohya's way.  Raises ValueError in plain words."""
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
    """{image: caption} of the folder's metadata.jsonl, in Hugging Face's imagefolder form.  Raises ValueError that names the line."""
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
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        raise ValueError(f"{where} is not JSON") from None
    if (
        not isinstance(entry, dict)
        or not isinstance(entry.get("file_name"), str)
        or not entry["file_name"]
        or "\0" in entry["file_name"]
    ):
        raise ValueError(f'{where} has no "file_name"')
    names = [name for name in ((column,) if column else COLUMNS) if name in entry]
    if not names:
        raise ValueError(
            f"{where} has no {' or '.join(repr(name) for name in ((column,) if column else COLUMNS))}"
        )
    return entry["file_name"], entry[names[0]]


def orders(caption: str, shuffle: bool, keep: int) -> list[str]:
    """The forms that a caption is shown in: itself, or up to ORDERS orders of its comma-separated tags with the first `keep` in place.

    They follow from the caption alone, so that later runs find their embeddings.
    """
    tags = [tag.strip() for tag in caption.split(",") if tag.strip()]
    if not shuffle or len(tags) - keep < 2:
        return [caption]
    key = int.from_bytes(hashlib.sha256(caption.encode(errors="replace")).digest()[:7], "big")
    forms = {}
    for n in range(ORDERS):
        order = torch.randperm(len(tags) - keep, generator=generator(key, n)).tolist()
        forms[", ".join(tags[:keep] + [tags[keep + i] for i in order])] = None
    return list(forms)


def cut_tokens(pipeline, caption: str) -> int:
    """How many tokens of a caption its text encoders do not see: they read 77, start and end included."""
    counts = [
        len(t(caption, truncation=False).input_ids) - t.model_max_length
        for t in (pipeline.tokenizer, pipeline.tokenizer_2)
    ]
    return max(0, *counts)
