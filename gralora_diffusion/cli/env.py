"""Print versions, devices and memory, for a bug report.

gralora env
"""

import importlib.metadata
import platform
import sys

from gralora_diffusion import __version__
from gralora_diffusion.command_line import Parser

PACKAGES = (
    *("torch", "torchvision", "diffusers", "transformers", "accelerate", "peft", "open_clip_torch", "gradio"),
    *("safetensors", "timm", "bitsandbytes", "torchao", "prodigyopt", "schedulefree", "datasets"),
)


def main(argv: list[str]) -> None:
    Parser(description=__doc__).parse_args(argv)
    import psutil
    import torch

    print(f"gralora_diffusion  {__version__}")
    print(f"python             {platform.python_version()} ({sys.executable})")
    print(f"system             {platform.platform()}")
    print(f"processor          {platform.machine()}, cores: {psutil.cpu_count(logical=False) or 'unknown'}")
    print(f"memory             {psutil.virtual_memory().total / 2**30:.1f} GiB")
    for line in devices(torch):
        print(f"GPU                {line}")
    for name in PACKAGES:
        print(f"{name:<18} {version_of(name)}")


def devices(torch) -> list[str]:
    """A line for each GPU: name, memory, and whether it computes in bf16."""
    if torch.backends.mps.is_available():
        return ["Apple MPS"]
    if not torch.cuda.is_available():
        built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
        return [f"none (torch is built {built})"]
    found = []
    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        bf16 = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no bf16"
        found.append(f"{about.name}, {about.total_memory / 2**30:.1f} GiB, {bf16}")
    return found


def version_of(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
