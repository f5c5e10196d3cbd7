"""Export: an adapter in each tool's format, or a run's sample images, as one file each."""

import tempfile
import zipfile
from pathlib import Path

from gralora_diffusion.files import sha256
from gralora_diffusion.formats.writers import DTYPES, FOLDER, WRITERS
from gralora_diffusion.options import ConfigError
from gralora_diffusion.ui.adapter_files import base_of
from gralora_diffusion.ui.run_view import sample_files
from gralora_diffusion.ui.workspace import Workspace

DOWNLOADS = {name: f"for {writer.reader}" for name, writer in WRITERS.items()}
DOWNLOADS["samples"] = "the run's sample images, zipped"
OTHER_TOOLS = "comfyui"  # its file keeps the adapter's name, by which those tools list it
MAX_RANK = 4096


def export(workspace: Workspace, name: str, kind: str, rank: int | None, dtype: str) -> tuple[Path, str]:
    """(a file to download, its SHA-256).  Raises ConfigError.

    rank: of the plain LoRA that comes nearest to the adapter; None for the adapter itself.
    """
    source = workspace.adapter(name)
    if kind not in DOWNLOADS:
        raise ConfigError(f"there is no format named {kind!r}; there are: {', '.join(DOWNLOADS)}")
    if dtype not in DTYPES:
        raise ConfigError(f"there is no precision named {dtype!r}; there are: {', '.join(DTYPES)}")
    if rank is not None and not 1 <= rank <= MAX_RANK:
        rule = f"it must be from 1 to {MAX_RANK}, or blank for the exact adapter"
        raise ConfigError(f"the rank is {rank}; {rule}")
    stem = file_stem(name)
    if kind == "samples":
        path = zip_samples(workspace, name, workspace.new_served_path(f"{stem}-samples.zip"))
        return path, sha256(path)
    suffix = "zip" if WRITERS[kind].suffixes == FOLDER else "safetensors"
    ending = "" if kind == OTHER_TOOLS else f"-{kind}"
    path = workspace.new_served_path(f"{stem}{ending}.{suffix}")
    try:
        write(workspace, name, source, path, kind, rank, dtype)
    except ValueError as error:
        raise ConfigError(str(error).replace(str(path), path.name)) from None
    return path, sha256(path)


def file_stem(name: str) -> str:
    """What the files of an adapter are named after."""
    return name.removesuffix(".safetensors").replace("/", "-")


def write(
    workspace: Workspace, name: str, source: Path, path: Path, kind: str, rank: int | None, dtype: str
) -> None:
    """Write the adapter file `source` in another format to `path`."""
    from gralora_diffusion.formats.nearest import nearest
    from gralora_diffusion.formats.read import read_adapter

    writer = WRITERS[kind]
    adapter = read_adapter(source)
    if rank is not None:
        adapter = nearest(adapter, rank).adapter
    if writer.suffixes == FOLDER:
        with tempfile.TemporaryDirectory(dir=workspace.scratch) as folder:
            writer.write(Path(folder) / path.stem.removesuffix(f"-{kind}"), adapter, dtype)
            zip_folder(Path(folder), path)
        return
    base = workspace.base_path(base_of(workspace, name)) if writer.needs_base else None
    writer.write(path, adapter, dtype, base)


def zip_folder(folder: Path, path: Path) -> None:
    """The files of a folder, not compressed: numbers hardly get smaller."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, file.relative_to(folder))


def zip_samples(workspace: Workspace, name: str, path: Path) -> Path:
    """The sample images of a run, links left out."""
    run = name.partition("/")[0]
    if run not in workspace.run_names():
        raise ConfigError(f"{name} was added as a file: it has no sample images")
    steps = [(step, files) for step, files in sample_files(workspace.runs / run) if files]
    if not steps:
        raise ConfigError(f"{run} has no sample images yet")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for step, files in steps:
            for file in files:
                archive.write(file, f"{run}/step-{step:05d}/{file.name}")
    return path
