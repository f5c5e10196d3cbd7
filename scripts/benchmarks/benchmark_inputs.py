"""Base models, adapters and images with random contents, for the benchmark."""

from pathlib import Path

import torch

from gralora_diffusion import AdapterConfig, inject, load_sdxl, save_adapter
from gralora_diffusion.adapters.control import remove
from gralora_diffusion.adapters.registry import adapter_parameters
from gralora_diffusion.formats.load import save_diffusers
from gralora_diffusion.sdxl.base import Prompts, blank_inputs
from gralora_diffusion.sdxl.single_file import SDXL_UNET, SDXL_VAE


def base_of(size: str, device: str, side: int | None = None):
    """A pipeline.  size: tiny for the embedded base; half or sdxl for its parts around a random UNet in bf16.

    That UNet has half of SDXL's width, or SDXL's own.  side: of its latents; by default the embedded base's.
    """
    from diffusers import UNet2DConditionModel

    pipeline = load_sdxl()
    if size == "tiny":
        return pipeline.to(device)
    own = pipeline.unet.config
    scale = 2 if size == "half" else 1
    changes = dict(
        block_out_channels=[channels // scale for channels in SDXL_UNET["block_out_channels"]],
        sample_size=side or own.sample_size,
        in_channels=own.in_channels,
        out_channels=own.out_channels,
        cross_attention_dim=own.cross_attention_dim,
        projection_class_embeddings_input_dim=projection_dim(pipeline),
    )
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(SDXL_UNET | changes)
    unet = unet.to(torch.bfloat16).to_empty(device="cpu").eval().requires_grad_(False)
    for p in unet.parameters():
        p.data.uniform_(-0.02, 0.02)
    pipeline.register_modules(unet=unet)
    return pipeline.to(device)


def random_base(folder: Path, width: int) -> Path:
    """A random SDXL-like base on disk.

    width: the UNet's first channels, a multiple of 32, where SDXL's has 320; the VAE is in proportion.
    """
    from diffusers import AutoencoderKL, UNet2DConditionModel

    pipeline = load_sdxl()
    torch.manual_seed(0)
    unet = dict(
        block_out_channels=(width, 2 * width, 4 * width),
        cross_attention_dim=pipeline.unet.config.cross_attention_dim,
        sample_size=32,
        attention_head_dim=(width // 32, width // 16, width // 8),
        transformer_layers_per_block=(1, 2, 10),
        projection_class_embeddings_input_dim=projection_dim(pipeline),
    )
    channels = [width * 2 // 5 // 8 * 8 * n for n in (1, 2, 4, 4)]
    vae = dict(block_out_channels=channels, norm_num_groups=8, sample_size=256)
    pipeline.register_modules(
        unet=UNet2DConditionModel.from_config(SDXL_UNET | unet), vae=AutoencoderKL.from_config(SDXL_VAE | vae)
    )
    pipeline.save_pretrained(folder)
    return folder


def projection_dim(pipeline) -> int:
    """Of the pooled text embedding and the six time ids, 256 features each."""
    return 6 * 256 + pipeline.text_encoder_2.config.projection_dim


def write_adapters(pipeline, folder: Path, rank: int, k: int) -> dict[str, Path]:
    """{name: file}: two random GraLoRA and two random LoRA of equal rank, the latter in diffusers' format."""
    files = {}
    for method in ("gralora", "lora"):
        config = AdapterConfig(method=method, rank=rank, k=k if method == "gralora" else None)
        save = save_adapter if method == "gralora" else save_diffusers
        inject(pipeline.unet, config)
        for number in (1, 2):
            for name, p in adapter_parameters(pipeline.unet).items():
                p.data.normal_(std=0.01 if name.endswith("B") else 0.02)
            path = folder / f"{method}{number}.safetensors"
            save(path, {"unet": pipeline.unet})
            files[f"{method} {number}"] = path
        remove(pipeline)
    return files


def unet_inputs(pipeline, images: int) -> tuple:
    """What predict() takes, random, in the UNet's dtype and on its device."""
    unet = pipeline.unet
    noisy, _, prompts, sizes = blank_inputs(unet.config, images, unet.config.sample_size, device=unet.device)
    noisy = noisy.to(unet.dtype).normal_()
    t = torch.tensor(500, device=unet.device)
    prompts = Prompts(*(part.to(unet.dtype).normal_() for part in prompts))
    return noisy, t, prompts, sizes.to(unet.dtype)


def write_images(folder: Path, count: int, side: int) -> Path:
    """Square PNG files of noise, gradients and colors; all differ."""
    from PIL import Image

    folder.mkdir(parents=True)
    for i in range(count):
        noise = Image.effect_noise((side, side), 60)
        gradient = Image.linear_gradient("L").resize((side, side)).rotate(30 * i)
        color = Image.new("L", (side, side), 40 * i)
        Image.merge("RGB", (noise, gradient, color)).save(folder / f"{i}.png")
    return folder
