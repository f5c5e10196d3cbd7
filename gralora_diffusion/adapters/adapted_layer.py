"""What adapted layers have in common: the frozen weight as a matrix, and the adapters that are added to it.

M is out_features, N is in_features, of the weight as a matrix; of a convolution N counts the kernel.
"""

from urllib.parse import unquote

import torch
from torch import nn

from gralora_diffusion.adapters.frozen_weight import quantized
from gralora_diffusion.adapters.layer_adapter import LayerAdapter
from gralora_diffusion.adapters.low_rank import joined

DEFAULT = "default"  # the name of an adapter that was given none


class AdaptedLayer(nn.Module):
    """A frozen layer with adapters, the base of AdaptedLinear and AdaptedConv2d.

    weight and bias are those of the plain layer, frozen, under the same names: the base's state-dict keys do
    not change. adapters: the LayerAdapters by key_of(name), each with a strength and a switch of its own.
    While T-LoRA (arXiv 2507.05964) masks ranks, forward() uses the active ranks of each sample; delta() is of
    all ranks.
    """

    in_features: int
    out_features: int

    def take_over(self, layer: nn.Module) -> None:
        """Freeze the plain layer's weight and bias, and make them this layer's own; no adapters yet."""
        self.weight = layer.weight.requires_grad_(False)
        self.bias = layer.bias
        if self.bias is not None:
            self.bias.requires_grad_(False)
        self.adapters = nn.ModuleDict()
        self.merged_strengths = None
        self.register_buffer("unmerged_weight", None, persistent=False)  # the base's, while merged
        self.register_buffer("unmerged_bias", None, persistent=False)
        self.has_merged_bias = False
        self.train(layer.training)

    def to_plain(self) -> nn.Module:
        """The plain layer again, with the base's own weight, or merged at the present strengths."""
        if self.merged:
            self.merge()
        layer = self.empty_layer()
        layer.weight = self.weight
        layer.bias = self.bias
        return layer.train(self.training)

    def empty_layer(self) -> nn.Module:
        """A plain layer of the same sizes on the meta device."""
        raise NotImplementedError

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """(M, N) of the weight as a matrix."""
        return self.out_features, self.in_features

    def add(self, name: str, adapter: LayerAdapter) -> None:
        self.adapters[key_of(name)] = adapter

    def remove(self, name: str) -> None:
        """Take an adapter out; a merged weight is merged again without it."""
        merged = self.merged
        self.unmerge()
        del self.adapters[key_of(name)]
        if merged and self.adapters:
            self.merge()

    def get(self, name: str) -> LayerAdapter | None:
        """The adapter of this name, or None where the layer has none."""
        key = key_of(name)
        return dict(self.adapters.items()).get(key)

    @property
    def names(self) -> list[str]:
        return [unquote(key) for key in self.adapters]

    @property
    def adapter(self) -> LayerAdapter:
        """The one adapter.  Raises ValueError where there are several."""
        if len(self.adapters) != 1:
            raise ValueError(
                f"the layer has {len(self.adapters)} adapters: {', '.join(self.names) or 'none'}"
            )
        return next(iter(self.adapters.values()))

    @property
    def strength(self) -> float:
        """Of the one adapter."""
        return self.adapter.strength

    @strength.setter
    def strength(self, value: float) -> None:
        self.adapter.strength = value

    @property
    def enabled(self) -> bool:
        """Whether the one adapter is on."""
        return self.adapter.enabled

    @enabled.setter
    def enabled(self, value: bool) -> None:
        self.adapter.enabled = value

    def enabled_adapters(self) -> list[LayerAdapter]:
        """Those that change the output now."""
        return [a for a in self.adapters.values() if a.enabled and a.strength != 0]

    @torch.no_grad()
    def delta(self) -> torch.Tensor:
        """What the enabled adapters add to the weight at their strengths: [M, N], in their dtype."""
        dtypes = [p.dtype for p in self.adapters.parameters()]
        dtype = dtypes[0] if dtypes else torch.float32
        delta = torch.zeros(self.matrix_shape, dtype=dtype, device=self.weight.device)
        for adapter in self.enabled_adapters():
            adapter.add_delta(delta, adapter.strength, **self.base_for(adapter))
        return delta

    def base_for(self, adapter: LayerAdapter) -> dict:
        """The argument base= of an adapter that needs the base's own weight."""
        weight = self.unmerged_weight if self.merged else self.weight
        return dict(base=weight.detach()) if adapter.needs_base else {}

    def changed_bias(self) -> torch.Tensor | None:
        """The base's bias and what the enabled adapters add to it; None where there is neither."""
        bias = base = self.unmerged_bias if self.has_merged_bias else self.bias
        for adapter in self.enabled_adapters():
            change = adapter.bias_delta(base)
            if change is not None:
                change = (adapter.strength * change).to(self.weight.device)
                bias = (change if bias is None else bias.float() + change).to(self.weight.dtype)
        return bias

    @torch.no_grad()
    def low_rank(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(down [R, N], up [M, R]) with delta() = up @ down.

        Raises ConfigError where an adapter has no such pair.
        """
        pairs = []
        for adapter in self.enabled_adapters():
            down, up = adapter.low_rank()
            pairs.append((down, up * adapter.strength))
        if not pairs:
            return torch.zeros(0, self.in_features), torch.zeros(self.out_features, 0)
        return joined(pairs)

    @property
    def merged(self) -> bool:
        return self.unmerged_weight is not None

    @property
    def strengths(self) -> list[float]:
        """The strength of each adapter, 0 for those that are switched off."""
        return [adapter.strength if adapter.enabled else 0.0 for adapter in self.adapters.values()]

    @torch.no_grad()
    def merge(self) -> None:
        """Add the enabled adapters to the weight: no cost at inference.  unmerge() restores the weight.

        T-LoRA's ranks all act then, at every timestep.  Raises ValueError where the weight is quantized.
        """
        if quantized(self.weight):
            raise ValueError(
                "the base is quantized, and an adapter cannot be merged into it: load it in bf16"
            )
        if self.merged and self.strengths == self.merged_strengths:
            return
        self.unmerge()
        bias = self.changed_bias()
        if bias is not self.bias:
            self.has_merged_bias = True
            self.unmerged_bias = None if self.bias is None else self.bias.data
            self.bias = nn.Parameter(bias, requires_grad=False)
        self.unmerged_weight = self.weight.data
        self.merged_strengths = self.strengths
        wide = torch.promote_types(self.weight.dtype, torch.float32)
        merged = self.weight.detach().to(wide, copy=True, memory_format=torch.contiguous_format)
        for adapter in self.adapters.values():
            if adapter.enabled:
                base = self.base_for(adapter)
                adapter.add_delta(merged.view(self.matrix_shape), adapter.strength, **base)
        self.weight.data = merged.to(self.weight.dtype)

    def unmerge(self) -> None:
        if self.merged:
            self.weight.data = self.unmerged_weight  # a buffer: it was moved and cast together with the layer
            self.unmerged_weight = None
        if self.has_merged_bias:
            base = self.unmerged_bias
            self.bias = None if base is None else nn.Parameter(base, requires_grad=False)
            self.unmerged_bias, self.has_merged_bias = None, False


def key_of(name: str) -> str:
    """An adapter's name as a key of nn.ModuleDict.

    Dots, and names of nn.ModuleDict's own attributes, are percent-encoded.
    """
    key = name.replace("%", "%25").replace(".", "%2E")
    reserved = key == "training" or hasattr(nn.ModuleDict, key)
    return f"%{ord(key[0]):02X}{key[1:]}" if reserved else key
