"""Captions of a folder's images in metadata.jsonl or metadata.csv, as in Hugging Face's imagefolder."""

import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path

from gralora_diffusion.data.text_files import read_text

METADATA = "metadata.jsonl"
METADATA_CSV = "metadata.csv"
LISTS = f"{METADATA} or {METADATA_CSV}"
COLUMNS = ("text", "caption")  # where --caption_column names none


def metadata_in(folder: Path) -> Path | None:
    """The folder's metadata.jsonl or metadata.csv; None without."""
    lists = (folder / name for name in (METADATA, METADATA_CSV))
    return next((path for path in lists if os.path.lexists(path)), None)


def read_metadata(folder: Path, column: str | None) -> dict[Path, str]:
    """{image: caption} of the folder's metadata.jsonl or metadata.csv; {} where there is none.

    Raises ValueError that names the line.
    """
    path = metadata_in(folder)
    if path is None:
        return {}
    if path.name == METADATA and os.path.lexists(folder / METADATA_CSV):
        raise ValueError(f"there is {METADATA_CSV} too: remove one of the two")
    if not path.is_file():
        raise ValueError("it is not a file")
    found, root = {}, folder.resolve()
    entries = of_jsonl if path.name == METADATA else of_csv
    for where, entry in entries(read_text(path).text):
        image, caption = read_entry(entry, column, where)
        if ".." in Path(image).parts or root not in (root / image).resolve().parents:
            raise ValueError(f"{where} names a file outside the folder")
        if folder / image in found:
            raise ValueError(f"{where} names {image} a second time")
        found[folder / image] = caption
    return found


def of_jsonl(text: str) -> Iterator[tuple[str, object]]:
    """(where, entry) of each line with words."""
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            yield f"line {number}", json.loads(line)
        except (ValueError, RecursionError):
            raise ValueError(f"line {number} is not JSON") from None


def of_csv(text: str) -> Iterator[tuple[str, dict]]:
    """(where, row) of each row with words, by the names in the first."""
    try:
        for row in (reader := csv.DictReader(text.splitlines(keepends=True), strict=True)):
            yield f"line {reader.line_num}", {name: value for name, value in row.items() if value is not None}
    except csv.Error as error:
        raise ValueError(f"it is not CSV ({error})") from None


def read_entry(entry, column: str | None, where: str) -> tuple[str, str]:
    """(file name, caption) of an entry."""
    image = entry.get("file_name") if isinstance(entry, dict) else None
    if not image or not isinstance(image, str) or "\0" in image:
        raise ValueError(f'{where} has no "file_name"')
    columns = (column,) if column else COLUMNS
    for name in columns:
        if name in entry:
            return image, entry[name]
    raise ValueError(f"{where} has no {' or '.join(map(repr, columns))}")
