"""SDXL at its true size without weights: memory that is reserved, never written, and reads as zeros."""

import functools
import importlib
import mmap
import sys
import tempfile
from pathlib import Path

import torch

from gralora_diffusion.data import cache
from gralora_diffusion.sdxl.load import EMBEDDED, load_sdxl
from gralora_diffusion.sdxl.single_file import (
    SDXL_SCHEDULER,
    SDXL_TEXT_ENCODER,
    SDXL_TEXT_ENCODER_2,
    SDXL_UNET,
    SDXL_VAE,
)

LOADING = ("training.train", "ui.sampler", "cli.sample")  # modules that load bases
NAME = "hollow.safetensors"  # a base of this name is hollow
HASHED = 2**12  # bytes of each tensor

whole = cache.raw


def blank(tensor: torch.Tensor, device: str) -> torch.Tensor:
    """Zeros like this tensor; on the CPU they are pages that are not there before someone writes them."""
    if device != "cpu" or tensor.numel() == 0:
        return torch.empty_like(tensor, device=device)
    pages = mmap.mmap(-1, tensor.numel() * tensor.element_size())
    pages.madvise(mmap.MADV_HUGEPAGE)  # a hash of all weights takes a third of the time
    return torch.frombuffer(pages, dtype=tensor.dtype).view(tensor.shape)


def hollow(model: torch.nn.Module, dtype: torch.dtype, device: str = "cpu") -> torch.nn.Module:
    """A model of the meta device, moved to `device`; only the positions of tokens have their values."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(dtype)
    model._apply(functools.partial(blank, device=device))
    for name, buffer in model.named_buffers():
        if name.endswith("position_ids"):
            buffer.copy_(torch.arange(buffer.shape[-1])[None])
    return model.eval().requires_grad_(False)


def hollow_unet(dtype: torch.dtype, device: str = "cpu") -> torch.nn.Module:
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(SDXL_UNET)
    return hollow(unet, dtype, device)


def hollow_sdxl(dtype: torch.dtype = torch.float32):
    """What load_sdxl() gives for the public base: weights in `dtype`, the VAE in fp32, all on the CPU."""
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    names = ("tokenizer", "tokenizer_2")
    tokenizers = [CLIPTokenizer.from_pretrained(EMBEDDED / name, model_max_length=77) for name in names]
    special = dict(bos_token_id=tokenizers[0].bos_token_id, eos_token_id=tokenizers[0].eos_token_id)
    with torch.device("meta"):
        first = CLIPTextModel(CLIPTextConfig(**(SDXL_TEXT_ENCODER | special)))
        second = CLIPTextModelWithProjection(CLIPTextConfig(**(SDXL_TEXT_ENCODER_2 | special)))
        vae = AutoencoderKL.from_config(SDXL_VAE)
    pipeline = StableDiffusionXLPipeline(
        vae=hollow(vae, torch.float32),
        unet=hollow_unet(dtype),
        text_encoder=hollow(first, dtype),
        text_encoder_2=hollow(second, dtype),
        tokenizer=tokenizers[0],
        tokenizer_2=tokenizers[1],
        scheduler=EulerDiscreteScheduler(**SDXL_SCHEDULER),
        add_watermarker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@functools.wraps(load_sdxl)
def load(path=None, vae=None, dtype=torch.float32, **how):
    """load_sdxl(), which gives a base of the name NAME without a file that holds it."""
    if Path(path or "").name != NAME:
        return load_sdxl(path, vae=vae, dtype=dtype, **how)
    return hollow_sdxl(dtype)


def beginning(tensor: torch.Tensor):
    """The first of a tensor's bytes: those of all hollow weights are zero, and their hash takes seconds."""
    return whole(tensor)[:HASHED]


def install() -> str:
    """Let the package load hollow bases; returns the path of one, which is an empty file."""
    for name in LOADING:
        importlib.import_module(f"gralora_diffusion.{name}")
    for name, module in list(sys.modules.items()):
        if name.startswith("gralora_diffusion") and vars(module).get("load_sdxl") is load_sdxl:
            module.load_sdxl = load
    cache.raw = beginning
    path = Path(tempfile.mkdtemp(prefix="no-gpu-")) / NAME
    path.touch()
    return str(path)
