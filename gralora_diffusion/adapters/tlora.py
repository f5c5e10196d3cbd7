"""T-LoRA (arXiv 2507.05964): where there is more noise, fewer of an adapter's ranks are active."""

import functools
import inspect

import torch
from torch import nn

from gralora_diffusion.adapters.layer_adapter import LayerAdapter
from gralora_diffusion.config import AdapterConfig
from gralora_diffusion.options import ConfigError


def active_ranks(
    timesteps: torch.Tensor, ranks: int, least: int, num_train_timesteps: int = 1000
) -> torch.Tensor:
    """Which ranks act at these timesteps, bool [samples, ranks]: the first r(t) (arXiv 2507.05964, eq. 3).

    r(t) = floor((r - r_min)(T - t) / T) + r_min
    """
    left = (num_train_timesteps - timesteps.long().view(-1, 1)).clamp(min=0)
    count = (ranks - least) * left // num_train_timesteps + least
    return torch.arange(ranks, device=timesteps.device) < count


def follow_timesteps(model: nn.Module, config: AdapterConfig, adapters: list[LayerAdapter]):
    """With config.tlora: set which ranks act before each forward(sample, timestep, ...) of the model.

    Returns the hook's handle; None without T-LoRA, and for a model without timesteps, such as a text encoder,
    which keeps all ranks.  Raises ValueError for a kind of adapter whose ranks cannot be masked.
    """
    if not config.tlora or "timestep" not in inspect.signature(model.forward).parameters:
        return None
    if not all(adapter.part_ranks for adapter in adapters):
        problem = f"T-LoRA masks ranks, and an adapter of the kind {config.method} has none: drop --tlora"
        raise ConfigError(problem, option="tlora")
    hook = functools.partial(set_active_ranks, config, adapters)
    return model.register_forward_pre_hook(hook, with_kwargs=True)


def set_active_ranks(
    config: AdapterConfig, adapters: list[LayerAdapter], model: nn.Module, args: tuple, kwargs: dict
) -> None:
    """Set the active ranks of each part at the timesteps of this forward pass.

    tlora_min_rank is of the whole rank: each part, a group of r/k or the plain LoRA, keeps its share, rounded
    up.
    """
    device = next(adapters[0].parameters()).device
    timesteps = torch.as_tensor(kwargs["timestep"] if "timestep" in kwargs else args[1], device=device)
    masks = {}  # the same for all parts of one size
    for adapter in adapters:
        smallest = config.tlora_min_rank or (adapter.rank + 1) // 2
        adapter.active_ranks = {}
        for ranks in adapter.part_ranks:
            least = min(ranks, -(-smallest * ranks // adapter.rank))
            if (ranks, least) not in masks:
                masks[ranks, least] = active_ranks(timesteps, ranks, least)
            adapter.active_ranks[ranks] = masks[ranks, least]
