"""A frozen linear layer with its adapters.

M is out_features, N is in_features, r the rank, k GraLoRA's blocks per side.
"""

from urllib.parse import unquote

import torch
import torch.nn.functional as F
from torch import nn

from gralora_diffusion.adapters.gralora import GraLoRA
from gralora_diffusion.adapters.kernel import adapted_linear, quantized
from gralora_diffusion.adapters.layer_adapter import LayerAdapter
from gralora_diffusion.adapters.lora import LoRA
from gralora_diffusion.adapters.low_rank import joined
from gralora_diffusion.adapters.quantization import QuantizedLinear

DEFAULT = "default"  # the name of an adapter that was given none


class AdaptedLinear(nn.Linear):
    """forward(x) == F.linear(x, weight + delta(), bias); delta() is the sum over the enabled adapters.

    weight and bias are those of the plain layer, frozen, under the same names: the base's state-dict keys do
    not change. adapters: the LayerAdapters by key_of(name), each with a strength and a switch of its own.
    While T-LoRA (arXiv 2507.05964) masks ranks, forward() uses the active ranks of each sample; delta() is of
    all ranks.
    """

    def __init__(self, linear: nn.Linear):
        check_plain(linear)
        nn.Module.__init__(self)
        self.in_features = linear.in_features
        self.out_features = linear.out_features
        self.weight = linear.weight.requires_grad_(False)
        self.bias = linear.bias
        if self.bias is not None:
            self.bias.requires_grad_(False)
        self.adapters = nn.ModuleDict()
        self.merged_strengths = None
        self.shared = None  # a trainer's SharedInput, which computes several layers of one input at once
        self.register_buffer(
            "unmerged_weight", None, persistent=False
        )  # the base's own, while adapters are merged
        self.train(linear.training)

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
        y = adapted_linear(x, weight, self.bias, parts)
        for adapter in unfused:
            y = y + adapter.strength * adapter(x).to(y.dtype)
        return y

    @torch.no_grad()
    def delta(self) -> torch.Tensor:
        """What the enabled adapters add to the weight at their strengths: [M, N], in their dtype."""
        dtypes = [p.dtype for p in self.adapters.parameters()]
        dtype = dtypes[0] if dtypes else torch.float32
        delta = torch.zeros(self.out_features, self.in_features, dtype=dtype, device=self.weight.device)
        for adapter in self.enabled_adapters():
            adapter.add_delta(delta, adapter.strength)
        return delta

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
        self.unmerged_weight = self.weight.data
        self.merged_strengths = self.strengths
        wide = torch.promote_types(self.weight.dtype, torch.float32)
        merged = self.weight.detach().to(wide, copy=True)
        for adapter in self.adapters.values():
            if adapter.enabled:
                adapter.add_delta(merged, adapter.strength)
        self.weight.data = merged.to(self.weight.dtype)

    def unmerge(self) -> None:
        if self.merged:
            self.weight.data = self.unmerged_weight  # a buffer: it was moved and cast together with the layer
            self.unmerged_weight = None

    def to_linear(self) -> nn.Linear:
        """The plain layer again, with the base's own weight, or merged at the present strengths."""
        if self.merged:
            self.merge()
        kind = QuantizedLinear if quantized(self.weight) else nn.Linear
        linear = kind(self.in_features, self.out_features, self.bias is not None, device="meta")
        linear.weight = self.weight
        linear.bias = self.bias
        return linear.train(self.training)


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
        raise ValueError(f"only a plain nn.Linear can be adapted, and this is a {type(linear).__name__}")


def key_of(name: str) -> str:
    """An adapter's name as a key of nn.ModuleDict.

    Dots, and names of nn.ModuleDict's own attributes, are percent-encoded.
    """
    key = name.replace("%", "%25").replace(".", "%2E")
    reserved = key == "training" or hasattr(nn.ModuleDict, key)
    return f"%{ord(key[0]):02X}{key[1:]}" if reserved else key
