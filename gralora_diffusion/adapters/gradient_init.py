"""Adapters that start from the gradient: their factors, and how long the first step down it is."""

import math
from collections.abc import Callable

import torch

from gralora_diffusion.adapters.gora import (
    GAMMA,
    as_gralora,
    by_block,
    least_squares,
    matched,
    singular_factors,
)
from gralora_diffusion.adapters.gradients import HELD_OUT, Gradients
from gralora_diffusion.adapters.layers import GraLoRALinear, LoRALinear

SEARCHED = 8  # held-out batches of the line search


def point_down(
    layers: dict[str, LoRALinear], gradients: Gradients, init: str, norms: dict[str, float | None]
) -> None:
    """Set every adapter to a delta of GAMMA |G| down the gradient; without |G|, by GoRA's estimate |G| ~ sqrt(N/r) |projection|."""
    if init == "svd":
        for path, G in gradients:
            A, B = singular_factors(G, layers[path].rank, layers[path].k)
            put_factors(layers[path], A, matched(A, B, GAMMA * float(G.norm())))
        return
    random = {
        path: by_block(a)
        if (a := getattr(layer, "gralora_A", None)) is not None
        else layer.lora_A[None, None]
        for path, layer in layers.items()
    }
    random = {path: A.detach().clone() for path, A in random.items()}
    for path, S in gradients.projected(random).items():
        layer, A = layers[path], random[path]
        B = least_squares(S, A)
        norm = (
            math.sqrt(layer.in_features / layer.rank) * float((B @ A.double()).norm())
            if norms[path] is None
            else norms[path]
        )
        put_factors(layer, A, matched(A, B, GAMMA * norm))


def put_factors(layer: LoRALinear, A: torch.Tensor, B: torch.Tensor) -> None:
    """delta = B A by block, with the layer's scale taken out of B."""
    A, B = as_gralora(A, B / layer.scale)
    if isinstance(layer, GraLoRALinear):
        layer.gralora_A.data.copy_(A)
        layer.gralora_B.data.copy_(B)
    else:
        layer.lora_A.data.copy_(A[0].T)
        layer.lora_B.data.copy_(B[0].T)


@torch.no_grad()
def line_search(
    layers: dict[str, LoRALinear], loss_of: Callable, gamma: float | None, accelerator
) -> tuple[float, dict[float, float]]:
    """(gamma, {gamma: loss on held-out noise}): the best of 0 and doublings of GAMMA, or the given one; every delta is scaled to it."""
    modes, losses = {path: layer.training for path, layer in layers.items()}, {}

    def loss_at(value: float) -> float:
        if value not in losses:
            for layer in layers.values():
                layer.strength = value / GAMMA
            mine = range(accelerator.process_index, SEARCHED, accelerator.num_processes)
            total = sum((loss_of(HELD_OUT + i) for i in mine), torch.zeros((), device=accelerator.device))
            mean = float(accelerator.reduce(total, "sum") / SEARCHED)
            losses[value] = mean if math.isfinite(mean) else math.inf  # too far
        return losses[value]

    for layer in layers.values():
        layer.eval()  # no dropout
    if gamma is not None:
        loss_at(0.0), loss_at(gamma)
    else:
        for value in (0.0, *(GAMMA * 2.0**i for i in range(-3, 4))):
            loss_at(value)
        while max(losses) == min(losses, key=losses.get) < 2.0**20:
            loss_at(2 * max(losses))
        gamma = min(losses, key=losses.get)
    for path, layer in layers.items():
        layer.strength = 1.0
        layer.train(modes[path])
        for name, p in layer.adapter_parameters.items():
            if name.endswith("_B"):
                p.mul_(gamma / GAMMA)
    return gamma, losses
