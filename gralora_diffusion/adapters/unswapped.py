"""GraLoRA without a copy for its swap: a layout of h in which both products find their numbers.

With the names of kernel.py, and g = r/k. The columns of A_n are ordered by rank first, then by layer l (of
the L layers of one input, see shared_input.py), then by output slice j:

    A [k(n), N/k, R], R = (g, L, k(j))
    P [k(n), g, L, k(j), T]         p_n^T = A_n^T x_n fills P[n]

Layer l's h_j^T [r, T] is P[:, :, l, j], whose rows (n, s) lie L k T numbers apart: a matrix as BLAS takes it.
The same holds for e and q in the backward pass, where e_j^T = s B_j g_j^T fills P[:, :, l, j], and q_n^T is
P[n]. Each row has room for a multiple of ALIGNED tokens, as matrix units want it.

For GPUs: CPUs would have to transpose x, which costs more than the swap.
"""

import torch

ALIGNED = 8  # numbers


def room(x: torch.Tensor, A: torch.Tensor) -> torch.Tensor:
    """P for x [T, N], flat and not filled."""
    k, _, width = A.shape
    return x.new_empty(k * width * padded(len(x)))


def padded(tokens: int) -> int:
    return -(-tokens // ALIGNED) * ALIGNED


def by_input(P: torch.Tensor, tokens: int, A: torch.Tensor) -> torch.Tensor:
    """P as [k(n), T, R], the same memory"""
    k, _, width = A.shape
    row = padded(tokens)
    return P.as_strided((k, tokens, width), (width * row, 1, row))


def by_output(P: torch.Tensor, tokens: int, A: torch.Tensor, count: int) -> torch.Tensor:
    """P as [L, k(j), T, r], or [k(j), T, r] of one layer; the same memory.  count: L."""
    k, _, width = A.shape
    row = padded(tokens)
    sizes, strides = (k, tokens, width // count), (row, 1, count * k * row)
    if count == 1:
        return P.as_strided(sizes, strides)
    return P.as_strided((count, *sizes), (k * row, *strides))
