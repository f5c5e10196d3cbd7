"""The contract of an additive adapter: one class per kind, see kinds.py for the table of them.

A layer with an adapter computes F.linear(x, weight + strength * delta(), bias); a convolution the same with
its weight as a matrix, see conv.py.  A new kind is a subclass
that makes its parameters in __init__, names them in LEAVES, and defines low_rank_of() or, where its delta has
no low rank, delta(). Training, merging, strengths, files and exports then work; `factors` adds the fused
kernel, and `part_ranks` T-LoRA.

M is out_features, N is in_features, r the rank.
"""

import math
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from gralora_diffusion.adapters.kernel import Part
from gralora_diffusion.adapters.low_rank import scale_of
from gralora_diffusion.config import AdapterConfig
from gralora_diffusion.options import ConfigError


class WorkingFactors(NamedTuple):
    """(A, B) in the dtype that the layer computes in, and what their gradients are added to, if not .grad."""

    A: torch.Tensor
    B: torch.Tensor
    A_grad: torch.Tensor | None = None
    B_grad: torch.Tensor | None = None
    unswapped: bool = False  # the columns of A have the order of unswapped.py


class LayerAdapter(nn.Module):
    """An adapter of one layer: fp32 parameters, a scale, a strength (1.0) and a switch (`enabled`).

    strength and enabled may be set at any time.  kernel: (kh, kw) of a convolution, whose in_features are its
    channels * kh * kw; None for a linear layer.
    """

    LEAVES: ClassVar[tuple[set[str], ...]] = ()  # the sets of parameter names that a layer may have
    needs_base: ClassVar[bool] = False  # delta(), add_delta() and forward() take base=, the weight
    needs_fp32: ClassVar[bool] = False  # rounding the parameters to half precision would lose its delta
    k = 1
    hybrid_rank = 0

    def __init__(
        self,
        linear: nn.Linear,
        rank: int,
        alpha: float | None = None,
        dropout: float = 0.0,
        rslora: bool = False,
    ):
        """For `linear`, or a convolution's matrix_of(), whose sizes and device are read; it is not changed.

        scale = alpha / rank, or alpha / sqrt(rank) with rslora; alpha defaults to rank.
        Raises ValueError when the rank does not fit the layer, or alpha is not positive.
        """
        super().__init__()
        n, m = linear.in_features, linear.out_features
        if not isinstance(rank, int) or not 1 <= rank <= min(n, m):
            limits = f"for this layer, {n} -> {m}, it must be from 1 to {min(n, m)}"
            raise ConfigError(f"rank is {rank}; {limits}", option="rank")
        alpha = rank if alpha is None else alpha
        if not (math.isfinite(alpha) and alpha > 0):
            raise ConfigError(f"alpha is {alpha}; it must be a positive number", option="alpha")
        self.kernel = getattr(linear, "kernel", None)
        self.in_features = n
        self.out_features = m
        self.rank = rank
        self.alpha = float(alpha)
        self.dropout = dropout
        self.rslora = rslora
        self.scale = scale_of(rank, alpha, rslora)
        self.strength = 1.0
        self.enabled = True
        self.active_ranks = None  # T-LoRA: {ranks of a part: bool [samples or 1, ranks]}, see tlora.py
        self.working: list[WorkingFactors] = []  # a trainer's, in the place of `factors`, while it trains
        self.train(linear.training)

    @classmethod
    def from_config(
        cls, linear: nn.Linear, config: AdapterConfig, rank: int, k: int | None
    ) -> "LayerAdapter":
        """An adapter for `linear` by the config; rank and k are this layer's own."""
        return cls(linear, rank, config.alpha, config.dropout, config.rslora)

    @property
    def factors(self) -> list[tuple[nn.Parameter, nn.Parameter]]:
        """(A, B) of each part, in the kernel's shapes; empty where the kind has no such parts."""
        return []

    @property
    def part_ranks(self) -> tuple[int, ...]:
        """The ranks of each part that T-LoRA masks together."""
        return ()

    @staticmethod
    def low_rank_of(
        factors: dict[str, torch.Tensor], scale: float
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """(down [R, N], up [M, R]) of a layer with these tensors, the scale folded into `up`.

        None where the delta has no such pair.
        """
        return None

    @classmethod
    def pair_rank_of(cls, factors: dict[str, torch.Tensor]) -> int | None:
        """R of low_rank_of(), from the shapes alone; None: there is no such pair."""
        shapes = {name: tensor.detach().to("meta") for name, tensor in factors.items()}
        pair = cls.low_rank_of(shapes, 1.0)
        return None if pair is None else pair[0].shape[0]

    def bias_delta(self, base: torch.Tensor | None = None) -> torch.Tensor | None:
        """What is added to the layer's bias `base` at strength 1, [M]; None where nothing is."""
        return None

    def low_rank(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(down [R, N], up [M, R]), delta = up @ down at strength 1.

        Raises ConfigError where there is no such pair.
        """
        pair = self.low_rank_of(dict(self.named_parameters()), self.scale)
        if pair is None:
            raise ConfigError(f"{type(self).__name__} has no low-rank form")
        return pair

    def delta(self) -> torch.Tensor:
        """What is added to the weight at strength 1, [M, N], differentiable."""
        down, up = self.low_rank()
        return up @ down

    def add_delta(self, weight: torch.Tensor, strength: float = 1.0) -> None:
        """weight [M, N] += strength * delta, in place and in the weight's dtype, without gradients."""
        weight.add_(self.delta().detach().to(weight.dtype), alpha=strength)

    def dropped_out(self, x: torch.Tensor) -> torch.Tensor | None:
        """x after dropout, or None where no dropout acts."""
        return F.dropout(x, self.dropout) if self.training and self.dropout else None

    def parts(self, x: torch.Tensor) -> list[Part]:
        """What the kernel adds to the frozen layer's output; empty where forward() computes it."""
        own = self.dropped_out(x)
        parts = []
        trains = self.working and self.training and torch.is_grad_enabled()
        factors = self.working if trains else [WorkingFactors(*pair) for pair in self.factors]
        for (A, B, *others), ranks in zip(factors, self.part_ranks, strict=True):
            mask = None if self.active_ranks is None else self.active_ranks[ranks]
            parts.append(Part(self.scale * self.strength, A, B, mask, own, *others))
        return parts

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., N] -> delta applied to x, [..., M]; for kinds without `factors`."""
        own = self.dropped_out(x)
        x = x if own is None else own
        return F.linear(x, self.delta().to(x.dtype))

    def extra_repr(self) -> str:
        return f"rank={self.rank}, k={self.k}, hybrid_rank={self.hybrid_rank}, alpha={self.alpha:g}"
