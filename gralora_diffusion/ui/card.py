"""The device that runs will use, found in its own process: a CUDA context would take memory from a run."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from gralora_diffusion.devices import best_device, free_memory, name_of

NOT_KNOWN = "-"
_found: list[tuple[str, int | None]] = [(NOT_KNOWN, None)]  # (name, free bytes of a GPU)


def find_device() -> None:
    """Find the device's name and memory; to be called in a thread at the start."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            _found[0] = pool.submit(best).result()
        except (BrokenProcessPool, RuntimeError) as error:
            print(f"the name of the GPU cannot be read: {error}", flush=True)


def device_name() -> str:
    """What find_device() has found, or a dash."""
    return _found[0][0]


def device_memory() -> int | None:
    """Bytes of the GPU that were free when it was found; None where there is no GPU, or it is not known."""
    return _found[0][1]


def best() -> tuple[str, int | None]:
    device = best_device()
    return name_of(device), free_memory(device)
