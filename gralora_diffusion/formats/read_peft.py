"""PEFT's folders of LoRA and GraLoRA adapters."""

import math
import re
from pathlib import Path

from gralora_diffusion.formats.adapter_state import Adapter, Factors, describe, sizes_of
from gralora_diffusion.formats.check import check_factors
from gralora_diffusion.formats.layer_names import canonical
from gralora_diffusion.formats.read_lora import add_tensor, lora_factors
from gralora_diffusion.formats.safetensors_files import parsed, read_safetensors
from gralora_diffusion.options import ConfigError

PEFT_CONFIG = "adapter_config.json"
PEFT_TENSORS = "adapter_model.safetensors"
PEFT_KEY = re.compile(r"base_model\.model\.(.+?)\.(gralora_[AB](?:_general\.weight)?|lora_[AB]\.weight)")


def read_peft(folders: list[Path]) -> Adapter:
    """PEFT's r is the rank of GraLoRA's blocks, hybrid_r beside it; the paper's code counts hybrid_r in.

    The tensors show which.  Raises ConfigError for other kinds of adapters, and where the folders differ.
    """
    layers = {}
    alphas = {}
    for folder in folders:
        config = parsed((folder / PEFT_CONFIG).read_text(errors="replace"), str(folder / PEFT_CONFIG))
        kind = config.get("peft_type")
        if kind not in ("GRALORA", "LORA"):
            raise ConfigError(
                f"{folder} holds a PEFT adapter of type {kind}; only GRALORA and LORA can be read"
            )
        found = leaves_in(folder)
        component = component_of(folder, found)
        own = layers.setdefault(component, {})
        for module_path, leaves in found.items():
            where = f"{folder}: {module_path}"
            if kind == "GRALORA":
                check_factors(leaves, "gralora", where)
                alphas[component] = gralora_alpha(config, leaves, where)
                own[canonical(component, module_path)] = leaves
            else:
                own[canonical(component, module_path)] = lora_factors(leaves, config, module_path, where)
    if len(set(alphas.values())) > 1 or (alphas and set(alphas) != set(layers)):
        problem = "its models differ in alpha or in the kind of adapter"
        raise ConfigError(f"{folders[0].parent}: {problem}; convert their folders one by one")
    return Adapter(describe(layers, next(iter(alphas.values()), None)), layers)


def leaves_in(folder: Path) -> dict[str, Factors]:
    """{module path: {our name of the leaf: tensor}} of one model's folder."""
    if not (folder / PEFT_TENSORS).is_file():
        danger = "a .bin file is a pickle, which can run code when it is read"
        raise ConfigError(f"{folder} holds no {PEFT_TENSORS} ({danger})")
    found = {}
    for key, tensor in read_safetensors(folder / PEFT_TENSORS)[1].items():
        matched = PEFT_KEY.fullmatch(key)
        if not matched:
            raise ConfigError(f"{folder}: unknown tensor {key!r}")
        add_tensor(found, matched[1], matched[2], tensor, f"{folder}: {key!r}")
    return found


def component_of(folder: Path, paths) -> str:
    """Which of SDXL's models a folder is for: by the paths, and for a text encoder by name or layers."""
    if not any("self_attn" in path or ".mlp." in path for path in paths):
        return "unet"
    deep = any(".layers.12." in path for path in paths)  # the first text encoder has 12 layers
    return "text_encoder_2" if folder.name == "text_encoder_2" or deep else "text_encoder"


def gralora_alpha(config: dict, factors: Factors, where: str) -> float:
    """alpha, after the config's sizes were compared with the tensors'."""
    r, hybrid, k, alpha = (config.get(name) for name in ("r", "hybrid_r", "gralora_k", "alpha"))
    sizes = sizes_of(factors)
    blocks_rank = sizes.rank - sizes.hybrid_rank
    if (hybrid or 0) != sizes.hybrid_rank or k != sizes.k or r not in (blocks_rank, sizes.rank):
        recorded = f"r {r}, gralora_k {k}, hybrid_r {hybrid}"
        found = f"{blocks_rank}, {sizes.k}, {sizes.hybrid_rank}"
        raise ConfigError(f"{where}: {PEFT_CONFIG} says {recorded}, and the tensors {found}")
    if not isinstance(alpha, int | float) or not math.isfinite(alpha) or alpha <= 0:
        raise ConfigError(f"{where}: {PEFT_CONFIG} says alpha {alpha!r}; it must be a positive number")
    return float(alpha)
