"""A frozen 2-D convolution with its adapters.

The weight [M, C, kh, kw] is the matrix [M, N] with N = C*kh*kw, channels outermost: a slice of C/k channels
is a slice of N/k columns, so that an adapter of the matrix is one of the convolution. With P output pixels of
T images, unfolding x to the rows [T*P, N] would make the layer a linear one; the products below need no such
copy, which is kh*kw times as large as x. For one GraLoRA of scale s, A [k, N/k, r], B [k, r, M/k]:

    p = x * A as k groups, from C/k channels to r each     [T, k(n) * k(j) * r/k, h, w], with x's stride
    h = p with the groups swapped                          [T, k(j) * k(n) * r/k, h, w]
    y += s h * B as k groups of 1 x 1, from r channels to M/k each

A plain LoRA (A [r, N], B [M, r]) has one group and no swap: LoCon (https://github.com/KohakuBlueleaf/LyCORIS).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from gralora_diffusion.adapters.adapted_layer import AdaptedLayer
from gralora_diffusion.adapters.kernel import Part, dtype_of_products
from gralora_diffusion.adapters.layer_adapter import LayerAdapter
from gralora_diffusion.options import ConfigError


@dataclass(frozen=True)
class ConvMatrix:
    """A convolution as the linear layer that its weight as a matrix makes; adapters are made for it.

    in_features: C*kh*kw; kernel: (kh, kw); weight: [M, C*kh*kw], the convolution's own.
    """

    in_features: int
    out_features: int
    kernel: tuple[int, int]
    weight: torch.Tensor
    bias: torch.Tensor | None
    training: bool


def matrix_of(layer: nn.Module) -> nn.Module | ConvMatrix:
    """A convolution as a ConvMatrix; any other layer as it is.

    Raises ValueError for a convolution with groups, or with a padding that is not of zeros.
    """
    if not isinstance(layer, nn.Conv2d):
        return layer
    if layer.groups != 1:
        problem = f"a convolution with {layer.groups} groups cannot be adapted"
        raise ConfigError(f"{problem}: leave it out of targets", option="targets")
    if layer.padding_mode != "zeros":
        problem = f"a convolution with {layer.padding_mode!r} padding cannot be adapted"
        raise ConfigError(f"{problem}: leave it out of targets", option="targets")
    kernel = tuple(layer.kernel_size)
    columns = layer.in_channels * kernel[0] * kernel[1]
    weight = layer.weight.detach().flatten(1)
    return ConvMatrix(columns, layer.out_channels, kernel, weight, layer.bias, layer.training)


class AdaptedConv2d(AdaptedLayer, nn.Conv2d):
    """forward(x) == F.conv2d(x, weight + delta() in its shape, bias, stride, padding, dilation).

    delta() [M, C*kh*kw] is the sum over the enabled adapters, which have the weight as a matrix.
    """

    def __init__(self, conv: nn.Conv2d):
        """Take over a plain convolution.  Raises ValueError for any other, and as matrix_of() does."""
        if not isinstance(conv, nn.Conv2d) or isinstance(conv, AdaptedLayer):
            problem = f"only a plain nn.Conv2d can be adapted, not {type(conv).__name__}"
            raise ValueError(problem)
        matrix = matrix_of(conv)
        nn.Conv2d.__init__(self, *arguments_of(conv), bias=conv.bias is not None, device="meta")
        self.in_features = matrix.in_features
        self.out_features = matrix.out_features
        self.take_over(conv)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [T, C, H, W] -> [T, M, h, w], as those of the plain convolution."""
        if self.merged and self.strengths == self.merged_strengths:
            return self._conv_forward(x, self.weight, self.bias)
        dtype = dtype_of_products(x)
        x = x.to(dtype)
        weight = self.unmerged_weight if self.merged else self.weight
        y = self._conv_forward(x, weight, self.changed_bias())
        for adapter in self.enabled_adapters():
            parts = adapter.parts(x)
            for part in parts:
                y.add_(self.of_part(x, part, dtype))
            if not parts:
                y.add_(self.of_delta(x, adapter, dtype))
        return y

    def of_part(self, x: torch.Tensor, part: Part, dtype: torch.dtype) -> torch.Tensor:
        """What a part adds to the output, see the top of this file."""
        x = x if part.own is None else part.own
        A = with_sink(part.A, part.A_grad, dtype)
        B = with_sink(part.B, part.B_grad, dtype)
        B = B if part.scale == 1 else part.scale * B
        if A.ndim == 2:
            h = self.convolved(x, A)
            if part.mask is not None:
                h = h * part.mask[:, :, None, None]
            return F.conv2d(h, B[:, :, None, None])
        k, _, r = A.shape
        p = self.convolved(x, A.transpose(1, 2).flatten(0, 1), k)
        h = p.unflatten(1, (k, k, r // k)).transpose(1, 2)
        if part.mask is not None:
            h = h * part.mask[:, None, None, :, None, None]
        return F.conv2d(h.flatten(1, 3), B.transpose(1, 2).flatten(0, 1)[:, :, None, None], groups=k)

    def of_delta(self, x: torch.Tensor, adapter: LayerAdapter, dtype: torch.dtype) -> torch.Tensor:
        """What an adapter without parts adds to the output."""
        own = adapter.dropped_out(x)
        delta = adapter.delta(**self.base_for(adapter)).reshape(self.matrix_shape)
        return self.convolved(x if own is None else own, (adapter.strength * delta).to(dtype))

    def convolved(self, x: torch.Tensor, matrix: torch.Tensor, groups: int = 1) -> torch.Tensor:
        """x [T, C, H, W] through a matrix [M', C/groups*kh*kw] with this layer's kernel and stride."""
        weight = matrix.unflatten(1, (-1, *self.kernel_size))
        return F.conv2d(x, weight, None, self.stride, self.padding, self.dilation, groups)

    def empty_layer(self) -> nn.Conv2d:
        return nn.Conv2d(*arguments_of(self), bias=self.bias is not None, device="meta")


def arguments_of(conv: nn.Conv2d) -> tuple:
    """What nn.Conv2d takes to make another of the same shapes."""
    channels = (conv.in_channels, conv.out_channels)
    return (*channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation)


def with_sink(factor: torch.Tensor, total: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    """The factor in this dtype; where it has that dtype, its gradient is added to `total` if there is one."""
    if total is None or factor.dtype != dtype:
        return factor.to(dtype)
    return AddGradientTo.apply(factor, total)


class AddGradientTo(torch.autograd.Function):
    """The same tensor, whose gradient is added to a trainer's buffer: autograd gets none."""

    @staticmethod
    def forward(ctx, factor, total):
        ctx.total = total
        return factor.view_as(factor)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        ctx.total.add_(grad)
        return None, None
