"""A base with an adapter merged into it: as a pipeline folder, or as one checkpoint in the original (SGM) layout.

The base is never in memory as a whole: each tensor is read, changed, converted and written before the next one.
"""

import functools
from pathlib import Path

import torch

from gralora_diffusion.files import new_folder
from gralora_diffusion.formats.adapter_state import Adapter
from gralora_diffusion.formats.base_files import (
    Tensors,
    from_checkpoint,
    from_folder,
    local,
    stem,
    structure,
    to_checkpoint,
)
from gralora_diffusion.formats.lazy_tensors import plus_low_rank, write_streamed
from gralora_diffusion.formats.load import fitted
from gralora_diffusion.options import ConfigError
from gralora_diffusion.sdxl.load import load_sdxl

ARCHITECTURE = {"modelspec.architecture": "stable-diffusion-xl-v1-base"}


def write_merged(out: str | Path, adapter: Adapter, base: str | None, dtype: torch.dtype) -> None:
    """Write the base with the adapter in its weights, at strength 1: a folder in diffusers layout, or OUT.safetensors in SGM's.

    base: as load_sdxl() takes it.  The sum is made in fp32, then rounded to `dtype`.  Raises ConfigError, and leaves nothing
    behind, when OUT exists, the base is not a whole SDXL, the adapter does not fit it, or a number is too large for `dtype`.
    """
    out = Path(out)
    if out.exists():
        way = "give the name of a new folder, or of a new file that ends in .safetensors"
        raise ConfigError(f"{out} exists already: {way}")
    base_path = local(base)
    models, names, layout = structure(base_path)
    fitted(adapter, models, base_path)
    others = {}
    metadata = {"format": "pt"}
    if base_path.is_file():
        tensors, others, metadata = from_checkpoint(base_path, names, layout)
    else:
        tensors = from_folder(base_path, names)
    for component, path, _ in adapter.items():
        name = f"{path}.weight"
        low_rank = functools.partial(adapter.low_rank, component, path)
        tensors[component][name] = plus_low_rank(tensors[component][name], low_rank)
    if out.suffix == ".safetensors":
        write_streamed(out, to_checkpoint(tensors, layout) | others, dtype, ARCHITECTURE | metadata)
    else:
        write_pipeline(out, base_path, models, tensors, dtype)


def write_pipeline(out: Path, base: Path, models: dict, tensors: Tensors, dtype: torch.dtype) -> None:
    """A folder in diffusers layout; models: {component: model without weights}, whose weights are `tensors`."""
    pipeline = load_sdxl(str(base), **models)  # for its tokenizers, scheduler and configs
    with new_folder(out) as unfinished:
        for component, module in pipeline.components.items():
            folder = unfinished / component
            if component in models:
                save_config_of(module, folder)
                file = folder / f"{stem(component)}.safetensors"
                write_streamed(file, tensors[component], dtype, {"format": "pt"})
            elif module is not None:
                module.save_pretrained(folder)
        pipeline.save_config(unfinished)


def save_config_of(model, folder: Path) -> None:
    """config.json of a model of diffusers or transformers."""
    if hasattr(model, "save_config"):
        model.save_config(folder)
    else:
        model.config.save_pretrained(folder)
