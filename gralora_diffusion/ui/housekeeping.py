"""What the page deletes while it runs: old served files, and what was in the bin for too long."""

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
MOST_BYTES = 4 * 10**9  # of all served files; beyond that the oldest are deleted before they are OLD
PAUSE = 600  # seconds between two looks


def keep_tidy(workspace: Workspace) -> None:
    """Delete what is too old every PAUSE seconds, until the process ends; to be called in a thread."""
    while True:
        try:
            delete_old_served(workspace.served)
            removed.delete_old(workspace)
        except Exception as error:  # the next look may succeed
            traceback.print_exception(error, file=sys.stderr)
        time.sleep(PAUSE)


def delete_old_served(folder: Path, most_bytes: int = MOST_BYTES) -> None:
    """Delete what is OLD in the folder of served files, then the oldest until it holds `most_bytes`.

    Nothing that was handed out in the last SAFE seconds is deleted.
    """
    now = time.time()
    found = sorted((newest_time(path), path) for path in folder.iterdir())
    sizes = {path: size_of(path) for _, path in found}
    total = sum(sizes.values())
    for handed_out, path in found:
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
