"""The kernel's operations as torch.compile sees them in training on a GPU: each as a whole.

Compiled piece by piece they would launch more: a compiler knows no product that adds to a part of a tensor,
and makes k products and copies in its place. On a CPU that is faster, since it saves Python's time. These
are for layers whose gradients a trainer takes (see flat_factors.py), and compute what the functions of
kernel.py and shared_input.py do.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

DEVICES = ("cuda", "xpu")  # where they are used
COMPUTE: dict[
    str, Callable
] = {}  # {operation: the function that computes it}, of the two files that use them


def computes(name: str) -> Callable:
    """A function of kernel.py or shared_input.py as what the operation of this name computes."""

    def register(function: Callable) -> Callable:
        COMPUTE[name] = function
        return function

    return register


def whole_operation(name: str, mutates: tuple[str, ...] = ()) -> Callable:
    """A function as an operation of torch; on shapes alone it computes as it does on numbers."""

    def register(function: Callable) -> Callable:
        operation = torch.library.custom_op(f"gralora_diffusion::{name}", function, mutates_args=mutates)
        operation.register_fake(function)
        return operation

    return register


@whole_operation("linear")
def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tensors: Sequence[Tensor | None],
    scales: Sequence[float],
    unswapped: Sequence[bool],
) -> list[Tensor]:
    """kernel.outputs(): y, and h of each part."""
    return COMPUTE["linear"](x, weight, bias, tensors, scales, unswapped)


@whole_operation("linear_backward", ("grads",))
def linear_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    hs: Sequence[Tensor],
    tensors: Sequence[Tensor | None],
    scales: Sequence[float],
    unswapped: Sequence[bool],
    grads: Sequence[Tensor],
    needs_x: bool,
) -> Tensor:
    """dx, empty where it is not needed; grads: A_grad and B_grad of each part, which are added to."""
    dx = COMPUTE["linear_backward"](grad, x, weight, hs, tensors, scales, unswapped, grads, needs_x)
    return x.new_empty(0) if dx is None else dx


@whole_operation("linears")
def linears(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    factors: Sequence[Tensor],
    masks: Sequence[Tensor | None],
    scales: Sequence[float],
    unswapped: Sequence[bool],
) -> list[Tensor]:
    """shared_input.outputs(): y of each layer, and h of each part."""
    return COMPUTE["linears"](x, weights, biases, factors, masks, scales, unswapped)


@whole_operation("linears_backward", ("grads",))
def linears_backward(
    gs: Sequence[Tensor],
    x: Tensor,
    weights: Sequence[Tensor],
    hs: Sequence[Tensor],
    factors: Sequence[Tensor],
    masks: Sequence[Tensor | None],
    scales: Sequence[float],
    unswapped: Sequence[bool],
    grads: Sequence[Tensor],
    needs_x: bool,
) -> Tensor:
    """dx, empty where it is not needed; grads: those of `factors`, which are added to."""
    dx = COMPUTE["linears_backward"](gs, x, weights, hs, factors, masks, scales, unswapped, grads, needs_x)
    return x.new_empty(0) if dx is None else dx
