"""GraLoRA, arXiv 2505.20355, section 3: k x k blocks, each with a LoRA of rank r/k of its own."""

import math
from typing import ClassVar

import torch
from torch import nn

from gralora_diffusion.adapters.layer_adapter import LayerAdapter
from gralora_diffusion.adapters.lora import add_product, lora_pair
from gralora_diffusion.adapters.low_rank import block_low_rank, joined
from gralora_diffusion.config import AdapterConfig
from gralora_diffusion.options import ConfigError

BLOCKS = {"gralora_A", "gralora_B"}
PLAIN = {"lora_A", "lora_B"}


class GraLoRA(LayerAdapter):
    """gralora_A [k, N/k, r] and gralora_B [k, r, M/k], the latter zero at the start.

    gralora_A: the r columns of slice n are k groups of r/k, and group j feeds output block j. gralora_B: the
    r rows of slice j are k groups of r/k, and group n comes from input block n. Parameters r(M + N) for every
    k; rank of delta up to k*r.  With hybrid_rank > 0 (Hybrid GraLoRA) a part of the total rank goes to a
    plain lora_A, lora_B beside the blocks; r above is then rank - hybrid_rank.  Of a convolution N counts the
    kernel, and k divides the channels.
    """

    LEAVES: ClassVar = (BLOCKS, BLOCKS | PLAIN)

    def __init__(
        self,
        linear: nn.Linear,
        rank: int,
        k: int | None = None,
        alpha: float | None = None,
        hybrid_rank: int = 0,
        dropout: float = 0.0,
        rslora: bool = False,
    ):
        """As LayerAdapter; k=None takes choose_k().

        Raises ValueError when rank, k or the sizes do not fit together.
        """
        super().__init__(linear, rank, alpha, dropout, rslora)
        if not isinstance(hybrid_rank, int) or not 0 <= hybrid_rank < rank:
            limit = f"as a part of the rank {rank} it must be from 0 to {rank - 1}"
            raise ConfigError(f"hybrid_rank is {hybrid_rank}; {limit}", option="hybrid_rank")
        r = rank - hybrid_rank
        n, m = linear.in_features, linear.out_features
        channels = n // math.prod(self.kernel or ())
        k = choose_k(r, channels, m) if k is None else k
        if not isinstance(k, int) or k < 1 or channels % k or m % k or r % k:
            sizes = "layer's sizes" if self.kernel is None else "convolution's channels"
            raise ConfigError(misfit(r, k, channels, m, hybrid_rank, sizes), option="k")
        self.k = k
        self.hybrid_rank = hybrid_rank
        like = dict(device=linear.weight.device, dtype=torch.float32)
        self.gralora_A = nn.Parameter(torch.empty(k, n // k, r, **like))
        self.gralora_B = nn.Parameter(torch.zeros(k, r, m // k, **like))
        bound = math.sqrt(k / n)  # Kaiming-uniform(a = sqrt 5) for fan_in N/k
        nn.init.uniform_(self.gralora_A, -bound, bound)
        if hybrid_rank:
            self.lora_A, self.lora_B = lora_pair(linear, hybrid_rank)

    @classmethod
    def from_config(cls, linear: nn.Linear, config: AdapterConfig, rank: int, k: int | None) -> "GraLoRA":
        return cls(linear, rank, k, config.alpha, config.hybrid_rank, config.dropout, config.rslora)

    @property
    def factors(self) -> list[tuple[nn.Parameter, nn.Parameter]]:
        blocks = [(self.gralora_A, self.gralora_B)]
        return [*blocks, (self.lora_A, self.lora_B)] if self.hybrid_rank else blocks

    @property
    def part_ranks(self) -> tuple[int, ...]:
        """r/k, the ranks of a group, and those of the plain LoRA."""
        group = (self.rank - self.hybrid_rank) // self.k
        return (group, self.hybrid_rank) if self.hybrid_rank else (group,)

    @staticmethod
    def low_rank_of(factors: dict[str, torch.Tensor], scale: float) -> tuple[torch.Tensor, torch.Tensor]:
        pairs = [block_low_rank(factors["gralora_A"], factors["gralora_B"])]
        if "lora_A" in factors:
            pairs.append((factors["lora_A"], factors["lora_B"]))
        down, up = joined(pairs)
        return down, up * scale

    def add_delta(self, weight: torch.Tensor, strength: float = 1.0) -> None:
        """As up @ down of low_rank(), block by block.

        That pair is zero elsewhere, so this takes k^2 times fewer operations.
        """
        k = self.k
        m, n = weight.shape
        r = self.gralora_A.shape[2]
        A = self.gralora_A.detach().to(weight.dtype).view(k, n // k, k, r // k)
        B = self.gralora_B.detach().to(weight.dtype).view(k, k, r // k, m // k)
        blocks = weight.view(k, m // k, k, n // k)
        for j in range(k):
            for i in range(k):  # from slice i of the input to slice j of the output
                blocks[j, :, i].addmm_(B[j, i].T, A[i, :, j].T, alpha=strength * self.scale)
        if self.hybrid_rank:
            add_product(weight, self.lora_A, self.lora_B, strength * self.scale)


def choose_k(rank: int, in_features: int, out_features: int) -> int:
    """GraLoRA's rule: rank/k^2 about 8, with k dividing all three sizes; of a convolution, its channels.

    That is 2 blocks per side at rank 16 to 32, and 4 at rank 64 to 128.
    """
    common = math.gcd(rank, in_features, out_features)
    fits = [k for k in range(1, common + 1) if common % k == 0]
    return min(fits, key=lambda k: (round(abs(math.log2(rank / k**2 / 8)), 6), -k))


def misfit(r: int, k: int, n: int, m: int, hybrid_rank: int, sizes: str = "layer's sizes") -> str:
    """Why blocks of rank r do not fit a layer n -> m with this k, and what would; sizes: what n and m are."""
    if not isinstance(k, int) or k < 1:
        return f"k is {k}; it must be a whole number of at least 1"
    if n % k or m % k:
        fits = [str(d) for d in range(1, min(n, m, 64) + 1) if n % d == 0 and m % d == 0]
        return f"k {k} does not divide the {sizes} {n} -> {m}; k can be {', '.join(fits)}"
    low = r // k * k
    near = [str(v + hybrid_rank) for v in (low, low + k) if v > 0]
    fits = f"ranks that fit are {' and '.join(near)}" if len(near) > 1 else f"rank that fits is {near[0]}"
    of = f"rank {r + hybrid_rank} minus hybrid_rank {hybrid_rank}, {r}," if hybrid_rank else f"rank {r}"
    return f"{of} is not divisible by k {k}; the nearest {fits}, or choose another k"
