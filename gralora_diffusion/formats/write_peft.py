"""An Adapter as a folder for PEFT."""

import functools
import json
from pathlib import Path

import torch

from gralora_diffusion.files import new_folder
from gralora_diffusion.formats.adapter_state import Adapter, Factors, sizes_of
from gralora_diffusion.formats.conv_factors import with_kernels
from gralora_diffusion.formats.kohya_header import facts_text
from gralora_diffusion.formats.read_peft import PEFT_CONFIG, PEFT_TENSORS
from gralora_diffusion.formats.safetensors_files import write_safetensors
from gralora_diffusion.formats.write import stored
from gralora_diffusion.options import ConfigError
from gralora_diffusion.sdxl.libraries import import_libraries

PLAIN = "write a plain LoRA (gralora convert: --energy 1 for the same, --rank N for the best of rank N)"
GRALORA_NAMES = {  # {our name: PEFT's}
    "gralora_A": "gralora_A",
    "gralora_B": "gralora_B",
    "lora_A": "gralora_A_general.weight",
    "lora_B": "gralora_B_general.weight",
}


def write_peft(folder: str | Path, adapter: Adapter, dtype=torch.float32) -> None:
    """FOLDER/unet, FOLDER/text_encoder, ...: each one that PeftModel.from_pretrained(model, folder) loads.

    Raises ConfigError, before anything is written, when FOLDER exists or PEFT cannot hold the adapter's
    sizes.
    """
    folder = Path(folder)
    if folder.exists():
        raise ConfigError(f"{folder} already exists: give the name of a new folder")
    files = peft_contents(adapter, dtype)
    with new_folder(folder) as unfinished:
        for component, (config, tensors, header) in files.items():
            write_safetensors(unfinished / component / PEFT_TENSORS, tensors, header)
            (unfinished / component / PEFT_CONFIG).write_text(config)


def peft_contents(adapter: Adapter, dtype: torch.dtype) -> dict[str, tuple[str, Factors, dict[str, str]]]:
    """{component: (text of its config, tensors, header)}.

    Raises ConfigError when PEFT cannot hold the adapter's sizes.
    """
    files = {}
    for component in adapter.layers:
        is_gralora = adapter.config.method == "gralora"
        own = peft_gralora(adapter, component) if is_gralora else peft_lora(adapter, component, dtype)
        config, layers = own
        tensors = {}
        for path, leaves in layers.items():
            for leaf, tensor in leaves.items():
                name = f"base_model.model.{installed_path(component, path)}.{leaf}"
                tensors[name] = stored(tensor, dtype)
        config |= dict(
            target_modules=sorted(installed_path(component, path) for path in layers),
            bias="none",
            fan_in_fan_out=False,
            inference_mode=True,
        )
        header = {"format": "pt", "gralora.facts": facts_text(adapter)}
        files[component] = json.dumps(config, indent=2) + "\n", tensors, header
    return files


def peft_gralora(adapter: Adapter, component: str) -> tuple[dict, dict[str, Factors]]:
    """(config, {path: {leaf: tensor}}).

    PEFT's r is the rank of the blocks with hybrid_r beside it, and r, k, alpha are of a whole model.
    """
    found = adapter.layers[component]
    if convolution := next((path for path in found if adapter.kernel(component, path)), None):
        problem = (
            f"PEFT's GraLoRA supports linear layers only, and {component}.{convolution} is a convolution"
        )
        raise ConfigError(f"{problem}: {PLAIN}")
    several = sorted({sizes_of(factors) for factors in found.values()})
    if len(several) > 1:
        some = " and ".join(f"rank {rank}, k {k}" for rank, k, _ in several[:2])
        rule = "PEFT's GraLoRA has one rank and one k for a whole model"
        problem = f"{rule}, and this {component} has layers of {some}"
        raise ConfigError(f"{problem}: {PLAIN}")
    path, factors = next(iter(found.items()))
    rank, k, hybrid = several[0]
    config = dict(
        peft_type="GRALORA",
        r=rank - hybrid,
        hybrid_r=hybrid,
        gralora_k=k,
        alpha=adapter.scale(path, factors) * rank,
    )
    layers = {}
    for path, factors in found.items():
        layers[path] = {GRALORA_NAMES[leaf]: tensor for leaf, tensor in factors.items()}
    return config, layers


def peft_lora(adapter: Adapter, component: str, dtype: torch.dtype) -> tuple[dict, dict[str, Factors]]:
    """(config, {path: {leaf: tensor}}); the patterns give each layer its own rank, with alpha = rank."""
    layers = {}
    ranks = {}
    for path in adapter.layers[component]:
        down, up = adapter.for_file(component, path, dtype)
        ranks[installed_path(component, path)] = down.shape[0]
        down, up = with_kernels(down, up, adapter.kernel(component, path))
        layers[path] = {"lora_A.weight": down, "lora_B.weight": up}
    most = max(ranks.values())
    others = {path: rank for path, rank in ranks.items() if rank != most}
    config = dict(peft_type="LORA", r=most, lora_alpha=most, rank_pattern=others, alpha_pattern=others)
    return config, layers


@functools.cache
def flat_text_encoder() -> bool:
    """Since transformers 5.6 the first text encoder's modules are not inside text_model."""
    import_libraries()
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(hidden_size=8, num_attention_heads=1, num_hidden_layers=1)
    with torch.device("meta"):
        return not hasattr(CLIPTextModel(config), "text_model")


def installed_path(component: str, path: str) -> str:
    """The path in the models of the installed transformers."""
    return path.removeprefix("text_model.") if component == "text_encoder" and flat_text_encoder() else path
