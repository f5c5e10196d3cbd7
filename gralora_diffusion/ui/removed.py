"""The bin: what was deleted on the page stays for DAYS days, also over a restart, and can be put back.

Runs are in HOME/runs/.removed/TIME/NAME, images in HOME/images/.removed/DATASET/TIME: on the disk that they
are from, so that they are renamed and not copied.  TIME is nanoseconds since 1970, and so in order.
"""

import re
import shutil
import time
from pathlib import Path

from gralora_diffusion.options import ConfigError
from gralora_diffusion.ui.workspace import BIN, Workspace, folders

DAYS = 7
TIME = re.compile(r"\d{20}")


def removals(bin_folder: Path) -> list[Path]:
    """The folders of what was removed, the latest last; links are not followed."""
    if is_link(bin_folder):
        return []
    return sorted(path for path in folders(bin_folder) if TIME.fullmatch(path.name))


def is_link(bin_folder: Path) -> bool:
    """Whether it leads elsewhere; HOME/runs and HOME/images themselves may, to another disk."""
    of_images = bin_folder.parent.name == BIN
    return bin_folder.is_symlink() or (of_images and bin_folder.parent.is_symlink())


def new_removal(bin_folder: Path) -> Path:
    """An empty folder for what is removed now.  Raises ConfigError where the bin is a link."""
    if is_link(bin_folder):
        raise ConfigError(
            f"{bin_folder.name} is a link, and deleted files are kept there: remove the link first"
        )
    number = time.time_ns()
    for path in removals(bin_folder)[-1:]:  # whatever the clock says
        number = max(number, int(path.name) + 1)
    folder = bin_folder / f"{number:020d}"
    folder.mkdir(parents=True)
    return folder


def delete_old(workspace: Workspace) -> None:
    """Empty the bin of what was removed more than DAYS days ago."""
    limit = time.time_ns() - DAYS * 86_400 * 10**9
    for bin_folder in (workspace.removed_runs, *folders(workspace.removed_images)):
        for removal in removals(bin_folder):
            if int(removal.name) < limit:
                shutil.rmtree(removal, ignore_errors=True)
