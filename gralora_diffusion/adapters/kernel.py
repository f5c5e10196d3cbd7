"""A frozen linear layer and its adapters as one operation.

Forward, for one GraLoRA of scale s, with x [T, N], A [k, N/k, r], B [k, r, M/k]; slices x_n, y_j of columns:

    y = x W^T + b                                  the frozen layer, as F.linear computes it
    p_n = x_n A_n                                  [T, r]: k groups of r/k columns, group j for output slice j
    h_j = (group j of p_0, ..., group j of p_k-1)  the swap, of k*r numbers per token
    y_j += s h_j B_j                               in place: neither delta nor a scaled copy is made

Backward, with g = dL/dy and its slices g_j:

    dB_j = s h_j^T g_j
    e_j = s g_j B_j^T = dL/dh_j
    q_n = (group n of e_0, ..., group n of e_k-1) = dL/dp_n
    dA_n = x_n^T q_n
    dx = g W, then dx_n += q_n A_n^T in place, where autograd would add two tensors

A plain LoRA (A [r, N], B [M, r]) has one slice and no swap:

    h = x A^T, y += s h B^T; dB = s g^T h, e = s g B, dA = e^T x, dx += e A

On a GPU, where a trainer's A has another order of columns, the swap takes no time: see unswapped.py.

Kept for backward: x, and h, which is k*r numbers per token (r for LoRA); a quantized weight as it is.
T-LoRA's mask multiplies the groups of h, and so of e.
Where B is zero, s h B is zero, and y is the frozen layer's own, bit for bit.
A trainer can have dA and dB added to buffers of its own: nothing is allocated, copied or cast then.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from gralora_diffusion.adapters import whole_operations
from gralora_diffusion.adapters.frozen_weight import numbers, quantized
from gralora_diffusion.adapters.part_products import (
    Plan,
    add_to_input,
    add_up,
    down,
    down_again,
    gradient_of_A,
    gradient_of_B,
    masked,
    rows,
)


class Part(NamedTuple):
    """scale * x through A and B: [r, N] and [M, r], or [k, N/k, r] and [k, r, M/k]."""

    scale: float
    A: torch.Tensor
    B: torch.Tensor
    mask: torch.Tensor | None = None  # T-LoRA: bool [samples or 1, ranks of a group]
    own: torch.Tensor | None = None  # what takes x's place in this part: x after dropout
    A_grad: torch.Tensor | None = None  # dA is added to it, and autograd gets none
    B_grad: torch.Tensor | None = None
    unswapped: bool = False  # the columns of A have the order of unswapped.py


def adapted_linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, parts: list[Part]
) -> torch.Tensor:
    """F.linear(x, weight, bias) plus all parts: x [..., N] -> [..., M], in x's dtype, or in autocast's.

    Differentiable once: differentiating its gradient raises RuntimeError.  The A_grad and B_grad of a part
    are used where they and its factors have that dtype.
    """
    dtype = dtype_of_products(x)
    if autocasts(x):
        x = x.to(dtype)
        bias = None if bias is None else bias.to(dtype)
        weight = weight if quantized(weight) else weight.to(dtype)
    tensors = []
    plans = []
    for p in parts:
        tensors += [p.A.to(dtype), p.B.to(dtype), p.mask, None if p.own is None else p.own.to(dtype)]
        grads = (p.A_grad, p.B_grad) if p.A.dtype == dtype else (None, None)
        plans.append(Plan(p.scale, p.unswapped, *grads))
    if not torch.is_grad_enabled():
        return outputs(x, weight, bias, plans, tensors)[0]
    return FusedLinear.apply(x, weight, bias, plans, *tensors)


def autocasts(x: torch.Tensor) -> bool:
    """Whether autocast gives the products with x another dtype; it leaves float64 alone."""
    device = x.device.type
    autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return autocast and x.dtype != torch.float64


def dtype_of_products(x: torch.Tensor) -> torch.dtype:
    """x's own dtype, or autocast's."""
    return torch.get_autocast_dtype(x.device.type) if autocasts(x) else x.dtype


def outputs(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, plans: list[Plan], tensors
) -> tuple[torch.Tensor, list]:
    """(y, h of each part);  tensors: A, B, mask and own of each part."""
    y = F.linear(x, numbers(weight, x.dtype), bias)
    hs = []
    for i, plan in enumerate(plans):
        A, B, mask, own = tensors[4 * i : 4 * i + 4]
        hs.append(masked(down(rows(x if own is None else own), A, plan.unswapped), mask))
        add_up(rows(y), hs[-1], B, plan.scale)
    return y, hs


class FusedLinear(torch.autograd.Function):
    """tensors: A, B, mask and own of each part."""

    @staticmethod
    def forward(ctx, x, weight, bias, plans, *tensors):
        if is_whole(plans, tensors):
            whole = [plan.scale for plan in plans], [plan.unswapped for plan in plans]
            y, *hs = whole_operations.linear(x, weight, bias, list(tensors), *whole)
        else:
            y, hs = outputs(x, weight, bias, plans, tensors)
        ctx.save_for_backward(x, weight, *hs, *tensors)
        ctx.plans = plans
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight, *kept = ctx.saved_tensors
        hs, tensors = kept[: len(ctx.plans)], kept[len(ctx.plans) :]
        given = grad, x, weight, hs, tensors
        if is_whole(ctx.plans, tensors):
            return whole_gradients(*given, ctx.plans, ctx.needs_input_grad)
        if not torch.is_autocast_enabled(grad.device.type):  # whose context takes as long as a small product
            return gradients(*given, ctx.plans, ctx.needs_input_grad)
        with torch.autocast(grad.device.type, enabled=False):  # the dtypes are the forward pass's
            return gradients(*given, ctx.plans, ctx.needs_input_grad)


def is_whole(plans: list[Plan], tensors) -> bool:
    """Whether torch.compile is to take this as one operation: see whole_operations.py."""
    if not torch.compiler.is_compiling() or tensors[0].device.type not in whole_operations.DEVICES:
        return False
    trained = all(plan.A_grad is not None for plan in plans)
    return trained and all(own is None for own in tensors[3::4])


def whole_gradients(grad, x, weight, hs, tensors, plans: list[Plan], needs) -> tuple:
    """gradients() of a trainer's layer, as one operation."""
    grads = []
    for plan in plans:
        grads += [plan.A_grad, plan.B_grad]
    whole = [plan.scale for plan in plans], [plan.unswapped for plan in plans], grads, needs[0]
    dx = whole_operations.linear_backward(grad, x, weight, list(hs), list(tensors), *whole)
    others = [None] * (3 + len(tensors))
    return dx if needs[0] else None, *others


def gradients(grad, x, weight, hs, tensors, plans: list[Plan], needs) -> tuple:
    """Of FusedLinear's arguments; None where `needs` is false, or a part's own A_grad and B_grad have it."""
    found = []
    g = rows(grad).contiguous()
    dx = g @ numbers(weight, g.dtype) if needs[0] else None
    for i, (plan, h) in enumerate(zip(plans, hs, strict=True)):
        A, B, mask, own = tensors[4 * i : 4 * i + 4]
        needs_A, needs_B, _, needs_own = needs[4 * i + 4 : 4 * i + 8]
        q = down_again(g, A, B, plan, mask)
        d_own = torch.zeros_like(rows(own)) if needs_own else None
        if (into := dx if own is None else d_own) is not None:
            add_to_input(into, q, A)
        dA = gradient_of_A(rows(x if own is None else own), q, A, plan.A_grad) if needs_A else None
        dB = gradient_of_B(g, h, B, plan.scale, plan.B_grad) if needs_B else None
        found += [dA, dB, None, None if d_own is None else d_own.view_as(own)]
    dW = g.T @ rows(x) if needs[1] else None
    db = g.sum(0) if needs[2] else None
    return None if dx is None else dx.view_as(x), dW, db, None, *found


@whole_operations.computes("linear")
def parts_outputs(x, weight, bias, tensors, scales, unswapped) -> list[torch.Tensor]:
    """outputs() with its plans apart."""
    plans = [Plan(*known, None, None) for known in zip(scales, unswapped, strict=True)]
    y, hs = outputs(x, weight, bias, plans, tensors)
    return [y, *hs]


@whole_operations.computes("linear_backward")
def parts_gradients(
    grad, x, weight, hs, tensors, scales, unswapped, grads, needs_x: bool
) -> torch.Tensor | None:
    """dx of gradients() with its plans apart."""
    plans = [Plan(*known) for known in zip(scales, unswapped, grads[::2], grads[1::2], strict=True)]
    needs = [needs_x, False, False, False] + [True, True, False, False] * len(plans)
    return gradients(grad, x, weight, hs, tensors, plans, needs)[0]
