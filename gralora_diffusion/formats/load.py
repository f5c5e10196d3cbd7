"""Adapters between models and files: save them from adapted models, load them into a pipeline."""

import dataclasses
import warnings
from pathlib import Path

import torch
from torch import nn

from gralora_diffusion.adapters.inject import adapted, adapters, attach, follow_timesteps
from gralora_diffusion.adapters.layers import LoRALinear
from gralora_diffusion.config import AdapterConfig
from gralora_diffusion.formats.adapter_state import Adapter, sizes
from gralora_diffusion.formats.read import DIFFUSERS, NATIVE, read_adapter
from gralora_diffusion.formats.write import (
    COMFYUI,
    KOHYA,
    file_sizes,
    write_comfyui,
    write_diffusers,
    write_native,
    write_peft,
    write_safetensors,
)
from gralora_diffusion.options import ConfigError, to_dict
from gralora_diffusion.sdxl.fingerprint import fingerprint, same_base
from gralora_diffusion.sdxl.load import shapes

__all__ = [
    "COMFYUI",
    "DIFFUSERS",
    "KOHYA",
    "NATIVE",
    "check_fits",
    "file_sizes",
    "load_adapter",
    "read_adapter",
    "save_adapter",
    "save_diffusers",
]
__all__ += ["write_comfyui", "write_diffusers", "write_native", "write_peft", "write_safetensors"]


def save_adapter(
    path: str | Path,
    models: dict[str, nn.Module],
    base: str | None = None,
    prompts: dict | None = None,
    dtype=torch.float32,
) -> None:
    """Write the native file from adapted models: {"unet": unet, "text_encoder": te1, "text_encoder_2": te2}, as many as there are.

    Raises ValueError when there is no adapter, or a number is not finite; the file is either complete or not there.
    """
    write_native(path, Adapter.from_models(models, base, prompts), dtype)


def save_diffusers(path: str | Path, models: dict[str, nn.Module], dtype=torch.float32) -> None:
    """Write the adapters as a plain LoRA that StableDiffusionXLPipeline.load_lora_weights reads: exact, by low_rank()."""
    write_diffusers(path, Adapter.from_models(models), dtype)


def load_adapter(pipeline, path: str | Path, strength: float = 1.0, name: str | None = None) -> dict:
    """Put an adapter, a file or folder of any kind that read_adapter() knows, into a pipeline; returns the facts of its header.

    Several may be in a pipeline, each with a name (the file's or the folder's by default) for set_strength(), enable() and remove().
    Everything is checked before anything is changed: keys, shapes, finite numbers, sizes.  Raises ConfigError with one
    sentence.  A base other than the one it was trained on gives a warning, since adapters are often used on a finetune.
    """
    path = Path(path)
    name = name or (path.resolve().name if path.is_dir() else path.stem)
    adapter = read_adapter(path)
    for component in adapter.layers:
        model = getattr(pipeline, component, None)
        if model is not None and name in getattr(model, "adapter_configs", {}):
            raise ConfigError(
                f"{path}: this pipeline's {component} has an adapter named {name!r} already; give another name, or remove() it first"
            )
        if model is not None and any(layer.unmerged_weight is not None for layer in adapters(model).values()):
            raise ConfigError(
                f"{path}: this pipeline's {component} holds a merged adapter; unmerge() it first"
            )
    layers = fitted(adapter, pipeline.components, path)
    base = adapter.facts.get("base", {})
    if "fingerprint" in base and not same_base(base["fingerprint"], fingerprint(pipeline.unet)):
        warnings.warn(
            f"{path.name} was trained on another base ({base.get('name') or 'unnamed'}): results may differ",
            stacklevel=2,
        )
    for model, own_path, layer in layers:
        layer.name, layer.strength = name, float(strength)
        attach(model, own_path, layer.requires_grad_(False))
        model.adapter_configs = getattr(model, "adapter_configs", {}) | {name: adapter.config}
    for component in adapter.layers:
        model = pipeline.components[component]
        follow_timesteps(model, name, adapter.config, [layer for there, _, layer in layers if there is model])
    return adapter.facts | dict(config=to_dict(adapter.config), name=name)


def fitted(adapter: Adapter, models: dict[str, nn.Module], where) -> list[tuple[nn.Module, str, LoRALinear]]:
    """[(model, module path in it, new adapted layer)]; the models are not changed.  Raises ConfigError when something does not fit."""
    layers = []
    for component, module_path, factors in adapter.items():
        model = models.get(component)
        if model is None:
            raise ConfigError(
                f"{where}: it holds an adapter for {component}, which this pipeline does not have"
            )
        own_path = module_path if hasattr(model, "text_model") else module_path.removeprefix("text_model.")
        layers.append(
            (
                model,
                own_path,
                layer_from(model, own_path, factors, adapter.config, f"{where}: {component}.{module_path}"),
            )
        )
    return layers


def check_fits(adapter: Adapter, base: str, where) -> None:
    """Raises ConfigError unless every layer is one of this base's, by its shapes alone."""
    fitted(adapter, shapes(base), where)


def layer_from(
    model: nn.Module, path: str, factors: dict[str, torch.Tensor], config: AdapterConfig, where: str
) -> LoRALinear:
    """A new adapted layer for model.path that holds these tensors; the model is not changed."""
    try:
        linear = model.get_submodule(path)
    except AttributeError:
        raise ConfigError(
            f"{where}: the base has no such layer; the adapter was made for another kind of model"
        ) from None
    linear = linear.to_linear() if isinstance(linear, LoRALinear) else linear
    rank, k, hybrid = sizes(factors)
    if sum(t.numel() for t in factors.values()) != rank * (
        getattr(linear, "in_features", 0) + getattr(linear, "out_features", 0)
    ):
        shape = f"{getattr(linear, 'in_features', '?')} -> {getattr(linear, 'out_features', '?')}"
        raise ConfigError(
            f"{where}: its tensors do not fit the base's layer {shape}; the adapter was made for another base"
        )
    try:
        layer = adapted(linear, dataclasses.replace(config, hybrid_rank=hybrid), rank, k)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from None
    for name, parameter in layer.adapter_parameters.items():
        if parameter.shape != factors[name].shape:
            raise ConfigError(
                f"{where}.{name}: shape {list(factors[name].shape)}, and the base's layer needs {list(parameter.shape)}"
            )
        parameter.data.copy_(factors[name])
    return layer
