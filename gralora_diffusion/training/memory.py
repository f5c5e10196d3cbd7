"""Memory and disk space: in use, at the peak, and what to do when memory runs out."""

import contextlib
import ctypes
import gc
import re
import sys
from pathlib import Path

import psutil
import torch

from gralora_diffusion.config import TrainConfig
from gralora_diffusion.options import TrainingError


def memory_in_use(device: torch.device) -> int:
    """Bytes of this process on the GPU, or in RAM."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return psutil.Process().memory_info().rss


def peak_memory(device: torch.device) -> int:
    """The most bytes that this process had on the GPU, or in RAM."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if hasattr(psutil.Process().memory_info(), "peak_wset"):  # Windows
        return psutil.Process().memory_info().peak_wset
    # On Linux getrusage() includes what the parent process had when it started this one.
    with contextlib.suppress(OSError):
        if found := re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text()):
            return 1024 * int(found[1])
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def forget_peak(device: torch.device) -> None:
    """Let peak_memory() start from what is in use now, where the system can reset it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # glibc: give back what earlier work has freed
        ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):  # Linux
        Path("/proc/self/clear_refs").write_text("5")


def disk_used(folder: Path) -> int:
    """Bytes of all files in it."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # another process has just renamed it
            total += path.stat().st_size if path.is_file() else 0
    return total


def out_of_memory(when: str, config: TrainConfig, first: str | None = None) -> TrainingError:
    """The error of a run out of memory, with options that need less; first: one to try before them."""
    ways = [first] if first else []
    if not config.gradient_checkpointing:
        ways.append("add --gradient_checkpointing")
    if config.mixed_precision == "no":
        ways.append("use --mixed_precision bf16")
    if config.train_batch_size > 1:
        ways.append("use --train_batch_size 1 with --gradient_accumulation_steps")
    ways.append("lower --resolution or the rank")
    return TrainingError(f"out of memory {when}: {', '.join(ways)}")
