"""The products of one adapter part: down to h, up to y, and the gradients; kernel.py has the formulas.

Shapes: x [T, N], y and g [T, M]; A [r, N] and B [M, r] of a plain LoRA, or A [k, N/k, r] and B [k, r, M/k].
"""

from typing import NamedTuple

import torch

from gralora_diffusion.adapters.unswapped import by_input, by_output, room

SMALL = 2**17  # numbers: up to here batched products are faster with bf16 on a CPU


class Plan(NamedTuple):
    """What a part is beside its tensors."""

    scale: float
    unswapped: bool
    A_grad: torch.Tensor | None
    B_grad: torch.Tensor | None


def rows(x: torch.Tensor) -> torch.Tensor:
    """[..., N] -> [T, N]"""
    return x.reshape(-1, x.shape[-1])


def slices(x: torch.Tensor, k: int) -> torch.Tensor:
    """[T, N] -> [k, T, N/k], the same memory"""
    t, n = x.shape
    row, column = x.stride()
    return x.as_strided((k, t, n // k), (n // k * column, row, column))  # one view takes less time than two


def products(
    out: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scale: float = 1.0, beta: int = 0
) -> torch.Tensor:
    """out_j = beta * out_j + scale * a_j b_j for each of k.

    With bf16 on a CPU, large ones are computed one by one, since a batched product copies slices of larger
    rows first; of small ones each product takes longer to start than to compute.
    """
    one_by_one = out.device.type == "cpu" and out.dtype == torch.bfloat16
    if not one_by_one or max(a.numel(), b.numel()) <= SMALL:
        return out.baddbmm_(a, b, beta=beta, alpha=scale)
    for out_j, a_j, b_j in zip(out.unbind(0), a.unbind(0), b.unbind(0), strict=True):
        out_j.addmm_(a_j, b_j, beta=beta, alpha=scale)
    return out


def add_products(y: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scale: float = 1.0) -> None:
    """y_j += scale * a_j b_j, for y [T, M], a [k, T, r], b [k, r, M/k]"""
    if torch.compiler.is_compiling():  # which cannot undo the two views of a batched product in place
        for y_j, a_j, b_j in zip(y.chunk(a.shape[0], 1), a, b, strict=True):
            y_j.addmm_(a_j, b_j, alpha=scale)
    else:
        slices(y, a.shape[0]).baddbmm_(a, b, alpha=scale)


def swapped(p: torch.Tensor) -> torch.Tensor:
    """[T, k(n), k(j) * r/k] -> [k(j), T, k(n) * r/k].

    With the tokens outermost in p it reads each token's numbers together: up to 20 times faster on a CPU than
    from [k, T, r], where powers of two send them to the same lines of the cache.
    """
    t, k, r = p.shape
    return p.view(t, k, k, r // k).permute(2, 0, 1, 3).reshape(k, t, r)


def masked(h: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """h [T, r] or [k, T, k groups of r/k], masked in place.

    The tokens of each sample have a row of the mask, which is the same in every group.
    """
    if mask is not None:
        samples, ranks = mask.shape
        h.unflatten(-1, (-1, ranks)).unflatten(-3, (samples, -1)).mul_(mask[:, None, None])
    return h


def down(x: torch.Tensor, A: torch.Tensor, unswapped: bool) -> torch.Tensor:
    """x [T, N] -> h: [T, r], or [k(j), T, r]"""
    if A.ndim == 2:
        return x @ A.T
    if unswapped:
        return down_unswapped(x, A, 1)
    k, _, r = A.shape
    p = x.new_empty(x.shape[0], k, r)
    products(p.transpose(0, 1), slices(x, k), A)
    return swapped(p)


def down_unswapped(x: torch.Tensor, A: torch.Tensor, count: int) -> torch.Tensor:
    """x [T, N] -> h of `count` layers: [L, k(j), T, r], or [k(j), T, r]"""
    P = room(x, A)
    products(by_input(P, len(x), A), slices(x, len(A)), A)
    return by_output(P, len(x), A, count)


def add_up(y: torch.Tensor, h: torch.Tensor, B: torch.Tensor, scale: float) -> None:
    """y [T, M] += scale * h B"""
    if B.ndim == 2:
        y.addmm_(h, B.T, alpha=scale)
    else:
        add_products(y, h, B, scale)


def down_again(
    g: torch.Tensor, A: torch.Tensor, B: torch.Tensor, plan: Plan, mask: torch.Tensor | None
) -> torch.Tensor:
    """g [T, M] -> q, masked: [T, r], or [k(n), T, r]"""
    if B.ndim == 2:
        return masked(g.new_empty(len(g), B.shape[1]).addmm_(g, B, beta=0, alpha=plan.scale), mask)
    if plan.unswapped:
        P = room(g, A)
        e = by_output(P, len(g), A, 1)
        products(e, slices(g, len(B)), B.mT, plan.scale)
        masked(e, mask)
        return by_input(P, len(g), A)
    k, r, _ = B.shape
    e = g.new_empty(g.shape[0], k, r)
    products(e.transpose(0, 1), slices(g, k), B.mT, plan.scale)
    return masked(swapped(e), mask)


def add_to_input(dx: torch.Tensor, q: torch.Tensor, A: torch.Tensor) -> None:
    """dx [T, N] += q A^T, for a plain LoRA q A"""
    if A.ndim == 2:
        dx.addmm_(q, A)
    else:
        add_products(dx, q, A.mT)


def gradient_of_A(
    x: torch.Tensor, q: torch.Tensor, A: torch.Tensor, total: torch.Tensor | None
) -> torch.Tensor | None:
    """dA; with a total it is added to that, and None returned."""
    into = torch.empty_like(A) if total is None else total
    beta = int(total is not None)
    if A.ndim == 2:
        into.addmm_(q.T, x, beta=beta)
    else:
        products(into, slices(x, A.shape[0]).mT, q, beta=beta)
    return into if total is None else None


def gradient_of_B(
    g: torch.Tensor, h: torch.Tensor, B: torch.Tensor, scale: float, total: torch.Tensor | None
) -> torch.Tensor | None:
    """dB; with a total it is added to that, and None returned."""
    into = torch.empty_like(B) if total is None else total
    beta = int(total is not None)
    if B.ndim == 2:
        dB = into.addmm_(g.T, h, beta=beta, alpha=scale)
    else:
        dB = products(into, h.transpose(1, 2), slices(g, B.shape[0]), scale, beta)
    return dB if total is None else None
