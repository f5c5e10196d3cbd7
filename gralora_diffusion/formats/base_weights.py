"""Single weights of a base, read when they are asked for: for kinds of adapters that depend on them."""

from pathlib import Path

import torch

from gralora_diffusion.formats.base_files import Tensors, from_checkpoint, from_folder, local, structure
from gralora_diffusion.options import ConfigError


def base_tensors(base: str | None) -> tuple[Path, Tensors]:
    """(path, {component: {parameter's name: tensor that is not in memory}}); base: as load_sdxl() takes it.

    Raises ConfigError where it is not a whole SDXL.
    """
    path = local(base)
    _, names, layout = structure(path)
    if path.is_file():
        return path, from_checkpoint(path, names, layout)[0]
    return path, from_folder(path, names)


class BaseWeights:
    """The weights of a base by (component, parameter's name)."""

    def __init__(self, base: str | None):
        self.path, self.tensors = base_tensors(base)

    def __call__(self, component: str, name: str) -> torch.Tensor:
        """Raises ConfigError for a parameter that the base does not have."""
        tensor = self.tensors.get(component, {}).get(name)
        if tensor is None:
            problem = f"it has no {component}.{name}; the adapter was made for a different kind of model"
            raise ConfigError(f"{self.path}: {problem}")
        return tensor.read()
