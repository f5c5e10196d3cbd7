"""Disk space in use, and what to do when memory runs out."""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

from gralora_diffusion.config import TrainConfig
from gralora_diffusion.devices import best_device, is_out_of_memory, name_of
from gralora_diffusion.options import ConfigError, TrainingError
from gralora_diffusion.training.accelerator import precision


def disk_used(folder: Path) -> int:
    """Bytes of all files in it."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # another process has just renamed it
            total += path.stat().st_size if path.is_file() else 0
    return total


@contextlib.contextmanager
def memory_for(what: str, config: TrainConfig, first: str | None = None) -> Iterator[None]:
    """Within it, running out of memory is the TrainingError of out_of_memory()."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        problem = out_of_memory(what, config, first)
    else:
        return
    raise problem  # outside of the handler, whose traceback would keep the tensors


def out_of_memory(when: str, config: TrainConfig, first: str | None = None) -> TrainingError:
    """The error of a run out of memory, with options that need less; first: one to try before them."""
    ways = [first] if first else []
    if not config.gradient_checkpointing:
        ways.append("add --gradient_checkpointing")
    if precision(config)[0] == "no":
        ways.append("use --mixed_precision bf16")
    if config.train_batch_size > 1:
        ways.append("use --train_batch_size 1 with --gradient_accumulation_steps")
    if config.train_text_encoder:
        ways.append("drop --train_text_encoder")
    if not config.base_model_precision and accepts(config, base_model_precision="int8-torchao"):
        ways.append("use --base_model_precision int8-torchao")
    ways.append("lower --resolution or the rank")
    device = best_device()
    card = "" if device.type == "cpu" else f" (this GPU: {name_of(device)})"
    folder = "a run with other options needs another --output_dir"
    return TrainingError(f"out of memory {when}: {', '.join(ways)}{card}; {folder}")


def accepts(config: TrainConfig, **changes) -> bool:
    """Whether the options stay possible with these changes."""
    try:
        dataclasses.replace(config, **changes)
    except ConfigError:
        return False
    return True
