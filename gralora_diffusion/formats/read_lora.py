"""Plain LoRA files: kohya's (ComfyUI, A1111, Forge) and diffusers'."""

import math
import re
from pathlib import Path

import torch

from gralora_diffusion.adapters.low_rank import scale_of
from gralora_diffusion.formats.adapter_state import Adapter, Factors, describe, sizes_of
from gralora_diffusion.formats.check import check_factors
from gralora_diffusion.formats.layer_names import canonical, from_kohya
from gralora_diffusion.formats.safetensors_files import parsed
from gralora_diffusion.options import ConfigError
from gralora_diffusion.sdxl.load import COMPONENTS

LEAF_NAMES = {  # {what other tools call a tensor: our name}
    "lora_down.weight": "lora_A",
    "lora_up.weight": "lora_B",
    "lora_A.weight": "lora_A",
    "lora_B.weight": "lora_B",
    "lora.down.weight": "lora_A",
    "lora.up.weight": "lora_B",
    "gralora_A": "gralora_A",
    "gralora_B": "gralora_B",
    "gralora_A_general.weight": "lora_A",
    "gralora_B_general.weight": "lora_B",
    "alpha": "alpha",
}
DIFFUSERS_KEY = re.compile(
    rf"({'|'.join(COMPONENTS)})\.(.+?)\.(lora_[AB]\.weight|lora\.(?:down|up)\.weight|alpha)"
)
LORA_CONFIG = "lora_adapter_metadata"  # diffusers' header with the LoraConfig


def read_kohya(path: Path, metadata: dict[str, str], tensors: dict[str, torch.Tensor]) -> Adapter:
    number = metadata.get("gralora.layers_per_block", "2")
    if number not in ("1", "2", "3", "4"):
        raise ConfigError(f"{path}: its header says gralora.layers_per_block = {number!r}; SDXL has 2")
    found = {}
    for key, tensor in tensors.items():
        name, _, leaf = key.partition(".")
        if name.startswith("lora_te_"):
            encoder = repr(name.split("_text")[0])
            origin = f"made for Stable Diffusion 1 or 2, with its one text encoder {encoder}"
            raise ConfigError(f"{path} was {origin}, and not for SDXL")
        try:
            where = from_kohya(name, int(number))
        except ValueError:
            raise ConfigError(f"{path}: unknown tensor {key!r}") from None
        add_tensor(found, where, leaf, tensor, f"{path}: {key!r}")
    layers = {}
    for (component, module_path), leaves in found.items():
        factors = lora_factors(leaves, None, module_path, f"{path}: {component}.{module_path}")
        layers.setdefault(component, {})[module_path] = factors
    return Adapter(describe(layers), layers, facts_in(path, metadata))


def read_diffusers(path: Path, metadata: dict[str, str], tensors: dict[str, torch.Tensor]) -> Adapter:
    """The header lora_adapter_metadata, where there is one, is the LoraConfig; else alpha is the rank."""
    configs = {}
    if LORA_CONFIG in metadata:
        configs = parsed(metadata[LORA_CONFIG], f"{path}: its header {LORA_CONFIG}")
    found = {}
    for key, tensor in tensors.items():
        matched = DIFFUSERS_KEY.fullmatch(key)
        if not matched:
            raise ConfigError(f"{path}: unknown tensor {key!r}")
        component, module_path, leaf = matched.groups()
        where = (component, canonical(component, module_path))
        add_tensor(found, where, leaf, tensor, f"{path}: {key!r}")
    layers = {}
    for (component, module_path), leaves in found.items():
        prefix = f"{component}."
        own = {name.removeprefix(prefix): v for name, v in configs.items() if name.startswith(prefix)}
        factors = lora_factors(leaves, own or None, module_path, f"{path}: {component}.{module_path}")
        layers.setdefault(component, {})[module_path] = factors
    return Adapter(describe(layers), layers, facts_in(path, metadata))


def facts_in(path: Path, metadata: dict[str, str]) -> dict:
    """The facts that we add to other tools' files."""
    return parsed(metadata.get("gralora.facts", "{}"), f"{path}: its header gralora.facts")


def add_tensor(found: dict, where, leaf: str, tensor: torch.Tensor, key: str) -> None:
    """found[where][our name of the leaf] = tensor.

    Raises ConfigError for an unknown leaf, or a second tensor.
    """
    if leaf not in LEAF_NAMES:
        problem = "is not part of a plain LoRA (perhaps of a LoCon, LoHa, LoKr or DoRA)"
        raise ConfigError(f"{key} {problem}, and only LoRA and GraLoRA can be read")
    factors = found.setdefault(where, {})
    if LEAF_NAMES[leaf] in factors:
        raise ConfigError(
            f"{key} is the second tensor for the same layer: the file names layers in two styles"
        )
    factors[LEAF_NAMES[leaf]] = tensor


def lora_factors(leaves: Factors, config: dict | None, module_path: str, where: str) -> Factors:
    """lora_A, lora_B of scale 1.

    The scale was alpha/rank: by PEFT's LoraConfig where there is one, else by the tensor alpha, else 1.
    """
    factors = {leaf: tensor for leaf, tensor in leaves.items() if leaf != "alpha"}
    shapes = [factors[leaf].shape for leaf in ("lora_A", "lora_B") if leaf in factors]
    if len(shapes) == 2 and len(shapes[0]) == 4 and shapes[1][2:] == (1, 1):  # a LoCon's two convolutions
        factors["lora_B"] = factors["lora_B"].flatten(1)
    check_factors(factors, "lora", where)
    rank = sizes_of(factors).rank
    alpha = rank
    rslora = False
    if "alpha" in leaves:
        if leaves["alpha"].numel() != 1:
            raise ConfigError(f"{where}: its alpha is not one number")
        alpha = leaves["alpha"].item()
    if config is not None:
        if config.get("use_dora") or config.get("lora_bias"):
            raise ConfigError(f"{where}: is a DoRA or has biases; only plain LoRA and GraLoRA can be read")
        header_rank = pattern_value(config.get("rank_pattern"), module_path, config.get("r"))
        alpha = pattern_value(config.get("alpha_pattern"), module_path, config.get("lora_alpha"))
        rslora = bool(config.get("use_rslora"))
        if header_rank != rank:
            raise ConfigError(f"{where}: the header says rank {header_rank!r}, and the tensors have {rank}")
    if not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise ConfigError(f"{where}: its alpha is {alpha!r}; it must be a number")
    return without_scale(factors, scale_of(rank, alpha, rslora))


def without_scale(factors: Factors, scale: float) -> Factors:
    """A LoRA of scale 1 in fp32 (fp64 stays), without padding.

    Padding: the rows of zeros that other tools need to make all ranks equal.
    """
    wide = {leaf: t if t.dtype == torch.float64 else t.float() for leaf, t in factors.items()}
    down = wide["lora_A"]
    up = wide["lora_B"] * scale
    used = ((down != 0).flatten(1).any(1) | (up != 0).any(0)).nonzero()
    rank = int(used.max()) + 1 if len(used) else 1
    return dict(lora_A=down[:rank].contiguous(), lora_B=up[:, :rank].contiguous())


def pattern_value(patterns, path: str, default):
    """PEFT's rule: the first pattern that matches the end of the path counts."""
    if not isinstance(patterns, dict):
        return default
    if path in patterns:
        return patterns[path]
    for pattern, value in patterns.items():
        try:
            if re.match(rf"(.*\.)?({pattern})$", path):
                return value
        except re.error as error:
            problem = f"{pattern!r} is not a regular expression: {error}"
            raise ConfigError(f"rank_pattern or alpha_pattern {problem}") from None
    return default
