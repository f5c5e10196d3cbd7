"""Export: an adapter in each tool's format, or a run's images, as one file each with its size and SHA-256."""

import shutil
import tempfile
import zipfile
from pathlib import Path

from gralora_diffusion.files import sha256
from gralora_diffusion.formats.writers import DTYPES, FOLDER, WRITERS
from gralora_diffusion.options import ConfigError
from gralora_diffusion.ui.drawing import base_of
from gralora_diffusion.ui.run_view import sample_files
from gralora_diffusion.ui.workspace import Workspace, real_file

KINDS = {
    "adapter": "this project's own file: small, and training can go on from it",
    "comfyui": "for ComfyUI, A1111, Forge and kohya's scripts",
    "diffusers": "for load_lora_weights of diffusers",
    "peft": "a zipped folder for PEFT",
    "merged": "the base with the adapter baked in: one large checkpoint",
    "samples": "the run's sample images, zipped",
}


def export(home: Workspace, name: str, kind: str, rank: int | None, dtype: str) -> tuple[Path, str]:
    """(a file to download, its SHA-256).  rank: the best plain LoRA of that rank in place of the exact one.  Raises ConfigError."""
    from gralora_diffusion.formats.adapter_state import to_lora
    from gralora_diffusion.formats.read import read_adapter

    source = home.adapter(name)
    stem = name.removesuffix(".safetensors").replace("/", "-")
    if kind not in KINDS:
        raise ConfigError(f"there is no format named {kind!r}; there are: {', '.join(KINDS)}")
    if dtype not in DTYPES:
        raise ConfigError(f"there is no precision named {dtype!r}; there are: {', '.join(DTYPES)}")
    if kind == "samples":
        path = zip_samples(home, name, home.to_serve(f"{stem}-samples.zip"))
        return path, sha256(path)
    adapter = read_adapter(source)
    if rank is not None:
        if not 1 <= rank <= 4096:
            raise ConfigError(
                f"the rank is {rank}; it must be from 1 to 4096, or blank for the exact adapter"
            )
        adapter = to_lora(adapter, rank)[0]
    try:
        writer = WRITERS["native" if kind == "adapter" else kind]
        if writer.suffixes == FOLDER:
            path = home.to_serve(f"{stem}-{kind}.zip")
            with tempfile.TemporaryDirectory(dir=home.root / ".page") as folder:
                writer.write(Path(folder) / stem, adapter, dtype)
                shutil.make_archive(str(path.with_suffix("")), "zip", folder)
        else:
            path = home.to_serve(f"{stem}-{kind}.safetensors")
            base = base_of(home, name) if writer.needs_base else None
            if base and base.startswith("models/"):
                base = str(home.root / base)
            writer.write(path, adapter, dtype, base)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return path, sha256(path)


def zip_samples(home: Workspace, name: str, path: Path) -> Path:
    """The sample images of a run, links left out."""
    run = name.partition("/")[0]
    if run not in home.run_names():
        raise ConfigError(f"{name} was added as a file: it has no sample images")
    found = [(folder_step, file) for folder_step, files in sample_files(home.runs / run) for file in files]
    if not found:
        raise ConfigError(f"{run} has no sample images yet")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for step, file in found:
            if real_file(file):
                archive.write(file, f"{run}/step-{step:05d}/{file.name}")
    return path


def size(path: Path) -> str:
    number = path.stat().st_size
    return (
        f"{number / 2**30:.1f} GB"
        if number >= 2**30
        else f"{number / 2**20:.1f} MB"
        if number >= 2**20
        else f"{number / 2**10:.1f} KB"
    )
