"""Which models of a base are on the device: all that fit or, where memory is short, those in use."""

import torch
from torch import nn

from gralora_diffusion.adapters.frozen_weight import quantized
from gralora_diffusion.devices import free_memory, release_unused

MODELS = (
    "text_encoder",
    "text_encoder_2",
    "vae",
    "unet",
)  # in the order in which they are moved away
# Bytes that each task takes in addition to the weights, counted on SDXL's models.
DECODING = 3072  # per pixel, by the VAE in fp32
ENCODING = 2560
DENOISING = 160  # per pixel of the image and row of the batch, by the UNet in half precision
TOKENS = 2**26  # for prompts, by the text encoders
MARGIN = 2**29  # for the workspaces of libraries
TILE = 512  # pixels: side of the parts in which the VAE works where an image does not fit


def bring(pipeline, names: tuple[str, ...], device: torch.device, work: int) -> bool:
    """Move these models of a pipeline to the device, others away if less than `work` bytes would be free.

    Models that are None are left out. Tensors that train stay where they are, and so does a quantized model.
    Returns whether there is room for the work.
    """
    device = torch.device(device)
    wanted = [model for name in names if (model := getattr(pipeline, name)) is not None]
    coming = sum(bytes_of(model) for model in wanted if not is_on(model, device))
    for name in MODELS:
        idle = getattr(pipeline, name)
        if has_room(device, coming + work):
            break
        if idle is not None and name not in names and is_on(idle, device) and can_move(idle):
            send_away(idle)
            release_unused(device)
    for model in wanted:
        fetch(model, device)
    return has_room(device, work)


def has_room(device: torch.device, size: int) -> bool:
    free = free_memory(device)
    return free is None or size + MARGIN <= free


def how_many_fit(device: torch.device, size: int) -> int:
    """How many pieces of work of `size` bytes have room at once; at least one."""
    free = free_memory(device)
    return 2**30 if free is None else max(1, (free - MARGIN) // size)


def peak_of_vae(
    work_per_pixel: int, size: int, vae: int, in_use: int, movable: int, total: int | None
) -> int:
    """Bytes on a card of `total` while the VAE works on an image of `size` pixels, as bring() places models.

    work_per_pixel: DECODING or ENCODING. in_use: before, `movable` of them by models that are moved away if
    they must be. Where even that is not enough, the VAE works in tiles. total: None for a card with room.
    """
    peak = in_use + vae + size * work_per_pixel
    if total is None or peak + MARGIN <= total:
        return peak
    peak -= movable
    if peak + MARGIN > total:
        peak = in_use - movable + vae + TILE * TILE * work_per_pixel
    return max(in_use, peak)


def is_on(model: nn.Module, device: torch.device) -> bool:
    return next(model.parameters()).device.type == device.type


def can_move(model: nn.Module) -> bool:
    """Whether its weights are plain tensors that nobody offloads block by block."""
    return not any(quantized(p) or p.is_pinned() for p in model.parameters())


def bytes_of(model: nn.Module, frozen: bool = False) -> int:
    """Of all its tensors, or of those that do not train."""
    tensors = [*model.parameters(), *model.buffers()]
    return sum(tensor.nbytes for tensor in tensors if not (frozen and tensor.requires_grad))


def send_away(model: nn.Module) -> None:
    """Move to the CPU what does not train; an optimizer's parameters must stay where its state is."""
    for tensor in (*model.parameters(), *model.buffers()):
        if not tensor.requires_grad:
            tensor.data = tensor.data.to("cpu")


def fetch(model: nn.Module, device: torch.device) -> None:
    """Move to the device what is not there."""
    tensors = [*model.parameters(), *model.buffers()]
    away = [tensor for tensor in tensors if tensor.device.type != device.type and not tensor.is_pinned()]
    if len(away) == len(tensors):  # also of a kind, such as quantized, whose data cannot be replaced
        model.to(device)
        return
    for tensor in away:
        tensor.data = tensor.data.to(device)


def pixels(size: tuple[int, int]) -> int:
    return size[0] * size[1]


def set_tiles(vae, on: bool) -> None:
    """Let the VAE work on overlapping parts of an image: a quarter of the memory, seams that can be seen."""
    vae.use_tiling = on
    vae.tile_sample_min_size = TILE
    vae.tile_latent_min_size = TILE // 2 ** (len(vae.config.block_out_channels) - 1)
