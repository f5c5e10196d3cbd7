"""The best factors of a given rank for a delta: of all of it for LoRA, of each k x k block for GraLoRA.

Eckart-Young: the leading singular vectors.  Deltas [M, N] come as a low-rank pair, whose singular values are
those of the small core between two QR factors, in float64; or as a matrix, for which a randomized range
finder (Halko, Martinsson and Tropp, arXiv 0909.4061) is used where the rank is far below its size.
"""

from typing import NamedTuple

import torch

from gralora_diffusion.adapters.gora import as_gralora, blocks
from gralora_diffusion.adapters.low_rank import truncate

POWERS = 4  # most power iterations of the range finder
SETTLED = 1e-3  # it ends once an iteration finds less than this part of the energy that is not held yet
EXTRA = 16  # columns beyond the rank
SEED = 0  # of its random test matrix


class Best(NamedTuple):
    """A, B by block, [k, k, g, N/k] and [k, k, M/k, g] with delta = B A; Frobenius norms."""

    A: torch.Tensor
    B: torch.Tensor
    error: float
    norm: float

    def pair(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(down [r, N], up [M, r]) for k = 1."""
        return self.A[0, 0], self.B[0, 0]

    def gralora(self) -> tuple[torch.Tensor, torch.Tensor]:
        """gralora_A [k, N/k, r], gralora_B [k, r, M/k]"""
        return as_gralora(self.A, self.B)


def best_of_pair(down: torch.Tensor, up: torch.Tensor, rank: int, k: int = 1) -> Best:
    """down [R, N], up [M, R]: the best k x k blocks of rank rank/k for up @ down, in float64.

    The blocks are filled with zeros where the delta has a lower rank.
    """
    g = rank // k
    down_slices = down.double().unflatten(1, (k, -1)).permute(1, 2, 0)  # [k, N/k, R]
    up_slices = up.double().unflatten(0, (k, -1))  # [k, M/k, R]
    q_down, r_down = torch.linalg.qr(down_slices)
    q_up, r_up = torch.linalg.qr(up_slices)
    u, s, vh = torch.linalg.svd(r_up[:, None] @ r_down.mT[None], full_matrices=False)  # [k, k, ...]
    root = s[..., :g].sqrt()
    A = root[..., None] * (vh[..., :g, :] @ q_down.mT[None])
    B = (q_up[:, None] @ u[..., :g]) * root[..., None, :]
    missing = g - root.shape[-1]
    if missing > 0:
        A = torch.nn.functional.pad(A, (0, 0, 0, missing))
        B = torch.nn.functional.pad(B, (0, missing))
    return Best(A, B, float(s[..., g:].norm()), float(s.norm()))


def best_of_matrix(delta: torch.Tensor, rank: int, k: int = 1) -> Best:
    """delta [M, N] as it is: the best k x k blocks of rank rank/k, or nearly so where they are searched."""
    g = rank // k
    parts = blocks(delta, k)
    if 4 * g < min(parts.shape[2:]):
        u, s, vh = leading(parts.float(), g + EXTRA)
    else:
        u, s, vh = torch.linalg.svd(parts.double(), full_matrices=False)
    root = s[..., :g].sqrt()
    A = root[..., None] * vh[..., :g, :]
    B = u[..., :g] * root[..., None, :]
    left, right = B.to(parts.dtype).flatten(0, 1), A.to(parts.dtype).flatten(0, 1)
    error = float(torch.baddbmm(parts.flatten(0, 1), left, right, alpha=-1).norm())
    return Best(A, B, error, float(delta.norm()))


def leading(parts: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(u, s, vh) of about the first `count` singular values of each matrix of parts [..., M, N]."""
    test = torch.randn(parts.shape[-1], count, generator=torch.Generator().manual_seed(SEED))
    basis = torch.linalg.qr(parts @ test).Q  # [..., M, count]
    energy, held = float(parts.norm()) ** 2, 0.0
    for power in range(POWERS + 1):
        small = basis.mT @ parts  # [..., count, N]
        before, held = held, float(small.norm()) ** 2
        if power == POWERS or held - before < SETTLED * (energy - held):
            break
        basis = torch.linalg.qr(parts @ torch.linalg.qr(small.mT).Q).Q
    q, r = torch.linalg.qr(small.mT)
    u, s, vh = torch.linalg.svd(r.mT)  # of a matrix much smaller than `small`
    return basis @ u, s, vh @ q.mT


def best_of_energy(delta: torch.Tensor, energy: float) -> Best:
    """The smallest plain pair that keeps this part of |delta|^2; delta [M, N]."""
    u, s, vh = torch.linalg.svd(delta.double(), full_matrices=False)
    down, up, error, norm = truncate(vh, u * s, None, energy)
    return Best(down[None, None], up[None, None], error, norm)
