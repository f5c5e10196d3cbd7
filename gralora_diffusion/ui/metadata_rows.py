"""Lines of metadata.jsonl in a set: captions of images, with whatever other tools keep beside them.

Only the line of an image that is edited, removed or restored changes; all others stay as they are.
"""

import functools
import json
from pathlib import Path

from gralora_diffusion.data.captions import COLUMNS, METADATA, read_metadata
from gralora_diffusion.data.listing import reason_of
from gralora_diffusion.data.text_files import read_text
from gralora_diffusion.files import write_text
from gralora_diffusion.ui.workspace import real_file

MOST_BYTES = 50_000_000


def captions_in(folder: Path) -> dict[Path, str]:
    """{image: caption} as training reads them; {} where there is no such file, or it cannot be used."""
    try:
        return read(folder, *version_of(folder / METADATA))
    except (ValueError, OSError):
        return {}


def version_of(path: Path) -> tuple[int, ...]:
    """What changes when the file does."""
    stat = path.lstat()
    return stat.st_ino, stat.st_mtime_ns, stat.st_size


@functools.lru_cache(maxsize=32)
def read(folder: Path, *_version: int) -> dict[Path, str]:
    path = folder / METADATA
    if not real_file(path) or path.stat().st_size > MOST_BYTES:
        return {}
    return read_metadata(folder, None)


def problem_in(folder: Path) -> str | None:
    """Why training would refuse the file; None where it would not."""
    try:
        read_metadata(folder, None)
    except (ValueError, OSError) as error:
        return reason_of(error)
    return None


def lines_of(folder: Path) -> list[tuple[str, dict | None]]:
    """(line, its row) of the file; None for a blank line.  Call it where captions_in() finds something."""
    lines = read_text(folder / METADATA).text.split("\n")
    return [(line, json.loads(line) if line.strip() else None) for line in lines]


def names(row: dict | None) -> str | None:
    """The file that a row is about."""
    return str(Path(row["file_name"])) if row else None


def edit(folder: Path, captions: dict[str, str]) -> None:
    """Write other captions into the lines of these images, {file name: caption}."""
    lines = []
    for line, row in lines_of(folder):
        if (name := names(row)) in captions:
            column = next(column for column in COLUMNS if column in row)
            line = json.dumps(row | {column: captions[name]}, ensure_ascii=False)
        lines.append(line)
    write_text(folder / METADATA, "\n".join(lines))


def rows_of(folder: Path, files: list[str]) -> list[dict]:
    """The rows of these images."""
    if not captions_in(folder):
        return []
    return [row for _, row in lines_of(folder) if names(row) in files]


def remove(folder: Path, files: list[str]) -> None:
    """Delete the lines of these images, for training refuses lines without an image."""
    kept = [line for line, row in lines_of(folder) if names(row) not in files]
    write_text(folder / METADATA, "\n".join(kept))


def add(folder: Path, rows: list[dict]) -> None:
    """Add rows at the end."""
    path = folder / METADATA
    text = read_text(path).text if real_file(path) else ""
    if text and not text.endswith("\n"):
        text += "\n"
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    write_text(path, text + "".join(lines))


def rows_in(file: Path) -> list[dict]:
    """The rows of a file that add() has written."""
    return [json.loads(line) for line in file.read_text().splitlines()]
