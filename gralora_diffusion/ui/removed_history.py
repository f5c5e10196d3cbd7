"""Images that were deleted from the history; they can be put back while they are in the bin."""

from pathlib import Path

from gralora_diffusion.files import move_all
from gralora_diffusion.options import ConfigError
from gralora_diffusion.ui import removed
from gralora_diffusion.ui.locks import changing
from gralora_diffusion.ui.sample_history import Entry, entries_in, entry_of
from gralora_diffusion.ui.workspace import Workspace


def delete(workspace: Workspace, name: str) -> Entry:
    """Move an image and its request to where undo_delete() finds them; returns what it was."""
    with changing(workspace.history):
        entry = entry_of(workspace, name)
        files = files_of(workspace.history, entry)
        folder = removed.new_removal(workspace.removed_history)
        try:
            move_all({path: folder / path.name for path in files})
        except BaseException:
            if not any(folder.iterdir()):
                folder.rmdir()
            raise
        return entry


def files_of(folder: Path, entry: Entry) -> list[Path]:
    return [folder / f"{entry.id}{suffix}" for suffix in (".png", ".json")]


def deleted(workspace: Workspace) -> list[tuple[Path, Entry]]:
    """(folder, image) of what can be put back, the image that was deleted last at the end."""
    found = []
    for folder in removed.removals(workspace.removed_history):
        found += [(folder, entry) for entry in entries_in(folder)]
    return found


def undo_delete(workspace: Workspace) -> Entry:
    """Put the image back that was deleted last; returns what it is."""
    with changing(workspace.history):
        found = deleted(workspace)
        if not found:
            raise ConfigError(f"no image was deleted from the history in the last {removed.DAYS} days")
        folder, entry = found[-1]
        move_all({path: workspace.history / path.name for path in files_of(folder, entry)})
        if not any(folder.iterdir()):
            folder.rmdir()
        return entry
