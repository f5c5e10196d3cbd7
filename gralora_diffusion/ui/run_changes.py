"""Rename, delete and bring back runs that are neither active nor queued."""

import os
import secrets
from pathlib import Path

from gralora_diffusion.formats.run_files import named_after
from gralora_diffusion.options import ConfigError
from gralora_diffusion.ui.run_queue import ACTIVE, RunQueue
from gralora_diffusion.ui.workspace import free_name, new_name

NAMED = (".safetensors", ".png")  # suffixes of the files in a run that have its name


class RunChanges:
    """Runs are deleted by moving them out of HOME/runs, where they stay until the page is restarted."""

    def __init__(self, queue: RunQueue):
        self.queue = queue
        self.workspace = queue.workspace
        self.deleted: list[Path] = []  # the last one last

    def idle_run(self, name: str, what: str) -> Path:
        """The folder of a run that nothing writes to; raises ConfigError."""
        run = self.workspace.run(name)
        state = self.queue.state(run)["state"]
        if state in (*ACTIVE, "queued"):
            raise ConfigError(f"{name} is {state}: stop it before you {what} it")
        return run

    def rename(self, name: str, wanted: str) -> str:
        """Give a run, and the files in it that are named after it, another name; returns that."""
        with self.queue.lock:
            run = self.idle_run(name, "rename")
            taken = [path.name for path in self.workspace.runs.iterdir()]
            new = run.with_name(new_name(wanted, "a run", taken))
            files = {suffix: named_after(run, suffix) for suffix in NAMED}
            os.rename(run, new)
            for suffix, file in files.items():
                if (new / file.name).is_file():
                    os.rename(new / file.name, named_after(new, suffix))
            return new.name

    def delete(self, name: str) -> None:
        with self.queue.lock:
            run = self.idle_run(name, "delete")
            folder = self.workspace.removed / secrets.token_hex(8)
            folder.mkdir(parents=True)
            os.rename(run, folder / name)
            self.deleted.append(folder / name)

    def undo_delete(self) -> str:
        """Bring the run back that was deleted last, under another name if its own is taken; returns it."""
        with self.queue.lock:
            if not self.deleted:
                raise ConfigError("there is no deleted run to restore")
            run = self.deleted.pop()
            taken = [path.name for path in self.workspace.runs.iterdir()]
            name = run.name if run.name not in taken else free_name(run.name, taken)
            os.rename(run, self.workspace.runs / name)
            return name
