"""The memory of a run's phases on a GPU, from shapes alone: encoding, a training step, sample images."""

import math

import torch
from torch import nn

from gralora_diffusion.checks import parse_size
from gralora_diffusion.config import TrainConfig
from gralora_diffusion.sdxl.placement import DECODING, DENOISING, ENCODING, peak_of_vae
from gralora_diffusion.training.step_cost import images_per_batch


def phase_memory(
    step: dict[str, int],
    text_encoders: int,
    vae: int,
    config: TrainConfig,
    resolution: int,
    dtype: torch.dtype,
    total: int | None = None,
) -> dict[str, int]:
    """{phase: bytes at its peak}.

    step: the parts of a training step by step_memory(). text_encoders, vae: how many numbers they have.
    total: of the card, where idle models are moved away if they must be; None for a card
    with room for all.
    """
    size = resolution * resolution
    vae_bytes = 4 * vae  # fp32
    texts = dtype.itemsize * text_encoders
    encoding = peak_of_vae(ENCODING, size, vae_bytes, texts, texts, total)
    phases = dict(encoding=encoding, step=sum(step.values()))
    if not config.skip_final_inference:
        in_use = phases["step"] - step["activations"]
        if config.validation_size:
            size = math.prod(parse_size(config.validation_size))
        rows = 2 * images_per_batch(config) * dtype.itemsize // 2
        denoising = in_use + rows * size * DENOISING
        movable = 0 if config.base_model_precision or config.offload_unet else step["weights"]
        decoding = peak_of_vae(DECODING, size, vae_bytes, in_use, movable, total)
        phases["sample images"] = max(denoising, decoding)
    return phases


def numbers(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
