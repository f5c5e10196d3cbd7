"""--compile: torch.compile for each transformer block of the UNet: a graph for each kind of block and shape.

Blocks of one width share a graph. Adapters and saved files keep their names: blocks are compiled in place.
"""

import warnings

import torch
from torch import nn

from gralora_diffusion.config import TrainConfig
from gralora_diffusion.console import counted, note
from gralora_diffusion.options import ConfigError

BLOCK = "BasicTransformerBlock"
BACKEND = "inductor"
GRAPHS = 8  # of an image shape at most: two widths, with and without gradients of the input, and more


def check_compile(config: TrainConfig, device: torch.device) -> None:
    """Raises ConfigError where torch.compile has no compiler for this device."""
    if not config.compile:
        return
    problem = None
    if device.type in ("cuda", "xpu"):
        from torch.utils._triton import has_triton

        problem = None if has_triton() else "Triton, which is not installed or does not know this GPU"
    elif device.type == "cpu":
        from torch._inductor.cpp_builder import get_cpp_compiler

        try:
            get_cpp_compiler()
        except Exception as error:  # InvalidCxxCompiler, or whatever a broken compiler raises
            problem = f"a C++ compiler ({type(error).__name__})"
    else:
        problem = f"a GPU with Triton or a CPU, and this is {device.type}"
    if problem:
        raise ConfigError(f"--compile needs {problem}: drop it", option="compile")


def compile_blocks(unet: nn.Module, shapes: int) -> int:
    """Compile each block when it first runs with one of so many image shapes; returns how many blocks."""
    warnings.filterwarnings("ignore", "The .grad attribute of a Tensor")  # torch's own, while it compiles
    limit = GRAPHS * shapes
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, limit)
    torch._dynamo.config.accumulated_recompile_limit = max(
        torch._dynamo.config.accumulated_recompile_limit, limit
    )
    blocks = [module for module in unet.modules() if type(module).__name__ == BLOCK]
    for block in blocks:
        block.compile(dynamic=False, backend=BACKEND)
    each = "" if shapes == 1 else f" of each of {shapes} image shapes"
    are = f"{counted(len(blocks), 'block')} of the UNet {'is' if len(blocks) == 1 else 'are'}"
    note(f"{are} compiled in the first step{each}, which takes minutes")
    return len(blocks)


def uncompiled():
    """Within it compiled blocks run as they are, for images, whose shapes would be compiled for nothing."""
    return torch.compiler.set_stance("force_eager")
