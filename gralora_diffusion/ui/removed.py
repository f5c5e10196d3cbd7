"""The bin: what was deleted on the page stays for DAYS days, also across restarts, and can be restored.

Runs are in HOME/runs/.removed/TIME/NAME, images of datasets in HOME/images/.removed/DATASET/TIME, those of
the history in HOME/.page/history/.removed/TIME: on the disk that they are from, so that they are renamed and
not copied.  TIME is nanoseconds since 1970, so that names sort by it.

The clock may be wrong: what is older than DAYS is deleted only if a check a day before found the same.
"""

import contextlib
import json
import os
import re
import shutil
import time
from pathlib import Path

from gralora_diffusion.files import write_text
from gralora_diffusion.options import ConfigError
from gralora_diffusion.ui.locks import changing
from gralora_diffusion.ui.workspace import BIN, HISTORY, Workspace, folders

DAYS = 7
A_DAY = 86_400 * 10**9  # nanoseconds
TIME = re.compile(r"\d{20}")
PART = re.compile(r"\.\d{20}\.part")  # what is being deleted
SEEN = "old-in-bin.json"  # {folder of a removal: when it was first found too old}


def removals(bin_folder: Path) -> list[Path]:
    """The folders of what was removed, the latest last; links are not followed."""
    if is_link(bin_folder):
        return []
    return sorted(path for path in folders(bin_folder) if TIME.fullmatch(path.name))


def is_link(bin_folder: Path) -> bool:
    """Whether the bin leads elsewhere; HOME/runs and HOME/images themselves may lead to another disk."""
    with_own_folder = bin_folder.parent.name in (BIN, HISTORY)
    return bin_folder.is_symlink() or (with_own_folder and bin_folder.parent.is_symlink())


def new_removal(bin_folder: Path) -> Path:
    """An empty folder for what is removed now.  Raises ConfigError if the bin is a link."""
    if is_link(bin_folder):
        raise ConfigError(
            f"{bin_folder.name} is a link, but deleted files are kept there: remove the link first"
        )
    number = time.time_ns()
    for path in removals(bin_folder)[-1:]:  # whatever the clock says
        number = max(number, int(path.name) + 1)
    folder = bin_folder / f"{number:020d}"
    folder.mkdir(parents=True)
    return folder


def deleted_runs(workspace: Workspace) -> list[Path]:
    """The runs that can be restored, the one that was deleted last at the end."""
    found = []
    for removal in removals(workspace.removed_runs):
        found += folders(removal)
    return found


def bins(workspace: Workspace) -> list[Path]:
    """The folders that removals() reads."""
    found = [workspace.removed_runs, workspace.removed_history, *folders(workspace.removed_images)]
    return [bin_folder for bin_folder in found if not is_link(bin_folder)]


def delete_removal(removal: Path) -> None:
    """Delete it for good; if that fails halfway, what is left is never restored."""
    part = removal.with_name(f".{removal.name}.part")
    os.replace(removal, part)
    shutil.rmtree(part)


def delete_parts(workspace: Workspace) -> None:
    """Delete what delete_removal() left when it was interrupted."""
    for bin_folder in bins(workspace):
        with contextlib.suppress(OSError):  # there may be no such folder
            for part in [path for path in bin_folder.iterdir() if PART.fullmatch(path.name)]:
                if not part.is_symlink():
                    shutil.rmtree(part, ignore_errors=True)


def delete_old(workspace: Workspace) -> None:
    """Empty the bin of what was removed more than DAYS days ago, and was found too old a day ago."""
    now = time.time_ns()
    before = seen_before(workspace)
    seen = {}
    for bin_folder in bins(workspace):
        with lock_of(workspace, bin_folder):
            for removal in removals(bin_folder):
                if int(removal.name) >= now - DAYS * A_DAY:
                    continue
                key = str(removal.relative_to(workspace.root))
                first = min(before.get(key, now), now)
                if now - first < A_DAY:
                    seen[key] = first
                    continue
                with contextlib.suppress(OSError):  # the next check may succeed
                    delete_removal(removal)
    if seen != before:
        write_text(workspace.scratch / SEEN, json.dumps(seen) + "\n")


def lock_of(workspace: Workspace, bin_folder: Path):
    """That of changes of what a bin is of."""
    if bin_folder in (workspace.removed_runs, workspace.removed_history):
        return changing(bin_folder.parent)
    return changing(workspace.images / bin_folder.name)


def seen_before(workspace: Workspace) -> dict[str, int]:
    """What SEEN holds; {} for a file that holds something else."""
    try:
        found = json.loads((workspace.scratch / SEEN).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(found, dict) or not all(type(value) is int for value in found.values()):
        return {}
    return found
