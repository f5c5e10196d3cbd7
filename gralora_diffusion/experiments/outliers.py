"""Outlier channels planted in a UNet without changing what it computes.

GraLoRA's paper (arXiv 2505.20355, section 2) blames input channels that are much larger than the others for
LoRA's losses at high rank.  A base with as many of them as one likes tests that as a cause.
"""

from collections.abc import Collection

import torch
from diffusers.models.attention import BasicTransformerBlock
from torch import nn

from gralora_diffusion.console import counted
from gralora_diffusion.options import ConfigError
from gralora_diffusion.seeding import generator

STREAM = 103  # of the random channels, so that no other draw shares them
NORMS = {"norm1": ("attn1.to_q", "attn1.to_k", "attn1.to_v"), "norm2": ("attn2.to_q",)}  # {norm: its readers}


def check_outliers(unet: nn.Module, slices: int, precision: str | None) -> None:
    """Raises ConfigError where plant_outliers() would change what the UNet computes, or slices do not fit."""
    if precision == "fp16":
        problem = "--outliers divides weights by so much that fp16 cannot hold them"
        raise ConfigError(f"{problem}: use --mixed_precision bf16 or no", option="outliers")
    for path, block in transformer_blocks(unet):
        for name in NORMS:
            width = getattr(block, name).weight.numel()
            if width % slices:
                has = f"{path}.{name} has {counted(width, 'channel')}"
                problem = f"{has}, which {slices} slices do not divide"
                raise ConfigError(f"--outlier_slices: {problem}", option="outlier_slices")


def transformer_blocks(unet: nn.Module) -> list[tuple[str, BasicTransformerBlock]]:
    return [(path, m) for path, m in unet.named_modules() if isinstance(m, BasicTransformerBlock)]


def norms_of(unet: nn.Module) -> list[str]:
    """The paths of the norms in which outliers can be planted."""
    return [f"{path}.{name}" for path, _ in transformer_blocks(unet) for name in NORMS]


def readers_of(norm: str) -> list[str]:
    """The paths of the layers that read the norm of this path."""
    block, _, name = norm.rpartition(".")
    return [f"{block}.{reader}" for reader in NORMS[name]]


@torch.no_grad()
def plant_outliers(
    unet: nn.Module, scale: float, slices: int = 1, seed: int = 0, norms: Collection[str] | None = None
) -> dict[str, list[int]]:
    """Enlarge random channels `scale` times at the inputs of attn1's q, k, v and attn2's q; in place.

    Gain and bias of norm1 and norm2 are multiplied by scale in these channels, and the columns of the layers
    that read them divided by it, so the UNet's output stays the same up to rounding, in fp32 and bf16.
    slices: equal parts of the channels, in each of which one is enlarged: see check_outliers().  norms: the
    paths of those to plant in, some of norms_of(); by default all.  Returns {norm: its channels}; the same
    for the same seed, whatever the scale and the norms.  Raises ValueError for other norms.
    """
    if norms is None:
        norms = norms_of(unet)
    elif others := set(norms) - set(norms_of(unet)):
        raise ValueError(f"the UNet has no norm {min(others)} in which outliers can be planted")
    planted = {}
    random = generator(seed, STREAM)
    for path, block in transformer_blocks(unet):
        for name, readers in NORMS.items():
            norm = getattr(block, name)
            size = norm.weight.numel() // slices
            channels = torch.arange(slices) * size + torch.randint(size, (slices,), generator=random)
            if f"{path}.{name}" not in norms:
                continue
            norm.weight[channels] *= scale
            norm.bias[channels] *= scale
            for reader in readers:
                block.get_submodule(reader).weight[:, channels] /= scale
            planted[f"{path}.{name}"] = channels.tolist()
    return planted
