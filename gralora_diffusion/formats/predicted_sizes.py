"""How large the files of an adapter will be: the writers' own contents, on the meta device."""

from collections.abc import Callable

import torch

from gralora_diffusion.formats.adapter_state import Adapter, describe
from gralora_diffusion.formats.nearest import lora_factors, weights
from gralora_diffusion.formats.tensor_hashes import file_size
from gralora_diffusion.formats.write import comfyui_contents, diffusers_contents, native_contents
from gralora_diffusion.formats.write_peft import peft_contents
from gralora_diffusion.options import ConfigError


def on_meta(adapter: Adapter) -> Adapter:
    """The adapter's shapes without its numbers."""
    layers = {component: {} for component in adapter.layers}
    for component, path, factors in adapter.items():
        layers[component][path] = {leaf: tensor.to("meta") for leaf, tensor in factors.items()}
    deltas = {}
    for component, found in adapter.deltas.items():
        deltas[component] = {name: delta.to("meta") for name, delta in found.items()}
    return Adapter(adapter.config, layers, adapter.facts, deltas)


def nearest_on_meta(adapter: Adapter, rank: int) -> Adapter:
    """The shapes of nearest() of an adapter on the meta device.

    Raises ConfigError for a kind that needs the base's weights.
    """
    layers = {}
    for component, path, delta in weights(adapter, []):
        pair = delta.pair()
        if pair is not None:
            (own_rank, n), m = pair[0].shape, pair[1].shape[0]
        elif delta.needs_base:
            raise ConfigError(
                f"{component}.{path} is of the kind {delta.NAME}, which needs the base's weights"
            )
        else:
            m, n = delta.delta().flatten(1).shape
            own_rank = rank
        new_rank = min(rank, own_rank, m, n)
        down = torch.empty(new_rank, n, device="meta")
        up = torch.empty(m, new_rank, device="meta")
        layers.setdefault(component, {})[path] = lora_factors(down, up, component, path)
    if not layers:
        raise ConfigError("it changes only norms, biases or embeddings, which no LoRA can hold")
    return Adapter(describe(layers), layers, adapter.facts)


def predicted_sizes(adapter: Adapter, dtype: torch.dtype, title: str) -> dict[str, int | None]:
    """{format: bytes} of an adapter on the meta device; None where the format cannot hold it.

    title: as write_comfyui() takes it from the file's name.  A PEFT folder's files are added up.
    """
    if adapter.deltas:  # other tools' kinds, which only merging can use
        return dict.fromkeys(CONTENTS)
    found = {}
    for kind, predict in CONTENTS.items():
        try:
            found[kind] = predict(adapter, dtype, title)
        except ConfigError:
            found[kind] = None
    return found


def native_size(adapter: Adapter, dtype: torch.dtype, title: str) -> int:
    return file_size(*native_contents(adapter, dtype))


def diffusers_size(adapter: Adapter, dtype: torch.dtype, title: str) -> int:
    return file_size(*diffusers_contents(adapter, dtype))


def comfyui_size(adapter: Adapter, dtype: torch.dtype, title: str) -> int:
    return file_size(*comfyui_contents(adapter, dtype, title))


def peft_size(adapter: Adapter, dtype: torch.dtype, title: str) -> int:
    files = peft_contents(adapter, dtype).values()
    return sum(len(config) + file_size(tensors, header) for config, tensors, header in files)


CONTENTS: dict[str, Callable[[Adapter, torch.dtype, str], int]] = {
    "comfyui": comfyui_size,
    "diffusers": diffusers_size,
    "peft": peft_size,
    "native": native_size,
}
