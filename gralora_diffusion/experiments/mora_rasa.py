"""MoRA and RaSA by their papers' formulas, which PEFT does not have."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from gralora_diffusion.adapters.inject import replace
from gralora_diffusion.experiments.adapted import Adapted, Spec, trainable
from gralora_diffusion.experiments.sizes import mora_side, pooled


def build_mora(model: nn.Module, layers: dict[str, nn.Linear], spec: Spec, batches) -> Adapted:
    return put_in(model, spec, {path: MoRALinear(linear, spec.size) for path, linear in layers.items()})


def build_rasa(model: nn.Module, layers: dict[str, nn.Linear], spec: Spec, batches) -> Adapted:
    shapes = [tuple(linear.weight.shape) for linear in layers.values()]
    pools, added = {}, {}
    for path, linear in layers.items():
        number = shapes.count(tuple(linear.weight.shape))
        added[path] = RaSALinear(linear, spec.size, pools, number)
    return put_in(model, spec, added)


def put_in(model: nn.Module, spec: Spec, added: dict[str, "AddedLinear"]) -> Adapted:
    for path, layer in added.items():
        replace(model, path, layer)

    def merge() -> None:
        for path in added:
            replace(model, path, model.get_submodule(path).merged())

    return Adapted(spec, trainable(model), merge)


class AddedLinear(nn.Module):
    """A frozen linear layer and added(x), which is linear in x and starts as zero."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.base = linear
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.new = dict(device=linear.weight.device, dtype=torch.float32)

    @property
    def weight(self) -> torch.Tensor:
        return self.base.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.base(x)
        inputs = x if torch.is_autocast_enabled(x.device.type) else x.float()
        return out + self.added(inputs).to(out.dtype)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """The plain layer with the delta, added(I), in its weight."""
        delta = self.added(torch.eye(self.in_features, **self.new)).T
        self.base.weight.data = (self.base.weight + delta).to(self.base.weight.dtype)
        return self.base


class MoRALinear(AddedLinear):
    """MoRA (arXiv 2405.12130, eq. 6 and section 4.2, rotation): one square matrix [s, s].

    s = floor(sqrt((M + N) r)), made even.  The input is cut into pieces of s, the last filled up from the
    start; piece i is turned by the rotary embedding of position i, so that one matrix serves all pieces; the
    output is cut, or repeated, to M.
    """

    def __init__(self, linear: nn.Linear, rank: int):
        super().__init__(linear)
        self.side = mora_side(rank, linear.out_features, linear.in_features)
        self.square = nn.Parameter(torch.zeros(self.side, self.side, **self.new))
        self.pieces = math.ceil(linear.in_features / self.side)
        frequencies = 10000.0 ** (-torch.arange(0, self.side, 2, **self.new) / self.side)
        positions = torch.arange(self.pieces, **self.new)
        angles = torch.outer(positions, frequencies).repeat(1, 2)  # [pieces, s]
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def added(self, x: torch.Tensor) -> torch.Tensor:
        width = self.pieces * self.side
        repeats = math.ceil(width / self.in_features)
        x = torch.cat([x] * repeats, -1)[..., :width].unflatten(-1, (self.pieces, self.side))
        first, second = x.chunk(2, -1)
        turned = x * self.cos + torch.cat([-second, first], -1) * self.sin
        out = F.linear(turned, self.square).flatten(-2)
        repeats = math.ceil(self.out_features / out.shape[-1])
        return torch.cat([out] * repeats, -1)[..., : self.out_features]


class RaSALinear(AddedLinear):
    """RaSA (ICLR 2025): of r ranks, p = max(1, r/8) go to a pool shared by the L layers of one shape.

    delta = [B | B_pool] diag(d) [A ; A_pool], A [r - p, N], A_pool [p L, N]; A Kaiming-uniform, B zero, d
    one, scale 1.  pools: {(M, N): (A_pool, B_pool)}, filled by the first layer of each shape.
    """

    def __init__(self, linear: nn.Linear, rank: int, pools: dict, layers: int):
        super().__init__(linear)
        m, n = linear.weight.shape
        p = pooled(rank)
        if (m, n) not in pools:
            pools[m, n] = self.kaiming(p * layers), nn.Parameter(torch.zeros(m, p * layers, **self.new))
        self.pool_A, self.pool_B = pools[m, n]
        self.rasa_A = self.kaiming(rank - p)
        self.rasa_B = nn.Parameter(torch.zeros(m, rank - p, **self.new))
        self.rasa_d = nn.Parameter(torch.ones(rank - p + p * layers, **self.new))

    def kaiming(self, rank: int) -> nn.Parameter:
        empty = torch.empty(rank, self.in_features, **self.new)
        return nn.Parameter(nn.init.kaiming_uniform_(empty, a=math.sqrt(5)))

    def added(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.cat([F.linear(x, self.rasa_A), F.linear(x, self.pool_A)], -1) * self.rasa_d
        own, shared = h.split([self.rasa_A.shape[0], self.pool_A.shape[0]], -1)
        return F.linear(own, self.rasa_B) + F.linear(shared, self.pool_B)
