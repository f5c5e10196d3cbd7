"""The .safetensors files of adapters: errors as one sentence, and complete files or none."""

import json
from pathlib import Path

import torch

from gralora_diffusion.files import complete_or_absent
from gralora_diffusion.options import ConfigError

PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")  # of torch.save, new and old


def opened(path: Path):
    """safetensors' own file object, which checks the header as it opens.

    Raises ConfigError when the file is damaged, or is a pickle.
    """
    import safetensors

    try:
        return safetensors.safe_open(path, "pt")
    except (safetensors.SafetensorError, OSError) as error:
        if begins_as_pickle(path):
            way = "convert it to .safetensors if you trust its source"
            problem = f"{path} is a pickle, which can run code when it is read"
            raise ConfigError(f"{problem}: {way}") from None
        raise ConfigError(f"{path} is not a complete .safetensors file: {error}") from None


def begins_as_pickle(path: Path) -> bool:
    """Whether a file that is no .safetensors begins as those of torch.save do."""
    try:
        with open(path, "rb") as file:
            return file.read(4).startswith(PICKLES)
    except OSError:
        return False


def read_safetensors(path: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """(metadata, tensors).  Raises ConfigError when the file is damaged or empty."""
    import safetensors

    tensors = {}
    with opened(path) as file:
        metadata = file.metadata() or {}
        for key in file.keys():  # noqa: SIM118 - not a dict
            try:
                tensors[key] = file.get_tensor(key)
            except (safetensors.SafetensorError, TypeError, ValueError, RuntimeError) as error:
                raise ConfigError(f"{path}: its tensor {key[:80]!r} cannot be read: {error}") from None
    if not tensors:
        raise ConfigError(f"{path} holds no tensors")
    return metadata, tensors


def all_finite(tensor: torch.Tensor) -> bool:
    """Whether no number of a tensor is infinite or NaN, in fp8 too."""
    return bool((tensor.float() if tensor.itemsize == 1 else tensor).isfinite().all())


def parsed(text: str, where: str) -> dict:
    """A JSON object.  Raises ConfigError for anything else."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ConfigError(f"{where} cannot be read: it is not a JSON object; the file is damaged")
    return value


def write_safetensors(path: str | Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """Complete or absent.  Raises ValueError at a non-finite number."""
    from safetensors.torch import save_file

    for name, tensor in tensors.items():
        if not all_finite(tensor):
            dtype = str(tensor.dtype).removeprefix("torch.")
            raise ValueError(f"{name} holds numbers that are not finite as {dtype}; nothing was written")
    with complete_or_absent(path) as part:
        save_file(tensors, part, metadata)
