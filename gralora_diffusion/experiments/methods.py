"""The table of methods that `gralora compare` knows: each with what it needs to be built, sized and tuned.

Needs no torch, so that --help can list it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from gralora_diffusion.experiments import sizes

PUBLISHED_GAMMA = 0.05  # GoRA's, as adapters.gora.GAMMA
LORAPLUS_RATIO = 16.0  # LoRA+ (arXiv 2402.12354): lr(B) = 16 lr(A)


def lora_options(size: int, seed: int) -> dict:
    return dict(r=size, lora_alpha=size)


def vera_options(size: int, seed: int) -> dict:
    return dict(r=size, projection_prng_key=seed)


def fourierft_options(size: int, seed: int) -> dict:
    return dict(n_frequency=size, init_weights=True, random_loc_seed=seed)


def lokr_options(size: int, seed: int) -> dict:
    return dict(r=size, alpha=size, decompose_factor=sizes.LOKR_FACTOR)


def loha_options(size: int, seed: int) -> dict:
    return dict(r=size, alpha=size)


def oft_options(size: int, seed: int) -> dict:
    return dict(r=0, oft_block_size=size)


@dataclass(frozen=True)
class Method:
    """One way to adapt layers.

    build: which of adapt.BUILDERS puts it into a model.
    count: (size, shapes) -> trainable parameters.  sizes_for: (shapes, k) -> sizes that fit these layers.
    has_k: --k applies to it.  any_budget: it trains what it trains, whatever the budget.
    rates_of: the method whose learning rate it takes, where that is not its own.
    adapter: options of our AdapterConfig; hybrid: half of the rank is LoRA's.
    gradients: options of TrainConfig for a gradient pass that chooses ranks or start.
    peft: PEFT's config class; peft_options: (size, seed) -> its options, and fixed ones.
    inputs_start: its start comes from the layers' inputs.  lr_ratio: of B to A.
    """

    build: str
    count: Callable[[int, sizes.Shapes], int] = sizes.per_layer(sizes.lora_layer)
    sizes_for: Callable[[sizes.Shapes, int | None], list[int]] = sizes.ranks
    has_k: bool = False
    any_budget: bool = False
    rates_of: str | None = None
    adapter: dict = field(default_factory=dict)
    hybrid: bool = False
    gradients: dict | None = None
    peft: str | None = None
    peft_options: Callable[[int, int], dict] = lora_options
    fixed_options: dict = field(default_factory=dict)
    inputs_start: bool = False
    lr_ratio: float = 1.0

    @property
    def ours(self) -> bool:
        return self.build == "ours"


def ours(kind: str, tlora: bool = False, **more) -> Method:
    return Method(build="ours", adapter=dict(method=kind, tlora=tlora), **more)


def gora(**gradients) -> Method:
    """LoRA with GoRA's scale; ranks or start from gradients."""
    adapter = dict(method="lora", rslora=True, alpha=16.0)
    return Method(build="ours", adapter=adapter, gradients=ALL_BATCHES | gradients)


def gralora_from_gradients(**gradients) -> Method:
    """The controls and halves of gralora-gora take the rate of the whole."""
    adapter = dict(method="gralora")
    gradients = ALL_BATCHES | gradients
    return Method(build="ours", adapter=adapter, gradients=gradients, rates_of="gralora-gora")


def lora(**options) -> Method:
    """A LoRA of PEFT's, with alpha = rank."""
    return Method(build="peft", peft="LoraConfig", fixed_options=options)


# As many batches for each method: where controls reorder importances, ranks settle later.
ALL_BATCHES = dict(gora_tolerance=0.0)

METHODS = {
    "gralora": ours("gralora", has_k=True, sizes_for=sizes.gralora_ranks),
    "hybrid": ours("gralora", has_k=True, sizes_for=sizes.hybrid_ranks, hybrid=True),
    "our-lora": ours("lora"),
    "t-lora": ours("lora", tlora=True),
    "t-gralora": ours("gralora", tlora=True, has_k=True, sizes_for=sizes.gralora_ranks),
    # as published, but for the exact budget
    "gora": gora(allocate="gora", gora_init="random", gora_gamma=PUBLISHED_GAMMA),
    "gora-ours": gora(allocate="gora", gora_init="svd"),
    "gralora-gora": gralora_from_gradients(allocate="gora", gora_init="svd"),
    "gralora-energy": gralora_from_gradients(allocate="energy", gora_init="svd"),
    "gralora-ralora": gralora_from_gradients(allocate="ralora", gora_init="svd"),
    "gralora-random": gralora_from_gradients(allocate="random", gora_init="svd"),
    "gralora-inverse": gralora_from_gradients(allocate="inverse", gora_init="svd"),
    "gralora-ranks": gralora_from_gradients(allocate="gora", gora_init="zero"),  # the allocation alone
    "gralora-start": gralora_from_gradients(allocate="uniform", gora_init="svd"),  # the start alone
    "lora": lora(),
    "rslora": lora(use_rslora=True),
    "lora+": Method(build="peft", peft="LoraConfig", lr_ratio=LORAPLUS_RATIO),
    "dora": Method(
        build="peft",
        peft="LoraConfig",
        fixed_options=dict(use_dora=True),
        count=sizes.per_layer(sizes.dora_layer),
    ),
    "pissa": lora(init_lora_weights="pissa"),
    "olora": lora(init_lora_weights="olora"),
    "eva": Method(
        build="peft",
        peft="LoraConfig",
        fixed_options=dict(init_lora_weights="eva"),
        inputs_start=True,
    ),
    "vera": Method(
        build="peft",
        peft="VeraConfig",
        peft_options=vera_options,
        count=sizes.per_layer(sizes.vera_layer),
        sizes_for=sizes.vera_dimensions,
    ),
    "fourierft": Method(
        build="peft",
        peft="FourierFTConfig",
        peft_options=fourierft_options,
        count=sizes.per_layer(sizes.fourierft_layer),
        sizes_for=sizes.fourierft_frequencies,
    ),
    "lokr": Method(
        build="peft",
        peft="LoKrConfig",
        peft_options=lokr_options,
        count=sizes.per_layer(sizes.lokr_layer),
    ),
    "loha": Method(
        build="peft",
        peft="LoHaConfig",
        peft_options=loha_options,
        count=sizes.per_layer(sizes.loha_layer),
    ),
    "oft": Method(
        build="peft",
        peft="OFTConfig",
        peft_options=oft_options,
        count=sizes.per_layer(sizes.oft_layer),
        sizes_for=sizes.oft_blocks,
    ),
    "mora": Method(build="mora", count=sizes.per_layer(sizes.mora_layer), sizes_for=sizes.mora_ranks),
    "rasa": Method(build="rasa", count=sizes.rasa, sizes_for=sizes.rasa_ranks),
    "full": Method(
        build="whole",
        count=sizes.per_layer(sizes.whole_layer),
        sizes_for=sizes.no_sizes,
        any_budget=True,
    ),
}
WITH_K = [name for name, method in METHODS.items() if method.has_k]
OURS = [name for name, method in METHODS.items() if method.ours]


def tuned_as(name: str) -> str:
    """The method whose learning rate this one takes."""
    return METHODS[name].rates_of or name
