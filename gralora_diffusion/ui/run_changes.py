"""Rename, delete and bring back runs that are neither active nor queued, nor read by one that is."""

import contextlib
import os
from pathlib import Path

from gralora_diffusion.files import move
from gralora_diffusion.formats.run_files import named_after
from gralora_diffusion.options import ConfigError
from gralora_diffusion.ui import removed
from gralora_diffusion.ui.needed import check_unneeded, way_to_end
from gralora_diffusion.ui.renamed_report import write_report_of_renamed
from gralora_diffusion.ui.run_queue import ACTIVE, RunQueue
from gralora_diffusion.ui.run_references import Renaming, follow, free_run_name, renaming
from gralora_diffusion.ui.workspace import new_name

NAMED = (".safetensors", ".png")  # suffixes of the files in a run that have its name


def move_run(run: Path, new: Path) -> None:
    """Move a run, and give the files in it that are named after it the new name."""
    files = {suffix: named_after(run, suffix).name for suffix in NAMED}
    move(run, new)
    for suffix, name in files.items():
        if (new / name).is_file():
            os.rename(new / name, named_after(new, suffix))


class RunChanges:
    """Runs are deleted by moving them to the bin, HOME/runs/.removed."""

    def __init__(self, queue: RunQueue):
        self.queue = queue
        self.workspace = queue.workspace

    def idle_run(self, name: str, what: str) -> Path:
        """The folder of a run that no run writes to or reads from; raises ConfigError."""
        run = self.workspace.run(name)
        state = self.queue.state(run)["state"]
        if state in (*ACTIVE, "queued"):
            raise ConfigError(f"{name} is {state}: {way_to_end(state, 'it')} before you {what} it")
        check_unneeded(self.workspace, run, what)
        return run

    def rename(self, name: str, wanted: str) -> str:
        """Give a run, and the files in it that are named after it, another name; returns that."""
        with self.queue.lock:
            run = self.idle_run(name, "rename")
            taken = [path.name for path in self.workspace.runs.iterdir()]
            new = run.with_name(new_name(wanted, "a run", taken))
            self.workspace.note_renaming(run, new.name)
            self.move(run, new, renaming(self.workspace, run, new.name))
        write_report_of_renamed(new)  # takes seconds, in which the queue goes on
        return new.name

    def move(self, run: Path, new: Path, change: Renaming) -> None:
        """move_run(), and what refers to the run follows; where that fails, all that can goes back."""
        try:
            move_run(run, new)
            if change.old != change.new:
                follow(self.workspace, change)
        except BaseException:
            with contextlib.suppress(OSError):
                if new.exists() and not run.exists():
                    move_run(new, run)
            with contextlib.suppress(OSError):
                follow(self.workspace, change.reversed)
            raise

    def delete(self, name: str) -> None:
        with self.queue.lock:
            run = self.idle_run(name, "delete")
            folder = removed.new_removal(self.workspace.removed_runs)
            self.workspace.forget_name(name)
            try:
                move(run, folder / name)
            except BaseException:
                folder.rmdir()
                raise

    def deleted(self) -> list[Path]:
        """The runs that can be restored, the one that was deleted last at the end."""
        return removed.deleted_runs(self.workspace)

    def undo_delete(self) -> str:
        """Bring the run back that was deleted last, under another name if its own is taken; returns it."""
        with self.queue.lock:
            if not self.deleted():
                raise ConfigError("there is no deleted run to restore")
            run = self.deleted()[-1]
            taken = [path.name for path in self.workspace.runs.iterdir()]
            name = run.name if run.name not in taken else free_run_name(self.workspace, run.name)
            change = renaming(self.workspace, run, name, until=int(run.parent.name))
            self.move(run, self.workspace.runs / name, change)
            run.parent.rmdir()
        if name != run.name:
            write_report_of_renamed(self.workspace.runs / name)
        return name

    def delete_for_good(self) -> int:
        """Empty the bin of its runs; returns how many there were."""
        with self.queue.lock:
            runs = self.deleted()
            for run in runs:
                removed.delete_removal(run.parent)
            return len(runs)
