"""The tensors of an SDXL base, from a pipeline folder or an original (SGM) checkpoint, and back."""

import re
from pathlib import Path

from gralora_diffusion.formats.layer_names import canonical, checkpoint_names
from gralora_diffusion.formats.lazy_tensors import (
    LazyTensor,
    reshaped,
    row_block,
    shaped,
    stacked,
    stored,
    transposed,
)
from gralora_diffusion.options import ConfigError
from gralora_diffusion.sdxl.hub import hub_options
from gralora_diffusion.sdxl.libraries import import_libraries
from gralora_diffusion.sdxl.load import COMPONENTS, EMBEDDED, reason_of, shapes, vae_shapes

TRANSPOSED = "text_projection.weight"  # in original checkpoints
CONVOLUTION = re.compile(
    r"\.attentions\.\d+\.to_(q|k|v|out\.0)\.weight$"
)  # 1 x 1 in original checkpoints, in the VAE
OLD_VAE = {  # before diffusers 0.15
    ".query.": ".to_q.",
    ".key.": ".to_k.",
    ".value.": ".to_v.",
    ".proj_attn.": ".to_out.0.",
}
Tensors = dict[str, dict[str, LazyTensor]]  # {component: {name: tensor}}
Layout = dict[str, list[tuple[str, str]]]  # see checkpoint_names()


def structure(base: Path) -> tuple[dict, dict[str, dict[str, list[int]]], Layout]:
    """(models, names, layout) of a base, without its weights.

    models: {component: model}; names: {component: {name: shape}} of all tensors; layout: checkpoint_names()
    of those.
    """
    models = shapes(base) | {"vae": vae_shapes(base)}
    names = {}
    for component, model in models.items():
        tensors = model.state_dict().items()
        names[component] = {file_name(component, name): list(tensor.shape) for name, tensor in tensors}
    levels = len(models["vae"].config.block_out_channels)
    return models, names, checkpoint_names(names, models["unet"].config.layers_per_block, levels)


def local(base: str | None) -> Path:
    """The base's folder or checkpoint on this machine; a hub id is downloaded."""
    import_libraries()
    from diffusers import StableDiffusionXLPipeline

    path = Path(base or EMBEDDED)
    if path.is_file() and path.suffix != ".safetensors":
        kinds = "a folder in diffusers layout, a .safetensors checkpoint, or a hub id"
        raise ConfigError(f"{path} is not a base: give {kinds}")
    if path.exists():
        return path
    of_hub = hub_options(base)
    try:
        return Path(StableDiffusionXLPipeline.download(base, use_safetensors=True, **of_hub))
    except (OSError, ValueError) as error:
        raise ConfigError(f"no SDXL base can be loaded from {base}: {reason_of(error)}") from error


def stem(component: str) -> str:
    """The name, in a pipeline folder, of the file that holds a model's weights."""
    return "model" if component.startswith("text_encoder") else "diffusion_pytorch_model"


def file_name(component: str, name: str) -> str:
    """The name of a tensor in pipeline folders, whichever version of diffusers or transformers gave it."""
    if component in COMPONENTS:
        return canonical(component, name)
    for old, new in OLD_VAE.items():
        if old in name:
            return name.replace(old, new)
    return name


def from_folder(folder: Path, names: dict[str, dict[str, list[int]]]) -> Tensors:
    """The tensors of a pipeline folder; names: {component: {name: shape}}, all of which must be there."""
    tensors = {}
    for component, wanted in names.items():
        where = folder / component
        found = {}
        for variant in ("\\.fp16", ""):  # whole or in parts; of both, the one without a variant counts
            pattern = rf"{stem(component)}{variant}(-\d+-of-\d+)?\.safetensors"
            for file in sorted(where.glob("*.safetensors")):
                if re.fullmatch(pattern, file.name):
                    _, stored_here = stored(file)
                    found |= {file_name(component, name): tensor for name, tensor in stored_here.items()}
        tensors[component] = {}
        for name, shape in wanted.items():
            tensors[component][name] = shaped(found.get(name), shape, f"{where}: its weight {name!r}")
    return tensors


def from_checkpoint(
    file: Path, names: dict[str, dict[str, list[int]]], layout: Layout
) -> tuple[Tensors, dict[str, LazyTensor], dict[str, str]]:
    """As from_folder, of an original checkpoint; {name: tensor} of what is no model's; and the metadata."""
    metadata, found = stored(file)
    tensors = {component: {} for component in names}
    for original, places in layout.items():
        whole = found.pop(original, None)
        for i, (component, name) in enumerate(places):
            tensor = whole
            if whole is not None and len(places) > 1:
                tensor = row_block(whole, i, len(places))
            elif whole is not None and name == TRANSPOSED:
                tensor = transposed(whole)
            what = f"{file}: its weight {original!r}"
            tensors[component][name] = shaped(tensor, names[component][name], what)
    return tensors, found, {name: value for name, value in metadata.items() if "hash" not in name}


def to_checkpoint(tensors: Tensors, layout: Layout) -> dict[str, LazyTensor]:
    """{name in the original layout: tensor}"""
    found = {}
    for original, places in layout.items():
        parts = [tensors[component][name] for component, name in places]
        component, name = places[0]
        if len(parts) > 1:
            found[original] = stacked(parts)
        elif name == TRANSPOSED:
            found[original] = transposed(parts[0])
        elif component == "vae" and CONVOLUTION.search(name):
            found[original] = reshaped(parts[0], [*parts[0].shape, 1, 1])
        else:
            found[original] = parts[0]
    return found
