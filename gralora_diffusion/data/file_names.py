"""Names of files that are one name in two spellings: macOS writes an accent as a character of its own."""

import os
import unicodedata
from pathlib import Path


def composed(name: str) -> str:
    """The name in one spelling (NFC), for comparisons."""
    return unicodedata.normalize("NFC", name)


def as_stored(path: Path) -> Path:
    """The path as its folder has it, where that spells its name differently; else the path itself."""
    if path.name.isascii() or os.path.lexists(path):
        return path
    try:
        return next(other for other in path.parent.iterdir() if composed(other.name) == composed(path.name))
    except (OSError, StopIteration):
        return path
