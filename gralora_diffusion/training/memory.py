"""Memory and disk space in use, now and at the peak."""

import contextlib
import ctypes
import gc
import re
import sys
from pathlib import Path

import psutil
import torch


def memory_in_use(device: torch.device) -> int:
    """Bytes of this process on the GPU, or in RAM."""
    return (
        torch.cuda.memory_allocated(device) if device.type == "cuda" else psutil.Process().memory_info().rss
    )


def peak_memory(device: torch.device) -> int:
    """The most bytes that this process had on the GPU, or in RAM."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if hasattr(psutil.Process().memory_info(), "peak_wset"):  # Windows
        return psutil.Process().memory_info().peak_wset
    with contextlib.suppress(
        OSError
    ):  # Linux, where getrusage() counts what the parent had when it started this process
        if found := re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text()):
            return 1024 * int(found[1])
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def forget_peak(device: torch.device) -> None:
    """Let peak_memory() count from what is in use now; on systems where the peak cannot be reset it stays the process's."""
    if device.type == "cuda":
        return torch.cuda.reset_peak_memory_stats(device)
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # glibc: give back what earlier work has freed
        ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):  # Linux
        Path("/proc/self/clear_refs").write_text("5")


def disk_used(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # another process has renamed it since
            total += path.stat().st_size if path.is_file() else 0
    return total
