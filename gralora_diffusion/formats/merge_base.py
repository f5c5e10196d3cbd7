"""A base with an adapter merged into it, as a pipeline folder or one original (SGM) checkpoint.

The base is never in memory as a whole: each tensor is read, changed, converted and written before the next
one.
"""

from pathlib import Path

import torch

from gralora_diffusion.files import new_folder, without_folders
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
from gralora_diffusion.formats.lazy_tensors import LazyTensor, plus_delta, write_streamed
from gralora_diffusion.formats.load import fitted
from gralora_diffusion.options import ConfigError
from gralora_diffusion.sdxl.load import load_sdxl
from gralora_diffusion.sdxl.objective import (
    V_PREDICTION,
    ZERO_SNR,
    header_of,
    marks_of,
    objective_of_checkpoint,
    objective_of_folder,
)
from gralora_diffusion.sdxl.sampling import as_trained

ARCHITECTURE = {"modelspec.architecture": "stable-diffusion-xl-v1-base"}


def write_merged(out: str | Path, adapter: Adapter, base: str | None, dtype: torch.dtype) -> dict:
    """Write the base with the adapter, at strength 1, in its weights; returns what it predicts.

    OUT is a new folder in diffusers layout, or OUT.safetensors in SGM layout.
    base: as load_sdxl() takes it.  The sum is made in fp32, then rounded to `dtype`.  Raises ConfigError, and
    leaves nothing behind, when OUT exists, the base is not a whole SDXL, the adapter does not fit it, or a
    number is too large for `dtype`.
    """
    out = Path(out)
    if out.exists():
        way = "give the name of a new folder, or of a new file that ends in .safetensors"
        raise ConfigError(f"{out} already exists: {way}")
    base_path = local(base)
    models, names, layout = structure(base_path)
    fitted(adapter, models, base_path)
    others = {}
    metadata = {"format": "pt"}
    if base_path.is_file():
        tensors, others, metadata = from_checkpoint(base_path, names, layout)
        of_base = objective_of_checkpoint(set(others), metadata)
    else:
        tensors = from_folder(base_path, names)
        of_base = objective_of_folder(base_path)
    objective = adapter.facts.get("objective") or of_base
    for component, name, delta in adapter.changes():
        if name not in tensors[component]:
            problem = f"{base_path} has no {component}.{name}, and a new one cannot be merged into it"
            raise ConfigError(problem)
        tensors[component][name] = plus_delta(tensors[component][name], delta)
    if out.suffix == ".safetensors":
        whole = to_checkpoint(tensors, layout) | with_marks(others, objective)
        write_streamed(out, whole, dtype, ARCHITECTURE | metadata | header_of(objective))
    else:
        write_pipeline(out, base_path, models, tensors, dtype, objective)
    return objective


def with_marks(others: dict[str, LazyTensor], objective: dict) -> dict[str, LazyTensor]:
    """The other tensors of a checkpoint, of which empty ones mark what it predicts."""
    kept = {name: tensor for name, tensor in others.items() if name not in (V_PREDICTION, ZERO_SNR)}
    empty = LazyTensor([0], torch.float32, lambda: torch.empty(0))
    return kept | dict.fromkeys(marks_of(objective), empty)


def write_pipeline(
    out: Path, base: Path, models: dict, tensors: Tensors, dtype: torch.dtype, objective: dict
) -> None:
    """A folder in diffusers layout; models: {component: model without weights}; tensors: their weights."""
    pipeline = load_sdxl(str(base), **models)  # for its tokenizers, scheduler and configs
    pipeline.register_modules(scheduler=as_trained(pipeline.scheduler, **objective))
    pipeline.register_to_config(_name_or_path=without_folders(str(base)))
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
