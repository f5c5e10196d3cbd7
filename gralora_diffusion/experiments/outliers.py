"""Outlier channels planted in a UNet without changing what it computes.

GraLoRA's paper (arXiv 2505.20355, section 2) holds input channels that are much larger than the others
responsible for LoRA's losses at high rank.  A base with as many of them as one likes tests that as a cause.
"""

import torch
from diffusers.models.attention import BasicTransformerBlock
from torch import nn

from gralora_diffusion.options import ConfigError
from gralora_diffusion.seeding import generator

STREAM = 103  # of the random channels, so that no other draw shares them


@torch.no_grad()
def plant_outliers(unet: nn.Module, scale: float, slices: int = 1, seed: int = 0) -> dict[str, list[int]]:
    """Enlarge random channels `scale` times at the inputs of attn1's q, k, v and attn2's q; in place.

    Gain and bias of norm1 and norm2 are multiplied by scale in these channels, and the columns of the layers
    that read them divided by it, so the UNet's output stays the same up to rounding.  slices: equal parts of
    the channels, in each of which one is enlarged.  Returns {norm: its channels}; the same for the same seed,
    whatever the scale.  Raises ConfigError where the slices do not fit.
    """
    planted = {}
    random = generator(seed, STREAM)
    for path, block in unet.named_modules():
        if not isinstance(block, BasicTransformerBlock):
            continue
        first, second = block.attn1, block.attn2
        for name, readers in (("norm1", [first.to_q, first.to_k, first.to_v]), ("norm2", [second.to_q])):
            norm = getattr(block, name)
            width = norm.weight.numel()
            if width % slices:
                problem = f"{path}.{name} has {width} channels, which {slices} slices do not divide"
                raise ConfigError(problem, option="outlier_slices")
            size = width // slices
            channels = torch.arange(slices) * size + torch.randint(size, (slices,), generator=random)
            norm.weight[channels] *= scale
            norm.bias[channels] *= scale
            for reader in readers:
                reader.weight[:, channels] /= scale
            planted[f"{path}.{name}"] = channels.tolist()
    return planted
