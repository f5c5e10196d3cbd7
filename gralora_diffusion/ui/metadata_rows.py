"""Lines of metadata.jsonl or metadata.csv in a dataset: captions of images, and whatever else is kept there.

Only the line of an image that is edited, removed or restored changes; all others keep what they hold.
"""

import csv
import functools
import io
import json
from pathlib import Path
from typing import NamedTuple

from gralora_diffusion.data.file_names import as_stored
from gralora_diffusion.data.listing import reason_of
from gralora_diffusion.data.metadata import COLUMNS, METADATA, csv_rows, metadata_in, read_metadata
from gralora_diffusion.data.text_files import read_text
from gralora_diffusion.files import write_text
from gralora_diffusion.options import ConfigError
from gralora_diffusion.ui.workspace import real_file

MOST_BYTES = 50_000_000


class Line(NamedTuple):
    """content: a line of metadata.jsonl, or the cells of a line of metadata.csv; row: its values."""

    content: str | list[str]
    row: dict | None = None  # None: a blank line
    image: str | None = None  # the name of the image that it is about, or its path within the folder


class Lines(NamedTuple):
    """All lines of a file; head: the names of the columns in metadata.csv."""

    path: Path
    head: list[str]
    lines: list[Line]


def captions_in(folder: Path) -> dict[Path, str]:
    """{image: caption} as training reads them; {} if there is no such file, or it cannot be used."""
    path = metadata_in(folder)
    try:
        return read(folder, path, *version_of(path)) if path else {}
    except (ValueError, OSError):
        return {}


def version_of(path: Path) -> tuple[int, ...]:
    """What changes when the file does."""
    stat = path.lstat()
    return stat.st_ino, stat.st_mtime_ns, stat.st_size


@functools.lru_cache(maxsize=32)
def read(folder: Path, path: Path, *_version: int) -> dict[Path, str]:
    if not real_file(path) or path.stat().st_size > MOST_BYTES:
        return {}
    return read_metadata(folder, None)


def problem_in(folder: Path) -> str | None:
    """Why training would refuse the file; None if it would not."""
    try:
        read_metadata(folder, None)
    except (ValueError, OSError) as error:
        return reason_of(error)
    return None


def lines_of(folder: Path) -> Lines:
    """Call it only if captions_in() finds something."""
    path = metadata_in(folder)
    text = read_text(path).text
    if path.name == METADATA:
        rows = [(line, json.loads(line) if line.strip() else None) for line in text.split("\n")]
        return Lines(path, [], [line_of(folder, line, row) for line, row in rows])
    head, rows = csv_rows(text)
    rows = [(cells, dict(zip(head, cells, strict=False))) for _, cells in rows]
    return Lines(path, head, [line_of(folder, cells, row) for cells, row in rows])


def line_of(folder: Path, content: str | list[str], row: dict | None) -> Line:
    """The line with the name of its image, which may be given as ./a.png or with the whole path."""
    if not row:
        return Line(content)
    path = as_stored(folder / row["file_name"])
    return Line(content, row, str(path.relative_to(folder)) if path.is_relative_to(folder) else None)


def as_json(row: dict) -> str:
    """A line of metadata.jsonl: readable, or escaped if it holds half a surrogate pair, not UTF-8."""
    line = json.dumps(row, ensure_ascii=False)
    try:
        line.encode()
    except UnicodeEncodeError:
        return json.dumps(row)
    return line


def save(found: Lines, lines: list[Line]) -> None:
    """Write the file with these lines instead.  Raises ConfigError if they would be read back differently."""
    if found.path.name == METADATA:
        write_text(found.path, "\n".join(line.content for line in lines))
        return
    text = io.StringIO()
    plain, quoted = (
        csv.writer(text, lineterminator="\n", quoting=quoting)
        for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL)
    )
    for cells in [found.head, *(line.content for line in lines)]:
        needs_quotes = any(cell.startswith(" ") or "\r" in cell for cell in cells)
        (quoted if needs_quotes else plain).writerow(cells)
    head, rows = csv_rows(text.getvalue())
    if [head, *(cells for _, cells in rows)] != [found.head, *(line.content for line in lines)]:
        raise ConfigError(f"{found.path.name} cannot hold this text: remove its unusual characters")
    write_text(found.path, text.getvalue())


def edited(line: Line, head: list[str], caption: str) -> Line:
    column = next(column for column in COLUMNS if column in line.row)
    row = line.row | {column: caption}
    if not head:
        return line._replace(content=as_json(row), row=row)
    cells = list(line.content)
    cells[head.index(column)] = caption
    return line._replace(content=cells, row=row)


def edit(folder: Path, captions: dict[str, str]) -> None:
    """Write other captions into the lines of these images, {file name: caption}."""
    found = lines_of(folder)
    lines = []
    for line in found.lines:
        is_meant = line.image in captions
        lines.append(edited(line, found.head, captions[line.image]) if is_meant else line)
    save(found, lines)


def rows_of(folder: Path, files: list[str]) -> list[dict]:
    """The rows of these images, which have their names as "file_name"."""
    if not captions_in(folder):
        return []
    return [line.row | {"file_name": line.image} for line in lines_of(folder).lines if line.image in files]


def remove(folder: Path, files: list[str]) -> None:
    """Delete the lines of these images, since training refuses lines without an image."""
    found = lines_of(folder)
    save(found, [line for line in found.lines if line.image not in files])


def add(folder: Path, rows: list[dict]) -> None:
    """Add rows at the end, replacing those of the same images; to a new metadata.jsonl if there is no file.

    Raises ConfigError if there is a file that cannot be used.
    """
    path = metadata_in(folder)
    if path is None:
        write_text(folder / METADATA, "".join(as_json(row) + "\n" for row in rows))
        return
    problem = problem_in(folder) if real_file(path) else "it is a link or a folder"
    if problem:
        raise ConfigError(f"{path.name} cannot be used ({problem}): correct or delete it first")
    found = lines_of(folder)
    names = {row["file_name"] for row in rows}
    kept = [line for line in found.lines if line.image not in names]
    if path.name == METADATA:
        while kept and not kept[-1].row:
            kept.pop()
        save(found, [*kept, *(Line(as_json(row)) for row in rows), Line("")])
        return
    columns = [*found.head, *(name for row in rows for name in row)]
    head = [name for n, name in enumerate(columns) if n < len(found.head) or name not in columns[:n]]
    cells = [[str(row.get(name, "")) for name in head] for row in rows]
    save(found._replace(head=head), [*kept, *map(Line, cells)])


def rows_in(file: Path) -> list[dict]:
    """The rows of a metadata.jsonl that add() has written; [] if there is none."""
    if not real_file(file):
        return []
    return [json.loads(line) for line in read_text(file).text.split("\n") if line.strip()]
