"""accelerate's Accelerator for a run: precision, processes and trackers, checked."""

import os
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, is_initialized

from gralora_diffusion.config import TrainConfig
from gralora_diffusion.devices import best_device, best_precision
from gralora_diffusion.options import ConfigError, one_of
from gralora_diffusion.training.compiled import check_compile
from gralora_diffusion.training.prefetch import PINNED
from gralora_diffusion.training.sharding import check_sharding
from gralora_diffusion.training.trackers import trackers_of

DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def precision(config: TrainConfig) -> tuple[str, torch.dtype]:
    """(name, dtype) of --mixed_precision.

    By default fp16 or bf16 of accelerate's configuration, else the best of this device. accelerate's own
    default, no, does not count as a choice.
    """
    name = config.mixed_precision or os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    one_of("mixed_precision (from accelerate's configuration)", name, DTYPES)
    if not config.mixed_precision and name == "no":
        name = best_precision(torch.device("cpu") if on_cpu() else best_device())
    return name, DTYPES[name]


def on_cpu() -> bool:
    """Whether accelerate was told to leave the GPUs alone."""
    return os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")


def make_accelerator(config: TrainConfig, run: Path) -> Accelerator:
    """Raises ConfigError where precision, processes or trackers do not work here; writes nothing."""
    name = precision(config)[0]
    logs = run / config.logging_dir
    if logs.is_file():
        problem = f"--logging_dir {config.logging_dir} is a file: name a folder"
        raise ConfigError(problem, option="logging_dir")
    if is_initialized() and AcceleratorState().mixed_precision != name:
        before = AcceleratorState().mixed_precision
        problem = (
            f"this process has used --mixed_precision {before} before, and accelerate cannot change that"
        )
        raise ConfigError(f"{problem}: train with {name} in another process", option="mixed_precision")
    accelerator = Accelerator(mixed_precision=name, log_with=trackers_of(config), project_dir=logs)
    check_processes(accelerator)
    if name == "fp16" and accelerator.scaler is None:
        problem = "--mixed_precision fp16 needs a GPU: use no or bf16 here"
        raise ConfigError(problem, option="mixed_precision")
    if config.offload_unet and accelerator.device.type not in PINNED:
        problem = f"--offload_unet needs a GPU with its own memory, and this is {accelerator.device.type}"
        raise ConfigError(f"{problem}: drop it", option="offload_unet")
    check_compile(config, accelerator.device)
    check_sharding(config, accelerator)
    return accelerator


def check_processes(accelerator: Accelerator) -> None:
    """Raises ConfigError where a launcher started several processes, and each of them is alone."""
    started = os.environ.get("WORLD_SIZE", "1")
    if started != "1" and accelerator.num_processes == 1:
        if torch.distributed.is_initialized():  # all say so before the launcher ends those that are left
            torch.distributed.barrier()
            torch.distributed.destroy_process_group()
        ways = "use `gralora train --num_processes N`, or set ACCELERATE_USE_CPU=1 for torchrun without GPUs"
        problem = f"{started} processes were started together, but accelerate sees only one on this machine"
        raise ConfigError(f"{problem}, so each would train alone: {ways}")
