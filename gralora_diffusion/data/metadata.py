"""Captions of a folder's images in metadata.jsonl or metadata.csv, as in Hugging Face's imagefolder."""

import csv
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path

from gralora_diffusion.console import counted
from gralora_diffusion.data.file_names import as_stored
from gralora_diffusion.data.text_files import note_guessed, read_text
from gralora_diffusion.files import resolved

METADATA = "metadata.jsonl"
METADATA_CSV = "metadata.csv"
LISTS = f"{METADATA} or {METADATA_CSV}"
COLUMNS = ("text", "caption")  # if --caption_column is not given


def metadata_in(folder: Path) -> Path | None:
    """The folder's metadata.jsonl or metadata.csv; None if it has neither."""
    lists = (folder / name for name in (METADATA, METADATA_CSV))
    return next((path for path in lists if os.path.lexists(path)), None)


def read_metadata(folder: Path, column: str | tuple[str, ...] | None) -> dict[Path, str]:
    """{image: caption} of the folder's metadata.jsonl or metadata.csv; {} if it has neither.

    column: with the captions; of several, the first that has words; None: COLUMNS.
    Raises ValueError with the line's number.
    """
    path = metadata_in(folder)
    if path is None:
        return {}
    if path.name == METADATA and os.path.lexists(folder / METADATA_CSV):
        raise ValueError(f"there is {METADATA_CSV} too: remove one of the two")
    return read_list(path, column)


def is_list_name(name: str) -> bool:
    """Whether it is the name of such a file, in upper or lower case."""
    return name.lower() in (METADATA, METADATA_CSV)


def read_list(path: Path, column: str | tuple[str, ...] | None) -> dict[Path, str]:
    """{image: caption} of one such file.  Raises ValueError that names the line."""
    if not path.is_file():
        raise ValueError("it is not a file")
    folder = path.parent
    found, root = {}, resolved(folder)
    entries = of_jsonl if path.suffix.lower() == ".jsonl" else of_csv
    read = read_text(path)
    note_guessed(read, path)
    for where, entry in entries(read.text):
        image, caption = read_entry(entry, column, where)
        if "\\" in image and not os.path.lexists(folder / image):
            image = image.replace("\\", "/")  # as programs on Windows write paths
        if ".." in Path(image).parts or root not in resolved(root / image).parents:
            raise ValueError(f"{where} names a file outside the folder")
        if Path(image).is_absolute():
            image = resolved(Path(image)).relative_to(root)
        path = as_stored(folder / image)
        if path in found:
            raise ValueError(f"{where} names {image} a second time")
        found[path] = caption
    return found


def of_jsonl(text: str) -> Iterator[tuple[str, object]]:
    """(where, entry) of each line that is not blank."""
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            yield f"line {number}", json.loads(line)
        except (ValueError, RecursionError):
            of_list = line.strip()[0] == "[" or line.rstrip()[-1] in ",]"
            why = ": each line must be an object of its own, without commas between lines" if of_list else ""
            raise ValueError(f"line {number} is not JSON{why}") from None


def of_csv(text: str) -> Iterator[tuple[str, dict]]:
    """(where, row) of each row that is not blank; the first row names the columns."""
    head, rows = csv_rows(text)
    for where, cells in rows:
        if any(cell.strip() for cell in cells):
            yield where, dict(zip(head, cells, strict=False))


def csv_rows(text: str) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """(column names, (where, cells) of each other row); spaces before a cell are removed.

    Raises ValueError for a column named twice, and a row with more cells than there are columns.
    """
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, skipinitialspace=True)
    rows = []
    try:
        head = next(reader, [])
        check_head(head)
        for cells in reader:
            where = f"line {reader.line_num}"
            if len(cells) > len(head):
                problem = f"{where} has {counted(len(cells), 'field')}, and the first line names {len(head)}"
                raise ValueError(f'{problem}: put captions that hold commas in quotes, "a dog, running"')
            rows.append((where, cells))
    except csv.Error as error:
        raise ValueError(f"it is not CSV ({error})") from None
    for name in head:
        if name and head.count(name) > 1:
            raise ValueError(f"its first line names the column {name!r} twice: rename or remove one")
    return head, rows


def check_head(head: list[str]) -> None:
    """Raises ValueError for a first line that names no column "file_name"."""
    if "file_name" in head:
        return
    if head and head[0].lower().startswith("sep="):
        raise ValueError("its first line sets a separator: remove it, and separate cells by commas")
    for separator, name in ((";", "semicolons"), ("\t", "tabs"), ("|", "vertical bars")):
        if len(head) == 1 and separator in head[0]:
            raise ValueError(f"its cells are separated by {name}: save it with commas")
    named = ", ".join(map(repr, head)) or "nothing"
    raise ValueError(f'its first line must name a column "file_name", and names {named}'[:300])


def has_words(caption) -> bool:
    """Whether it is more than null or an empty text; values that are no text count, for the message."""
    return bool(caption.strip()) if isinstance(caption, str) else caption is not None


def read_entry(entry, column: str | tuple[str, ...] | None, where: str) -> tuple[str, str]:
    """(file name, caption) of an entry."""
    image = entry.get("file_name") if isinstance(entry, dict) else None
    if not image or not isinstance(image, str) or "\0" in image:
        keys = f", but {', '.join(map(repr, entry))}" if isinstance(entry, dict) and entry else ""
        raise ValueError(f'{where} has no "file_name"{keys}'[:300])
    columns = column if isinstance(column, tuple) else (column,) if column else COLUMNS
    given = [entry[name] for name in columns if name in entry]
    if given:
        return image, next((caption for caption in given if has_words(caption)), "")
    present = ", ".join(repr(name) for name in entry if name != "file_name")
    beside = f", but {present}: name one with --caption_column" if present else ""
    raise ValueError(f"{where} has no {' or '.join(map(repr, columns))}{beside}"[:300])
