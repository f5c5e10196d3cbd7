"""Ortho-LoRA of T-LoRA's paper (arXiv 2507.05964, eq. 5 and 6): a LoRA whose factors both start orthogonal.

delta = scale * (B diag(S) A - B_0 diag(S_0) A_0), where A_0, S_0, B_0 are frozen singular triplets. A, S and
B start there, so delta starts at zero. T-LoRA's mask acts on the ranks of both products. The paper has no
scale.
"""

from typing import ClassVar

import torch
from torch import nn

from gralora_diffusion.adapters.kernel import Part
from gralora_diffusion.adapters.layer_adapter import LayerAdapter
from gralora_diffusion.adapters.low_rank import joined

TRAINED = ("ortho_A", "ortho_S", "ortho_B")
START = ("start_A", "start_S", "start_B")  # frozen


class OrthoLoRA(LayerAdapter):
    """ortho_A [r, N], ortho_S [r], ortho_B [M, r], and start_A, start_S, start_B of the same shapes.

    All are zero until put() sets them, so that a file can be loaded without an SVD.
    """

    LEAVES: ClassVar = ({*TRAINED, *START},)
    needs_fp32 = True  # delta is the small difference of two products

    def __init__(
        self,
        linear: nn.Linear,
        rank: int,
        alpha: float | None = None,
        dropout: float = 0.0,
        rslora: bool = False,
    ):
        super().__init__(linear, rank, alpha, dropout, rslora)
        shapes = (rank, self.in_features), (rank,), (self.out_features, rank)
        like = dict(device=linear.weight.device, dtype=torch.float32)
        for names, trains in ((TRAINED, True), (START, False)):
            for name, shape in zip(names, shapes, strict=True):
                setattr(self, name, nn.Parameter(torch.zeros(shape, **like), requires_grad=trains))

    @torch.no_grad()
    def put(self, A: torch.Tensor, S: torch.Tensor, B: torch.Tensor) -> None:
        """Start from these triplets: A [r, N], S [r], B [M, r]."""
        for names in (TRAINED, START):
            for name, value in zip(names, (A, S, B), strict=True):
                getattr(self, name).copy_(value)

    @property
    def part_ranks(self) -> tuple[int, ...]:
        return (self.rank,)

    @staticmethod
    def low_rank_of(factors: dict[str, torch.Tensor], scale: float) -> tuple[torch.Tensor, torch.Tensor]:
        """The pair of rank 2r that is the difference of the two products, exactly."""
        f = factors
        trained = f["ortho_A"], f["ortho_B"] * f["ortho_S"] * scale
        start = f["start_A"], f["start_B"] * f["start_S"] * -scale
        return joined([trained, start])

    def parts(self, x: torch.Tensor) -> list[Part]:
        own = self.dropped_out(x)
        mask = None if self.active_ranks is None else self.active_ranks[self.rank]
        scale = self.scale * self.strength
        return [
            Part(scale, self.ortho_A, self.ortho_B * self.ortho_S, mask, own),
            Part(-scale, self.start_A, self.start_B * self.start_S, mask, own),
        ]
