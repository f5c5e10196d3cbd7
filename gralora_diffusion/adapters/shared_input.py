"""Layers that read the same input, such as q, k and v: one product takes it down for all of them.

For L layers whose factors A have one shape, A_all holds them side by side: [k, N/k, L r], on a GPU in the
order of unswapped.py; [L r, N] for plain LoRAs. With the names of kernel.py, and slices x_n, g_j of columns:

    p_n = x_n A_all_n                  [T, L r]: of each layer, k groups of r/k columns
    h_lj = (group lj of p_0, ..., group lj of p_k-1);  y_lj += s h_lj B_lj
    q_n = (of all layers l and groups j: group n of e_lj),  e_lj = s g_lj B_lj^T
    dA_all_n = x_n^T q_n;  dx = sum_l g_l W_l, then dx_n += q_n A_all_n^T

So a product, a swap, a gradient and a sum serve L layers. What each layer gives is what it gives alone, but
for the rounding of dx.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from gralora_diffusion.adapters import whole_operations
from gralora_diffusion.adapters.frozen_weight import numbers
from gralora_diffusion.adapters.linear import AdaptedLinear
from gralora_diffusion.adapters.part_products import (
    add_to_input,
    add_up,
    down_unswapped,
    gradient_of_A,
    gradient_of_B,
    masked,
    products,
    rows,
    slices,
)
from gralora_diffusion.adapters.unswapped import by_input, by_output, room

PROJECTIONS = (("to_q", "to_k", "to_v"), ("q_proj", "k_proj", "v_proj"))  # of diffusers, and of CLIP


class SharedPart(NamedTuple):
    """A part of each of L layers: A_all, and one B a layer, with what their gradients are added to."""

    A: torch.Tensor
    A_grad: torch.Tensor
    Bs: list[torch.Tensor]
    B_grads: list[torch.Tensor]
    ranks: int  # that T-LoRA masks together
    unswapped: bool = False  # the columns of A have the order of unswapped.py


class SharedInput:
    """The layers of one input, each with one adapter of the same kind and sizes.

    output() gives a layer's output; the first that is called with an input computes those of all.
    """

    def __init__(self, layers: list[AdaptedLinear], parts: list[SharedPart]):
        self.layers, self.parts = layers, parts
        self.input: torch.Tensor | None = None
        self.outputs: dict[AdaptedLinear, torch.Tensor] = {}

    def output(self, layer: AdaptedLinear, x: torch.Tensor) -> torch.Tensor:
        if self.input is not x or layer not in self.outputs:
            self.outputs = dict(zip(self.layers, self.compute(x), strict=True))
            self.input = x
        y = self.outputs.pop(layer)
        if not self.outputs:
            self.input = None
        return y

    def compute(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        adapters = [layer.adapter for layer in self.layers]
        scales = [adapter.scale * adapter.strength * adapter.enabled for adapter in adapters]
        active = adapters[0].active_ranks
        masks = [None if active is None else active[part.ranks] for part in self.parts]
        tensors = [layer.weight for layer in self.layers] + [layer.bias for layer in self.layers]
        for part in self.parts:
            tensors += [part.A, *part.Bs]
        return FusedLinears.apply(x, self.parts, scales, masks, *tensors)


def layers_of_one_input(model: nn.Module) -> Iterator[list[AdaptedLinear]]:
    """The adapted projections of each attention that read one input, where they can be computed together."""
    for module in model.modules():
        for names in PROJECTIONS:
            found = [getattr(module, name, None) for name in names]
            if getattr(module, "is_cross_attention", False):
                found = found[1:]  # the query is of another input
            if all(isinstance(layer, AdaptedLinear) for layer in found) and alike(found):
                yield found


def alike(layers: list[AdaptedLinear]) -> bool:
    """Whether each layer has one adapter, and all of these are of one kind, with A of the same shapes."""
    if any(len(layer.adapters) != 1 for layer in layers):
        return False
    adapters = [layer.adapter for layer in layers]
    kinds = set()
    for adapter in adapters:
        shapes = tuple(A.shape for A, _ in adapter.factors)
        kinds.add((type(adapter), shapes, adapter.part_ranks))
    return len(kinds) == 1 and bool(adapters[0].factors) and not any(a.dropout for a in adapters)


class FusedLinears(torch.autograd.Function):
    """tensors: the weights and biases of L layers, then A_all and L factors B of each part."""

    @staticmethod
    def forward(ctx, x, parts, scales, masks, *tensors):
        count = len(scales)
        weights, biases = tensors[:count], tensors[count : 2 * count]
        if is_whole(x):
            whole = list(tensors[2 * count :]), masks, scales, [part.unswapped for part in parts]
            found = whole_operations.linears(x, list(weights), list(biases), *whole)
            ys, hs = found[:count], found[count:]
        else:
            ys, hs = outputs(x, weights, biases, parts, masks, scales)
        ctx.save_for_backward(x, *weights, *hs, *[mask for mask in masks if mask is not None])
        ctx.parts, ctx.scales, ctx.has_mask = parts, scales, [mask is not None for mask in masks]
        return tuple(ys)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):
        count = len(ctx.scales)
        x, *kept = ctx.saved_tensors
        weights, hs = kept[:count], kept[count : count + len(ctx.parts)]
        kept_masks = iter(kept[count + len(ctx.parts) :])
        masks = [next(kept_masks) if has_mask else None for has_mask in ctx.has_mask]
        needs_x = ctx.needs_input_grad[0]
        if is_whole(x):
            factors, own = [], []
            for part in ctx.parts:
                factors += [part.A, *part.Bs]
                own += [part.A_grad, *part.B_grads]
            whole = masks, ctx.scales, [part.unswapped for part in ctx.parts], own, needs_x
            dx = whole_operations.linears_backward(list(grads), x, list(weights), list(hs), factors, *whole)
        else:
            dx = gradients(grads, x, weights, hs, ctx.parts, masks, ctx.scales, needs_x)
        others = (None,) * (3 + 2 * count + sum(1 + count for _ in ctx.parts))
        return dx if needs_x else None, *others


def is_whole(x: torch.Tensor) -> bool:
    """Whether torch.compile is to take this as one operation: see whole_operations.py."""
    return torch.compiler.is_compiling() and x.device.type in whole_operations.DEVICES


def outputs(x, weights, biases, parts: list[SharedPart], masks, scales: list[float]) -> tuple[list, list]:
    """(y of each layer, h of each part)"""
    count = len(scales)
    flat = rows(x)
    ys = [F.linear(x, numbers(w, x.dtype), b) for w, b in zip(weights, biases, strict=True)]
    hs = []
    for part, mask in zip(parts, masks, strict=True):
        h = down_all(flat, part, count)
        hs.append(masked(h, mask))
        for y, own, B, scale in zip(ys, of_layers(h, count), part.Bs, scales, strict=True):
            add_up(rows(y), own, B, scale)
    return ys, hs


def gradients(
    grads, x, weights, hs, parts: list[SharedPart], masks, scales: list[float], needs_x: bool
) -> torch.Tensor | None:
    """dx; those of A and B are added to the parts' own."""
    count = len(scales)
    gs = [rows(grad).contiguous() for grad in grads]
    dx = None
    if needs_x:
        dx = gs[0] @ numbers(weights[0], gs[0].dtype)
        for g, weight in zip(gs[1:], weights[1:], strict=True):
            dx.addmm_(g, numbers(weight, g.dtype))
    for part, h, mask in zip(parts, hs, masks, strict=True):
        q = down_again_all(gs, part, scales, mask)
        if needs_x:
            add_to_input(dx, q, part.A)
        gradient_of_A(rows(x), q, part.A, part.A_grad)
        of_each = zip(gs, of_layers(h, count), part.Bs, scales, part.B_grads, strict=True)
        for g, own, B, scale, total in of_each:
            gradient_of_B(g, own, B, scale, total)
    return dx.view_as(x) if needs_x else None


def parts_of(factors, grads, unswapped: list[bool]) -> list[SharedPart]:
    """Parts from lists of A, B_1, ..., B_L of each, and of their gradients or []."""
    size = len(factors) // len(unswapped)
    parts = []
    for number, order in enumerate(unswapped):
        place = slice(number * size, (number + 1) * size)
        A, *Bs = factors[place]
        A_grad, *B_grads = grads[place] or [None]
        parts.append(SharedPart(A, A_grad, Bs, B_grads, 0, order))
    return parts


def down_all(x: torch.Tensor, part: SharedPart, count: int) -> torch.Tensor:
    """x [T, N] -> h of all layers: [T, L r], or [L, k(j), T, r]"""
    A = part.A
    if A.ndim == 2:
        return x @ A.T
    if part.unswapped:
        return down_unswapped(x, A, count)
    k, _, width = A.shape
    t, r = x.shape[0], width // count
    p = x.new_empty(t, k, width)
    products(p.transpose(0, 1), slices(x, k), A)
    return p.view(t, k, count, k, r // k).permute(2, 3, 0, 1, 4).reshape(count, k, t, r)


def of_layers(h: torch.Tensor, count: int) -> tuple[torch.Tensor, ...]:
    """h of each layer: [T, r], or [k(j), T, r]"""
    return h.unbind(0) if h.ndim == 4 else h.chunk(count, 1)


def down_again_all(
    gs: list[torch.Tensor], part: SharedPart, scales: list[float], mask: torch.Tensor | None
) -> torch.Tensor:
    """g [T, M] of each layer -> q of all, masked: [T, L r], or [k(n), T, L r]"""
    A, Bs = part.A, part.Bs
    count, t = len(gs), len(gs[0])
    if A.ndim == 2:
        r = Bs[0].shape[1]
        q = gs[0].new_empty(t, count * r)
        for own, g, B, scale in zip(q.chunk(count, 1), gs, Bs, scales, strict=True):
            own.addmm_(g, B, beta=0, alpha=scale)
        return masked(q, mask)
    k, r, _ = Bs[0].shape
    if part.unswapped:
        P = room(gs[0], A)
        es = by_output(P, t, A, count)
        for e, g, B, scale in zip(es.unbind(0), gs, Bs, scales, strict=True):
            products(e, slices(g, k), B.mT, scale)
        masked(es, mask)
        return by_input(P, t, A)
    e = gs[0].new_empty(t, count, k, r)
    for number, (g, B, scale) in enumerate(zip(gs, Bs, scales, strict=True)):
        products(e[:, number].transpose(0, 1), slices(g, k), B.mT, scale)
    q = e.view(t, count, k, k, r // k).permute(3, 0, 1, 2, 4).reshape(k, t, count * r)
    return masked(q, mask)


@whole_operations.computes("linears")
def parts_outputs(x, weights, biases, factors, masks, scales, unswapped) -> list[torch.Tensor]:
    """outputs() with its parts as a list of factors."""
    ys, hs = outputs(x, weights, biases, parts_of(factors, [], unswapped), masks, scales)
    return [*ys, *hs]


@whole_operations.computes("linears_backward")
def parts_gradients(
    gs, x, weights, hs, factors, masks, scales, unswapped, grads, needs_x: bool
) -> torch.Tensor | None:
    """dx of gradients() with its parts as lists of factors and of what their gradients are added to."""
    return gradients(gs, x, weights, hs, parts_of(factors, grads, unswapped), masks, scales, needs_x)
