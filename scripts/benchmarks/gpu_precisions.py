"""gpu.sh's section of precisions: whether training works in each, on one fixed batch."""

import importlib.util
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from gpu_base import CUDA, GIB, Sizes, dtype_of, forget_accelerator, gib, half_precision
from gpu_contestants import Parts, config_of, prepare, trainer_steps
from gpu_sections import Clock, attempt, release

from gralora_diffusion.adapters.inject import inject
from gralora_diffusion.adapters.quantization import quantize
from gralora_diffusion.config import QUANTIZED
from gralora_diffusion.training.accelerator import make_accelerator

RATE = 1e-3
AMPLE = 20 * GIB  # a card of so much holds a step without gradient checkpointing
PRECISIONS = {  # {name: (mixed precision or the card's own, how the base is quantized)}
    "bf16": ("bf16", None),
    "fp16, loss scaler": ("fp16", None),
    **{name: (None, name) for name in QUANTIZED},
}


def run(sizes: Sizes, clock: Clock, add: Callable) -> str:
    parts = prepare(sizes, half_precision())
    parts.pipeline.unet.to("cpu")
    longest = 0.0
    for name, (precision, quantized) in PRECISIONS.items():
        start = time.monotonic()
        if quantized and importlib.util.find_spec("torchao") is None:
            add(precision=name, problem="skipped: the package torchao is missing")
        elif clock.left() < longest:
            add(precision=name, problem="skipped: no time was left")
        else:
            chosen = precision or half_precision()
            add(**attempt(dict(precision=name), train_fixed, parts, chosen, quantized))
        longest = max(longest, time.monotonic() - start)
    return (
        f"GraLoRA of rank {sizes.rank}, learning rate {RATE}, the same images, noise and timestep each step"
    )


def train_fixed(parts: Parts, precision: str, quantized: str | None) -> dict:
    """A row of the table: the losses of the trainer's steps on the first batch."""
    forget_accelerator()
    release()
    checkpointing = torch.cuda.get_device_properties(CUDA).total_memory < AMPLE
    options = dict(method="gralora", rank=parts.sizes.rank, k=parts.sizes.k, learning_rate=RATE)
    options |= dict(gradient_checkpointing=checkpointing)
    config = config_of(parts.sizes, precision, **options)
    unet = parts.unet().to(CUDA, dtype_of(precision))
    if quantized:
        quantize(unet, quantized)
    torch.cuda.reset_peak_memory_stats()
    torch.manual_seed(0)
    inject(unet, config.adapter)
    with tempfile.TemporaryDirectory(prefix="gralora-gpu-") as folder:
        accelerator = make_accelerator(config, Path(folder))
        steps = trainer_steps(parts, unet, config, accelerator, one_batch=True)
        lines = [next(steps)[0] for _ in range(parts.sizes.fixed_steps)]
    losses = [line["loss"] for line in lines]
    third = len(losses) // 3
    first, last = statistics.fmean(losses[:third]), statistics.fmean(losses[-third:])
    return {
        "computes in": precision,
        "checkpointing": checkpointing,
        "steps": len(losses),
        "finite": all(map(math.isfinite, losses)),
        "falling": last < first,
        "loss, first third": first,
        "loss, last third": last,
        "steps without a gradient": sum(line["grad_norm"] is None for line in lines),
        "ms": 1e3 * statistics.median(line["seconds"] for line in lines),
        "peak GiB": gib(torch.cuda.max_memory_allocated()),
    }
