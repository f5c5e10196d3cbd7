"""The kinds of adapters by name.

A new kind is a subclass of LayerAdapter, and a line in KINDS or a call of register().
"""

from torch import nn

from gralora_diffusion.adapters.conv import matrix_of
from gralora_diffusion.adapters.gralora import GraLoRA
from gralora_diffusion.adapters.layer_adapter import LayerAdapter
from gralora_diffusion.adapters.lora import LoRA
from gralora_diffusion.adapters.ortholora import OrthoLoRA
from gralora_diffusion.config import METHODS, AdapterConfig

KINDS: dict[str, type[LayerAdapter]] = {"gralora": GraLoRA, "lora": LoRA, "ortholora": OrthoLoRA}


def register(name: str, kind: type[LayerAdapter]) -> None:
    """Let AdapterConfig(method=name) make adapters of this kind.

    Raises ValueError for a name that is taken.
    """
    if name in KINDS and KINDS[name] is not kind:
        raise ValueError(f"there is already a kind of adapter named {name!r}: choose another name")
    KINDS[name] = kind
    if name not in METHODS:
        METHODS.append(name)


def new_adapter(layer: nn.Module, config: AdapterConfig, rank: int, k: int | None) -> LayerAdapter:
    """An adapter for a linear layer or a convolution by the config; rank and k are this layer's own.

    Raises ValueError where they do not fit.
    """
    return KINDS[config.method].from_config(matrix_of(layer), config, rank, k)
