"""The name and the hashes by which files of images refer to an adapter."""

import hashlib
from pathlib import Path

from gralora_diffusion.files import sha256
from gralora_diffusion.formats.read import HEADER, NATIVE, file_in
from gralora_diffusion.formats.read_peft import PEFT_TENSORS
from gralora_diffusion.formats.run_files import name_of, named_after
from gralora_diffusion.formats.safetensors_files import opened, parsed
from gralora_diffusion.options import ConfigError
from gralora_diffusion.sdxl.prompt_chunks import PENULTIMATE
from gralora_diffusion.sdxl.sampling_settings import UsedAdapter

FACTS = "gralora.facts"  # in the header of our files for other tools
CHUNK = 2**20  # bytes
MOST_LAYERS = 12  # of the first text encoder


def used_adapter(path: str | Path, strength: float = 1.0) -> UsedAdapter:
    """An adapter as read_adapter() takes it: a file, a run folder or a PEFT folder.

    The hash of the tensors is that of the run's file for other tools, where it is beside the native one.
    """
    file = file_of(path)
    if file is None:
        return UsedAdapter(name_of(path), strength)
    exported = named_after(file.parent)
    for_others = exported if file.name == NATIVE and exported.is_file() else file
    return UsedAdapter(name_of(path), strength, sha256(file), tensor_hash(for_others))


def file_of(path: str | Path) -> Path | None:
    """The file of an adapter; None for a PEFT folder of several models."""
    path = Path(path)
    files = [file_in(path), path / PEFT_TENSORS] if path.is_dir() else [path]
    return next((file for file in files if file is not None and file.is_file()), None)


def common_clip_skip(paths: list[str | Path]) -> int:
    """The --clip_skip that adapters were trained with; SDXL's where none says it.

    Raises ConfigError where they differ.
    """
    known = {clip_skip_of(path) for path in paths} - {None}
    if len(known) > 1:
        problem = f"the adapters were trained with --clip_skip {' and '.join(map(str, sorted(known)))}"
        raise ConfigError(f"{problem}: give the one to use", option="clip_skip")
    return known.pop() if known else PENULTIMATE


def clip_skip_of(path: str | Path) -> int | None:
    """What the header of a file that we wrote says; None where it says nothing that can be used."""
    file = file_of(path)
    if file is None or file.suffix != ".safetensors":
        return None
    with opened(file) as content:
        metadata = content.metadata() or {}
    name = next((name for name in (HEADER, FACTS) if name in metadata), None)
    if name is None:
        return None
    try:
        found = parsed(metadata[name], f"{file}: its header {name!r}")["training"]["values"]["clip_skip"]
    except (KeyError, TypeError):
        return None
    return found if type(found) is int and 1 <= found <= MOST_LAYERS else None


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
