"""Options of the adapter."""

from dataclasses import dataclass

from gralora_diffusion.checks import adapter_problems, refuse
from gralora_diffusion.config.choices import ALPHA, METHODS, ORIGINS, RANK
from gralora_diffusion.config.groups import adapter
from gralora_diffusion.options import check_needs, check_rules


@dataclass(frozen=True)
class AdapterConfig:
    """What is trained: the kind of adapter, its size, and which layers get one."""

    method: str = adapter(
        "gralora",
        "kind of adapter",
        label="Method",
        hint="Kind of adapter; gralora suits most subjects and styles",
        flags=("--adapter",),
        choices=METHODS,
    )
    rank: int = adapter(
        64,
        "total rank, --hybrid_rank included",
        label="Rank",
        hint="Capacity of the adapter; higher = larger file",
        flags=RANK,
        at_least=1,
    )
    k: int | None = adapter(
        None,
        "GraLoRA's blocks per side; by default rank/k^2 is about 8",
        label="GraLoRA k (blocks per side)",
        flags=("--gralora_k",),
        at_least=1,
    )
    alpha: float | None = adapter(
        None,
        "scale is alpha/rank; by default alpha = rank, a scale of 1",
        label="Alpha",
        flags=ALPHA,
        above=0,
        at_most=1e6,
    )
    hybrid_rank: int = adapter(
        0, "part of the rank for a plain LoRA beside GraLoRA's blocks", label="Hybrid rank", at_least=0
    )
    dropout: float = adapter(
        0.0,
        "dropout on the adapter's input",
        label="Adapter dropout (share)",
        flags=("--lora_dropout",),
        at_least=0,
        at_most=0.99,
    )
    rslora: bool = adapter(False, "scale by alpha/sqrt(rank) instead of alpha/rank", label="rsLoRA scale")
    targets: str = adapter(
        "attention",
        "attention, attention+ff, attention+ff+conv, all-linear, or a regular expression on layer names",
        label="Layers to adapt",
    )
    rank_pattern: dict = adapter(
        {},
        'other ranks for some layers, as JSON: {"regular expression": rank}',
        label="Ranks by layer (JSON)",
    )
    k_pattern: dict = adapter(
        {}, 'other k for some layers, as JSON: {"regular expression": k}', label="k by layer (JSON)"
    )
    tlora: bool = adapter(
        False, "T-LoRA: fewer active ranks in the UNet at noisier timesteps", label="T-LoRA"
    )
    tlora_min_rank: int | None = adapter(
        None,
        "T-LoRA's rank at the noisiest timestep; by default half the rank",
        label="T-LoRA lowest rank",
        at_least=1,
        needs={"tlora": True},
    )

    orthogonal_start: str | None = adapter(
        None,
        "start with orthogonal rows in A: random (the default for ortholora), or base, the directions that "
        "the base uses least",
        label="Orthogonal start",
        blank="that of the method",
        choices=ORIGINS,
    )

    def __post_init__(self):
        check_rules(self)
        check_needs(self)
        refuse(adapter_problems(self))

    @staticmethod
    def upgraded(values: dict) -> dict:
        return values | {"method": "lora"} if values.get("method") == "gora" else values  # an alias since
