"""Adapters that start from the gradient: their factors, and how long the first step down it is."""

import math
from collections.abc import Callable

import torch

from gralora_diffusion.adapters.adapted_layer import AdaptedLayer
from gralora_diffusion.adapters.gora import (
    GAMMA,
    as_gralora,
    by_block,
    least_squares,
    matched,
    singular_factors,
)
from gralora_diffusion.adapters.gradients import HELD_OUT, Gradients
from gralora_diffusion.adapters.gralora import GraLoRA
from gralora_diffusion.adapters.layer_adapter import LayerAdapter
from gralora_diffusion.adapters.lora import LoRA
from gralora_diffusion.options import ConfigError

SEARCHED = 8  # held-out batches of the line search


def check_gradient_start(layers: dict[str, AdaptedLayer]) -> None:
    """Raises ConfigError for a kind of adapter that has no factors to set from a gradient."""
    for layer in layers.values():
        if not isinstance(layer.adapter, LoRA | GraLoRA):
            kind = type(layer.adapter).__name__
            problem = f"--gora_init needs a LoRA or a GraLoRA, not {kind}: use --gora_init zero"
            raise ConfigError(problem, option="gora_init")


def point_down(
    layers: dict[str, AdaptedLayer], gradients: Gradients, init: str, norms: dict[str, float | None]
) -> None:
    """Set every adapter to a delta of GAMMA |G| down the gradient.

    norms: |G|; where it is None, GoRA's estimate |G| ~ sqrt(N/r) |projection|.
    """
    if init == "svd":
        for path, G in gradients:
            adapter = layers[path].adapter
            A, B = singular_factors(G, adapter.rank, adapter.k)
            put_factors(adapter, A, matched(A, B, GAMMA * float(G.norm())))
        return
    random = {path: random_factor(layer.adapter).detach().clone() for path, layer in layers.items()}
    for path, S in gradients.projected(random).items():
        adapter = layers[path].adapter
        A = random[path]
        B = least_squares(S, A)
        norm = norms[path]
        if norm is None:
            norm = math.sqrt(adapter.in_features / adapter.rank) * float((B @ A.to(B)).norm())
        put_factors(adapter, A, matched(A, B, GAMMA * norm))


def random_factor(adapter: LayerAdapter) -> torch.Tensor:
    """The adapter's own A by block, [k, k, r/k, N/k]."""
    return by_block(adapter.gralora_A) if isinstance(adapter, GraLoRA) else adapter.lora_A[None, None]


def put_factors(adapter: LayerAdapter, A: torch.Tensor, B: torch.Tensor) -> None:
    """delta = B A by block, with the adapter's scale taken out of B."""
    A, B = as_gralora(A, B / adapter.scale)
    if isinstance(adapter, GraLoRA):
        adapter.gralora_A.data.copy_(A)
        adapter.gralora_B.data.copy_(B)
    else:
        adapter.lora_A.data.copy_(A[0].T)
        adapter.lora_B.data.copy_(B[0].T)


@torch.no_grad()
def line_search(
    layers: dict[str, AdaptedLayer], loss_of: Callable, gamma: float | None, accelerator
) -> tuple[float, dict[float, float]]:
    """(gamma, {gamma: loss on held-out noise}); every delta is scaled to gamma.

    gamma: the given one, or the best of 0 and GAMMA times powers of two, from 1/8 on.
    """
    modes = {path: layer.training for path, layer in layers.items()}
    losses = {}

    def loss_at(value: float) -> float:
        if value not in losses:
            for layer in layers.values():
                layer.adapter.strength = value / GAMMA
            mine = range(accelerator.process_index, SEARCHED, accelerator.num_processes)
            total = sum((loss_of(HELD_OUT + i) for i in mine), torch.zeros((), device=accelerator.device))
            mean = float(accelerator.reduce(total, "sum") / SEARCHED)
            losses[value] = mean if math.isfinite(mean) else math.inf  # too far
        return losses[value]

    for layer in layers.values():
        layer.eval()  # no dropout
    if gamma is not None:
        loss_at(0.0)
        loss_at(gamma)
    else:
        for value in (0.0, *(GAMMA * 2.0**i for i in range(-3, 4))):
            loss_at(value)
        while max(losses) == min(losses, key=losses.get) < 2.0**20:
            loss_at(2 * max(losses))
        gamma = min(losses, key=losses.get)
    for path, layer in layers.items():
        layer.adapter.strength = 1.0
        layer.train(modes[path])
        for name, p in layer.adapter.named_parameters():
            if name.endswith("_B"):
                p.mul_(gamma / GAMMA)
    return gamma, losses
