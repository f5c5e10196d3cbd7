"""LoRA, arXiv 2106.09685: delta = scale * lora_B @ lora_A."""

import math
from typing import ClassVar

import torch
from torch import nn

from gralora_diffusion.adapters.layer_adapter import LayerAdapter


class LoRA(LayerAdapter):
    """lora_A [r, N], Kaiming-uniform, and lora_B [M, r], zero at the start."""

    LEAVES: ClassVar = ({"lora_A", "lora_B"},)

    def __init__(
        self,
        linear: nn.Linear,
        rank: int,
        alpha: float | None = None,
        dropout: float = 0.0,
        rslora: bool = False,
    ):
        super().__init__(linear, rank, alpha, dropout, rslora)
        self.lora_A, self.lora_B = lora_pair(linear, rank)

    @property
    def factors(self) -> list[tuple[nn.Parameter, nn.Parameter]]:
        return [(self.lora_A, self.lora_B)]

    @property
    def part_ranks(self) -> tuple[int, ...]:
        return (self.rank,)

    @staticmethod
    def low_rank_of(factors: dict[str, torch.Tensor], scale: float) -> tuple[torch.Tensor, torch.Tensor]:
        return factors["lora_A"], factors["lora_B"] * scale

    def add_delta(self, weight: torch.Tensor, strength: float = 1.0) -> None:
        """As up @ down of low_rank(), in one product."""
        add_product(weight, self.lora_A, self.lora_B, strength * self.scale)


def lora_pair(linear: nn.Linear, rank: int) -> tuple[nn.Parameter, nn.Parameter]:
    """A new (lora_A, lora_B) in fp32 for this layer, whose delta is zero."""
    like = dict(device=linear.weight.device, dtype=torch.float32)
    lora_A = nn.Parameter(torch.empty(rank, linear.in_features, **like))
    lora_B = nn.Parameter(torch.zeros(linear.out_features, rank, **like))
    nn.init.kaiming_uniform_(lora_A, a=math.sqrt(5))
    return lora_A, lora_B


def add_product(weight: torch.Tensor, lora_A: torch.Tensor, lora_B: torch.Tensor, scale: float) -> None:
    """weight [M, N] += scale * lora_B @ lora_A, in place and in the weight's dtype."""
    weight.addmm_(lora_B.detach().to(weight.dtype), lora_A.detach().to(weight.dtype), alpha=scale)
