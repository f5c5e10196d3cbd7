"""What the stub has counted: launches, copies, synchronizations, memory.

Only in a process that runs on it.
"""

import collections
import ctypes
import os
import shutil
import subprocess
from dataclasses import dataclass

STUB = ctypes.CDLL(os.environ["LD_PRELOAD"].split(":")[0])
STUB.no_gpu_counter_name.restype = ctypes.c_char_p
STUB.no_gpu_counter.restype = ctypes.c_longlong
STUB.no_gpu_peak.restype = ctypes.c_size_t
STUB.no_gpu_kernels.restype = ctypes.c_size_t
STUB.no_gpu_set_limit.argtypes = [ctypes.c_size_t]


class Launches(ctypes.Structure):
    """struct launches of no_gpu.c."""

    _fields_ = (("name", ctypes.c_char_p), ("launches", ctypes.c_long))


@dataclass(frozen=True)
class Report:
    """What was counted since reset()."""

    counters: dict[str, int]
    kernels: collections.Counter  # launches by kernel or product, names demangled
    peak: int  # bytes that cudaMalloc() gave out at most

    @property
    def launches(self) -> int:
        return self.counters["kernels"] + self.counters["products"]

    @property
    def syncs(self) -> int:
        kinds = ("stream", "device", "event")
        return sum(self.counters[f"{kind} synchronizations"] for kind in kinds)

    @property
    def copies(self) -> int:
        """Between host and device."""
        names = ("small copies to device", "large copies to device", "copies to host")
        return sum(self.counters[name] for name in names)


def reset() -> None:
    STUB.no_gpu_reset()


def set_limit(gib: float) -> None:
    """How much memory the card has from now on."""
    STUB.no_gpu_set_limit(int(gib * 2**30))


def counted() -> dict[str, int]:
    """{counter: number} since reset()."""
    found = {}
    for number in range(STUB.no_gpu_counters()):
        found[STUB.no_gpu_counter_name(number).decode()] = STUB.no_gpu_counter(number)
    return found


def report(names: bool = False) -> Report:
    """All that was counted since reset(); kernels by name only where `names` asks for them."""
    kernels = launches_by_name() if names else collections.Counter()
    return Report(counted(), kernels, STUB.no_gpu_peak())


def launches_by_name() -> collections.Counter:
    """Launches since reset() by kernel."""
    room = STUB.no_gpu_kernels(None, 0)
    entries = (Launches * room)()
    STUB.no_gpu_kernels(entries, room)
    mangled = [entry.name.decode() for entry in entries]
    found = collections.Counter()
    for name, entry in zip(demangled(mangled), entries, strict=True):
        found[name] += entry.launches
    return found


def demangled(names: list[str]) -> list[str]:
    """C++ names as they stand in the source, where c++filt is installed."""
    if not names or not shutil.which("c++filt"):
        return names
    plain = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    done = subprocess.run(
        ["c++filt"], input="\n".join(names), capture_output=True, text=True, env=plain, check=True
    )
    return done.stdout.splitlines()
