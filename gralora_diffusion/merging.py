"""A base with an adapter baked in: as a pipeline folder, or as one checkpoint in the original (SGM) layout."""

import json
import math
import re
from pathlib import Path

import torch

from .config import ConfigError
from .exchange import Adapter
from .formats import fitted
from .injection import put, replace
from .names import canonical, sgm
from .sdxl import COMPONENTS, load_sdxl
from .writing import complete_or_absent, new_folder

DTYPES = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32"}
VAE = [
    (r"(encoder\.down)_blocks\.(\d+)\.downsamplers\.0\.", r"\1.\2.downsample."),
    (r"(decoder\.up)_blocks\.(\d+)\.upsamplers\.0\.", r"\1.\2.upsample."),
    (r"(encoder\.down|decoder\.up)_blocks\.(\d+)\.resnets\.", r"\1.\2.block."),
    (r"mid_block\.resnets\.0\.", "mid.block_1."),
    (r"mid_block\.resnets\.1\.", "mid.block_2."),
    (r"mid_block\.attentions\.0\.", "mid.attn_1."),
    (r"attn_1\.group_norm\.", "attn_1.norm."),
    (r"attn_1\.to_([qkv])\.", r"attn_1.\1."),
    (r"attn_1\.to_out\.0\.", "attn_1.proj_out."),
    (r"conv_shortcut", "nin_shortcut"),
    (r"conv_norm_out", "norm_out"),
]
OPEN_CLIP = [
    (r"text_model\.embeddings\.token_embedding\.weight", "token_embedding.weight"),
    (r"text_model\.embeddings\.position_embedding\.weight", "positional_embedding"),
    (r"text_model\.final_layer_norm\.", "ln_final."),
    (r"text_projection\.weight", "text_projection"),
    (r"text_model\.encoder\.layers\.", "transformer.resblocks."),
    (r"\.layer_norm([12])\.", r".ln_\1."),
    (r"\.self_attn\.out_proj\.", ".attn.out_proj."),
    (r"\.self_attn\.[qkv]_proj\.(weight|bias)", r".attn.in_proj_\1"),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
]


def write_merged(out: Path, adapter: Adapter, base: str | None, dtype: torch.dtype) -> None:
    """Write the base with the adapter in its weights, at strength 1: a folder in diffusers layout, or OUT.safetensors in SGM layout.

    Weights change and are written one layer at a time; in fp32, then rounded to `dtype`.  Raises ConfigError, before anything is
    written, when OUT exists, the adapter does not fit, or a number leaves the range of `dtype`.
    """
    out = Path(out)
    if out.exists():
        raise ConfigError(f"{out} exists already: give the name of a new folder, or of a new file that ends in .safetensors")
    pipeline = load_sdxl(base, dtype=dtype)
    for model, path, layer in fitted(adapter, pipeline.components, base or "the embedded base"):
        put(model, path, layer)
        layer.merge()
        layer.unmerged_weight = None  # the base's own weight leaves memory
        replace(model, path, layer.to_linear())
        if not layer.weight.isfinite().all():
            raise ConfigError(f"{path}: the merged weight leaves the range of {str(dtype).removeprefix('torch.')}; take --dtype bf16 or fp32")
    if out.suffix == ".safetensors":
        write_streamed(out, checkpoint(pipeline), dtype)
        return
    with new_folder(out) as part:
        pipeline.save_pretrained(part, safe_serialization=True)


def checkpoint(pipeline) -> dict[str, list[torch.Tensor]]:
    """{name in the original layout: tensors, to be put one below the other} of UNet, VAE and both text encoders; no copies are made."""
    tensors, number, levels = {}, pipeline.unet.config.layers_per_block, len(pipeline.vae.config.block_out_channels)
    for name, tensor in pipeline.unet.state_dict().items():
        path, _, leaf = name.rpartition(".")
        tensors[f"model.diffusion_model.{sgm(path, number)}.{leaf}"] = [tensor]
    for name, tensor in pipeline.text_encoder.state_dict().items():
        tensors[f"conditioner.embedders.0.transformer.{canonical(COMPONENTS[1], name)}"] = [tensor]
    for name, tensor in sorted(pipeline.text_encoder_2.state_dict().items(), key=qkv_last):
        new = f"conditioner.embedders.1.model.{substituted(name, OPEN_CLIP)}"
        tensors.setdefault(new, []).append(tensor.T if name == "text_projection.weight" else tensor)
    for name, tensor in pipeline.vae.state_dict().items():
        new = re.sub(r"(?<=decoder\.up\.)\d+", lambda i: str(levels - 1 - int(i[0])), substituted(name, VAE))
        convolution = re.search(r"attn_1\.(q|k|v|proj_out)\.weight", new)  # 1 x 1 convolutions once
        tensors[f"first_stage_model.{new}"] = [tensor[..., None, None] if convolution else tensor]
    return tensors


def qkv_last(item) -> tuple[bool, int]:
    """Sorts q before k before v, which the original layout keeps in one tensor in this order; all else stays in place."""
    found = re.search(r"self_attn\.([qkv])_proj", item[0])
    return (True, "qkv".index(found[1])) if found else (False, 0)


def substituted(name: str, rules: list[tuple[str, str]]) -> str:
    for pattern, new in rules:
        name = re.sub(pattern, new, name)
    return name


def write_streamed(path: Path, tensors: dict[str, list[torch.Tensor]], dtype: torch.dtype) -> None:
    """A .safetensors file, converted and written tensor by tensor, so that no second copy of the model is in memory."""
    header, offset = {"__metadata__": {"format": "pt", "modelspec.architecture": "stable-diffusion-xl-v1-base"}}, 0
    for name, parts in tensors.items():
        shape = [sum(p.shape[0] for p in parts), *parts[0].shape[1:]]
        size = math.prod(shape) * torch.finfo(dtype).bits // 8
        header[name] = dict(dtype=DTYPES[dtype], shape=shape, data_offsets=[offset, offset + size])
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with complete_or_absent(path) as part, open(part, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for parts in tensors.values():
            file.write(torch.cat([p.detach().to("cpu", dtype) for p in parts]).flatten().view(torch.uint8).numpy().data)
