"""GoRA's formulas (arXiv 2502.12171), on plain LoRA and on GraLoRA's grid of blocks: importance, ranks, and factors made from a gradient.

W and its gradient G are [M, N] (out x in); delta = up @ down.  GraLoRA's block (j, i) has out slice j and in slice i; plain LoRA is k = 1.
"""

import math
from collections.abc import Mapping

import torch

from gralora_diffusion.adapters.low_rank import block_low_rank

GAMMA = 0.05  # |delta| / |G| at the start, as published


def importance(W: torch.Tensor, G: torch.Tensor) -> float:
    """mean |W * G| with W, G [M, N]: how much the loss hangs on this weight (GoRA, eq. 5); G is averaged over the batches first."""
    return float((W.float() * G.float()).abs().mean())


def allocate_ranks(
    importances,
    shapes,
    reference_rank: int,
    min_rank: int,
    max_rank: int,
    step: int = 1,
    rounding: str = "exact",
):
    """Ranks in proportion to importance, at the parameters that reference_rank everywhere would have; dicts by layer, or lists, as given.

    shapes are (M, N).  GoRA, eq. 6-8: r_i = clip(round(b a_i / sqrt(M_i + N_i))) with b = sum sqrt(M_i + N_i) reference_rank and
    a_i = I_i / sum I.  rounding "paper" stops there.  "exact" scales b until the clipped ranks need sum (M_i + N_i) reference_rank
    parameters, and rounds so that they need exactly these.  Ranks are multiples of `step`, and never above min(M, N).
    Raises ValueError when the reference rank is not in the range or on the grid, or an importance is negative or not finite.
    """
    if isinstance(importances, Mapping):
        names = list(importances)
        if set(names) != set(shapes):
            raise ValueError("importances and shapes name different layers")
        ranks = allocate_ranks(
            [importances[n] for n in names],
            [shapes[n] for n in names],
            reference_rank,
            min_rank,
            max_rank,
            step,
            rounding,
        )
        return dict(zip(names, ranks, strict=True))
    if not all(math.isfinite(i) and i >= 0 for i in importances):
        raise ValueError("an importance is negative or not finite")
    total, roots = sum(importances), [math.sqrt(m + n) for m, n in shapes]
    shares = [i / total if total else 1 / len(shapes) for i in importances]
    wanted = [sum(roots) * reference_rank * a / root for a, root in zip(shares, roots, strict=True)]
    low, high = bounds(shapes, reference_rank, min_rank, max_rank, step)
    if rounding == "paper":
        return [
            clip(step * round(w / step), least, most)
            for w, least, most in zip(wanted, low, high, strict=True)
        ]
    return exact_ranks(wanted, shapes, reference_rank, low, high, step)


def bounds(
    shapes, reference_rank: int, min_rank: int, max_rank: int, step: int
) -> tuple[list[int], list[int]]:
    """The lowest and the highest rank of each layer on the grid of `step`."""
    low, high = -(-min_rank // step) * step, [min(max_rank, m, n) // step * step for m, n in shapes]
    if not 1 <= low <= reference_rank <= min(high) or reference_rank % step:
        raise ValueError(
            f"the reference rank {reference_rank} must be a multiple of {step} from {max(low, 1)} to {min(high)}: "
            f"ranks go from {min_rank} to {max_rank}, in steps of {step}, and the narrowest layer has {min(map(min, shapes))} channels"
        )
    return [low] * len(shapes), high


def clip(value, least, most):
    return max(least, min(most, value))


def exact_ranks(wanted, shapes, reference_rank: int, low, high, step: int = 1) -> list[int]:
    """Whole ranks near a common multiple of `wanted`, within [low, high], that need exactly sum (M + N) reference_rank parameters."""
    costs = [m + n for m, n in shapes]
    budget, layers = reference_rank * sum(costs), range(len(costs))
    least, most = 0.0, 1.0
    wanted = [
        max(w, 1e-9 * max(wanted)) for w in wanted
    ]  # a layer that asks for nothing can still take what all others cannot

    def at(scale):
        return [clip(scale * wanted[i], low[i], high[i]) for i in layers]

    while sum(c * r for c, r in zip(costs, at(most), strict=True)) < budget:
        least, most = most, 2 * most
    for _ in range(100):
        middle = (least + most) / 2
        least, most = (
            (middle, most)
            if sum(c * r for c, r in zip(costs, at(middle), strict=True)) < budget
            else (least, middle)
        )
    ideal, ranks = at(most), [0] * len(costs)
    groups = {cost: [i for i in layers if costs[i] == cost] for cost in sorted(set(costs), reverse=True)}
    totals = exact_totals(
        {cost * step: (sum(ideal[i] for i in mine) / step, sum(low[i] for i in mine) // step, sum(high[i] for i in mine) // step)
         for cost, mine in groups.items()},
        budget,
    )  # fmt: skip
    for cost, mine in groups.items():
        for i in mine:
            ranks[i] = clip(int(ideal[i] // step) * step, low[i], high[i])
        spare = totals[cost * step] - sum(ranks[i] for i in mine) // step
        while spare:  # the largest remainders first, then who asks for most; one round is enough unless the total was moved
            sign = 1 if spare > 0 else -1
            order = sorted(mine, key=lambda i: (sign * (ranks[i] - ideal[i]), -sign * wanted[i], i))
            free = [i for i in order if low[i] <= ranks[i] + sign * step <= high[i]][: abs(spare)]
            for i in free:
                ranks[i] += sign * step
            spare -= sign * len(free)
    return ranks


def exact_totals(groups: dict[int, tuple[float, int, int]], budget: int) -> dict[int, int]:
    """{cost of one: how many}, for {cost: (ideal, least, most)}: whole numbers near the ideal ones that cost exactly `budget` together."""
    unit = math.gcd(*groups)
    costs = list(groups)
    start = {cost: clip(round(ideal), least, most) for cost, (ideal, least, most) in groups.items()}
    lacking = budget - sum(cost * n for cost, n in start.items())
    window = 1
    while True:
        states = {
            lacking // unit: (0.0, ())
        }  # what is still lacking: (distance from the ideal in parameters, changes so far)
        for place, cost in enumerate(costs):
            ideal, least, most = groups[cost]
            reach = window * sum(costs[place + 1 :]) // unit
            found = {}
            for lack, (distance, changes) in states.items():
                for change in range(max(-window, least - start[cost]), min(window, most - start[cost]) + 1):
                    left = lack - change * (cost // unit)
                    far = distance + cost * abs(start[cost] + change - ideal)
                    if abs(left) <= reach and (left not in found or far < found[left][0]):
                        found[left] = far, (*changes, change)
            states = found
        if 0 in states:
            return {cost: start[cost] + change for cost, change in zip(costs, states[0][1], strict=True)}
        window *= 2


def greedy_ranks(gains, shapes, reference_rank: int, min_rank: int, max_rank: int, step: int) -> list[int]:
    """Ranks that capture the most energy for their parameters: gains[i] = energy of layer i at ranks step, 2 step, ...

    The next step of rank always goes where it brings the most energy for its cost; then the exact budget is met as in exact_ranks().
    """
    low, high = bounds(shapes, reference_rank, min_rank, max_rank, step)
    ranks, spare = (
        list(low),
        sum((m + n) * (reference_rank - least) for (m, n), least in zip(shapes, low, strict=True)),
    )

    def gain(i):
        at = ranks[i] // step
        return (gains[i][at] - gains[i][at - 1]) / sum(shapes[i])

    while True:
        open_to = [i for i in range(len(ranks)) if ranks[i] < high[i] and sum(shapes[i]) * step <= spare]
        if not open_to:
            return exact_ranks(ranks, shapes, reference_rank, low, high, step)
        best = max(open_to, key=gain)
        ranks[best] += step
        spare -= sum(shapes[best]) * step


def blocks(G: torch.Tensor, k: int) -> torch.Tensor:
    """[M, N] -> [k (out slice), k (in slice), M/k, N/k]"""
    m, n = G.shape
    return G.reshape(k, m // k, k, n // k).transpose(1, 2)


def whitened(G: torch.Tensor) -> torch.Tensor:
    """Every column scaled to length 1 (0 where there was nothing), so that an outlier among the input channels counts as one channel."""
    return G / G.norm(dim=0).clamp_min(torch.finfo(G.dtype).tiny)


def energies(G: torch.Tensor, k: int) -> torch.Tensor:
    """[min(M, N)]: entry r-1 is the part of |G|^2 that k x k blocks of rank r/k each can hold, sum_ij sum_{s <= r/k} sigma_s(G_ij)^2 / |G|^2."""
    G = blocks(G.double(), k)
    gram = (
        G @ G.mT if G.shape[2] <= G.shape[3] else G.mT @ G
    )  # its eigenvalues are the squares, and cost a quarter of an SVD
    squares = torch.linalg.eigvalsh(gram).flip(-1).clamp_min(0).sum((0, 1)).cumsum(0)
    return (squares / squares[-1].clamp_min(torch.finfo(squares.dtype).tiny)).repeat_interleave(k)


def effective_rank(G: torch.Tensor) -> float:
    """exp of the entropy of the singular values' shares (Roy and Vetterli 2007); 1 for a matrix of zeros."""
    sigma = torch.linalg.svdvals(G.double())
    shares = sigma / sigma.sum().clamp_min(torch.finfo(sigma.dtype).tiny)
    return float(torch.special.entr(shares).sum().exp())


def ralora_k(effective: float, rank: int, most: int) -> int:
    """RaLoRA-Pro's number of blocks: the largest power of two with k * rank <= effective rank of G, from 1 to `most`."""
    return clip(2 ** max(0, math.floor(math.log2(max(effective, 1) / rank))), 1, most)


def project(G: torch.Tensor, A: torch.Tensor) -> torch.Tensor:
    """G_ji A_ji^T for every block, linear in G, so that it can be summed in place of G: A [k, k, g, N/k] -> [k, k, M/k, g]."""
    return blocks(G, A.shape[0]) @ A.mT


def least_squares(S: torch.Tensor, A: torch.Tensor) -> torch.Tensor:
    """B = -S (A A^T)^-1 with S = G A^T: of all B, B A is nearest to -G (GoRA, eq. 11; MINUS: delta steps down the gradient)."""
    A = A.double()
    return -torch.linalg.solve(A @ A.mT, S.double().mT).mT


def singular_factors(G: torch.Tensor, rank: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A = the top right-singular vectors of each block, as long as Kaiming's rows, and B by least squares: [k, k, g, N/k], [k, k, M/k, g]."""
    u, s, v = torch.linalg.svd(blocks(G, k), full_matrices=False)
    g = rank // k
    return v[..., :g, :] / math.sqrt(3), -(u[..., :g] * s[..., None, :g]) * math.sqrt(3)


def matched(A: torch.Tensor, B: torch.Tensor, norm: float) -> torch.Tensor:
    """B scaled so that |B A| over all blocks is `norm`; zeros where B A is zero."""
    size = float((B @ A.to(B.dtype)).norm())
    return B * (norm / size) if size > 0 else torch.zeros_like(B)


def gradient_factors(
    G: torch.Tensor,
    rank: int,
    k: int = 1,
    init: str = "svd",
    gamma: float = GAMMA,
    random: torch.Generator | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(down [R, N], up [M, R]) with R = k * rank: delta = up @ down points down the gradient, and |delta| = gamma |G| (Frobenius).

    init "random": down is Kaiming-uniform and up = -G A^T (A A^T)^-1, as GoRA; "svd": down is G's top right-singular vectors, the best
    there is at this rank.  k > 1 does the same in each of GraLoRA's blocks.  Raises ValueError for a rank, k or init that cannot be.
    """
    m, n = G.shape
    if not 1 <= rank <= min(m, n) or rank % k or m % k or n % k:
        raise ValueError(f"rank {rank} and k {k} do not fit a gradient of {m} x {n}")
    if init == "svd":
        A, B = singular_factors(G, rank, k)
    elif init == "random":
        bound = math.sqrt(k / n)
        A = (torch.rand(k, k, rank // k, n // k, generator=random, dtype=torch.float64) * 2 - 1).to(
            G.device
        ) * bound
        B = least_squares(project(G.double(), A), A)
    else:
        raise ValueError(f"init is {init!r}; it must be svd or random")
    down, up = block_low_rank(*as_gralora(A, matched(A, B, gamma * float(G.norm()))))
    return down.to(G.dtype), up.to(G.dtype)


def as_gralora(A: torch.Tensor, B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[k, k, g, N/k], [k, k, M/k, g] by block -> gralora_A [k, N/k, r], gralora_B [k, r, M/k]."""
    k, _, g, n = A.shape
    return A.permute(1, 3, 0, 2).reshape(k, n, k * g), B.mT.reshape(k, k * g, B.shape[2])


def by_block(gralora_A: torch.Tensor) -> torch.Tensor:
    """gralora_A [k, N/k, r] -> [k (out slice), k (in slice), r/k, N/k]"""
    k, n, r = gralora_A.shape
    return gralora_A.view(k, n, k, r // k).permute(2, 0, 3, 1)
