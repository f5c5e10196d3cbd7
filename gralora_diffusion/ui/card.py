"""The device that runs will use, found in its own process: a CUDA context would take memory from a run."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from gralora_diffusion.devices import best_device, name_of

NOT_KNOWN = "-"
_found = [NOT_KNOWN]


def find_device() -> None:
    """Find the device's name and memory; to be called in a thread at the start."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            _found[0] = pool.submit(best_device_name).result()
        except (BrokenProcessPool, RuntimeError) as error:
            print(f"the name of the GPU cannot be read: {error}", flush=True)


def device_name() -> str:
    """What find_device() has found, or a dash."""
    return _found[0]


def best_device_name() -> str:
    return name_of(best_device())
