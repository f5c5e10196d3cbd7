"""Adapter files of other tools: every kind and every way of naming that is in use for SDXL."""

from pathlib import Path

import torch

from gralora_diffusion.console import note
from gralora_diffusion.formats.adapter_state import Adapter, Factors, describe
from gralora_diffusion.formats.check import check_layer
from gralora_diffusion.formats.key_names import PEFT, as_first_encoder, is_embedding, of_sdxl, place_of
from gralora_diffusion.formats.layer_names import canonical
from gralora_diffusion.formats.layer_parts import parts_of
from gralora_diffusion.formats.network_args import check_network_args
from gralora_diffusion.formats.peft_deltas import PROJECTIONS, is_peft_delta, peft_parts
from gralora_diffusion.formats.peft_options import check_peft_options
from gralora_diffusion.formats.safetensors_files import parsed
from gralora_diffusion.options import ConfigError
from gralora_diffusion.sdxl.objective import objective_of_header

LORA_CONFIG = "lora_adapter_metadata"  # diffusers' header with the LoraConfig
LONGEST_KEY = 300
OTHER_MODELS = {  # {how keys begin: what they are of}
    "transformer_blocks.": "a transformer such as Flux or Stable Diffusion 3",
    "single_transformer_blocks.": "Flux",
    "lora_te3_": "a transformer such as Flux or Stable Diffusion 3",
    "lora_unet_joint_blocks": "Stable Diffusion 3",
    "lora_unet_blocks_": "a video model such as Wan",
    "transformer.": "a transformer such as Flux or Stable Diffusion 3",
    "lora_transformer_": "a transformer such as Flux or Stable Diffusion 3",
    "lora_unet_double_blocks": "Flux",
    "lora_unet_single_blocks": "Flux",
    "diffusion_model.double_blocks": "Flux",
    "diffusion_model.single_blocks": "Flux",
    "diffusion_model.blocks": "a video model such as Wan",
    "lora_prior_": "Stable Cascade",
}
NO_ADAPTERS = {  # {how keys begin: what such a file is}
    "first_stage_model.": "a whole checkpoint; `gralora extract` makes an adapter from two of them",
    "model.diffusion_model.out.2.bias": "a whole UNet; `gralora extract` makes an adapter from two models",
    "conv_out.bias": "a whole UNet; `gralora extract` makes an adapter from two models",
    "image_proj.": "an IP-Adapter, which does not change weights",
    "lora_controlnet": "a Control-LoRA, which does more than change weights",
    "lllite_": "a ControlNet-LLLite, which does not change weights",
}
Found = dict[tuple[str, str], Factors]  # {(component, module path): {our name of the tensor: tensor}}


def read_foreign(path: Path, metadata: dict[str, str], tensors: dict[str, torch.Tensor]) -> Adapter:
    """Any file of another tool.  Raises ConfigError for one that is not wholly understood.

    The header lora_adapter_metadata, where there is one, is PEFT's LoraConfig; else alpha is the tensor's.
    """
    number = metadata.get("gralora.layers_per_block", "2")
    if number not in ("1", "2", "3", "4"):
        raise ConfigError(f"{path}: its header says gralora.layers_per_block = {number!r}; SDXL has 2")
    check_model(path, tensors)
    embeddings = sorted(key for key in tensors if is_embedding(key))
    if embeddings:
        some = ", ".join(embeddings[:3])
        if len(embeddings) == len(tensors):
            raise ConfigError(f"{path} is a textual inversion ({some}), not an adapter")
        note(f"{path}: a textual inversion is left out: {some}")
    layers = {key: tensor for key, tensor in tensors.items() if key not in embeddings}
    configs = {}
    if LORA_CONFIG in metadata:
        configs = parsed(metadata[LORA_CONFIG], f"{path}: its header {LORA_CONFIG}")
    elif any(key.startswith(PEFT) and ".lora_A." in key for key in tensors):
        note(f"{path}: alpha is in PEFT's adapter_config.json, which is not there; the rank is used as alpha")
    found = grouped(path, layers, int(number))
    if not found:
        raise ConfigError(f"{path} holds no layers: save or download the file again")
    check_network_args(path, metadata, list(found.values()))
    facts = facts_of(path, metadata)
    return assembled(found, lambda component: own_config(configs, component), str(path), facts)


def facts_of(path: Path, metadata: dict[str, str]) -> dict:
    """Our own facts in the header of another tool's file, or what the tool says of the prediction.

    Its epsilon is not taken: it stands in every file, also in those that are used with bases that predict v.
    """
    facts = parsed(metadata.get("gralora.facts", "{}"), f"{path}: its header gralora.facts")
    objective = objective_of_header(metadata)
    if "objective" not in facts and objective.get("prediction_type") not in (None, "epsilon"):
        facts["objective"] = objective
    if isinstance(facts.get("training"), dict) and "modelspec.thumbnail" in metadata:
        facts["training"]["thumbnail"] = metadata["modelspec.thumbnail"]
    return facts


def assembled(found: Found, config_of, where: str, facts: dict | None = None) -> Adapter:
    """The adapter of these tensors; config_of(component): PEFT's config of one model, or None."""
    layers, deltas = {}, {}
    for (component, module_path), leaves in found.items():
        layer = f"{where}: {component}.{module_path}"
        check_layer(component, module_path, layer)
        config = config_of(component)
        check_peft_options(config or {}, f"{where}: {component}")
        read = peft_parts if is_peft_delta(leaves, config) else parts_of
        parts = read(leaves, config, component, module_path, layer)
        if parts.factors is not None:
            layers.setdefault(component, {})[module_path] = parts.factors
        for name, delta in (("weight", parts.weight), ("bias", parts.bias)):
            if delta is not None:
                deltas.setdefault(component, {})[f"{module_path}.{name}"] = delta
    return Adapter(describe(layers), layers, facts or {}, deltas)


def grouped(path: Path, tensors: dict[str, torch.Tensor], layers_per_block: int = 2) -> Found:
    """The tensors by layer.  Raises ConfigError for an unknown key, or a second tensor for one place."""
    shared = {name: tensors[key] for key, name in PROJECTIONS.items() if key in tensors}
    tensors = {key: tensor for key, tensor in tensors.items() if key not in PROJECTIONS}
    places, unknown = {}, {}
    is_sdxl = of_sdxl(list(tensors))
    for key in tensors:
        if len(key) > LONGEST_KEY:
            raise ConfigError(f"{path}: the name of a tensor has {len(key)} characters: {key[:60]!r}...")
        try:
            name = as_first_encoder(key) if is_sdxl else key
            places[key] = place_of(name, layers_per_block)
        except ValueError as error:
            unknown[key] = str(error)
    if unknown:
        more = f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""
        reason = next(iter(unknown.values()))
        key = next(iter(unknown))
        told = reason if repr(key) in reason else f"unknown tensor {key!r}: {reason}"
        raise ConfigError(f"{path}: {told}{more}")
    text = text_encoder_of(path, [place.path for place in places.values() if place.component is None])
    found = {}
    for key, place in places.items():
        component = place.component or text
        leaves = found.setdefault((component, canonical(component, place.path)), {})
        if place.leaf in leaves:
            problem = "is the second tensor for the same layer: the file names layers in two styles, or holds"
            problem += " several adapters"
            raise ConfigError(f"{path}: {key!r} {problem}")
        leaves[place.leaf] = tensors[key]
    for leaves in found.values():
        leaves |= shared
    return found


def text_encoder_of(path: Path, paths: list[str]) -> str:
    """Which text encoder layers without a prefix are of: the folder's name, or their depth, decides."""
    deep = any(".layers.12." in f".{layer}" for layer in paths)  # the first has 12 layers, the second 32
    return "text_encoder_2" if deep or path.parent.name == "text_encoder_2" else "text_encoder"


def check_model(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Raises ConfigError for a file that is an adapter of another kind of model."""
    for key in tensors:
        for prefix, model in OTHER_MODELS.items():
            if key.startswith(prefix):
                raise ConfigError(f"{path} was made for {model}, not for SDXL: it holds {key!r}")
        for prefix, kind in NO_ADAPTERS.items():
            if key.startswith(prefix):
                raise ConfigError(f"{path} is {kind}: it holds {key!r}")


def own_config(configs: dict, component: str) -> dict | None:
    """One model's part of diffusers' header."""
    prefix = f"{component}."
    own = {name.removeprefix(prefix): v for name, v in configs.items() if name.startswith(prefix)}
    return own or None
