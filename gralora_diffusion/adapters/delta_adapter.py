"""Adapters of other tools' kinds in a model's layer, beside our own: see deltas.py for what they are."""

import torch
import torch.nn.functional as F
from torch import nn

from gralora_diffusion.adapters.adapted_layer import AdaptedLayer
from gralora_diffusion.adapters.deltas import Delta
from gralora_diffusion.adapters.layer_adapter import LayerAdapter
from gralora_diffusion.options import ConfigError


class DeltaAdapter(LayerAdapter):
    """The changes of a layer's weight and bias; computed at every use, so merge() is much faster.

    It has no parameters and cannot be trained.
    """

    needs_base = True

    def __init__(self, layer: nn.Module, weight: Delta | None, bias: Delta | None):
        """Raises ValueError for changes that do not fit the layer's weight and bias."""
        nn.Module.__init__(self)
        self.change, self.bias_change = weight, bias
        self.strength, self.enabled, self.active_ranks = 1.0, True, None
        self.working, self.dropout = [], 0.0
        if weight is not None:
            weight.check_fits(tuple(layer.weight.shape))
        if bias is not None:
            if bias.needs_base and layer.bias is None:
                raise ValueError(f"{bias.NAME} changes a bias, which the base's layer does not have")
            bias.check_fits(tuple(layer.weight.shape[:1]))

    def _apply(self, fn, recurse=True):
        device = fn(torch.empty(0)).device
        for name in ("change", "bias_change"):
            delta = getattr(self, name)
            setattr(self, name, None if delta is None else delta.to(device))
        return super()._apply(fn, recurse)

    def low_rank(self) -> tuple[torch.Tensor, torch.Tensor]:
        pair = None if self.change is None else self.change.pair()
        if pair is None or self.bias_change is not None:
            raise ConfigError("an adapter of another tool's kind has no low-rank form")
        return pair

    def delta(self, base: torch.Tensor | None = None) -> torch.Tensor:
        """What is added to the weight `base` at strength 1, in its shape and in fp32, or fp64."""
        if self.change is None:
            return torch.zeros(base.shape, device=base.device)
        return self.change.applied(base)

    def add_delta(self, weight, strength=1.0, base=None):
        weight.add_(self.delta(base).reshape(weight.shape).to(weight.dtype), alpha=strength)

    def bias_delta(self, base=None) -> torch.Tensor | None:
        """What is added to the bias at strength 1, [M], or None."""
        return None if self.bias_change is None else self.bias_change.delta(base)

    def forward(self, x, base=None):
        """What the weight's change adds; the bias's is part of the layer's changed_bias()."""
        return F.linear(x, self.delta(base).to(x.dtype))

    def extra_repr(self) -> str:
        changes = [delta.NAME for delta in (self.change, self.bias_change) if delta is not None]
        return ", ".join(changes)


class AdaptedWhole(AdaptedLayer):
    """A normalization or an embedding, which computes with its changed weight and bias as a whole.

    Adapters of them are, for instance, LyCORIS's w_norm and b_norm, and PEFT's lora_embedding_A and _B.
    """

    KINDS = (nn.LayerNorm, nn.GroupNorm, nn.Embedding)

    def __init__(self, layer: nn.Module):
        """Take over one of KINDS with a weight.  Raises ValueError for any other."""
        if not isinstance(layer, self.KINDS) or layer.weight is None:
            raise ValueError(f"a layer of the type {type(layer).__name__} cannot be adapted")
        nn.Module.__init__(self)
        self.in_features = self.out_features = layer.weight.shape[0]
        self.take_over(layer)
        self.plain = [layer]  # in a list, so that its parameters are not counted twice

    @property
    def matrix_shape(self):
        return tuple(self.weight.shape)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x as the plain layer takes it."""
        weight, bias = self.weight, self.bias
        if not self.merged or self.strengths != self.merged_strengths:
            base = self.unmerged_weight if self.merged else self.weight
            weight = self.changed(base)
            bias = self.changed_bias()
        changed = dict(weight=weight) if bias is None else dict(weight=weight, bias=bias)
        return torch.func.functional_call(self.plain[0], changed, (x,))

    def changed(self, base: torch.Tensor) -> torch.Tensor:
        wide = base.detach().to(torch.promote_types(base.dtype, torch.float32), copy=True)
        for adapter in self.enabled_adapters():
            adapter.add_delta(wide, adapter.strength, base=base)
        return wide.to(base.dtype)

    def empty_layer(self) -> nn.Module:
        return self.plain[0]
