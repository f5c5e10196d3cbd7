"""GoRA's formulas (arXiv 2502.12171) for LoRA and GraLoRA: importance, ranks, factors from a gradient.

W and its gradient G are [M, N] (out x in); delta = up @ down.  GraLoRA's block (j, i) has out slice j and in
slice i; plain LoRA is k = 1.
"""

import math

import torch

from gralora_diffusion.adapters.low_rank import block_low_rank
from gralora_diffusion.adapters.rank_budget import clip
from gralora_diffusion.devices import decomposable, in_float64

GAMMA = 0.05  # |delta| / |G| at the start, as published


def importance(W: torch.Tensor, G: torch.Tensor) -> float:
    """mean |W * G| with W, G [M, N]: how much the loss depends on this weight (GoRA, eq. 5).

    G is averaged over the batches first.
    """
    return float((W.float() * G.float()).abs().mean())


def blocks(G: torch.Tensor, k: int) -> torch.Tensor:
    """[M, N] -> [k (out slice), k (in slice), M/k, N/k]"""
    m, n = G.shape
    return G.reshape(k, m // k, k, n // k).transpose(1, 2)


def whitened(G: torch.Tensor) -> torch.Tensor:
    """Every column scaled to length 1 (0 where it was zero).

    An outlier among the input channels then counts as one channel.
    """
    return G / G.norm(dim=0).clamp_min(torch.finfo(G.dtype).tiny)


def energies(G: torch.Tensor, k: int) -> torch.Tensor:
    """[min(M, N)]: entry r-1 is the part of |G|^2 that k x k blocks of rank r/k each can hold.

    sum_ij sum_{s <= r/k} sigma_s(G_ij)^2 / |G|^2
    """
    G = blocks(in_float64(G), k)
    # the Gram matrix: its eigenvalues are the squares, and cost a quarter of an SVD
    gram = G @ G.mT if G.shape[2] <= G.shape[3] else G.mT @ G
    squares = torch.linalg.eigvalsh(gram).flip(-1).clamp_min(0).sum((0, 1)).cumsum(0)
    return (squares / squares[-1].clamp_min(torch.finfo(squares.dtype).tiny)).repeat_interleave(k)


def effective_rank(G: torch.Tensor) -> float:
    """exp of the entropy of the singular values' shares (Roy and Vetterli 2007); 1 for a matrix of zeros."""
    sigma = torch.linalg.svdvals(in_float64(G))
    shares = sigma / sigma.sum().clamp_min(torch.finfo(sigma.dtype).tiny)
    return float(torch.special.entr(shares).sum().exp())


def ralora_k(effective: float, rank: int, most: int) -> int:
    """RaLoRA-Pro's number of blocks, from 1 to `most`.

    The largest power of two with k * rank <= effective rank of G.
    """
    return clip(2 ** max(0, math.floor(math.log2(max(effective, 1) / rank))), 1, most)


def project(G: torch.Tensor, A: torch.Tensor) -> torch.Tensor:
    """G_ji A_ji^T for every block: A [k, k, g, N/k] -> [k, k, M/k, g].

    Linear in G, so that it can be summed in place of G.
    """
    return blocks(G, A.shape[0]) @ A.mT


def least_squares(S: torch.Tensor, A: torch.Tensor) -> torch.Tensor:
    """B = -S (A A^T)^-1 with S = G A^T: of all B, B A is nearest to -G (GoRA, eq. 11).

    The minus: delta is a step down the gradient.
    """
    A = in_float64(A)
    return -torch.linalg.solve(A @ A.mT, in_float64(S).mT).mT


def singular_factors(G: torch.Tensor, rank: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(A, B) by block, [k, k, g, N/k] and [k, k, M/k, g], with B A the best approximation of -G.

    A: the top right-singular vectors of each block, as long as Kaiming's rows; B by least squares.
    """
    u, s, v = torch.linalg.svd(blocks(decomposable(G), k), full_matrices=False)
    g = rank // k
    return v[..., :g, :] / math.sqrt(3), -(u[..., :g] * s[..., None, :g]) * math.sqrt(3)


def matched(A: torch.Tensor, B: torch.Tensor, norm: float) -> torch.Tensor:
    """B scaled so that |B A| over all blocks is `norm`; zeros where B A is zero."""
    size = float((B @ A.to(B)).norm())
    return B * (norm / size) if size > 0 else torch.zeros_like(B)


def gradient_factors(
    G: torch.Tensor,
    rank: int,
    k: int = 1,
    init: str = "svd",
    gamma: float = GAMMA,
    random: torch.Generator | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(down [R, N], up [M, R]) with R = k * rank: delta = up @ down points down the gradient.

    init "random": down is Kaiming-uniform and up = -G A^T (A A^T)^-1, as GoRA; "svd": down is G's top
    right-singular vectors, the best there is at this rank.  k > 1 does the same in each of GraLoRA's blocks.
    Raises ValueError for a rank, k or init that does not fit.
    """
    m, n = G.shape
    if not 1 <= rank <= min(m, n) or rank % k or m % k or n % k:
        raise ValueError(f"rank {rank} and k {k} do not fit a gradient of {m} x {n}")
    if init == "svd":
        A, B = singular_factors(G, rank, k)
    elif init == "random":
        bound = math.sqrt(k / n)
        uniform = torch.rand(k, k, rank // k, n // k, generator=random, dtype=torch.float64) * 2 - 1
        wide = in_float64(G)
        A = uniform.to(wide.device) * bound
        B = least_squares(project(wide, A), A)
    else:
        raise ValueError(f"init is {init!r}; it must be svd or random")
    down, up = block_low_rank(*as_gralora(A, matched(A, B, gamma * float(G.norm()))))
    return down.to(G), up.to(G)


def as_gralora(A: torch.Tensor, B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[k, k, g, N/k], [k, k, M/k, g] by block -> gralora_A [k, N/k, r], gralora_B [k, r, M/k]."""
    k, _, g, n = A.shape
    return A.permute(1, 3, 0, 2).reshape(k, n, k * g), B.mT.reshape(k, k * g, B.shape[2])


def by_block(gralora_A: torch.Tensor) -> torch.Tensor:
    """gralora_A [k, N/k, r] -> [k (out slice), k (in slice), r/k, N/k]"""
    k, n, r = gralora_A.shape
    return gralora_A.view(k, n, k, r // k).permute(2, 0, 3, 1)
