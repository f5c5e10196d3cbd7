"""Copy an adapter to another tool's folder of LoRAs, which the owner of the server named at the start."""

import os
import shutil
from pathlib import Path

from gralora_diffusion.files import complete_or_absent
from gralora_diffusion.options import ConfigError
from gralora_diffusion.ui.export import export
from gralora_diffusion.ui.export_facts import preview_of_adapter
from gralora_diffusion.ui.workspace import Workspace, new_name


def copy_to_tool(
    workspace: Workspace, tool: str, name: str, file_name: str, rank: int | None, dtype: str
) -> str:
    """Write NAME.safetensors, and NAME.png where there is a preview; returns the file's name.

    Raises ConfigError where the folder has a file of this name already, or is gone.
    """
    if tool not in workspace.other_tools:
        raise ConfigError(f"the folder of {tool!r} is not known: name it when you start `gralora ui`")
    folder = workspace.other_tools[tool]
    if not folder.is_dir():
        raise ConfigError(f"the folder of {tool} no longer exists")
    stem = new_name(str(file_name or "").strip().removesuffix(".safetensors"), "the file")
    target = folder / f"{stem}.safetensors"
    check_free(target, tool)
    path, _ = export(workspace, name, "comfyui", rank, dtype)
    copy_new(path, target, tool)
    preview = preview_of_adapter(workspace, name)
    if preview is not None and not os.path.lexists(target.with_suffix(".png")):
        copy_new(preview, target.with_suffix(".png"), tool)
    return target.name


def check_free(target: Path, tool: str) -> None:
    if os.path.lexists(target):  # a link that leads nowhere too
        raise ConfigError(f"{tool} already has a file named {target.name}: choose another file name")


def copy_new(source: Path, target: Path, tool: str) -> None:
    """A copy, complete or absent, that never replaces a file, whoever makes one meanwhile."""
    try:
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY))  # the name is ours now
    except FileExistsError:
        check_free(target, tool)
        raise
    try:
        with complete_or_absent(target) as part:
            shutil.copyfile(source, part)
    except BaseException:
        target.unlink(missing_ok=True)
        raise
