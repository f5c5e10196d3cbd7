"""The .safetensors files of adapters: opened with every error as one sentence, and written completely or not at all."""

import json
from pathlib import Path

import torch

from gralora_diffusion.files import complete_or_absent
from gralora_diffusion.options import ConfigError


def opened(path: Path):
    """safetensors' own file object, which checks the header as it opens; raises ConfigError when the file is damaged."""
    import safetensors

    try:
        return safetensors.safe_open(path, "pt")
    except (safetensors.SafetensorError, OSError) as error:
        raise ConfigError(f"{path} is not a complete .safetensors file: {error}") from None


def read_safetensors(path: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """(metadata, tensors).  Raises ConfigError when the file is damaged or empty."""
    with opened(path) as file:
        metadata = file.metadata() or {}
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    if not tensors:
        raise ConfigError(f"{path} holds no tensors")
    return metadata, tensors


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
        if not tensor.isfinite().all():
            dtype = str(tensor.dtype).removeprefix("torch.")
            raise ValueError(f"{name} holds numbers that are not finite as {dtype}; nothing was written")
    with complete_or_absent(path) as part:
        save_file(tensors, part, metadata)
