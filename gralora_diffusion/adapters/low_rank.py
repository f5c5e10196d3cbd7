"""Low-rank pairs: the scale of an adapter, GraLoRA's blocks as one pair, and the best pair of a lower rank.

M is out_features, N is in_features, r the rank, k GraLoRA's blocks per side; delta [M, N] = up [M, R] @ down
[R, N].
"""

import math

import torch
import torch.nn.functional as F

from gralora_diffusion.devices import in_float64

CANCELLATION = 2  # |terms| / |delta| from which a pair is replaced before it is rounded


def scale_of(rank: int, alpha: float | None, rslora: bool) -> float:
    """alpha / rank, or alpha / sqrt(rank) with rsLoRA (arXiv 2312.03732); alpha defaults to rank."""
    alpha = rank if alpha is None else alpha
    return alpha / (math.sqrt(rank) if rslora else rank)


def block_low_rank(gralora_A: torch.Tensor, gralora_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """gralora_A [k, N/k, r], gralora_B [k, r, M/k] -> (down [k*r, N], up [M, k*r]): the same delta, exactly.

    Both are block-sparse: with n, j < k and s < r/k, column (n, j, s) of `up` is zero outside output block j,
    and row (n, j, s) of `down` is zero outside input block n.
    """
    k, n, r = gralora_A.shape
    m = gralora_B.shape[2]
    g = r // k
    down = gralora_A.new_zeros(k, k, g, k, n)
    up = gralora_B.new_zeros(k, m, k, k, g)
    for i in range(k):
        down[i, :, :, i] = gralora_A[i].view(n, k, g).permute(1, 2, 0)  # [j, s, N/k]
        up[i, :, :, i] = gralora_B[i].view(k, g, m).permute(2, 0, 1)  # [M/k, n, s]
    return down.view(k * r, k * n), up.view(k * m, k * r)


def joined(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    """The pair whose delta is the sum of the deltas of these pairs (down, up)."""
    if len(pairs) == 1:
        return pairs[0]
    downs, ups = zip(*pairs, strict=True)
    return torch.cat(downs), torch.cat(ups, 1)


def without_cancellation(down: torch.Tensor, up: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The pair, or another of the same delta and shapes where the pair's terms cancel.

    Terms: up[:, i] down[i]. Rounding errors are relative to them, so that a delta much smaller than they
    are, such as the difference of two nearly equal products, is lost in half precision.
    """
    if down.is_meta:  # shapes alone
        return down, up
    wide_down, wide_up = in_float64(down), in_float64(up)
    of_down, of_up = wide_down @ wide_down.T, wide_up.T @ wide_up
    terms = float((of_down.diagonal() * of_up.diagonal()).sum())
    if float((of_down * of_up).sum()) * CANCELLATION**2 > terms:
        return down, up
    new_down, new_up, *_ = truncate(down, up, len(down))
    missing = len(down) - len(new_down)  # of a rank above what the layer's sides allow
    new_down = F.pad(new_down, (0, 0, 0, missing))
    return new_down.to(down.dtype), F.pad(new_up, (0, missing)).to(up.dtype)


def truncate(
    down: torch.Tensor, up: torch.Tensor, rank: int | None = None, energy: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor, float, float]:
    """(down, up, |error|, |delta|): the best pair of this rank, or the smallest that keeps this much energy.

    energy: the part of |delta|^2 that is kept.
    Norms are Frobenius norms.  Eckart-Young on delta = up @ down, through QR of the thin factors and an SVD
    of the R x R core, in float64 (see devices.in_float64()); delta is never formed.
    """
    q_up, r_up = torch.linalg.qr(in_float64(up))
    q_down, r_down = torch.linalg.qr(in_float64(down).T)
    u, s, v = torch.linalg.svd(r_up @ r_down.T, full_matrices=False)
    kept = s.square().cumsum(0)
    if rank is None:
        rank = int((kept < energy * kept[-1] * (1 - 1e-14)).sum()) + 1
    rank = min(rank, len(s))
    root = s[:rank].sqrt()
    new_down = root[:, None] * (v[:rank] @ q_down.T)
    new_up = (q_up @ u[:, :rank]) * root
    return new_down, new_up, float(s[rank:].norm()), float(s.norm())
