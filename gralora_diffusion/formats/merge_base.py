"""A base with an adapter baked in: as a pipeline folder, or as one checkpoint in the original (SGM) layout.

The base is never in memory as a whole: each tensor is read, changed, converted and written before the next one.
"""

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from gralora_diffusion.files import complete_or_absent, new_folder
from gralora_diffusion.formats.adapter_state import Adapter
from gralora_diffusion.formats.layer_names import canonical, checkpoint_names
from gralora_diffusion.formats.load import fitted
from gralora_diffusion.formats.read import opened
from gralora_diffusion.options import ConfigError
from gralora_diffusion.sdxl.load import COMPONENTS, EMBEDDED, load_sdxl, shapes, vae_shapes

DTYPES = {
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "I64": torch.int64,
    "I32": torch.int32,
}
DTYPES |= {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
ARCHITECTURE = "stable-diffusion-xl-v1-base"
TRANSPOSED = "text_projection.weight"  # in original checkpoints
CONVOLUTION = re.compile(
    r"\.attentions\.\d+\.to_(q|k|v|out\.0)\.weight$"
)  # 1 x 1 in original checkpoints, in the VAE
OLD_VAE = {
    ".query.": ".to_q.",
    ".key.": ".to_k.",
    ".value.": ".to_v.",
    ".proj_attn.": ".to_out.0.",
}  # before diffusers 0.15


@dataclass
class LazyTensor:
    """A tensor that is not in memory."""

    shape: list[int]
    dtype: torch.dtype
    read: Callable[[], torch.Tensor]


def write_merged(out: Path, adapter: Adapter, base: str | None, dtype: torch.dtype) -> None:
    """Write the base with the adapter in its weights, at strength 1: a folder in diffusers layout, or OUT.safetensors in SGM layout.

    The sum is made in fp32, then rounded to `dtype`.  Raises ConfigError, and leaves nothing behind, when OUT exists, the base is
    not a whole SDXL, the adapter does not fit it, or a number leaves the range of `dtype`.
    """
    out = Path(out)
    if out.exists():
        raise ConfigError(
            f"{out} exists already: give the name of a new folder, or of a new file that ends in .safetensors"
        )
    base = local(base)
    models, names, layout = structure(base)
    fitted(adapter, models, base)
    tensors, others, metadata = (
        from_checkpoint(base, names, layout)
        if base.is_file()
        else (from_folder(base, names), {}, {"format": "pt"})
    )
    for component, path, _ in adapter.items():
        name = f"{path}.weight"
        tensors[component][name] = merged(
            tensors[component][name], lambda c=component, p=path: adapter.low_rank(c, p)
        )
    if out.suffix == ".safetensors":
        write_streamed(
            out,
            to_checkpoint(tensors, layout) | others,
            dtype,
            {"modelspec.architecture": ARCHITECTURE} | metadata,
        )
        return
    pipeline = load_sdxl(str(base), **models)  # for its tokenizers, scheduler and configs
    with new_folder(out) as part:
        for component, of_it in pipeline.components.items():
            if component in models:
                (of_it.save_config if hasattr(of_it, "save_config") else of_it.config.save_pretrained)(
                    part / component
                )
                write_streamed(
                    part / component / f"{stem(component)}.safetensors",
                    tensors[component],
                    dtype,
                    {"format": "pt"},
                )
            elif of_it is not None:
                of_it.save_pretrained(part / component)
        pipeline.save_config(part)


def structure(base: Path) -> tuple[dict, dict[str, dict[str, list[int]]], dict[str, list[tuple[str, str]]]]:
    """The base's models without weights, {component: {name: shape}} of all their tensors, and checkpoint_names() of those."""
    models = shapes(base) | {"vae": vae_shapes(base)}
    names = {
        c: {file_name(c, name): list(tensor.shape) for name, tensor in model.state_dict().items()}
        for c, model in models.items()
    }
    return (
        models,
        names,
        checkpoint_names(
            names, models["unet"].config.layers_per_block, len(models["vae"].config.block_out_channels)
        ),
    )


def local(base: str | None) -> Path:
    """The base's folder or checkpoint on this machine; a hub id is downloaded."""
    from diffusers import StableDiffusionXLPipeline

    path = Path(base or EMBEDDED)
    if path.is_file() and path.suffix != ".safetensors":
        raise ConfigError(
            f"{path} is not a base: give a folder in diffusers layout, a .safetensors checkpoint, or a hub id"
        )
    if path.exists():
        return path
    try:
        return Path(StableDiffusionXLPipeline.download(base, use_safetensors=True))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"no SDXL base can be loaded from {base}: {(str(error).strip().splitlines() or ['?'])[0][:300]}"
        ) from error


def stem(component: str) -> str:
    """The name, in a pipeline folder, of the file that holds a model's weights."""
    return "model" if component.startswith("text_encoder") else "diffusion_pytorch_model"


def from_folder(folder: Path, names: dict[str, dict[str, list[int]]]) -> dict[str, dict[str, LazyTensor]]:
    """{component: {name: tensor}} of a pipeline folder; names: {component: {name: shape}}, all of which must be there."""
    tensors = {}
    for component, wanted in names.items():
        found, files = {}, sorted((folder / component).glob("*.safetensors"))
        for variant in ("\\.fp16", ""):  # whole or in parts; of both, the one without a variant counts
            for file in (
                f
                for f in files
                if re.fullmatch(rf"{stem(component)}{variant}(-\d+-of-\d+)?\.safetensors", f.name)
            ):
                found |= {file_name(component, name): tensor for name, tensor in stored(file)[1].items()}
        where = folder / component
        tensors[component] = {
            name: shaped(found.get(name), shape, f"{where}: its weight {name!r}")
            for name, shape in wanted.items()
        }
    return tensors


def file_name(component: str, name: str) -> str:
    """The name of a tensor in pipeline folders, whichever version of diffusers or transformers gave it."""
    if component in COMPONENTS:
        return canonical(component, name)
    return next((name.replace(old, new) for old, new in OLD_VAE.items() if old in name), name)


def from_checkpoint(
    file: Path, names: dict, layout: dict
) -> tuple[dict, dict[str, LazyTensor], dict[str, str]]:
    """As from_folder, of an original checkpoint; {name: tensor} of what is no model's, which a merged checkpoint keeps; the metadata."""
    (metadata, found), tensors = stored(file), {component: {} for component in names}
    for original, parts in layout.items():
        whole = found.pop(original, None)
        for i, (component, name) in enumerate(parts):
            part = whole
            if whole is not None and len(parts) > 1:
                rows = whole.shape[0] // len(parts)
                part = LazyTensor(
                    [rows, *whole.shape[1:]],
                    whole.dtype,
                    lambda whole=whole, i=i, rows=rows: whole.read()[i * rows : (i + 1) * rows],
                )
            elif whole is not None and name == TRANSPOSED:
                part = transposed(whole)
            tensors[component][name] = shaped(
                part, names[component][name], f"{file}: its weight {original!r}"
            )
    return tensors, found, {name: value for name, value in metadata.items() if "hash" not in name}


def to_checkpoint(tensors: dict[str, dict[str, LazyTensor]], layout: dict) -> dict[str, LazyTensor]:
    """{name in the original layout: tensor}"""
    found = {}
    for original, places in layout.items():
        parts = [tensors[component][name] for component, name in places]
        component, name = places[0]
        if len(parts) > 1:
            shape = [sum(part.shape[0] for part in parts), *parts[0].shape[1:]]
            found[original] = LazyTensor(
                shape, parts[0].dtype, lambda parts=parts: torch.cat([part.read() for part in parts])
            )
        elif name == TRANSPOSED:
            found[original] = transposed(parts[0])
        elif component == "vae" and CONVOLUTION.search(name):
            found[original] = reshaped(parts[0], [*parts[0].shape, 1, 1])
        else:
            found[original] = parts[0]
    return found


def shaped(tensor: LazyTensor | None, shape: list[int], what: str) -> LazyTensor:
    """The tensor, if it is there and has this shape; a linear layer may be stored as a 1 x 1 convolution."""
    if tensor is None:
        raise ConfigError(f"{what} is missing: it is not a whole SDXL base")
    if tensor.shape == [*shape, 1, 1]:
        return reshaped(tensor, shape)
    if tensor.shape != shape:
        raise ConfigError(
            f"{what} has the shape {tensor.shape}, and SDXL with this config needs {shape}: it is another kind of base"
        )
    return tensor


def reshaped(tensor: LazyTensor, shape: list[int]) -> LazyTensor:
    return LazyTensor(shape, tensor.dtype, lambda: tensor.read().reshape(shape))


def transposed(tensor: LazyTensor) -> LazyTensor:
    return LazyTensor(tensor.shape[::-1], tensor.dtype, lambda: tensor.read().T)


def merged(tensor: LazyTensor, low_rank: Callable[[], tuple[torch.Tensor, torch.Tensor]]) -> LazyTensor:
    """weight + up @ down, in fp32"""

    def read() -> torch.Tensor:
        down, up = low_rank()
        return torch.addmm(tensor.read().float(), up, down)

    return LazyTensor(tensor.shape, torch.float32, read)


def stored(path: Path) -> tuple[dict[str, str], dict[str, LazyTensor]]:
    """(metadata, {name: tensor}) of a .safetensors file whose header tells the truth; raises ConfigError for any other."""
    with opened(path):  # checks all of the header
        pass
    with open(path, "rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(start - 8))
    metadata, found = header.pop("__metadata__", {}), {}
    for name, entry in header.items():
        if entry["dtype"] not in DTYPES:
            raise ConfigError(
                f"{path}: {name!r} is of type {entry['dtype']}, which cannot be merged into; these can: {', '.join(DTYPES)}"
            )
        shape, dtype, (first, last) = entry["shape"], DTYPES[entry["dtype"]], entry["data_offsets"]
        found[name] = LazyTensor(
            shape,
            dtype,
            lambda a=start + first, n=last - first, s=shape, d=dtype: numbers(path, a, n, d).reshape(s),
        )
    return metadata, found


def numbers(path: Path, start: int, size: int, dtype: torch.dtype) -> torch.Tensor:
    """`size` bytes of a file, read and not mapped, so that they leave memory with the tensor."""
    data = bytearray(size)
    with open(path, "rb") as file:
        file.seek(start)
        file.readinto(data)
    return torch.frombuffer(data, dtype=dtype) if size else torch.empty(0, dtype=dtype)


def write_streamed(
    path: Path, tensors: dict[str, LazyTensor], dtype: torch.dtype, metadata: dict[str, str]
) -> None:
    """A .safetensors file with all floating-point numbers in `dtype`; complete or absent."""
    header, offset = {"__metadata__": metadata}, 0
    dtypes = {
        name: dtype if tensor.dtype.is_floating_point else tensor.dtype for name, tensor in tensors.items()
    }
    for name, tensor in tensors.items():
        size = math.prod(tensor.shape) * dtypes[name].itemsize
        header[name] = dict(
            dtype=NAMES[dtypes[name]], shape=tensor.shape, data_offsets=[offset, offset + size]
        )
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with complete_or_absent(path) as part, open(part, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, tensor in tensors.items():
            values = tensor.read().to(dtypes[name]).contiguous()
            if not values.isfinite().all():
                raise ConfigError(
                    f"{name}: a number leaves the range of {str(dtype).removeprefix('torch.')}; take --dtype bf16 or fp32"
                )
            file.write(values.flatten().view(torch.uint8).numpy().data)
