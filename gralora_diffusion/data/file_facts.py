"""Facts about image files, by content: what was found once is not decoded again."""

import hashlib
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import PIL

from gralora_diffusion.data.cache import Cache, key_of
from gralora_diffusion.data.images import MAX_BYTES


def facts_of(
    source: Path | bytes, cache: Cache | None, kind: str, inspect: Callable[[BinaryIO], dict]
) -> tuple[str, dict]:
    """(SHA-256, facts) of an image file: inspect(file), or what the cache has of this kind of facts.

    Raises ValueError, for a message, where the file cannot be used.
    """
    length = os.path.getsize(source) if isinstance(source, Path) else len(source)
    if length == 0:
        raise ValueError("empty file")
    if length > MAX_BYTES:
        raise ValueError(f"{length:,} bytes is more than the limit of {MAX_BYTES:,}")
    with open(source, "rb") if isinstance(source, Path) else io.BytesIO(source) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        key = key_of(kind, 1, PIL.__version__, digest)
        facts = cache.facts(key) if cache else None
        if facts is None:
            file.seek(0)
            facts = inspect(file)
            if cache:
                cache.put_facts(key, facts)
    return digest, facts


def unchanged(file: BinaryIO, digest: str) -> BinaryIO:
    """The file at its beginning. Raises ValueError, for a message, where its SHA-256 is another."""
    if hashlib.file_digest(file, "sha256").hexdigest() != digest:
        raise ValueError("its content has changed")
    file.seek(0)
    return file
