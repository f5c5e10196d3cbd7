"""Adapter files: the native one, which describes itself and can be trained on, and the LoRA file that plain diffusers loads."""

import dataclasses
import json
import os
import warnings
from pathlib import Path

import torch
from torch import nn

from . import __version__
from .adapters import LoRALinear
from .config import AdapterConfig, ConfigError, from_dict, to_dict
from .injection import adapted, adapters, replace, set_strength
from .sdxl import COMPONENTS, fingerprint, same_base

NATIVE = "adapter.safetensors"
DIFFUSERS = "pytorch_lora_weights.safetensors"
HEADER = "gralora_diffusion"
LEAVES = {"gralora": ({"gralora_A", "gralora_B"}, {"gralora_A", "gralora_B", "lora_A", "lora_B"}), "lora": ({"lora_A", "lora_B"},)}


def save_adapter(path: str | Path, models: dict[str, nn.Module], base: str | None = None, prompts: dict | None = None, dtype=torch.float32) -> None:
    """Write the native file from adapted models: {"unet": unet, "text_encoder": te1, "text_encoder_2": te2}, as many as there are.

    Tensors: COMPONENT.MODULE_PATH.{gralora_A [k, N/k, r], gralora_B [k, r, M/k], lora_A [r, N], lora_B [M, r]}.  Header: JSON with
    the AdapterConfig, the base's name and fingerprint, the prompts and the version of this package.
    Raises ValueError when there is no adapter, or a number is not finite; the file is either complete or not there.
    """
    layers = {name: adapters(model) for name, model in models.items()}
    tensors = {
        f"{name}.{canonical(name, path_)}.{leaf}": p.detach().to("cpu", dtype).contiguous()
        for name, found in layers.items()
        for path_, layer in found.items()
        for leaf, p in layer.adapter_parameters.items()
    }
    if not tensors:
        raise ValueError(f"nothing to save: none of {', '.join(models)} has adapters")
    adapted_models = [m for name, m in models.items() if layers[name]]
    facts = dict(version=__version__, config=to_dict(adapted_models[0].adapter_config), prompts=prompts or {})
    if "unet" in models:
        facts["base"] = dict(name=base or getattr(models["unet"].config, "_name_or_path", ""), fingerprint=fingerprint(models["unet"]))
    write_safetensors(path, tensors, {HEADER: json.dumps(facts, ensure_ascii=False)})


def save_diffusers(path: str | Path, models: dict[str, nn.Module], dtype=torch.float32) -> None:
    """Write the adapters as a plain LoRA that StableDiffusionXLPipeline.load_lora_weights reads: exact, by low_rank().

    No alpha is written, so diffusers takes alpha = rank; since it does that with one rank for a whole model, smaller ranks are
    padded with zeros to the largest of their model.
    """
    tensors = {}
    for name, model in models.items():
        factors = {path_: layer.low_rank() for path_, layer in adapters(model).items()}
        rank = max((down.shape[0] for down, _ in factors.values()), default=0)
        for path_, (down, up) in factors.items():
            pad = rank - down.shape[0]
            key = f"{name}.{canonical(name, path_)}"
            tensors[f"{key}.lora_A.weight"] = nn.functional.pad(down, (0, 0, 0, pad)).to("cpu", dtype).contiguous()
            tensors[f"{key}.lora_B.weight"] = nn.functional.pad(up, (0, pad)).to("cpu", dtype).contiguous()
    if not tensors:
        raise ValueError(f"nothing to save: none of {', '.join(models)} has adapters")
    write_safetensors(path, tensors, {"format": "pt"})


def load_adapter(pipeline, path: str | Path, strength: float = 1.0) -> dict:
    """Put a native adapter (the file, or a run folder that holds one) into a pipeline; returns the facts of its header.

    Everything is checked before anything is changed: keys, shapes, finite numbers, sizes.  Raises ConfigError with one
    sentence.  A base other than the one it was trained on gives a warning, since adapters are often used on a finetune.
    """
    path = Path(path)
    path = path / NATIVE if path.is_dir() else path
    tensors, facts = read_native(path)
    config = from_dict(AdapterConfig, facts["config"])
    replacements = []
    for (component, module_path), leaves in tensors.items():
        model = getattr(pipeline, component, None)
        if model is None:
            raise ConfigError(f"{path}: it holds an adapter for {component}, which this pipeline does not have")
        if adapters(model):
            raise ConfigError(f"{path}: this pipeline's {component} has an adapter already; remove() it first")
        own_path = module_path if hasattr(model, "text_model") else module_path.removeprefix("text_model.")
        replacements.append((model, own_path, layer_from(model, own_path, leaves, config, f"{path}: {component}.{module_path}")))
    base = facts.get("base", {})
    if "fingerprint" in base and not same_base(base["fingerprint"], fingerprint(pipeline.unet)):
        warnings.warn(f"{path.name} was trained on another base ({base.get('name') or 'unnamed'}): results may differ", stacklevel=2)
    for model, own_path, layer in replacements:
        replace(model, own_path, layer.requires_grad_(False))
        model.adapter_config = config
    for component in {c for c, _ in tensors}:
        set_strength(getattr(pipeline, component), strength)
    return facts


def layer_from(model: nn.Module, path: str, leaves: dict[str, torch.Tensor], config: AdapterConfig, where: str) -> LoRALinear:
    """A new adapted layer for model.path that holds these tensors; the model is not changed."""
    try:
        linear = model.get_submodule(path)
    except AttributeError:
        raise ConfigError(f"{where}: the base has no such layer; the adapter was made for another kind of model") from None
    if set(leaves) not in LEAVES[config.method]:
        needed = " or ".join(", ".join(sorted(names)) for names in LEAVES[config.method])
        raise ConfigError(f"{where}: holds {', '.join(sorted(leaves))}; a {config.method} layer needs {needed}")
    hybrid = leaves["lora_A"].shape[0] if config.method == "gralora" and "lora_A" in leaves else 0
    dims = {name: 3 if name.startswith("gralora") else 2 for name in leaves}
    if any(t.ndim != dims[name] or 0 in t.shape for name, t in leaves.items()):
        raise ConfigError(f"{where}: a tensor has the wrong number of dimensions")
    rank, k = (leaves["gralora_A"].shape[2] + hybrid, leaves["gralora_A"].shape[0]) if "gralora_A" in leaves else (leaves["lora_A"].shape[0], None)
    if rank > 65536 or sum(t.numel() for t in leaves.values()) != rank * (getattr(linear, "in_features", 0) + getattr(linear, "out_features", 0)):
        shape = f"{getattr(linear, 'in_features', '?')} -> {getattr(linear, 'out_features', '?')}"
        raise ConfigError(f"{where}: its tensors do not fit the base's layer {shape}; the adapter was made for another base")
    try:
        layer = adapted(linear, dataclasses.replace(config, hybrid_rank=hybrid), rank, k)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from None
    for name, parameter in layer.adapter_parameters.items():
        if parameter.shape != leaves[name].shape:
            raise ConfigError(f"{where}.{name}: shape {list(leaves[name].shape)}, and the base's layer needs {list(parameter.shape)}")
        if leaves[name].dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
            raise ConfigError(f"{where}.{name}: is {str(leaves[name].dtype).removeprefix('torch.')}; adapters are fp16, bf16, fp32 or fp64")
        if not leaves[name].isfinite().all():
            raise ConfigError(f"{where}.{name}: holds numbers that are not finite; the file is damaged")
        parameter.data.copy_(leaves[name])
    return layer


def read_native(path: Path) -> tuple[dict[tuple[str, str], dict[str, torch.Tensor]], dict]:
    """({(component, module path): {leaf: tensor}}, facts of the header); raises ConfigError."""
    import safetensors

    if not path.is_file():
        raise ConfigError(f"{path} is not there: give an adapter file or a run folder with {NATIVE}")
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if HEADER not in metadata:
                raise ConfigError(f"{path} is not an adapter of this package: its header has no {HEADER!r}")
            tensors: dict[tuple[str, str], dict[str, torch.Tensor]] = {}
            for key in file.keys():  # noqa: SIM118 - not a dict
                component, _, rest = key.partition(".")
                module_path, _, leaf = rest.rpartition(".")
                if component not in COMPONENTS or not module_path:
                    raise ConfigError(f"{path}: unknown tensor {key!r}")
                tensors.setdefault((component, module_path), {})[leaf] = file.get_tensor(key)
    except safetensors.SafetensorError as error:
        raise ConfigError(f"{path} is not a complete .safetensors file: {error}") from None
    try:
        facts = json.loads(metadata[HEADER])
    except (ValueError, RecursionError):
        facts = None
    if not isinstance(facts, dict) or not isinstance(facts.get("config"), dict) or not isinstance(facts.get("base", {}), dict):
        raise ConfigError(f"{path}: its header {HEADER!r} cannot be read; the file is damaged")
    if not tensors:
        raise ConfigError(f"{path} holds no tensors")
    return tensors, facts


def canonical(component: str, path: str) -> str:
    """Text encoders' paths begin with text_model. in files, whichever way the installed transformers nests them."""
    return path if component == "unet" or path.startswith("text_model.") else f"text_model.{path}"


def write_safetensors(path: str | Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """Complete or absent: written under another name, synced, renamed; mode by the umask.  Raises ValueError at a non-finite number."""
    from safetensors.torch import save_file

    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise ValueError(f"{name} holds numbers that are not finite as {str(tensor.dtype).removeprefix('torch.')}; nothing was written")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        save_file(tensors, part, metadata)
        os.umask(mask := os.umask(0))
        part.chmod(0o666 & ~mask)
        with open(part, "rb") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def file_sizes(layers: dict[str, LoRALinear]) -> tuple[int, int]:
    """Bytes in fp32 of the native file and of the exported LoRA, from shapes alone; layers: {component.path: layer}."""
    native = sum(p.numel() for layer in layers.values() for p in layer.adapter_parameters.values())
    exported = 0
    for component in COMPONENTS:
        mine = [layer for path, layer in layers.items() if path.startswith(f"{component}.")]
        rank = max((layer.k * (layer.rank - layer.hybrid_rank) + layer.hybrid_rank for layer in mine), default=0)
        exported += sum(rank * (layer.in_features + layer.out_features) for layer in mine)
    return 4 * native, 4 * exported
