"""Put any method into a model: ours, PEFT's, MoRA and RaSA, or full fine-tuning."""

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from gralora_diffusion.adapters.allocation_file import inject_sized
from gralora_diffusion.adapters.control import bake_in
from gralora_diffusion.adapters.inject import TARGETS, compiled, inject, with_convolutions
from gralora_diffusion.adapters.registry import adapted_layers, adapter_parameters
from gralora_diffusion.config import AdapterConfig
from gralora_diffusion.experiments.adapted import HEADER, Adapted, Spec
from gralora_diffusion.experiments.mora_rasa import build_mora, build_rasa
from gralora_diffusion.experiments.peft_methods import build_peft
from gralora_diffusion.experiments.sizes import Shapes
from gralora_diffusion.options import ConfigError


def adapt(model: nn.Module, spec: Spec, batches: Callable[[int], object] | None = None) -> Adapted:
    """Freeze the model and put the method into it; at the start it computes as before.

    batches(i) runs the model on batch i, for methods whose start comes from inputs.  A method with a gradient
    pass starts with equal ranks: allocation.apply() changes them, and as_adapted() takes the model as it is.
    Raises ConfigError where the size does not fit.
    """
    layers = layers_of(model, spec.targets)
    model.requires_grad_(False)
    torch.manual_seed(spec.seed)  # PEFT uses the global generator
    return BUILDERS[spec.about.build](model, layers, spec, batches)


def layers_of(model: nn.Module, targets: str) -> dict[str, nn.Linear]:
    """{path: layer} of the plain linear layers that targets names.

    Raises ConfigError when there are none, and for targets with convolutions, which other methods lack.
    """
    if with_convolutions(targets):
        problem = f"--targets {targets} includes convolutions, but methods are compared on linear layers only"
        raise ConfigError(f"{problem}: use attention+ff or all-linear", option="targets")
    pattern = compiled(TARGETS.get(targets, targets), "targets")
    layers = {path: m for path, m in model.named_modules() if type(m) is nn.Linear and pattern.search(path)}
    if not layers:
        raise ConfigError(f"targets {targets!r} matches no linear layer", option="targets")
    return layers


def shapes_of(model: nn.Module, targets: str) -> Shapes:
    """(M, N) of each layer that targets names, in a plain model or one adapted by us."""
    layers = adapted_layers(model) or layers_of(model, targets)
    return [tuple(layer.weight.shape) for layer in layers.values()]


def build_ours(model: nn.Module, layers: dict[str, nn.Linear], spec: Spec, batches) -> Adapted:
    try:
        if spec.sizes:
            sizes = {f"unet.{path}": tuple(size) for path, size in spec.sizes.items()}
            inject_sized({"unet": model}, adapter_config_of(spec), sizes, spec.seed)
        else:
            inject(model, adapter_config_of(spec))
    except ValueError as error:
        raise ConfigError(f"{spec.method} of rank {spec.size}: {error}") from None
    return as_adapted(model, spec)


def adapter_config_of(spec: Spec) -> AdapterConfig:
    """The AdapterConfig of one of our methods."""
    hybrid = spec.size // 2 if spec.about.hybrid else 0
    size = dict(rank=spec.size, k=spec.k, hybrid_rank=hybrid)
    return AdapterConfig(targets=spec.targets, **size, **spec.about.adapter)


def as_adapted(model: nn.Module, spec: Spec) -> Adapted:
    """A model that has our adapters in it, with the sizes that they have."""
    if spec.about.gradients:
        sizes = {}
        for path, layer in adapted_layers(model).items():
            sizes[path] = [layer.adapter.rank, layer.adapter.k]
        spec = dataclasses.replace(spec, sizes=sizes)
    return Adapted(spec, adapter_parameters(model), functools.partial(bake_in, model))


def build_whole(model: nn.Module, layers: dict[str, nn.Linear], spec: Spec, batches) -> Adapted:
    ends = [train_whole(layer) for layer in layers.values()]

    def bake_in() -> None:
        for end in ends:
            end()

    return Adapted(spec, {f"{path}.weight": layer.weight for path, layer in layers.items()}, bake_in)


def train_whole(linear: nn.Linear) -> Callable[[], None]:
    """Let a layer's weight train, in fp32 whatever the model's precision; returns what undoes that.

    The undoing rounds the weight to the model's precision.
    """
    dtype = linear.weight.dtype
    linear.float().weight.requires_grad_(True)

    def to_fp32(_, inputs):
        return None if torch.is_autocast_enabled(inputs[0].device.type) else inputs[0].float()

    def to_dtype(_, inputs, out):
        return out if torch.is_autocast_enabled(inputs[0].device.type) else out.to(dtype)

    hooks = [linear.register_forward_pre_hook(to_fp32), linear.register_forward_hook(to_dtype)]

    def end() -> None:
        for hook in hooks:
            hook.remove()
        linear.requires_grad_(False).to(dtype)

    return end


BUILDERS = {  # {Method.build: (model, {path: layer}, spec, batches) -> Adapted}
    "ours": build_ours,
    "peft": build_peft,
    "mora": build_mora,
    "rasa": build_rasa,
    "whole": build_whole,
}


def load_adapted(model: nn.Module, path: Path) -> Adapted:
    """The method of a file that Adapted.save() wrote, put into a plain model.

    Raises ConfigError when it does not fit.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            spec = Spec(**json.loads(file.metadata()[HEADER]))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, TypeError, KeyError, ValueError) as error:
        raise ConfigError(f"{path} was not written by gralora compare, or is damaged: {error}") from None
    adapted = adapt(model, spec)
    expected = {name: p.shape for name, p in adapted.parameters.items()}
    if expected != {name: tensor.shape for name, tensor in tensors.items()}:
        raise ConfigError(f"{path} was made for a different model")
    for name, p in adapted.parameters.items():
        p.data.copy_(tensors[name])
    return adapted
