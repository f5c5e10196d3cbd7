"""Any adapter file or folder as one Adapter, its kind found by its keys: ours, PEFT's, kohya's (ComfyUI, A1111, Forge), diffusers'."""

import json
import math
import re
from pathlib import Path

import torch

from gralora_diffusion.adapters.layers import scale_of
from gralora_diffusion.config import AdapterConfig
from gralora_diffusion.formats.adapter_state import Adapter, check_pair, checked, describe, folded, sizes
from gralora_diffusion.formats.layer_names import canonical, from_kohya
from gralora_diffusion.options import ConfigError, from_dict
from gralora_diffusion.sdxl.load import COMPONENTS

NATIVE = "adapter.safetensors"
DIFFUSERS = "pytorch_lora_weights.safetensors"
HEADER = "gralora_diffusion"
PAIR = {
    "lora_down.weight": "lora_A",
    "lora_up.weight": "lora_B",
    "lora_A.weight": "lora_A",
    "lora_B.weight": "lora_B",
}
PAIR |= {
    "lora.down.weight": "lora_A",
    "lora.up.weight": "lora_B",
    "gralora_A": "gralora_A",
    "gralora_B": "gralora_B",
}
PAIR |= {"gralora_A_general.weight": "lora_A", "gralora_B_general.weight": "lora_B", "alpha": "alpha"}


def read_adapter(path: str | Path) -> Adapter:
    """The adapter in a file, a run folder, or a PEFT folder (one model's, or one with a folder for each of unet, text_encoder, ...).

    The scale of LoRA files, alpha/rank, is folded into lora_B.  Raises ConfigError with one sentence unless every tensor is known
    and finite, every pair is whole, and the header agrees with the tensors.
    """
    path = Path(path)
    if path.is_dir():
        folders = [
            f for f in (path, *(path / c for c in COMPONENTS)) if (f / "adapter_config.json").is_file()
        ]
        if folders:
            return checked(read_peft(folders), path)
        path = next((path / name for name in (NATIVE, DIFFUSERS) if (path / name).is_file()), path / NATIVE)
    if not path.is_file():
        if stopped := sorted(path.parent.glob(f"checkpoint-*/{NATIVE}"), key=lambda p: p.stat().st_mtime):
            raise ConfigError(
                f"{path.parent} was stopped before its end: give its checkpoint, {stopped[-1].parent}, or run its command again"
            )
        raise ConfigError(
            f"{path} is not there: give an adapter file, a run folder with {NATIVE}, or a PEFT folder with adapter_config.json"
        )
    metadata, tensors = open_safetensors(path)
    first = next(iter(sorted(tensors)))
    if HEADER in metadata:
        adapter = read_native(path, metadata, tensors)
    elif first.startswith("lora_"):
        adapter = read_kohya(path, metadata, tensors)
    elif first.startswith(tuple(f"{c}." for c in COMPONENTS)) and not first.endswith(
        ("gralora_A", "gralora_B")
    ):
        adapter = read_diffusers(path, metadata, tensors)
    else:
        raise ConfigError(
            f"{path} is not an adapter that can be read: no header {HEADER!r}, and tensors such as {first!r}"
        )
    return checked(adapter, path)


def opened(path: Path):
    """safetensors' own file object, which checks the header as it opens; raises ConfigError when it is not true."""
    import safetensors

    try:
        return safetensors.safe_open(path, "pt")
    except (safetensors.SafetensorError, OSError) as error:
        raise ConfigError(f"{path} is not a complete .safetensors file: {error}") from None


def open_safetensors(path: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    with opened(path) as file:
        metadata, tensors = file.metadata() or {}, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    if not tensors:
        raise ConfigError(f"{path} holds no tensors")
    return metadata, tensors


def parsed(text: str, where: str) -> dict:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ConfigError(f"{where} cannot be read: it is not a JSON object; the file is damaged")
    return value


def read_native(path: Path, metadata: dict, tensors: dict) -> Adapter:
    facts = parsed(metadata[HEADER], f"{path}: its header {HEADER!r}")
    if not isinstance(facts.get("config"), dict):
        raise ConfigError(f"{path}: its header {HEADER!r} cannot be read; the file is damaged")
    try:
        adapter = Adapter(from_dict(AdapterConfig, facts["config"]), {}, facts)
    except ConfigError as error:
        raise ConfigError(f"{path}: its header says what cannot be: {error}") from None
    for key, tensor in tensors.items():
        component, _, rest = key.partition(".")
        module_path, _, leaf = rest.rpartition(".")
        if component not in COMPONENTS or not module_path:
            raise ConfigError(f"{path}: unknown tensor {key!r}")
        adapter.layers.setdefault(component, {}).setdefault(canonical(component, module_path), {})[leaf] = (
            tensor
        )
    for component, module_path, factors in adapter.items():
        if "alpha" in factors:  # a copy of the header's, for loaders that do not read headers
            alpha, where = factors.pop("alpha"), f"{path}: {component}.{module_path}"
            check_pair(factors, adapter.config.method, where)
            if alpha.numel() != 1 or not math.isclose(
                alpha.item(), adapter.scale(factors) * sizes(factors)[0], rel_tol=1e-3
            ):
                raise ConfigError(
                    f"{where}: its alpha is not the one of the header; one of the two was changed"
                )
    return adapter


def read_kohya(path: Path, metadata: dict, tensors: dict) -> Adapter:
    number = metadata.get("gralora.layers_per_block", "2")
    if number not in ("1", "2", "3", "4"):
        raise ConfigError(f"{path}: its header says gralora.layers_per_block = {number!r}; SDXL has 2")
    found = {}
    for key, tensor in tensors.items():
        name, _, leaf = key.partition(".")
        if name.startswith("lora_te_"):
            raise ConfigError(
                f"{path} was made for Stable Diffusion 1 or 2, with its one text encoder {name.split('_text')[0]!r}, and not for SDXL"
            )
        try:
            where = from_kohya(name, int(number))
        except ValueError:
            raise ConfigError(f"{path}: unknown tensor {key!r}") from None
        add(found, where, leaf, tensor, f"{path}: {key!r}")
    layers = {}
    for (component, module_path), leaves in found.items():
        layers.setdefault(component, {})[module_path] = plain(
            leaves, None, module_path, f"{path}: {component}.{module_path}"
        )
    return Adapter(
        describe(layers),
        layers,
        parsed(metadata.get("gralora.facts", "{}"), f"{path}: its header gralora.facts"),
    )


def read_diffusers(path: Path, metadata: dict, tensors: dict) -> Adapter:
    """The header lora_adapter_metadata, where there is one, is the LoraConfig; else alpha is the rank."""
    said = (
        parsed(metadata["lora_adapter_metadata"], f"{path}: its header lora_adapter_metadata")
        if "lora_adapter_metadata" in metadata
        else {}
    )
    found, layers = {}, {}
    for key, tensor in tensors.items():
        matched = re.fullmatch(
            rf"({'|'.join(COMPONENTS)})\.(.+?)\.(lora_[AB]\.weight|lora\.(?:down|up)\.weight|alpha)", key
        )
        if not matched:
            raise ConfigError(f"{path}: unknown tensor {key!r}")
        component, module_path, leaf = matched.groups()
        add(found, (component, canonical(component, module_path)), leaf, tensor, f"{path}: {key!r}")
    for (component, module_path), leaves in found.items():
        config = {
            name.removeprefix(f"{component}."): value
            for name, value in said.items()
            if name.startswith(f"{component}.")
        }
        layers.setdefault(component, {})[module_path] = plain(
            leaves, config or None, module_path, f"{path}: {component}.{module_path}"
        )
    return Adapter(
        describe(layers),
        layers,
        parsed(metadata.get("gralora.facts", "{}"), f"{path}: its header gralora.facts"),
    )


def read_peft(folders: list[Path]) -> Adapter:
    """PEFT's r is the rank of GraLoRA's blocks with hybrid_r beside it; the paper's code counts hybrid_r in.  The tensors tell which."""
    layers, alphas = {}, {}
    for folder in folders:
        config = parsed(
            (folder / "adapter_config.json").read_text(errors="replace"), str(folder / "adapter_config.json")
        )
        kind = config.get("peft_type")
        if kind not in ("GRALORA", "LORA"):
            raise ConfigError(
                f"{folder} holds a PEFT adapter of type {kind}; only GRALORA and LORA can be read"
            )
        if not (folder / "adapter_model.safetensors").is_file():
            raise ConfigError(
                f"{folder} holds no adapter_model.safetensors (a .bin file is a pickle, which can run code when it is read)"
            )
        found = {}
        for key, tensor in open_safetensors(folder / "adapter_model.safetensors")[1].items():
            matched = re.fullmatch(
                r"base_model\.model\.(.+?)\.(gralora_[AB](?:_general\.weight)?|lora_[AB]\.weight)", key
            )
            if not matched:
                raise ConfigError(f"{folder}: unknown tensor {key!r}")
            add(found, matched[1], matched[2], tensor, f"{folder}: {key!r}")
        component = component_of(folder, found)
        for module_path, leaves in found.items():
            where = f"{folder}: {module_path}"
            if kind == "GRALORA":
                check_pair(leaves, "gralora", where)
                alphas[component] = gralora_alpha(config, leaves, where)
            else:
                leaves = plain(leaves, config, module_path, where)
            layers.setdefault(component, {})[canonical(component, module_path)] = leaves
    if len(set(alphas.values())) > 1 or (alphas and set(alphas) != set(layers)):
        raise ConfigError(
            f"{folders[0].parent}: its models differ in alpha or in the kind of adapter; convert their folders one by one"
        )
    return Adapter(describe(layers, next(iter(alphas.values()), None)), layers)


def component_of(folder: Path, paths) -> str:
    """Which of SDXL's three models a PEFT folder is for: by the paths, and for a text encoder by the folder's name or its layers."""
    if not any("self_attn" in path or ".mlp." in path for path in paths):
        return "unet"
    return (
        "text_encoder_2"
        if folder.name == "text_encoder_2" or any(".layers.12." in path for path in paths)
        else "text_encoder"
    )


def gralora_alpha(config: dict, factors: dict[str, torch.Tensor], where: str) -> float:
    r, hybrid, k, alpha = (config.get(name) for name in ("r", "hybrid_r", "gralora_k", "alpha"))
    total, blocks, beside = sizes(factors)
    if (hybrid or 0) != beside or k != blocks or r not in (total - beside, total):
        raise ConfigError(
            f"{where}: adapter_config.json says r {r}, gralora_k {k}, hybrid_r {hybrid}, and the tensors {total - beside}, {blocks}, {beside}"
        )
    if not isinstance(alpha, int | float) or not math.isfinite(alpha) or alpha <= 0:
        raise ConfigError(f"{where}: adapter_config.json says alpha {alpha!r}; it must be a positive number")
    return float(alpha)


def add(found: dict, where, leaf: str, tensor: torch.Tensor, key: str) -> None:
    if leaf not in PAIR:
        raise ConfigError(
            f"{key} is no part of a plain LoRA (of a LoCon, LoHa, LoKr or DoRA, perhaps), and only LoRA and GraLoRA can be read"
        )
    if PAIR[leaf] in found.setdefault(where, {}):
        raise ConfigError(
            f"{key} is the second tensor for the same layer: the file names layers in two styles"
        )
    found[where][PAIR[leaf]] = tensor


def plain(
    leaves: dict[str, torch.Tensor], config: dict | None, module_path: str, where: str
) -> dict[str, torch.Tensor]:
    """A LoRA of scale 1.  The scale was alpha/rank: by PEFT's LoraConfig where there is one, else by the tensor alpha, else 1."""
    factors = {leaf: tensor for leaf, tensor in leaves.items() if leaf != "alpha"}
    check_pair(factors, "lora", where)
    rank, alpha, root = sizes(factors)[0], leaves.get("alpha"), False
    if alpha is not None and alpha.numel() != 1:
        raise ConfigError(f"{where}: its alpha is not one number")
    alpha = rank if alpha is None else alpha.item()
    if config is not None:
        if config.get("use_dora") or config.get("lora_bias"):
            raise ConfigError(f"{where}: is a DoRA or has biases; only plain LoRA and GraLoRA can be read")
        said, alpha = (
            pattern_value(config.get(f"{n}_pattern"), module_path, config.get(v))
            for n, v in (("rank", "r"), ("alpha", "lora_alpha"))
        )
        root = bool(config.get("use_rslora"))
        if said != rank:
            raise ConfigError(f"{where}: the header says rank {said!r}, and the tensors have {rank}")
    if not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise ConfigError(f"{where}: its alpha is {alpha!r}; it must be a number")
    return folded(factors, scale_of(rank, alpha, root))


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
            raise ConfigError(
                f"rank_pattern or alpha_pattern {pattern!r} is not a regular expression: {error}"
            ) from None
    return default
