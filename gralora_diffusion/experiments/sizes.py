"""Trainable parameters of each method by its size, over layers of shapes (M, N), and the sizes they allow."""

import math
from collections import Counter
from collections.abc import Callable

LOKR_FACTOR = 2  # delta = a 2 x 2 matrix kron a low-rank one: any number of parameters can be had

Shapes = list[tuple[int, int]]


def per_layer(count_of: Callable[[int, int, int], int]) -> Callable[[int, Shapes], int]:
    """count(size, shapes) from the count of one layer, count_of(size, M, N)."""

    def count(size: int, shapes: Shapes) -> int:
        return sum(count_of(size, m, n) for m, n in shapes)

    return count


def lora_layer(rank: int, m: int, n: int) -> int:
    return rank * (m + n)


def dora_layer(rank: int, m: int, n: int) -> int:
    """LoRA's factors and a magnitude for each output."""
    return rank * (m + n) + m


def vera_layer(shared: int, m: int, n: int) -> int:
    """One vector for the shared dimension, one for the outputs."""
    return shared + m


def fourierft_layer(frequencies: int, m: int, n: int) -> int:
    return frequencies


def loha_layer(rank: int, m: int, n: int) -> int:
    """Two pairs of factors."""
    return 2 * rank * (m + n)


def lokr_layer(rank: int, m: int, n: int) -> int:
    from peft.tuners.lokr.layer import factorization

    (a, b), (c, d) = factorization(m, LOKR_FACTOR), factorization(n, LOKR_FACTOR)
    low_rank = rank < max(b, d) / 2
    return a * c + (rank * (b + d) if low_rank else b * d)


def oft_layer(block: int, m: int, n: int) -> int:
    """N / block skew-symmetric blocks."""
    return n * (block - 1) // 2


def mora_layer(rank: int, m: int, n: int) -> int:
    return mora_side(rank, m, n) ** 2


def whole_layer(size: int, m: int, n: int) -> int:
    return m * n


def rasa(rank: int, shapes: Shapes) -> int:
    """LoRA's: the pools hold ranks that the layers gave up.  The diagonal d of each layer comes on top."""
    diagonals = 0
    for number in Counter(shapes).values():
        diagonals += number * (rank - pooled(rank) + pooled(rank) * number)
    return per_layer(lora_layer)(rank, shapes) + diagonals


def mora_side(rank: int, m: int, n: int) -> int:
    """The side of MoRA's square matrix: even, and with about as many parameters as LoRA's factors."""
    return max(2, math.isqrt((m + n) * rank) // 2 * 2)


def pooled(rank: int) -> int:
    """How many of RaSA's ranks go to the shared pool."""
    return max(1, rank // 8)


def narrowest(shapes: Shapes) -> int:
    return min(min(shape) for shape in shapes)


def ranks(shapes: Shapes, k: int | None) -> list[int]:
    return list(range(1, narrowest(shapes) + 1))


def rasa_ranks(shapes: Shapes, k: int | None) -> list[int]:
    """From 2 on: one for the pool, one for the layer."""
    return list(range(2, narrowest(shapes) + 1))


def gralora_ranks(shapes: Shapes, k: int | None) -> list[int]:
    k = k or 2
    return [rank for rank in range(2, narrowest(shapes) + 1) if rank % k == 0]


def hybrid_ranks(shapes: Shapes, k: int | None) -> list[int]:
    """Half of the rank, rounded down, is LoRA's; k divides the rest."""
    k = k or 2
    return [rank for rank in range(2, narrowest(shapes) + 1) if (rank - rank // 2) % k == 0]


def mora_ranks(shapes: Shapes, k: int | None) -> list[int]:
    found = []
    for rank in range(1, narrowest(shapes) + 1):
        if all(mora_side(rank, m, n) <= min(m, n) for m, n in shapes):
            found.append(rank)
    return found


def oft_blocks(shapes: Shapes, k: int | None) -> list[int]:
    divisor = math.gcd(*(n for _, n in shapes))
    return [block for block in range(2, divisor + 1) if divisor % block == 0]


def vera_dimensions(shapes: Shapes, k: int | None) -> list[int]:
    return list(range(1, max(max(shape) for shape in shapes) + 1))


def fourierft_frequencies(shapes: Shapes, k: int | None) -> list[int]:
    return list(range(1, min(m * n for m, n in shapes) + 1))


def no_sizes(shapes: Shapes, k: int | None) -> list[int]:
    return [0]
