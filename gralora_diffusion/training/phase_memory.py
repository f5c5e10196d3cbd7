"""The memory of a run's phases on a GPU, from shapes alone: encoding, a training step, sample images."""

import torch
from torch import nn

from gralora_diffusion.config import TrainConfig
from gralora_diffusion.sdxl.placement import DENOISING, ENCODING, MARGIN, decoding_peak
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
    encoding = vae_bytes + size * ENCODING
    has_room = total is None or texts + encoding + MARGIN <= total
    phases = dict(encoding=encoding + (texts if has_room else 0), step=sum(step.values()))
    if not config.skip_final_inference:
        in_use = phases["step"] - step["activations"]
        rows = 2 * images_per_batch(config) * dtype.itemsize // 2
        denoising = in_use + rows * size * DENOISING
        movable = 0 if config.base_model_precision or config.offload_unet else step["weights"]
        phases["sample images"] = max(denoising, decoding_peak(movable, vae_bytes, in_use, size, total))
    return phases


def numbers(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
