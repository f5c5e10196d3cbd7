"""Which size of a method has as many trainable parameters as a LoRA of some rank."""

import math
from collections import Counter

from gralora_diffusion.options import ConfigError

GRIDS = ("gralora", "hybrid", "t-gralora")  # methods with k
LOKR_FACTOR = 2  # delta = a 2 x 2 matrix kron a low-rank one: any number of parameters can be had
TOLERANCE = 0.1  # part of a budget that may be left over
EXCESS = 0.02  # part of it that may be added where a method's sizes are so far apart: OFT's blocks double


def mora_side(rank: int, m: int, n: int) -> int:
    return max(2, math.isqrt((m + n) * rank) // 2 * 2)


def pooled(rank: int) -> int:
    return max(1, rank // 8)


def count(method: str, size: int, shapes: list[tuple[int, int]]) -> int:
    """Trainable parameters of a method over layers of these shapes (M, N)."""
    one = {
        "dora": lambda m, n: size * (m + n) + m,
        "vera": lambda m, n: size + m,
        "fourierft": lambda m, n: size,
        "loha": lambda m, n: 2 * size * (m + n),
        "lokr": lambda m, n: lokr_count(size, m, n),
        "oft": lambda m, n: n * (size - 1) // 2,
        "mora": lambda m, n: mora_side(size, m, n) ** 2,
        "full": lambda m, n: m * n,
    }.get(method, lambda m, n: size * (m + n))
    total = sum(one(m, n) for m, n in shapes)
    if method == "rasa":  # the pools hold what the layers gave; d comes on top
        total += sum(
            number * (size - pooled(size) + pooled(size) * number) for number in Counter(shapes).values()
        )
    return total


def lokr_count(rank: int, m: int, n: int) -> int:
    from peft.tuners.lokr.layer import factorization

    (a, b), (c, d) = factorization(m, LOKR_FACTOR), factorization(n, LOKR_FACTOR)
    return a * c + (rank * (b + d) if rank < max(b, d) / 2 else b * d)


def sizes(method: str, shapes: list[tuple[int, int]], k: int | None = None) -> list[int]:
    """The sizes that a method can have in these layers."""
    narrow = min(min(shape) for shape in shapes)
    if method == "oft":
        divisor = math.gcd(*(n for _, n in shapes))
        return [b for b in range(2, divisor + 1) if divisor % b == 0]
    if method == "fourierft":
        return list(range(1, min(m * n for m, n in shapes) + 1))
    if method == "vera":
        return list(range(1, max(max(shape) for shape in shapes) + 1))
    if method in GRIDS:
        k = k or 2
        return [r for r in range(2, narrow + 1) if (r - (r // 2 if method == "hybrid" else 0)) % k == 0]
    if method == "mora":
        return [r for r in range(1, narrow + 1) if all(mora_side(r, m, n) <= min(m, n) for m, n in shapes)]
    return list(range(2 if method == "rasa" else 1, narrow + 1))


def fit(method: str, budget: int, shapes: list[tuple[int, int]], k: int | None = None) -> tuple[int, int]:
    """(size, trainable parameters): the most that the budget allows; where TOLERANCE of it, or more, would be left over, up to EXCESS above it.

    Full fine-tuning has one size, whatever the budget.  Raises ConfigError where no size comes so near.
    """
    if method == "full":
        return 0, count(method, 0, shapes)
    found = [(count(method, size, shapes), size) for size in sizes(method, shapes, k)]
    best = max((pair for pair in found if pair[0] <= budget), default=(0, 0))
    if best[0] < (1 - TOLERANCE) * budget:
        best = min((pair for pair in found if budget < pair[0] <= (1 + EXCESS) * budget), default=(0, 0))
    if not best[0]:
        low, high, nearest = (
            min(found)[0],
            max(found)[0],
            min(found, key=lambda pair: abs(pair[0] - budget))[0],
        )
        raise ConfigError(
            f"{method} cannot have {budget:,} parameters here: its sizes give {low:,} to {high:,}, the nearest is {nearest:,}"
        )
    return best[1], best[0]
