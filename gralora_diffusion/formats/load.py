"""Adapters between models and files: save them from adapted models, load them into a pipeline."""

import warnings
from pathlib import Path

import torch
from torch import nn

from gralora_diffusion.adapters.conv import matrix_of
from gralora_diffusion.adapters.delta_adapter import DeltaAdapter
from gralora_diffusion.adapters.deltas import Delta
from gralora_diffusion.adapters.inject import ADAPTABLE, attach, first_match
from gralora_diffusion.adapters.kinds import new_adapter
from gralora_diffusion.adapters.layer_adapter import LayerAdapter
from gralora_diffusion.adapters.registry import AdapterHandle, adapted_layers, check_free, handles
from gralora_diffusion.adapters.tlora import follow_timesteps
from gralora_diffusion.config import AdapterConfig
from gralora_diffusion.files import resolved
from gralora_diffusion.formats.adapter_state import Adapter, Factors, sizes_of
from gralora_diffusion.formats.conv_factors import as_matrices, kernel_of
from gralora_diffusion.formats.predicted_sizes import on_meta
from gralora_diffusion.formats.read import read_adapter
from gralora_diffusion.formats.write import write_diffusers, write_native
from gralora_diffusion.options import ConfigError, to_dict
from gralora_diffusion.sdxl.fingerprint import fingerprint, same_base
from gralora_diffusion.sdxl.load import sdxl_shapes, shapes


def save_adapter(
    path: str | Path,
    models: dict[str, nn.Module],
    base: str | None = None,
    prompts: dict | None = None,
    dtype=torch.float32,
) -> None:
    """Write the native file from adapted models, {"unet": unet, "text_encoder": te1, ...}.

    Raises ValueError when there is no adapter, or a number is not finite; the file is either complete or not
    there.
    """
    write_native(path, Adapter.from_models(models, base, prompts), dtype)


def save_diffusers(path: str | Path, models: dict[str, nn.Module], dtype=torch.float32) -> None:
    """Write the adapters as a plain LoRA, exactly, for StableDiffusionXLPipeline.load_lora_weights."""
    write_diffusers(path, Adapter.from_models(models), dtype)


def load_adapter(pipeline, path: str | Path, strength: float = 1.0, name: str | None = None) -> dict:
    """Put an adapter, a file or folder that read_adapter() knows, into a pipeline; returns its facts.

    Several may be in a pipeline, each with a name (by default the file's or the folder's) for set_strength(),
    enable() and remove().  Everything is checked before anything is changed: keys, shapes, finite numbers,
    sizes.  Raises ConfigError. Only warns if the base is not the one it was trained on: adapters are often
    used on fine-tuned models.
    """
    path = Path(path)
    name = name or (resolved(path).name if path.is_dir() else path.stem)
    adapter = read_adapter(path)
    for component in adapter.components:
        model = getattr(pipeline, component, None)
        if model is not None:
            check_room(model, f"{path}: this pipeline's {component}", name)
    found = fitted(adapter, pipeline.components, path)
    base = adapter.facts.get("base", {})
    if "fingerprint" in base and not same_base(base["fingerprint"], fingerprint(pipeline.unet)):
        other = base.get("name") or "unnamed"
        warnings.warn(
            f"{path.name} was trained on a different base ({other}): results may differ", stacklevel=2
        )
    for component, layers in found.items():
        model = pipeline.components[component]
        for layer_adapter in layers.values():
            layer_adapter.strength = float(strength)
            layer_adapter.requires_grad_(False)
        hook = follow_timesteps(model, adapter.config, list(layers.values()))
        earlier = next(iter(handles(model).values()), None)
        known = earlier.fingerprint if earlier else None
        attach(model, name, AdapterHandle(adapter.config, layers, hook, known))
    return adapter.facts | dict(config=to_dict(adapter.config), name=name)


def check_room(model: nn.Module, what: str, name: str) -> None:
    """Raises ConfigError where the model has an adapter of this name, or a merged one."""
    check_free(model)
    if name in handles(model):
        way = "give another name, or remove() it first"
        raise ConfigError(f"{what} already has an adapter named {name!r}; {way}")
    if any(layer.merged for layer in adapted_layers(model).values()):
        raise ConfigError(f"{what} holds a merged adapter; unmerge() it first")


def fitted(adapter: Adapter, models: dict[str, nn.Module], where) -> dict[str, dict[str, LayerAdapter]]:
    """{component: {module path in the model: new adapter for that layer}}; the models are not changed.

    Raises ConfigError when something does not fit.
    """
    learn_shapes(adapter, models)
    found = {}
    for component, module_path, factors in adapter.items():
        model = model_for(models, component, where)
        own_path = path_in(model, module_path)
        what = f"{where}: {component}.{module_path}"
        layer_adapter = adapter_for(model, own_path, factors, adapter.config, what)
        found.setdefault(component, {})[own_path] = layer_adapter
    for component, changes in adapter.deltas.items():
        model = model_for(models, component, where)
        for module_path in dict.fromkeys(name.rpartition(".")[0] for name in changes):
            path = path_in(model, module_path)
            what = f"{where}: {component}.{module_path}"
            own = [changes.get(f"{module_path}.{name}") for name in ("weight", "bias")]
            found.setdefault(component, {})[path] = delta_adapter(model, path, *own, what)
    return found


def learn_shapes(adapter: Adapter, models: dict[str, nn.Module]) -> None:
    """Show the shapes of these models' parameters to the changes, of which some depend on those of others."""
    for component, changes in adapter.deltas.items():
        model = models.get(component)
        for name, delta in changes.items() if model is not None else ():
            path, _, parameter = name.rpartition(".")
            try:
                shape = getattr(model.get_submodule(path_in(model, path)), parameter).shape
            except AttributeError:
                continue  # fitted() says that the base has no such layer
            delta.learn(tuple(shape))


def model_for(models: dict[str, nn.Module], component: str, where) -> nn.Module:
    """The model of an adapter's component.  Raises ConfigError where the pipeline does not have it."""
    model = models.get(component)
    if model is None:
        problem = f"it holds an adapter for {component}, which this pipeline does not have"
        raise ConfigError(f"{where}: {problem}")
    return model


def path_in(model: nn.Module, path: str) -> str:
    """The path of a layer in a model, whichever version of transformers made it."""
    return path if hasattr(model, "text_model") else path.removeprefix("text_model.")


def delta_adapter(
    model: nn.Module, path: str, weight: Delta | None, bias: Delta | None, where: str
) -> DeltaAdapter:
    """A new adapter for model.path of changes of another tool's kind; the model is not changed."""
    try:
        layer = model.get_submodule(path)
        if not isinstance(layer, ADAPTABLE):
            kind = type(layer).__name__
            raise ValueError(f"the base's layer is of the type {kind}, which no adapter can change")
        return DeltaAdapter(layer, weight, bias)
    except AttributeError:
        problem = "the base has no such layer; the adapter was made for a different kind of model"
        raise ConfigError(f"{where}: {problem}") from None
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from None


def check_fits_base(adapter: Adapter, base: str | None, where) -> None:
    """Raises ConfigError unless every layer is one of this base's, by its shapes alone."""
    fitted(adapter, shapes(base), where)


def fits_sdxl(adapter: Adapter) -> bool:
    """Whether every layer is one of SDXL 1.0's, by its shapes alone; the embedded base's are not."""
    try:
        fitted(on_meta(adapter), sdxl_shapes(), "")  # a copy, since fitted() shows shapes to it
    except ConfigError:
        return False
    return True


def adapter_for(
    model: nn.Module, path: str, factors: Factors, config: AdapterConfig, where: str
) -> LayerAdapter:
    """A new adapter for model.path that holds these tensors; the model is not changed."""
    try:
        layer = matrix_of(model.get_submodule(path))
    except AttributeError:
        problem = "the base has no such layer; the adapter was made for a different kind of model"
        raise ConfigError(f"{where}: {problem}") from None
    n = getattr(layer, "in_features", None)
    m = getattr(layer, "out_features", None)
    kernel = getattr(layer, "kernel", None)
    sizes = sizes_of(factors)
    if n is None:
        found = type(layer).__name__
        raise ConfigError(
            f"{where}: its tensors are of a linear layer or a convolution; the base has {found}"
        )
    fit = True
    if sizes:
        numbers = sum(tensor.numel() for tensor in factors.values())
        fit = kernel == kernel_of(factors) and numbers == sizes.rank * (n + m)
    if not fit:
        shape = f"{n} -> {m}"
        if kernel:
            shape += f", with a kernel of {kernel[0]} x {kernel[1]}"
        problem = (
            f"its tensors do not fit the base's layer {shape}; the adapter was made for a different base"
        )
        raise ConfigError(f"{where}: {problem}")
    if sizes is None:
        rank = first_match(config.rank_pattern, path, config.rank)
        k = first_match(config.k_pattern, path, config.k)
    else:
        rank, k, _ = sizes
    try:
        adapter = new_adapter(layer, config, rank, k)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from None
    factors = as_matrices(factors)
    for name, parameter in adapter.named_parameters():
        if parameter.shape != factors[name].shape:
            own = list(factors[name].shape)
            need = list(parameter.shape)
            raise ConfigError(f"{where}.{name}: shape {own}, and the base's layer needs {need}")
        parameter.data.copy_(factors[name])
    return adapter
