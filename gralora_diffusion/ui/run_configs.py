"""The configs of runs follow a dataset or another run that they refer to, to its new name."""

import contextlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from gralora_diffusion.config import TrainConfig
from gralora_diffusion.files import write_text
from gralora_diffusion.options import ConfigError, options_of
from gralora_diffusion.ui.removed import deleted_runs
from gralora_diffusion.ui.run_files import read_json
from gralora_diffusion.ui.workspace import Workspace, folders

IMAGE_OPTIONS = [name for name, option in options_of(TrainConfig).items() if option.kind == "images"]


def replace_folder(
    workspace: Workspace,
    options: Iterable[str],
    old: Path,
    new: Path,
    in_time: Callable[[int], bool] = lambda moment: True,
) -> None:
    """In all runs, also deleted ones, let paths in these options that lead into `old` lead into `new`.

    A relative path is one in HOME, as for the page.  in_time(nanoseconds since 1970): whether a config of
    that time is changed.  For the caller who holds changing(workspace.runs).  Raises ConfigError where a
    config cannot be written; then none has changed, if the disk allows it.
    """
    written = []  # (file, its text and times before)
    try:
        for run in (*folders(workspace.runs), *deleted_runs(workspace)):
            for path in (run / "config.json", run / "job.json"):
                values = read_json(path)
                config = values.get("config") if path.name == "job.json" else values
                config = config if isinstance(config, dict) else {}
                if not change_config(config, workspace.root, options, old, new):
                    continue
                stat = path.stat()
                if not in_time(stat.st_mtime_ns):
                    continue
                with contextlib.suppress(RecursionError):  # of what no run can be resumed with
                    text = json.dumps(values, indent=2) + "\n"
                    written.append((path, path.read_text(encoding="utf-8"), stat))
                    rewrite(path, text, stat)
    except BaseException as error:
        for path, text, stat in written:
            with contextlib.suppress(OSError):
                rewrite(path, text, stat)
        if isinstance(error, OSError):
            raise ConfigError(f"the config of {run.name} cannot be changed: {error.strerror}") from None
        raise


def rewrite(path: Path, text: str, stat: os.stat_result) -> None:
    """Write a file that keeps its times: those of a run's say when it was asked for."""
    write_text(path, text)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def change_config(config: dict, root: Path, options: Iterable[str], old: Path, new: Path) -> bool:
    """Let the paths in a config that lead into `old` lead into `new`; returns whether there are any."""
    real_old = os.path.realpath(old)  # a folder of HOME may be a link
    changed = False
    for option in options:
        value = config.get(option)
        try:
            path = Path(os.path.realpath(root / value)) if isinstance(value, str) else root
        except ValueError:  # no path, such as a text with a null character
            continue
        if path.is_relative_to(real_old):
            moved = new / path.relative_to(real_old)
            config[option] = str(moved) if Path(value).is_absolute() else moved.relative_to(root).as_posix()
            changed = True
    return changed
