"""Datasets and runs that an active or queued run reads: they are neither renamed nor deleted meanwhile."""

import os
from pathlib import Path

from gralora_diffusion.options import ConfigError, options_of, to_flat
from gralora_diffusion.ui.run_files import UNREADABLE, config_of
from gralora_diffusion.ui.run_queue import ACTIVE, state_of
from gralora_diffusion.ui.workspace import Workspace

READ = ("images", "adapter", "allocation")  # kinds of options that lead to datasets and other runs


def check_unneeded(workspace: Workspace, folder: Path, what: str) -> None:
    """Raises ConfigError where a run that is active or queued reads from a dataset's or another run's folder.

    what: is about to happen to the folder, "rename" or "delete".
    """
    for name in workspace.run_names():
        run = workspace.runs / name
        if run == folder or (state := state_of(run)["state"]) not in (*ACTIVE, "queued"):
            continue
        if any(path.is_relative_to(os.path.realpath(folder)) for path in read_by(workspace, run)):
            problem = f"{folder.name} is used by {name}, which is {state}"
            raise ConfigError(f"{problem}: {way_to_end(state, name)} before you {what} {folder.name}")


def way_to_end(state: str, name: str) -> str:
    """What to do with a run in this state, active or queued; name: of the run, or "it"."""
    if state == "stopping":
        return f"wait until {name} has ended"
    return f"remove {name} from the queue" if state == "queued" else f"stop {name}"


def read_by(workspace: Workspace, run: Path) -> list[Path]:
    """The folders and files that a run's config names; [] for a config that cannot be read."""
    try:
        config = config_of(run)
        names = [name for name, option in options_of(type(config)).items() if option.kind in READ]
        values = to_flat(config)
        given = [values[name] for name in names if values[name] is not None]
        return [Path(os.path.realpath(workspace.root / value)) for value in given]
    except (ConfigError, *UNREADABLE):
        return []
