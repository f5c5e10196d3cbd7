"""gpu.sh's section of facts: the machine, its versions, and the commit."""

import contextlib
import io
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import torch
from gpu_base import CUDA, Sizes, gib, half_precision
from gpu_sections import attempt

from gralora_diffusion.cli import env

ROOT = Path(__file__).parent.parent.parent
UNKNOWN = "unknown"
QUERY = "--query-gpu=name,driver_version,memory.total,power.limit,clocks.max.sm,pcie.link.gen.max"


def run(sizes: Sizes, clock, add: Callable) -> None:
    about = torch.cuda.get_device_properties(CUDA)
    free, total = torch.cuda.mem_get_info()
    facts = {
        "device": lambda: about.name,
        "compute capability": lambda: f"{about.major}.{about.minor}",
        "multiprocessors": lambda: about.multi_processor_count,
        "memory, GiB": lambda: gib(total),
        "free before the first measurement, GiB": lambda: gib(free),
        "precision": half_precision,
        "CUDA of torch": lambda: str(torch.version.cuda or torch.version.hip),
        "cuDNN": lambda: str(torch.backends.cudnn.version()),
        "driver": driver,
        "commit": commit,
        "gralora env": environment,
    }
    for name, find in facts.items():
        add(**attempt(dict(fact=name), lambda find=find: dict(value=find())))


def environment() -> str:
    """What `gralora env` prints."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        env.main([])
    return text.getvalue().strip()


def driver() -> str:
    """nvidia-smi's line for each card."""
    return output_of(["nvidia-smi", QUERY, "--format=csv,noheader"])


def commit() -> str:
    """The commit, and whether files differ from it."""
    git = ["git", "-C", str(ROOT)]
    found = output_of([*git, "rev-parse", "HEAD"])
    if found.startswith(UNKNOWN):
        return found
    changed = output_of([*git, "status", "--porcelain", "--untracked-files=no"])
    return f"{found}, with changes" if changed else found


def output_of(command: list[str]) -> str:
    """What a command prints, or that it is missing or failed."""
    if not shutil.which(command[0]):
        return f"{UNKNOWN}: there is no {command[0]}"
    done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    if done.returncode:
        return f"{UNKNOWN}: {command[0]} ended with exit code {done.returncode}"
    return done.stdout.strip()
