"""A frozen linear layer with its adapters.

M is out_features, N is in_features, r the rank, k GraLoRA's blocks per side.
"""

import torch
import torch.nn.functional as F
from torch import nn

from gralora_diffusion.adapters.adapted_layer import DEFAULT, AdaptedLayer
from gralora_diffusion.adapters.frozen_weight import quantized
from gralora_diffusion.adapters.gralora import GraLoRA
from gralora_diffusion.adapters.kernel import adapted_linear
from gralora_diffusion.adapters.layer_adapter import LayerAdapter
from gralora_diffusion.adapters.lora import LoRA
from gralora_diffusion.adapters.quantization import QuantizedLinear


class AdaptedLinear(AdaptedLayer, nn.Linear):
    """forward(x) == F.linear(x, weight + delta(), bias); delta() is the sum over the enabled adapters."""

    def __init__(self, linear: nn.Linear):
        """Take over a plain linear layer.  Raises ValueError for any other."""
        check_plain(linear)
        nn.Module.__init__(self)
        self.in_features = linear.in_features
        self.out_features = linear.out_features
        self.shared = None  # a trainer's SharedInput, which computes several layers of one input at once
        self.take_over(linear)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., N] -> [..., M]"""
        if self.shared is not None and self.training and torch.is_grad_enabled():
            return self.shared.output(self, x)
        if self.merged and self.strengths == self.merged_strengths:
            return F.linear(x, self.weight, self.bias)
        weight = self.unmerged_weight if self.merged else self.weight
        parts = []
        unfused = []
        for adapter in self.enabled_adapters():
            own_parts = adapter.parts(x)
            parts += own_parts
            if not own_parts:
                unfused.append(adapter)
        y = adapted_linear(x, weight, self.changed_bias(), parts)
        for adapter in unfused:
            y = y + adapter.strength * adapter(x, **self.base_for(adapter)).to(y.dtype)
        return y

    def empty_layer(self) -> nn.Linear:
        kind = QuantizedLinear if quantized(self.weight) else nn.Linear
        return kind(self.in_features, self.out_features, self.bias is not None, device="meta")


class LoRALinear(AdaptedLinear):
    """An AdaptedLinear that is made with a LoRA in it."""

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        rank: int,
        alpha: float | None = None,
        dropout: float = 0.0,
        rslora: bool = False,
    ) -> "LoRALinear":
        """Take over `linear`'s weight and bias, freeze them, and add a LoRA that starts as zero.

        See LayerAdapter for the arguments and errors.
        """
        check_plain(linear)
        adapter = LoRA(linear, rank, alpha, dropout, rslora)
        return with_adapter(cls, linear, adapter)


class GraLoRALinear(AdaptedLinear):
    """An AdaptedLinear that is made with a GraLoRA in it."""

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        rank: int,
        k: int | None = None,
        alpha: float | None = None,
        hybrid_rank: int = 0,
        dropout: float = 0.0,
        rslora: bool = False,
    ) -> "GraLoRALinear":
        """Take over `linear`'s weight and bias, freeze them, and add a GraLoRA that starts as zero.

        See GraLoRA for the arguments and errors.
        """
        check_plain(linear)
        adapter = GraLoRA(linear, rank, k, alpha, hybrid_rank, dropout, rslora)
        return with_adapter(cls, linear, adapter)


def with_adapter(cls, linear: nn.Linear, adapter: LayerAdapter, name: str = DEFAULT) -> AdaptedLinear:
    layer = cls(linear)
    layer.add(name, adapter)
    return layer


def check_plain(linear: nn.Module) -> None:
    """Raises ValueError for what is no plain linear layer."""
    if not isinstance(linear, nn.Linear) or isinstance(linear, AdaptedLinear):
        raise ValueError(f"only a plain nn.Linear can be adapted, not {type(linear).__name__}")
