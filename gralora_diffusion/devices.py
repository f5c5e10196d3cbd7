"""The device that torch computes on: which one, its precision, its memory, and running out of it.

cuda (NVIDIA and AMD), xpu (Intel) and mps (Apple) by the same functions.
"""

import contextlib
import ctypes
import gc
import re
import sys
from pathlib import Path

import psutil
import torch

OUT_OF_MEMORY = (  # in messages that torch raises as a plain RuntimeError
    "out of memory",
    "can't allocate memory",
    "not enough memory",  # on the CPU of Windows
    "STATUS_ALLOC_FAILED",  # of cuBLAS and cuDNN
)

WITHOUT_FLOAT64 = ("mps",)  # devices whose matrices are decomposed on the CPU


def best_device() -> torch.device:
    """The accelerator of this machine, or the CPU."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def best_precision(device: torch.device) -> str:
    """bf16 on a GPU that computes in it, fp16 on other GPUs of NVIDIA and AMD, otherwise no."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if device.type == "xpu" else "no"


def drawing_dtype(device: torch.device) -> torch.dtype:
    """The dtype in which images are generated: fp16 on accelerators, which rounds less than bf16."""
    return torch.float32 if device.type == "cpu" else torch.float16


def name_of(device: torch.device) -> str:
    """The name of a card, with its memory."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    elif device.type == "xpu":
        name = torch.xpu.get_device_name(device)
    else:
        return dict(mps="Apple GPU", cpu="CPU").get(device.type, device.type)
    return f"{name}, {total_memory(device) / 2**30:.1f} GiB"


def total_memory(device: torch.device) -> int | None:
    """Bytes of the card; None where the device shares the system's memory."""
    return free_and_total(device)[1] if device.type in ("cuda", "xpu") else None


def free_and_total(device: torch.device) -> tuple[int, int]:
    """Bytes of a card that are free, and all of them.

    Where the driver does not report the first, as on some Intel GPUs, those that this process has not taken.
    """
    try:
        return torch.accelerator.get_memory_info(device)
    except RuntimeError:
        total = torch.get_device_module(device).get_device_properties(device).total_memory
        return total - torch.accelerator.memory_reserved(device), total


def free_memory(device: torch.device) -> int | None:
    """Bytes that can still be allocated, those that the allocator holds unused included; None: not known."""
    if device.type in ("cuda", "xpu"):
        unused = torch.accelerator.memory_reserved(device) - torch.accelerator.memory_allocated(device)
        return free_and_total(device)[0] + unused
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    return None


def in_float64(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in float64, on its device, or on the CPU where the device has no float64."""
    return decomposable(tensor).double()


def decomposable(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, on the CPU where its device has neither float64 nor all decompositions of matrices."""
    return tensor.cpu() if tensor.device.type in WITHOUT_FLOAT64 else tensor


def available_ram() -> int:
    """Bytes of RAM that programs can still take without swapping."""
    return psutil.virtual_memory().available


def memory_in_use(device: torch.device) -> int:
    """Bytes of this process on the device, or in RAM."""
    if device.type in ("cuda", "xpu"):
        return torch.accelerator.memory_allocated(device)
    if device.type == "mps":
        return torch.mps.current_allocated_memory()
    return psutil.Process().memory_info().rss


def peak_memory(device: torch.device) -> int:
    """The most bytes that this process had on the device, or in RAM.

    On mps, which counts no peak, what the driver holds for the process.
    """
    if device.type in ("cuda", "xpu"):
        return torch.accelerator.max_memory_allocated(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    if hasattr(psutil.Process().memory_info(), "peak_wset"):  # Windows
        return psutil.Process().memory_info().peak_wset
    # On Linux getrusage() includes what the parent process had when it started this one.
    with contextlib.suppress(OSError):
        if found := re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text()):
            return 1024 * int(found[1])
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def reserved_memory(device: torch.device) -> int | None:
    """The most bytes that the allocator took from the device; None where it is not counted."""
    return torch.accelerator.max_memory_reserved(device) if device.type in ("cuda", "xpu") else None


def forget_peak(device: torch.device) -> None:
    """Let peak_memory() start from what is in use now, where the system can reset it."""
    if device.type in ("cuda", "xpu"):
        torch.accelerator.reset_peak_memory_stats(device)
        return
    gc.collect()
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError, AttributeError):  # glibc: give back what earlier work has freed
        ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def release_unused(device: torch.device) -> None:
    """Give back to the device what the allocator holds unused."""
    gc.collect()
    if device.type == "mps":
        torch.mps.empty_cache()
    elif device.type != "cpu":
        torch.accelerator.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the device, or the system, has no memory left."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in OUT_OF_MEMORY)
