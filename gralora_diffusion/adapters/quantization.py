"""A frozen base in 8 or 4 bits (torchao); a weight is dequantized for as long as one product takes."""

import importlib.util
import math

import torch
from torch import nn

from gralora_diffusion.adapters.kernel import adapted_linear
from gralora_diffusion.config import QUANTIZED
from gralora_diffusion.options import ConfigError

# bytes of a weight; int8 has a scale for each row, NF4 (arXiv 2305.14314) for each block of 64
BYTES = dict(zip(QUANTIZED, (1.0, 0.5 + 1 / 64), strict=True))


class QuantizedLinear(nn.Linear):
    """A frozen linear layer with a quantized weight: forward(x) == F.linear(x, numbers(weight), bias)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return adapted_linear(x, self.weight, self.bias, [])


def check_quantization(kind: str | None) -> None:
    if kind and importlib.util.find_spec("torchao") is None:
        need = "needs the package torchao: pip install 'gralora-diffusion[quantize]', or drop the option"
        raise ConfigError(f"--base_model_precision {kind} {need}", option="base_model_precision")


@torch.no_grad()
def quantize(model: nn.Module, kind: str) -> None:
    """Quantize the weight of every linear layer of a frozen model in place.

    Adapters may be injected afterward.
    """
    from torchao.quantization import Int8WeightOnlyConfig, quantize_, to_nf4

    for layer in [m for m in model.modules() if type(m) is nn.Linear and m.weight.numel() % 64 == 0]:
        if kind == "int8-torchao":
            quantize_(layer, Int8WeightOnlyConfig(version=2))
        else:
            bits = to_nf4(layer.weight.detach(), 64, math.gcd(layer.weight.numel() // 64, 256))
            layer.weight = nn.Parameter(bits, requires_grad=False)
        layer.__class__ = QuantizedLinear  # the same layer, with another forward
