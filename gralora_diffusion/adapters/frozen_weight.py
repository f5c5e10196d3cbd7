"""The numbers of a frozen weight, quantized or not."""

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


def quantized(weight: torch.Tensor) -> bool:
    """Whether a weight is stored in few bits, as a tensor subclass of torchao."""
    return is_traceable_wrapper_subclass(weight)


def numbers(weight: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """The weight [M, N] as it is computed with; a quantized one is dequantized for this product only."""
    if not quantized(weight):
        return weight
    plain = weight.get_original_weight() if hasattr(weight, "get_original_weight") else weight.dequantize()
    return plain.to(dtype or weight.dtype)
