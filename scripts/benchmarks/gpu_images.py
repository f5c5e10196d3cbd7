"""gpu.sh's section of images: seconds and memory of drawing with a GraLoRA, merged and not."""

import time
from collections.abc import Callable

import torch
from gpu_base import CUDA, Sizes, gib, random_pipeline
from gpu_sections import Clock, attempt, release

from gralora_diffusion.adapters.control import merge
from gralora_diffusion.adapters.inject import inject
from gralora_diffusion.adapters.registry import adapter_parameters
from gralora_diffusion.config import AdapterConfig
from gralora_diffusion.console import counted
from gralora_diffusion.devices import drawing_dtype
from gralora_diffusion.sdxl.sampling import sample

PROMPT = "a photo of sks robot"
SIZE = 0.01  # standard deviation of the factors that would be zero


def run(sizes: Sizes, clock: Clock, add: Callable) -> str:
    pipeline = random_pipeline(sizes.small, drawing_dtype(CUDA))
    finite = []

    def note(_module, _inputs, output: torch.Tensor) -> None:
        finite.append(output.isfinite().all())

    pipeline.vae.decoder.register_forward_hook(note)
    draw(pipeline, sizes, 1, 0)  # warms up
    add(**attempt(dict(kind="base"), measure, pipeline, sizes, finite, clock.part(0.15)))
    torch.manual_seed(0)
    inject(pipeline.unet, AdapterConfig(method="gralora", rank=sizes.rank, k=sizes.k))
    for name, parameter in adapter_parameters(pipeline.unet).items():
        if name.endswith("_B"):
            parameter.data.normal_(std=SIZE)
    add(**attempt(dict(kind="GraLoRA, not merged"), measure, pipeline, sizes, finite, clock.part(0.5)))
    merge(pipeline.unet)
    add(**attempt(dict(kind="GraLoRA, merged"), measure, pipeline, sizes, finite, clock))
    about = f"{sizes.resolution} px, {sizes.denoising} denoising steps with guidance"
    at_once = f"{counted(sizes.at_once, 'image')} at once"
    return f"{about}, {at_once}, decoded one by one; weights in fp16, the VAE in fp32"


def measure(pipeline, sizes: Sizes, finite: list, clock: Clock) -> dict:
    """A row of the table: as many batches of images as there is time for, one at least."""
    release()
    finite.clear()
    torch.cuda.reset_peak_memory_stats()
    torch.cuda.synchronize()
    start = time.monotonic()
    number, single = 0, 0
    while number < sizes.images:
        images = draw(pipeline, sizes, sizes.at_once, number)
        single += sum(all(low == high for low, high in image.getextrema()) for image in images)
        number += len(images)
        if clock.left() <= 0:
            break
    torch.cuda.synchronize()
    seconds = time.monotonic() - start
    return {
        "images": number,
        "seconds an image": seconds / number,
        "peak GiB": gib(torch.cuda.max_memory_allocated()),
        "reserved GiB": gib(torch.cuda.max_memory_reserved()),
        "finite": all(map(bool, finite)),
        "of a single color": single,
    }


def draw(pipeline, sizes: Sizes, count: int, seed: int) -> list:
    steps = dict(num_inference_steps=sizes.denoising, batch_size=sizes.at_once)
    return sample(pipeline, [PROMPT], seed, count, resolution=sizes.resolution, **steps)
