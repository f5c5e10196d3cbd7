"""The configs of runs follow what they refer to in HOME, a dataset or another run, to its new name."""

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from gralora_diffusion.config import TrainConfig
from gralora_diffusion.files import write_text
from gralora_diffusion.options import options_of
from gralora_diffusion.ui.removed import deleted_runs
from gralora_diffusion.ui.run_files import read_json
from gralora_diffusion.ui.workspace import Workspace, folders

IMAGE_OPTIONS = [name for name, option in options_of(TrainConfig).items() if option.kind == "images"]


def follow_dataset(workspace: Workspace, old: str, new: str) -> None:
    """Runs that trained on a dataset can be resumed, duplicated and compared with it.  Raises OSError."""

    def renamed(value: str) -> str:
        folder = f"images/{old}"
        return f"images/{new}{value.removeprefix(folder)}" if f"{value}/".startswith(f"{folder}/") else value

    replace_paths(workspace, IMAGE_OPTIONS, renamed)


def replace_paths(
    workspace: Workspace,
    options: Iterable[str],
    new_path: Callable[[str], str],
    in_time: Callable[[int], bool] = lambda moment: True,
) -> None:
    """Of all runs, also those that can be restored, give these options the paths new_path(path of now).

    in_time(nanoseconds since 1970): whether a config of that time is changed.  Raises OSError.
    """
    for run in (*folders(workspace.runs), *deleted_runs(workspace)):
        for path in (run / "config.json", run / "job.json"):
            replace_in_file(path, options, new_path, in_time)


def replace_in_file(path: Path, options: Iterable[str], new_path: Callable, in_time: Callable) -> None:
    """replace_paths() of a config.json or job.json, whose time says when the run was asked for, and stays."""
    found = read_json(path)
    config = found.get("config") if path.name == "job.json" else found
    if not isinstance(config, dict) or not config:
        return
    given = {option: config[option] for option in options if isinstance(config.get(option), str)}
    changed = {option: new_path(value) for option, value in given.items()}
    stat = path.stat()
    if changed == given or not in_time(stat.st_mtime_ns):
        return
    config |= changed
    write_text(path, json.dumps(found, indent=2) + "\n")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
