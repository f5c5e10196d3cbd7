"""What refers to runs by name: the history of Sample, the blind comparison, and configs of other runs.

It follows when a run gets another name, and while it refers to a name the page suggests that for no new run.
"""

import dataclasses
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gralora_diffusion.ui import blind, removed, sample_history
from gralora_diffusion.ui.history_adapters import hash_of, recorded_hashes
from gralora_diffusion.ui.locks import changing
from gralora_diffusion.ui.removed_history import deleted
from gralora_diffusion.ui.run_configs import replace_folder
from gralora_diffusion.ui.workspace import Workspace, free_name, real_file

OPTIONS = ("start_from", "allocation")  # of a config: paths into the folder of another run


@dataclass(frozen=True)
class Renaming:
    """A run that was named `old` from `since` until `until`, in nanoseconds since 1970, and is `new` now."""

    old: str
    new: str
    since: int = 0
    until: int = sys.maxsize

    def name_of(self, adapter: str) -> str:
        """Of an adapter or checkpoint of the run its name by now; others as they are."""
        run, slash, checkpoint = adapter.partition("/")
        return f"{self.new}{slash}{checkpoint}" if run == self.old else adapter

    def in_time(self, moment: int) -> bool:
        return self.since < moment < self.until

    @property
    def reversed(self) -> "Renaming":
        return Renaming(self.new, self.old, self.since, self.until)


def renaming(workspace: Workspace, run: Path, new: str, until: int = sys.maxsize) -> Renaming:
    """until: when the run was deleted, if it was; other runs of its name had the name before it.

    Those are in the bin, or were there: no run is older than its files.
    """
    moments = [path.stat(follow_symlinks=False).st_mtime_ns for path in run.iterdir()]
    since = min(moments, default=0)
    for removal in removed.removals(workspace.removed_runs):
        if (removal / run.name).is_dir() and int(removal.name) < until:
            since = max(since, int(removal.name))
    return Renaming(run.name, new, since, until)


def follow(workspace: Workspace, change: Renaming) -> None:
    """Give whatever refers to a run its new name, which it has already.  Raises OSError."""
    with changing(workspace.history):
        for folder, entry in kept_images(workspace):
            request = renamed(workspace, folder, entry, change)
            if request != entry.request:
                sample_history.write(folder, dataclasses.replace(entry, request=request))
    blind.rename(workspace, change.name_of, change.in_time)
    runs = workspace.runs
    replace_folder(workspace, OPTIONS, runs / change.old, runs / change.new, change.in_time)


def kept_images(workspace: Workspace) -> Iterator[tuple[Path, sample_history.Entry]]:
    """(folder, image) of the history, and of what can be put back into it."""
    for entry in sample_history.entries(workspace):
        yield workspace.history, entry
    yield from deleted(workspace)


def renamed(workspace: Workspace, folder: Path, entry: sample_history.Entry, change: Renaming):
    """The request of an image with the run's new name, as far as the image is of this run.

    Runs may have had one name after another: the content of the adapter decides, or else the time.
    """
    adapters = []
    if all(change.name_of(name) == name for name, _ in entry.request.adapters):
        return entry.request
    recorded = recorded_hashes(folder, entry)
    for (name, strength), digest in zip(entry.request.adapters, recorded, strict=True):
        new = change.name_of(name)
        if new != name and is_of(workspace, digest, name, new, change.in_time(int(entry.id[:20]))):
            name = new
        adapters.append((name, strength))
    return dataclasses.replace(entry.request, adapters=tuple(adapters))


def is_of(workspace: Workspace, digest: str | None, old: str, new: str, in_time: bool) -> bool:
    """Whether an image is of the adapter `new`, and not of what is named `old` now, if anything is."""
    for name, answer in ((new, True), (old, False)):
        path = workspace.runs / name / "adapter.safetensors"
        if digest is not None and real_file(path) and hash_of(path) == digest:
            return answer
    return in_time


def taken_names(workspace: Workspace) -> set[str]:
    """The names of runs, and those that something still refers to."""
    found = {path.name for path in workspace.runs.iterdir()}
    found |= {run.name for run in removed.deleted_runs(workspace)}
    for _, entry in kept_images(workspace):
        found |= {name.partition("/")[0] for name, _ in entry.request.adapters}
    return found


def free_run_name(workspace: Workspace, stem: str) -> str:
    """A name to suggest for a new run."""
    return free_name(stem, taken_names(workspace))
