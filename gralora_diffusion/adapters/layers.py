"""The adapted layers.  Each is an nn.Linear that adopts a frozen one and adds a trainable delta:

    forward(x) == F.linear(x, weight + strength * delta(), bias),    delta() == up @ down,    (down, up) = low_rank()

More adapters may stand `beside` the one that adopted the weight, each with a name, a strength and a switch of its own.
While `active` is set (T-LoRA, arXiv 2507.05964) only a part of the ranks acts, by the sample's timestep; low_rank() is of all ranks.

M is out_features, N is in_features, T the number of tokens, r the rank, k GraLoRA's blocks per side.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from gralora_diffusion.adapters.kernel import Part, adapted_linear, quantized
from gralora_diffusion.adapters.quantization import QuantizedLinear


class LoRALinear(nn.Linear):
    """LoRA (arXiv 2106.09685): delta = scale * lora_B @ lora_A with lora_A [r, N] Kaiming-uniform and lora_B [M, r] zero.

    `strength` (1.0) and `enabled` (True) may be set at any time; the adapter's parameters are fp32 whatever the base is.
    """

    k = 1
    hybrid_rank = 0
    active = (
        None  # T-LoRA: {ranks of a part: which of them act, bool [samples or 1, ranks]}, see active_ranks()
    )

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        rank: int,
        alpha: float | None = None,
        dropout: float = 0.0,
        rslora: bool = False,
    ) -> "LoRALinear":
        """Adopt `linear`'s own weight and bias, freeze them, and add an adapter that starts as zero.

        scale = alpha / rank, or alpha / sqrt(rank) with rslora (arXiv 2312.03732); alpha defaults to rank.
        Raises ValueError when the rank does not fit the layer.
        """
        self = cls._adopt(linear, rank, alpha, dropout, rslora)
        self._add_lora(rank)
        return self

    @classmethod
    def _adopt(cls, linear, rank, alpha, dropout, rslora):
        if not isinstance(linear, nn.Linear) or isinstance(linear, LoRALinear):
            raise ValueError(f"only a plain nn.Linear can be adapted, and this is a {type(linear).__name__}")
        widest = min(linear.in_features, linear.out_features)
        if not isinstance(rank, int) or not 1 <= rank <= widest:
            raise ValueError(
                f"rank is {rank}; for this layer, {linear.in_features} -> {linear.out_features}, it must be from 1 to {widest}"
            )
        alpha = rank if alpha is None else alpha
        if not (math.isfinite(alpha) and alpha > 0):
            raise ValueError(f"alpha is {alpha}; it must be a positive number")
        self = cls.__new__(cls)
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight.requires_grad_(False), linear.bias
        if self.bias is not None:
            self.bias.requires_grad_(False)
        self.rank, self.alpha, self.dropout, self.rslora = rank, float(alpha), dropout, rslora
        self.scale = scale_of(rank, alpha, rslora)
        self.name, self.strength, self.enabled, self.merged_state = "default", 1.0, True, None
        self.register_buffer(
            "unmerged_weight", None, persistent=False
        )  # the base's own, while adapters are merged
        self.beside = nn.ModuleList()  # adapted layers without a weight
        return self.train(linear.training)

    def _add_lora(self, rank: int) -> None:
        like = dict(device=self.weight.device, dtype=torch.float32)
        self.lora_A = nn.Parameter(torch.empty(rank, self.in_features, **like))
        self.lora_B = nn.Parameter(torch.zeros(self.out_features, rank, **like))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., N] -> [..., M]"""
        if self.unmerged_weight is not None and self.state == self.merged_state:
            return F.linear(x, self.weight, self.bias)
        weight = self.weight if self.unmerged_weight is None else self.unmerged_weight
        return adapted_linear(
            x,
            weight,
            self.bias,
            [p for layer in self.stack if layer.enabled and layer.strength != 0 for p in layer.parts(x)],
        )

    def parts(self, x: torch.Tensor) -> list[Part]:
        """What adapted_linear() adds to the frozen layer's output: strength * delta applied to x."""
        own = F.dropout(x, self.dropout) if self.training and self.dropout else None
        masks = (
            [None] * len(self.part_ranks)
            if self.active is None
            else [self.active[ranks] for ranks in self.part_ranks]
        )
        return [
            Part(self.scale * self.strength, A, B, mask, own)
            for (A, B), mask in zip(self.factors, masks, strict=True)
        ]

    @property
    def factors(self) -> list[tuple[nn.Parameter, nn.Parameter]]:
        """(A, B) of each part: GraLoRA's blocks, and the plain LoRA."""
        return [(self.lora_A, self.lora_B)]

    @property
    def part_ranks(self) -> tuple[int, ...]:
        """How many ranks each part has that T-LoRA masks alike: a group of GraLoRA's r/k, and the plain LoRA."""
        return (self.lora_A.shape[0],)

    def low_rank(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(down [R, N], up [M, R]): the plain LoRA that this layer is, with the scale folded into `up`, strength not included."""
        return low_rank({name: p.detach() for name, p in self.adapter_parameters.items()}, self.scale)

    def delta(self) -> torch.Tensor:
        """What is added to the weight at strength 1: [M, N], in the adapter's dtype."""
        delta = self.factors[0][0].detach().new_zeros(self.out_features, self.in_features)
        self.add_delta(delta)
        return delta

    def add_delta(self, weight: torch.Tensor, strength: float = 1.0) -> None:
        """weight [M, N] += strength * delta, in place and in the weight's dtype."""
        weight.addmm_(
            self.lora_B.detach().to(weight.dtype),
            self.lora_A.detach().to(weight.dtype),
            alpha=strength * self.scale,
        )

    def merge(self) -> None:
        """Bake strength * delta of all that is enabled into the weight: no cost at inference; unmerge() gives the old weight back.

        T-LoRA's ranks all act then, at every timestep.  Raises ValueError where the weight is in few bits, which would lose the delta.
        """
        if quantized(self.weight):
            raise ValueError(
                "the base is quantised, and an adapter cannot be merged into it: load the base in bf16"
            )
        if self.unmerged_weight is None:
            self.unmerged_weight, self.merged_state = self.weight.data, self.state
            wide = torch.promote_types(self.weight.dtype, torch.float32)
            merged = self.weight.detach().to(wide, copy=True)
            for layer in self.stack:
                if layer.enabled:
                    layer.add_delta(merged, layer.strength)
            self.weight.data = merged.to(self.weight.dtype)

    def unmerge(self) -> None:
        if self.unmerged_weight is not None:
            self.weight.data, self.unmerged_weight = (
                self.unmerged_weight,
                None,
            )  # a buffer: it moved and was cast with the layer

    def to_linear(self) -> nn.Linear:
        """The plain layer again, with the weight as it is now: the base's own, or the merged one."""
        kind = QuantizedLinear if quantized(self.weight) else nn.Linear
        linear = kind(self.in_features, self.out_features, self.bias is not None, device="meta")
        linear.weight, linear.bias = self.weight, self.bias
        return linear.train(self.training)

    @property
    def stack(self) -> tuple["LoRALinear", ...]:
        """This adapter and those beside it."""
        return (self, *self.beside)

    @property
    def state(self) -> list[float]:
        """The strength of each, 0 for those that are switched off."""
        return [layer.strength if layer.enabled else 0.0 for layer in self.stack]

    @property
    def adapter_parameters(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.named_parameters(recurse=False) if name not in ("weight", "bias")}

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, rank={self.rank}, k={self.k}, hybrid_rank={self.hybrid_rank}, alpha={self.alpha:g}"


class GraLoRALinear(LoRALinear):
    """GraLoRA (arXiv 2505.20355, section 3): the weight is cut into k x k blocks, and block (i, j) has a LoRA of rank r/k of its own.

    gralora_A [k, N/k, r]: the r columns of slice n are k groups of r/k, and group j feeds output block j.
    gralora_B [k, r, M/k]: the r rows of slice j are k groups of r/k, and group n comes from input block n.
    Parameters r(M + N) for every k; rank of delta up to k*r.  With hybrid_rank > 0 (Hybrid GraLoRA) a part of the total
    rank goes to a plain lora_A, lora_B beside the blocks; r above is then rank - hybrid_rank.
    """

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
        """As LoRALinear.from_linear; k=None takes choose_k().  Raises ValueError when rank, k or the sizes do not fit together."""
        self = cls._adopt(linear, rank, alpha, dropout, rslora)
        if not isinstance(hybrid_rank, int) or not 0 <= hybrid_rank < rank:
            raise ValueError(
                f"hybrid_rank is {hybrid_rank}; as a part of the rank {rank} it must be from 0 to {rank - 1}"
            )
        r, n, m = rank - hybrid_rank, self.in_features, self.out_features
        k = choose_k(r, n, m) if k is None else k
        if not isinstance(k, int) or k < 1 or n % k or m % k or r % k:
            raise ValueError(misfit(r, k, n, m, hybrid_rank))
        self.k, self.hybrid_rank = k, hybrid_rank
        like = dict(device=self.weight.device, dtype=torch.float32)
        self.gralora_A = nn.Parameter(torch.empty(k, n // k, r, **like))
        self.gralora_B = nn.Parameter(torch.zeros(k, r, m // k, **like))
        bound = math.sqrt(k / n)  # Kaiming-uniform(a = sqrt 5) for fan_in N/k
        nn.init.uniform_(self.gralora_A, -bound, bound)
        if hybrid_rank:
            self._add_lora(hybrid_rank)
        return self

    @property
    def factors(self) -> list[tuple[nn.Parameter, nn.Parameter]]:
        return [(self.gralora_A, self.gralora_B), *([(self.lora_A, self.lora_B)] if self.hybrid_rank else [])]

    def add_delta(self, weight: torch.Tensor, strength: float = 1.0) -> None:
        """As up @ down of low_rank(), block by block in their places: k^2 times fewer operations, since those factors are zero elsewhere."""
        k, (m, n), r = self.k, weight.shape, self.gralora_A.shape[2]
        A = self.gralora_A.detach().to(weight.dtype).view(k, n // k, k, r // k)
        B = self.gralora_B.detach().to(weight.dtype).view(k, k, r // k, m // k)
        blocks = weight.view(k, m // k, k, n // k)
        for j in range(k):
            for i in range(k):  # from slice i of the input to slice j of the output
                blocks[j, :, i].addmm_(B[j, i].T, A[i, :, j].T, alpha=strength * self.scale)
        if self.hybrid_rank:
            super().add_delta(weight, strength)

    @property
    def part_ranks(self) -> tuple[int, ...]:
        return (self.gralora_A.shape[2] // self.k, *((self.hybrid_rank,) if self.hybrid_rank else ()))


def active_ranks(
    timesteps: torch.Tensor, ranks: int, least: int, num_train_timesteps: int = 1000
) -> torch.Tensor:
    """Which ranks act at these timesteps: bool [samples, ranks], the first r(t) = floor((r - r_min)(T - t) / T) + r_min (arXiv 2507.05964, eq. 3)."""
    left = (num_train_timesteps - timesteps.long().view(-1, 1)).clamp(min=0)
    return (
        torch.arange(ranks, device=timesteps.device) < (ranks - least) * left // num_train_timesteps + least
    )


def scale_of(rank: int, alpha: float | None, rslora: bool) -> float:
    """alpha / rank, or alpha / sqrt(rank) with rslora; alpha defaults to rank."""
    return (rank if alpha is None else alpha) / (math.sqrt(rank) if rslora else rank)


def low_rank(factors: dict[str, torch.Tensor], scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(down [R, N], up [M, R]) of a layer with these tensors: GraLoRA's blocks, a plain LoRA, or the one beside the other."""
    parts = [block_low_rank(factors["gralora_A"], factors["gralora_B"])] if "gralora_A" in factors else []
    parts += [(factors["lora_A"], factors["lora_B"])] if "lora_A" in factors else []
    down, up = (
        parts[0]
        if len(parts) == 1
        else (torch.cat([d for d, _ in parts]), torch.cat([u for _, u in parts], 1))
    )
    return down, up * scale


def block_low_rank(gralora_A: torch.Tensor, gralora_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """gralora_A [k, N/k, r], gralora_B [k, r, M/k] -> (down [k*r, N], up [M, k*r]): the same delta as block-sparse factors, no error.

    Column (n, j, s) of `up` lives in output block j, row (n, j, s) of `down` in input block n; n, j < k and s < r/k.
    """
    k, n, r = gralora_A.shape
    m, g = gralora_B.shape[2], r // k
    down, up = gralora_A.new_zeros(k, k, g, k, n), gralora_B.new_zeros(k, m, k, k, g)
    for i in range(k):
        down[i, :, :, i] = gralora_A[i].view(n, k, g).permute(1, 2, 0)  # [j, s, N/k]
        up[i, :, :, i] = gralora_B[i].view(k, g, m).permute(2, 0, 1)  # [M/k, n, s]
    return down.view(k * r, k * n), up.view(k * m, k * r)


def truncate(
    down: torch.Tensor, up: torch.Tensor, rank: int | None = None, energy: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor, float, float]:
    """The best LoRA of this rank, or the smallest that keeps this part of |delta|^2: (down, up, |error|, |delta|), Frobenius norms.

    Eckart-Young on delta = up @ down through QR of the thin factors and an SVD of the R x R core, in float64; delta is never formed.
    """
    q_up, r_up = torch.linalg.qr(up.double())
    q_down, r_down = torch.linalg.qr(down.double().T)
    u, s, v = torch.linalg.svd(r_up @ r_down.T, full_matrices=False)
    kept = s.square().cumsum(0)
    if rank is None:
        rank = int((kept < energy * kept[-1] * (1 - 1e-14)).sum()) + 1
    rank = min(rank, len(s))
    root = s[:rank].sqrt()
    return (
        root[:, None] * (v[:rank] @ q_down.T),
        (q_up @ u[:, :rank]) * root,
        float(s[rank:].norm()),
        float(s.norm()),
    )


def choose_k(rank: int, in_features: int, out_features: int) -> int:
    """GraLoRA's rule: rank/k^2 about 8 (2 blocks per side at rank 16 to 32, 4 at 64 to 128), k dividing all three sizes."""
    fits = [k for k in range(1, rank + 1) if rank % k == 0 and in_features % k == 0 and out_features % k == 0]
    return min(fits, key=lambda k: (round(abs(math.log2(rank / k**2 / 8)), 6), -k))


def misfit(r: int, k: int, n: int, m: int, hybrid_rank: int) -> str:
    if not isinstance(k, int) or k < 1:
        return f"k is {k}; it must be a whole number of at least 1"
    if n % k or m % k:
        fits = [d for d in range(1, min(n, m, 64) + 1) if n % d == 0 and m % d == 0]
        return f"k {k} does not divide the layer's sizes {n} -> {m}; these do: {', '.join(map(str, fits))}"
    low, of = (
        r // k * k,
        f"rank {r}" if not hybrid_rank else f"rank {r + hybrid_rank} less hybrid_rank {hybrid_rank}, {r},",
    )
    fits = " and ".join(str(v + hybrid_rank) for v in (low, low + k) if v > 0)
    return f"{of} is not divisible by k {k}; the nearest ranks that fit are {fits}, or choose another k"
