"""The names of the files in a run folder that are named after it."""

import os
from pathlib import Path

from gralora_diffusion.files import resolved

COMFYUI = "comfyui"  # the stem where the folder's name cannot be one, and of files of earlier versions
MAX_BYTES = 180  # of a stem: file systems take names of 255 bytes, and unfinished files have longer names
TAKEN = (
    "adapter",
    "adapter_model",
    "before_after",
    "pytorch_lora_weights",
    "pytorch_lora_weights_kohya",
)  # stems that other files of a run have


def stem_of(run: Path) -> str:
    """The run folder's name, or another one where a file of that name would replace another of the run."""
    name = resolved(Path(run)).name.lstrip(".")
    if not name or len(os.fsencode(name)) > MAX_BYTES:
        return COMFYUI
    return f"{name}_lora" if name.lower() in TAKEN else name


def named_after(run: Path, suffix: str = ".safetensors") -> Path:
    """RUN/RUN.safetensors, the adapter for other tools; with the suffix .png its preview."""
    return Path(run) / f"{stem_of(run)}{suffix}"


def name_of(adapter: str | Path) -> str:
    """The name of an adapter's file or folder without the folders of this machine.

    It is that of the folder where the file has a name that those of all runs have.
    """
    path = resolved(Path(adapter))
    if path.is_dir():
        return path.name
    return path.parent.name if path.stem.lower() in (COMFYUI, *TAKEN) else path.stem
