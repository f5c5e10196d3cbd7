"""What the tensors of one layer mean: a plain LoRA, or another kind's change of weight and bias."""

import math
from typing import NamedTuple

from gralora_diffusion.adapters.deltas import Delta, FullDelta, LowRankDelta, Replacement
from gralora_diffusion.adapters.dora import DoRA
from gralora_diffusion.adapters.low_rank import scale_of
from gralora_diffusion.adapters.lycoris import IA3, GLoRA, LoHa, LoKr
from gralora_diffusion.adapters.orthogonal import BOFT, OFT
from gralora_diffusion.formats.adapter_state import Factors
from gralora_diffusion.formats.check import check_tensors
from gralora_diffusion.formats.conv_factors import with_kernel
from gralora_diffusion.formats.layer_names import kernel_by_name
from gralora_diffusion.formats.patterns import pattern_value
from gralora_diffusion.options import ConfigError

DELTAS: tuple[type[Delta], ...] = (
    LowRankDelta,
    LoHa,
    LoKr,
    GLoRA,
    OFT,
    BOFT,
    IA3,
    FullDelta,
    Replacement,
)
LARGEST_WEIGHT = 2**27  # numbers; the largest of SDXL has 2**25
BESIDE = {"alpha", "scalar", "dora_scale", "magnitude", "lora_bias", "diff_b"}  # the tensors of any kind


class LayerParts(NamedTuple):
    """factors: of a plain LoRA of scale 1; weight, bias: the changes of other kinds."""

    factors: Factors | None = None
    weight: Delta | None = None
    bias: Delta | None = None


def parts_of(leaves: Factors, config: dict | None, component: str, path: str, where: str) -> LayerParts:
    """leaves: {our name of the tensor: tensor}; config: PEFT's, where there is one.

    Raises ConfigError for tensors that are no whole layer of a known kind, that do not fit each other, or
    that are not finite.
    """
    check_tensors(leaves, where)
    own = {name: tensor for name, tensor in leaves.items() if name not in BESIDE}
    alpha = effective_alpha(leaves, own, config, path, where)
    bias = bias_of(leaves, own, alpha)
    if not own and bias is not None:
        return LayerParts(bias=bias)
    weight = delta_of(own, alpha, kernel_by_name(component, path), where)
    if config is not None and config.get("use_dora") and "magnitude" not in leaves:
        raise ConfigError(f"{where}: the header says use_dora, and the layer has no magnitude")
    if "scalar" in leaves:
        raise ConfigError(f"{where}: has a `scalar`, which only a trainer's own checkpoint holds; export it")
    if "magnitude" in leaves or "dora_scale" in leaves:
        weight = decomposed(weight, leaves, where)
    elif isinstance(weight, LowRankDelta) and bias is None:
        return LayerParts(factors=plain_lora(weight, kernel_by_name(component, path)))
    return LayerParts(weight=weight, bias=bias)


def delta_of(own: Factors, alpha: float | None, kernel: tuple[int, int] | None, where: str) -> Delta:
    """The change that these tensors are."""
    kind = next((kind for kind in DELTAS if kind.matches(own)), None)
    if kind is None:
        held = ", ".join(sorted(own)) or "no tensor of a weight"
        likely = [kind for kind in DELTAS if set(own) & (kind.NEEDED | kind.OPTIONAL)]
        needs = [
            f"a {kind.NAME} layer needs {', '.join(sorted(kind.NEEDED))}" for kind in likely if kind.NEEDED
        ]
        raise ConfigError(
            f"{where}: holds {held}; {' or '.join(needs) or 'that is no layer of a known kind'}"
        )
    try:
        delta = kind(own, alpha)
        if not kind.needs_base:
            change = delta.to("meta").delta()
            if kernel is None and change.ndim > 2:
                raise ValueError("they are of a convolution")
            if change.numel() > LARGEST_WEIGHT or 0 in change.shape:
                raise ValueError(f"they are for a weight of {list(change.shape)}")
        if delta.rank is not None and delta.rank < 1:
            raise ValueError("their rank is 0")
    except (ValueError, IndexError, RuntimeError) as error:
        shapes = ", ".join(f"{name} {list(t.shape)}" for name, t in own.items())
        reason = f" ({error})" if isinstance(error, ValueError) else ""
        raise ConfigError(f"{where}: its tensors do not fit each other{reason}: {shapes}") from None
    return delta


def effective_alpha(
    leaves: Factors, own: Factors, config: dict | None, path: str, where: str
) -> float | None:
    """alpha of the scale alpha/rank: by PEFT's config where there is one, else the file's, else None."""
    alpha = None
    if "alpha" in leaves:
        if leaves["alpha"].numel() != 1:
            raise ConfigError(f"{where}: its alpha is not one number")
        alpha = leaves["alpha"].item()
    if config is not None:
        name = "lora_alpha" if "lora_alpha" in config else "alpha"
        header_rank = pattern_value(config.get("rank_pattern"), path, config.get("r"))
        alpha = pattern_value(config.get("alpha_pattern"), path, config.get(name))
        if type(header_rank) is not int or header_rank < 1:
            raise ConfigError(f"{where}: the header says rank {header_rank!r}; it must be a positive number")
        if "lora_A" in own and header_rank != own["lora_A"].shape[0]:
            found = own["lora_A"].shape[0]
            raise ConfigError(f"{where}: the header says rank {header_rank}, and the tensors have {found}")
    if alpha is not None and (not isinstance(alpha, int | float) or not math.isfinite(alpha)):
        raise ConfigError(f"{where}: its alpha is {alpha!r}; it must be a number")
    if config is not None and alpha is not None and config.get("use_rslora"):
        alpha = scale_of(header_rank, alpha, True) * header_rank
    return alpha


def bias_of(leaves: Factors, own: Factors, alpha: float | None) -> Delta | None:
    """diff_b as it is; PEFT's bias of lora_B is scaled as the product is."""
    if "lora_bias" in leaves and "lora_A" in own:
        rank = own["lora_A"].shape[0]
        scale = 1.0 if alpha is None else alpha / rank
        return FullDelta(dict(diff=leaves["lora_bias"].float() * scale))
    return FullDelta(dict(diff=leaves["diff_b"])) if "diff_b" in leaves else None


def decomposed(inner: Delta, leaves: Factors, where: str) -> DoRA:
    """The DoRA of a delta; dora_scale is [M, 1, ...], or [1, N, ...] of the inputs, PEFT's magnitude of M."""
    if inner.needs_base:
        raise ConfigError(f"{where}: a DoRA of {inner.NAME} is not known")
    if "magnitude" in leaves:
        return DoRA(inner, leaves["magnitude"].flatten())
    magnitude = leaves["dora_scale"]
    on_inputs = magnitude.ndim > 1 and magnitude.shape[0] == 1 and magnitude.shape[1] > 1
    return DoRA(inner, magnitude.flatten(), on_inputs)


def plain_lora(delta: LowRankDelta, kernel: tuple[int, int] | None) -> Factors:
    """lora_A [r, N] or [r, N, kh, kw], lora_B [M, r] of scale 1 in fp32 (fp64 stays), without padding.

    Padding: the rows of zeros that other tools need to make all ranks equal.
    """
    down, up = delta.pair()
    used = ((down != 0).any(1) | (up != 0).any(0)).nonzero()
    rank = int(used.max()) + 1 if len(used) else 1
    down = down[:rank].contiguous()
    return with_kernel(dict(lora_A=down, lora_B=up[:, :rank].contiguous()), kernel)
