"""What the page deletes while it runs: old served files, and what has been in the bin for too long."""

import contextlib
import os
import sys
import time
import traceback
from pathlib import Path

from gralora_diffusion.files import delete
from gralora_diffusion.ui import removed
from gralora_diffusion.ui.workspace import Workspace

SAFE = 3600  # seconds for which a file that was handed to a browser is kept, whatever its size
OLD = 24 * 3600  # seconds after which it is deleted
LARGE = 10**8  # bytes; larger files are exports, counted separately so that they displace no images
MOST_BYTES = 4 * 10**9  # of all others; beyond that the oldest are deleted before they are OLD
MOST_LARGE_BYTES = 16 * 10**9  # the same for large ones: two merged checkpoints of SDXL in 16 bits
PAUSE = 600  # seconds between two checks


def keep_tidy(workspace: Workspace) -> None:
    """Delete what is too old every PAUSE seconds, until the process ends; to be called in a thread."""
    removed.delete_parts(workspace)
    while True:
        try:
            delete_old_served(workspace.served)
            removed.delete_old(workspace)
        except Exception as error:  # the next check may succeed
            traceback.print_exception(error, file=sys.stderr)
        time.sleep(PAUSE)


def delete_old_served(
    folder: Path, most_bytes: int = MOST_BYTES, most_large_bytes: int = MOST_LARGE_BYTES
) -> None:
    """Delete what is OLD in the folder of served files, then the oldest files until it is within its limits.

    Nothing that was handed out in the last SAFE seconds is deleted.
    most_large_bytes: the limit for files of at least LARGE bytes.
    """
    sizes = {path: size_of(path) for path in folder.iterdir()}
    small = {path: size for path, size in sizes.items() if size < LARGE}
    large = {path: size for path, size in sizes.items() if size >= LARGE}
    delete_oldest(small, most_bytes)
    delete_oldest(large, most_large_bytes)


def delete_oldest(sizes: dict[Path, int], most_bytes: int) -> None:
    """sizes: {served file or its folder: bytes}."""
    now = time.time()
    total = sum(sizes.values())
    for handed_out, path in sorted((newest_time(path), path) for path in sizes):
        age = now - handed_out
        if age < SAFE or (age < OLD and total <= most_bytes):
            break
        delete(path)
        total -= sizes[path]


def files_in(path: Path) -> list[Path]:
    """The file itself, or the folder and all in it; links are not followed."""
    found = [path]
    if path.is_symlink():
        return found
    for parent, folders, files in os.walk(path):
        found += [Path(parent, name) for name in (*folders, *files)]
    return found


def newest_time(path: Path) -> float:
    """When a served file, or its folder, was written or handed out again; 0 for one that is gone."""
    newest = 0.0
    for part in files_in(path):
        with contextlib.suppress(OSError):
            newest = max(newest, part.lstat().st_mtime)
    return newest


def size_of(path: Path) -> int:
    """Bytes."""
    total = 0
    for part in files_in(path):
        with contextlib.suppress(OSError):
            total += part.lstat().st_size
    return total
