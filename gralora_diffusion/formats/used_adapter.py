"""The name and the hashes by which files of images refer to an adapter."""

import hashlib
from pathlib import Path

from gralora_diffusion.files import sha256
from gralora_diffusion.formats.read import DIFFUSERS, NATIVE
from gralora_diffusion.formats.read_peft import PEFT_TENSORS
from gralora_diffusion.formats.run_files import name_of, named_after
from gralora_diffusion.sdxl.sampling_settings import UsedAdapter

CHUNK = 2**20  # bytes


def used_adapter(path: str | Path, strength: float = 1.0) -> UsedAdapter:
    """An adapter as read_adapter() takes it: a file, a run folder or a PEFT folder.

    The hash of the tensors is that of the run's file for other tools, where it is beside the native one.
    """
    path = Path(path)
    file = path
    if path.is_dir():
        files = [path / name for name in (NATIVE, DIFFUSERS, PEFT_TENSORS)]
        file = next((found for found in files if found.is_file()), path)
    if not file.is_file():  # a PEFT folder of several models
        return UsedAdapter(name_of(path), strength)
    exported = named_after(file.parent)
    for_others = exported if file.name == NATIVE and exported.is_file() else file
    return UsedAdapter(name_of(path), strength, sha256(file), tensor_hash(for_others))


def tensor_hash(path: Path) -> str | None:
    """SHA-256 of a .safetensors file's bytes after the header, as A1111 computes it; None for other files."""
    if path.suffix != ".safetensors":
        return None
    total = hashlib.sha256()
    with open(path, "rb") as file:
        file.seek(8 + int.from_bytes(file.read(8), "little"))
        while chunk := file.read(CHUNK):
            total.update(chunk)
    return total.hexdigest()
