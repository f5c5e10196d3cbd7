"""Text files as editors and other trainers write them: UTF-8, UTF-16 or UTF-32 with a BOM, or cp1252."""

import codecs
import re
from pathlib import Path
from typing import NamedTuple

from gralora_diffusion.console import note

BOMS = (  # of UTF-32 first, since it begins with that of UTF-16
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
ENDS_OF_LINES = re.compile(r"\r\n|\r|\n")
FALLBACK = "cp1252"  # Windows' in Western Europe and America
DOCUMENTS = {b"{\\rtf": "RTF", b"<!doctype html": "HTML", b"<html": "HTML"}  # {how they begin: what they are}
CONTROL = re.compile(r"[\x01-\x08\x0e-\x1f]")  # in no text; NUL has a message of its own


class Text(NamedTuple):
    """A file's text and how it was read."""

    text: str
    guessed: bool  # whether the encoding is FALLBACK, which nothing in the file confirms


def kind_of(value) -> str:
    """What a value of a JSON or TOML file is, for a message."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, int | float):
        return "a number"
    return {str: "text", list: "a list", dict: "an object"}.get(type(value), "a date or a time")


def lines_of(text: str) -> list[str]:
    """The lines of a text as editors count them; str.splitlines() also ends them at U+2028 and others."""
    return ENDS_OF_LINES.split(text)


def read_text(path: Path, limit: int | None = None) -> Text:
    """A file of at most `limit` bytes. Raises ValueError, for a message that begins with the file's name."""
    if not path.is_file():
        raise ValueError(f"{path.name} is not a file")
    if limit is not None and path.stat().st_size > limit:
        raise ValueError(f"{path.name} is longer than {limit:,} bytes")
    content = path.read_bytes()
    if kind := next((kind for start, kind in DOCUMENTS.items() if content.lower().startswith(start)), None):
        raise ValueError(f"{path.name} is {kind}, not plain text: save it as plain text")
    encoding = next((name for bom, name in BOMS if content.startswith(bom)), "utf-8")
    try:
        return Text(content.decode(encoding), False)
    except UnicodeDecodeError:
        pass
    try:
        text = content.decode(FALLBACK) if encoding == "utf-8" else None
    except UnicodeDecodeError:
        text = None
    if text is None or CONTROL.search(text):
        raise ValueError(f"{path.name} is not UTF-8 text, nor UTF-16 with a byte order mark, nor {FALLBACK}")
    return Text(text, True)


def note_guessed(read: Text, path: Path) -> None:
    """Note that the file was read in an encoding that nothing in it confirms."""
    if read.guessed:
        note(f"{path} is not UTF-8 and is read as {FALLBACK}: save it as UTF-8 if its letters come out wrong")


def prompts_in(text: str) -> list[str]:
    """The prompts of a text, one per line; empty lines and lines that begin with # are left out."""
    lines = [line.strip() for line in lines_of(text)]
    return [line for line in lines if line and not line.startswith("#")]
