"""An Adapter into files: the native one, one for ComfyUI, A1111, Forge and kohya, diffusers' own, and PEFT's folders."""

import functools
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from gralora_diffusion import __version__
from gralora_diffusion.adapters.layers import LoRALinear
from gralora_diffusion.files import complete_or_absent, new_folder
from gralora_diffusion.formats.adapter_state import Adapter, sizes
from gralora_diffusion.formats.layer_names import kohya
from gralora_diffusion.formats.read import HEADER
from gralora_diffusion.options import ConfigError, to_dict
from gralora_diffusion.sdxl.load import COMPONENTS

COMFYUI = "comfyui.safetensors"
KOHYA = "pytorch_lora_weights_kohya.safetensors"


def write_native(path: str | Path, adapter: Adapter, dtype=torch.float32) -> None:
    """Tensors: COMPONENT.MODULE_PATH.{gralora_A [k, N/k, r], gralora_B [k, r, M/k], lora_A [r, N], lora_B [M, r]}, and where the scale
    is not 1 an alpha = scale * rank for readers that see no headers.  Header: JSON with the AdapterConfig and the facts.
    """
    tensors = {}
    for component, module_path, factors in adapter.items():
        for leaf, tensor in factors.items():
            tensors[f"{component}.{module_path}.{leaf}"] = tensor.to("cpu", dtype).contiguous()
        if adapter.scale(factors) != 1:
            tensors[f"{component}.{module_path}.alpha"] = torch.tensor(
                adapter.scale(factors) * sizes(factors)[0]
            )
    facts = dict(version=__version__, config=to_dict(adapter.config)) | {
        n: v for n, v in adapter.facts.items() if n not in ("version", "config")
    }
    write_safetensors(path, tensors, {HEADER: json.dumps(facts, ensure_ascii=False)})


def write_diffusers(path: str | Path, adapter: Adapter, dtype=torch.float32) -> None:
    """unet.PATH.lora_A.weight [R, N], .lora_B.weight [M, R]: no alpha is written, so diffusers takes alpha = rank."""
    tensors = {}
    for component, module_path, down, up in one_rank(adapter):
        tensors[f"{component}.{module_path}.lora_A.weight"] = down.to("cpu", dtype).contiguous()
        tensors[f"{component}.{module_path}.lora_B.weight"] = up.to("cpu", dtype).contiguous()
    write_safetensors(path, tensors, {"format": "pt", "gralora.facts": facts_of(adapter)})


def write_comfyui(path: str | Path, adapter: Adapter, dtype=torch.float16, sgm: bool = True) -> None:
    """One file for ComfyUI, A1111, Forge, kohya's scripts and diffusers: kohya's names, the UNet's in SGM style (or diffusers' without
    `sgm`), one rank for each model with alpha = rank, and a power of two moved from down to up, so that both keep their digits in fp16.
    """
    number = adapter.facts.get("layers_per_block", 2)
    tensors, ranks = {}, {component: adapter.exported_rank(component) for component in adapter.layers}
    for component, module_path, down, up in one_rank(adapter):
        try:
            name = kohya(component, module_path, number if sgm else None)
        except ValueError as error:
            raise ConfigError(f"{path}: {error}, and other tools have no name for it") from None
        largest = down.abs().max(), up.abs().max()
        balance = 2.0 ** round(0.5 * float((largest[1] / largest[0]).log2())) if min(largest) > 0 else 1.0
        tensors[f"{name}.lora_down.weight"] = (down * balance).to("cpu", dtype).contiguous()
        tensors[f"{name}.lora_up.weight"] = (up / balance).to("cpu", dtype).contiguous()
        tensors[f"{name}.alpha"] = torch.tensor(float(ranks[component]))
    path = Path(path).resolve()
    title = (
        path.parent.name if path.name in (COMFYUI, KOHYA) else path.stem
    )  # a run's own name tells more than "comfyui"
    write_safetensors(path, tensors, header(title, adapter, max(ranks.values())))


def header(title: str, adapter: Adapter, rank: int) -> dict[str, str]:
    """What kohya's readers and the model spec ask for, so that every tool files it under SDXL, and our own facts under gralora."""
    facts = adapter.facts
    prompt, side = (facts.get("prompts") or {}).get("instance_prompt"), facts.get("resolution", 1024)
    return {
        "ss_base_model_version": "sdxl_base_v1-0",
        "ss_v2": "False",
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(rank),
        "ss_output_name": title,
        "ss_tag_frequency": json.dumps({"instance": {prompt: 1}} if prompt else {}, ensure_ascii=False),
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.title": title,
        "modelspec.resolution": f"{side}x{side}",
        "gralora.version": __version__,
        "gralora.config": json.dumps(to_dict(adapter.config)),
        "gralora.layers_per_block": str(facts.get("layers_per_block", 2)),
        "gralora.facts": facts_of(adapter),
    }


def facts_of(adapter: Adapter) -> str:
    return json.dumps(
        {name: value for name, value in adapter.facts.items() if name not in ("version", "config")},
        ensure_ascii=False,
    )


def one_rank(adapter: Adapter) -> Iterator[tuple[str, str, torch.Tensor, torch.Tensor]]:
    """(component, path, down, up) of every layer as a plain LoRA; smaller ranks are padded with zeros to the largest of their model.

    Tools that read files take one rank, or one alpha, for a whole model: diffusers gives other layers a wrong scale.
    """
    for component, found in adapter.layers.items():
        rank = adapter.exported_rank(component)
        for path in found:
            down, up = adapter.low_rank(component, path)
            pad = rank - down.shape[0]
            yield component, path, nn.functional.pad(down, (0, 0, 0, pad)), nn.functional.pad(up, (0, pad))


def write_peft(folder: str | Path, adapter: Adapter, dtype=torch.float32) -> None:
    """FOLDER/unet, FOLDER/text_encoder, ...: each one that PeftModel.from_pretrained(model, folder) loads.

    Raises ConfigError, before anything is written, when FOLDER exists or PEFT cannot hold the adapter's sizes.
    """
    folder = Path(folder)
    if folder.exists():
        raise ConfigError(f"{folder} exists already: give the name of a new folder")
    make = peft_gralora if adapter.config.method == "gralora" else peft_lora
    parts = {component: make(adapter, component) for component in adapter.layers}
    with new_folder(folder) as part:
        write_parts(part, parts, dtype)


def write_parts(folder: Path, parts: dict[str, tuple[dict, dict]], dtype: torch.dtype) -> None:
    for component, (config, tensors) in parts.items():
        paths = {path: installed_path(component, path) for path in tensors}
        config |= dict(
            target_modules=sorted(paths.values()), bias="none", fan_in_fan_out=False, inference_mode=True
        )
        named = {
            f"base_model.model.{paths[path]}.{leaf}": t.to("cpu", dtype).contiguous()
            for path, leaves in tensors.items()
            for leaf, t in leaves.items()
        }
        write_safetensors(folder / component / "adapter_model.safetensors", named, {"format": "pt"})
        (folder / component / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")


def peft_gralora(adapter: Adapter, component: str) -> tuple[dict, dict]:
    """(config, {path: {leaf: tensor}}); PEFT's r is the rank of the blocks with hybrid_r beside it, and r, k, alpha serve a whole model."""
    found = adapter.layers[component]
    if len(kinds := sorted({sizes(factors) for factors in found.values()})) > 1:
        some = " and ".join(f"rank {rank}, k {k}" for rank, k, _ in kinds[:2])
        raise ConfigError(
            f"PEFT's GraLoRA has one rank and one k for a whole model, and this {component} has layers of {some}: "
            "take --energy 1, which writes the same as a plain LoRA, or --rank N"
        )
    ((rank, k, hybrid),) = kinds
    config = dict(
        peft_type="GRALORA",
        r=rank - hybrid,
        hybrid_r=hybrid,
        gralora_k=k,
        alpha=adapter.scale(next(iter(found.values()))) * rank,
    )
    names = dict(
        gralora_A="gralora_A",
        gralora_B="gralora_B",
        lora_A="gralora_A_general.weight",
        lora_B="gralora_B_general.weight",
    )
    return config, {
        path: {names[leaf]: tensor for leaf, tensor in factors.items()} for path, factors in found.items()
    }


def peft_lora(adapter: Adapter, component: str) -> tuple[dict, dict]:
    """(config, {path: {leaf: tensor}}); the patterns give each layer its own rank, with alpha = rank."""
    ranks = {
        installed_path(component, path): sizes(factors)[0]
        for path, factors in adapter.layers[component].items()
    }
    most = max(ranks.values())
    others = {path: rank for path, rank in ranks.items() if rank != most}
    config = dict(peft_type="LORA", r=most, lora_alpha=most, rank_pattern=others, alpha_pattern=others)
    pairs = {path: adapter.low_rank(component, path) for path in adapter.layers[component]}
    return config, {path: {"lora_A.weight": down, "lora_B.weight": up} for path, (down, up) in pairs.items()}


@functools.cache
def flat_text_encoder() -> bool:
    """Since transformers 5.6 the first text encoder's modules are not inside text_model."""
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        return not hasattr(
            CLIPTextModel(CLIPTextConfig(hidden_size=8, num_attention_heads=1, num_hidden_layers=1)),
            "text_model",
        )


def installed_path(component: str, path: str) -> str:
    """The path in the models of the installed transformers."""
    return path.removeprefix("text_model.") if component == "text_encoder" and flat_text_encoder() else path


def write_safetensors(path: str | Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """Complete or absent.  Raises ValueError at a non-finite number."""
    from safetensors.torch import save_file

    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise ValueError(
                f"{name} holds numbers that are not finite as {str(tensor.dtype).removeprefix('torch.')}; nothing was written"
            )
    with complete_or_absent(path) as part:
        save_file(tensors, part, metadata)


def file_sizes(layers: dict[str, LoRALinear]) -> tuple[int, int]:
    """Bytes in fp32 of the native file and of the exported LoRA, from shapes alone; layers: {component.path: layer}."""
    native = sum(p.numel() for layer in layers.values() for p in layer.adapter_parameters.values())
    exported = 0
    for component in COMPONENTS:
        mine = [layer for path, layer in layers.items() if path.startswith(f"{component}.")]
        rank = max(
            (layer.k * (layer.rank - layer.hybrid_rank) + layer.hybrid_rank for layer in mine), default=0
        )
        exported += sum(rank * (layer.in_features + layer.out_features) for layer in mine)
    return 4 * native, 4 * exported
