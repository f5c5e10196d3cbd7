"""A card that is none: the environment in which torch's CUDA build runs on the stub of stub_build.py."""

import os
import sys

from stub_build import DRIVER, RUNTIME, built, why_not

GIB = 2**30
MARK = "NO_GPU_GIB"  # set in a process that runs on the stub


def environment(gib: float = 24.0, **more: str) -> dict[str, str]:
    """The environment of a process with a card of so many GiB that this process can use."""
    folder = built()
    as_commands_do = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    found = os.environ | as_commands_do | {MARK: str(gib), "CUDA_MODULE_LOADING": "LAZY"} | more
    found["LD_PRELOAD"] = str(folder / RUNTIME)
    found["LD_LIBRARY_PATH"] = f"{folder}:{os.environ.get('LD_LIBRARY_PATH', '')}"
    assert (folder / DRIVER).is_file()
    return found


def start(default: float = 24.0) -> None:
    """Start this script again on the stub, unless it runs on it; --gib FLOAT is taken from its options."""
    if MARK in os.environ:
        return
    if problem := why_not():
        sys.exit(f"there is no stub of a GPU here: {problem}")
    options = sys.argv[1:]
    gib = default
    if "--gib" in options:
        at = options.index("--gib")
        gib = float(options[at + 1])
        del options[at : at + 2]
    os.execve(sys.executable, [sys.executable, sys.argv[0], *options], environment(gib))
