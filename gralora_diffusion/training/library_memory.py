"""What Python and its libraries take of the RAM that a run's models share with them."""

import threading

import torch

from gralora_diffusion.devices import memory_in_use, total_memory
from gralora_diffusion.sdxl.libraries import import_libraries

_measured: dict[str, int] = {}  # {type of device: bytes}
_measuring = threading.Lock()


def library_memory(device: torch.device) -> int:
    """Bytes of a process with the libraries that training imports; 0 where the device has its own memory.

    Measured in this process at the first call and kept, since the process may hold models later.
    """
    if total_memory(device) is not None:
        return 0
    with _measuring:
        if device.type not in _measured:
            import_libraries()
            _measured[device.type] = memory_in_use(device)
        return _measured[device.type]
